"""What happens at the named places of the program, and that nothing does unless it was armed."""

import time
from pathlib import Path

import pytest

from basenet import failpoints
from basenet.errors import UsageError


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The sleeps that a test brought about; nothing is armed before it."""
    sleeps: list[float] = []
    monkeypatch.setattr(failpoints, "_armed", {})
    monkeypatch.setattr(time, "sleep", sleeps.append)
    return sleeps


def test_nothing_happens_where_nothing_is_armed(slept: list[float]) -> None:
    failpoints.reach(failpoints.SYNC)
    assert slept == []


def test_everything_durable_can_take_longer(slept: list[float]) -> None:
    failpoints.arm([("sync", "sleep:25")])
    failpoints.reach(failpoints.SYNC)
    assert slept == [0.025]


def test_a_disk_can_become_slow_and_fast_again(slept: list[float], tmp_path: Path) -> None:
    """The file is read each time; none, and one that says nothing, is no slowness."""
    path = tmp_path / "slowness"
    failpoints.arm([("sync", f"sleep:{path}")])
    for text in ("", "7", "what?", "900000"):
        path.write_text(text)
        failpoints.reach(failpoints.SYNC)
    path.unlink()
    failpoints.reach(failpoints.SYNC)
    assert slept == [0.007, 60.0]


@pytest.mark.parametrize(
    ("name", "action"),
    [("elsewhere", "sleep:1"), ("sync", "end"), ("sync", "sleep:-1"), ("sync", "sleep:60001")],
)
def test_what_is_not_known_is_refused(name: str, action: str) -> None:
    with pytest.raises(UsageError, match="BASE_FAILPOINTS: "):
        failpoints.arm([(name, action)])
