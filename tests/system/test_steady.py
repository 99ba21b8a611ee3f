"""Everything that an operator does, beside an application that never rests.

At many paces and with every kind of cluster: ``python -m basenet.testing.steadyload``.
"""

from pathlib import Path

import pytest

from basenet.testing.steadyload import run_trial

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def test_nothing_waits_for_a_moment_that_a_steady_application_never_leaves(tmp_path: Path) -> None:
    """A commit each 10 ms: about as long as it takes to settle one."""
    trial = run_trial("one", 10.0, 1, tmp_path)
    assert trial.faults == []
    assert {"join", "add", "catch up", "votes again", "transfer", "force"} <= set(trial.times)
