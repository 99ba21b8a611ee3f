"""The row of the engine: what it measures did happen."""

from pathlib import Path

from basenet.testing.bench.contenders import BASENET
from basenet.testing.bench.context import Context
from basenet.testing.bench.rows.engine import engine


def test_the_row_makes_frames_final_and_leaves_idle_shards_alone(tmp_path: Path) -> None:
    """Both fault models and batches; idle shards hold their leases without a timer."""
    *rates, idle = engine(Context(root=tmp_path, is_quick=True, pairs=1))
    assert len(rates) == 4
    for line in rates:
        (facts,) = line.facts["rounds"]
        assert facts["frames_per_second"] > 0
        assert "frames/s" in line.answers[BASENET]
    assert idle.facts["waiting"] == 0
    assert idle.facts["leases"] == 100
    assert idle.facts["cpu_percent"] < 5
