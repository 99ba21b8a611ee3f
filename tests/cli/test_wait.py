import json
import time
from pathlib import Path

import pytest

from basenet.cli.main import run
from tests.fakes.served import served_in_thread
from tests.fakes.surface import LINEAGE, FakeSurface, make_shard


def test_a_commit_that_is_safe_is_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 and one line; the only shard need not be named."""
    surface = FakeSurface(make_shard())
    with served_in_thread(surface, tmp_path):
        assert run(["wait", "--seq", "9", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "shard app is archived up to seq 9\n"
    assert surface.waits == [("app", 9, "archived", 30.0)]


def test_the_present_commit_is_asked_for_by_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Level and time-out go along; JSON tells the seq that now turned out to be."""
    surface = FakeSurface(make_shard("a"), make_shard("b"))
    options = ["--now", "--shard", "b", "--level", "final", "--timeout", "1m30s", "--json"]
    with served_in_thread(surface, tmp_path):
        assert run(["wait", *options, "--data-dir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "shard": "b",
        "seq": 11,
        "lineage": LINEAGE,
        "level": "final",
        "archived_seq": 11,
        "final_seq": 11,
        "generation": None,
        "cookie": "00112233-11",
    }
    assert surface.waits == [("b", None, "final", 90.0)]


def test_a_wait_gives_up_in_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and the daemon's sentence, soon after the time-out."""
    began = time.monotonic()
    with served_in_thread(FakeSurface(make_shard()), tmp_path):
        options = ["--seq", "99", "--timeout", "50ms"]
        assert run(["wait", *options, "--data-dir", str(tmp_path)]) == 1
    assert "was not archived up to 99 within 0.05 s" in capsys.readouterr().err
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--seq", "1", "--now"],
        ["--seq", "-1"],
        ["--seq", "x"],
        ["--now", "--level", "safe"],
        ["--now", "--timeout", "soon"],
        ["--now", "--shard", "a", "--timeout", "2h"],
    ],
)
def test_what_cannot_be_meant_ends_with_2(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, and nothing is waited for."""
    surface = FakeSurface(make_shard("a"))
    with served_in_thread(surface, tmp_path):
        assert run(["wait", *options, "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert surface.waits == []


def test_one_of_several_shards_must_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence lists them, so the command can be repeated."""
    surface = FakeSurface(make_shard("a"), make_shard("b"))
    with served_in_thread(surface, tmp_path):
        assert run(["wait", "--now", "--data-dir", str(tmp_path)]) == 2
    assert "2 shards: name one of a, b by --shard" in capsys.readouterr().err


def test_a_daemon_without_shards_has_nothing_to_wait_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not found, and why that may be."""
    with served_in_thread(FakeSurface(), tmp_path):
        assert run(["wait", "--now", "--data-dir", str(tmp_path)]) == 3
    assert "serves no shard yet" in capsys.readouterr().err


def test_a_shard_that_is_not_there_ends_with_3(tmp_path: Path) -> None:
    """A misspelt shard is not a commit that is late."""
    with served_in_thread(FakeSurface(make_shard()), tmp_path):
        options = ["--now", "--shard", "ap"]
        assert run(["wait", *options, "--data-dir", str(tmp_path)]) == 3


def test_a_generation_is_printed_before_and_named_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that has passed ends with 4: what was committed in it may be lost."""
    surface = FakeSurface(make_shard(generation="0011.aabb.1"))
    place = ["--data-dir", str(tmp_path)]
    with served_in_thread(surface, tmp_path):
        assert run(["wait", "--print-generation", *place]) == 0
        generation = capsys.readouterr().out.strip()
        assert generation == "0011.aabb.1"
        waited = ["wait", "--now", "--level", "final", "--generation", generation, *place]
        assert run(waited) == 0
        surface.shards[0] = make_shard(generation="0011.aabb.2")
        assert run(waited) == 4
    assert "has passed" in capsys.readouterr().err
    assert surface.generations == [generation, generation]


@pytest.mark.parametrize(
    "options",
    [
        ["--print-generation", "--now"],
        ["--print-generation", "--seq", "4"],
        ["--seq", "4", "--generation", "0011.aabb.1"],
    ],
)
def test_a_generation_is_of_the_commits_of_this_moment(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It says nothing of a seq, and to print it is no wait."""
    surface = FakeSurface(make_shard())
    with served_in_thread(surface, tmp_path):
        assert run(["wait", *options, "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert surface.waits == []
