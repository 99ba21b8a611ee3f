import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from basenet.cli.main import run
from basenet.control.surface import FenceState, ShardState
from basenet.units import ShardId
from tests.fakes.served import served_in_thread
from tests.fakes.surface import FakeSurface, make_shard


def program() -> list[str]:
    """Return the program as an operator starts it."""
    return [sys.executable, "-c", "from basenet.cli.main import main; main()", "status"]


def make_surface() -> FakeSurface:
    stopped = make_shard("orders", state=ShardState.STOPPED, error="page 7 of orders.db is torn")
    surface = FakeSurface(make_shard("app"), stopped)
    surface.ready, surface.reasons = False, ("shard orders has stopped",)
    return surface


def test_a_pipe_gets_plain_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for the node, one a shard, and what is wrong; no escape codes."""
    with served_in_thread(make_surface(), tmp_path):
        assert run(["status", "--data-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "node-a  standalone  not ready  up 1 min 0 s  archive file:///archive"
    assert lines[1].split() == [
        *("SHARD", "STATE", "CAPTURED", "FINAL", "ARCHIVED", "LAG", "LAG", "BYTES", "LAG", "AGE"),
        *("WAL", "SNAPSHOT", "IN"),
    ]
    row = "app capturing 11 11 9 2 8.0 KiB 350 ms 121 KiB 1 h 0 min"
    assert lines[2].split() == row.split()
    assert lines[4:] == ["! shard orders has stopped", "! orders: page 7 of orders.db is torn"]


def test_what_is_wrong_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason why the node is not ready holds the shard's own sentence already."""
    surface = make_surface()
    surface.reasons = ("shard orders is stopped: page 7 of orders.db is torn",)
    with served_in_thread(surface, tmp_path):
        assert run(["status", "--data-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4:] == ["! shard orders is stopped: page 7 of orders.db is torn"]


def test_json_is_the_daemons_own_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exact numbers under the names of the facts."""
    with served_in_thread(make_surface(), tmp_path):
        assert run(["status", "--json", "--data-dir", str(tmp_path)]) == 0
        document = json.loads(capsys.readouterr().out)
        assert run(["status", "--json", "--shard", "app", "--data-dir", str(tmp_path)]) == 0
        one = json.loads(capsys.readouterr().out)
    assert document["ready"] is False
    assert document["shards"][0] == one
    assert (one["lag_commits"], one["lag_bytes"], one["lag_ms"]) == (2, 8192, 350.0)
    assert one["next_snapshot_ns"] == 1_795_003_600_000_000_000


def test_one_shard_is_shown_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Facts that have no column stand here, and an absent one is a dash."""
    surface = FakeSurface(make_shard(last_archived_ns=None))
    with served_in_thread(surface, tmp_path):
        assert run(["status", "--shard", "app", "--data-dir", str(tmp_path)]) == 0
    facts = dict(
        line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line
    )
    assert facts["captured"].strip() == "seq 11, commit 10"
    assert facts["last archived"].strip() == "-"
    assert facts["last restore point"].strip() == "2026-11-18T11:06:39.500Z"
    assert facts["worst-case loss"].strip() == "360 ms"


def test_a_failed_proof_is_not_dated_by_the_one_that_succeeded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """When the archive was proven last, and what became of the last attempt, are two facts."""
    proven_ns = 1_795_000_000_000_000_000
    shard = make_shard(proof="failed: a part is gone", proof_verified_ns=proven_ns)
    with served_in_thread(FakeSurface(shard), tmp_path):
        assert run(["status", "--shard", "app", "--data-dir", str(tmp_path)]) == 0
    facts = dict(
        line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line
    )
    assert facts["last proof"].strip() == "failed: a part is gone"
    assert facts["last proven"].strip() == "2026-11-18T11:06:40.000Z"


@pytest.mark.parametrize(
    ("step_s", "words"),
    [(0.0, None), (30.0, None), (3.2e8, "set forward by 3703 days"), (-7200.0, "back by 2:00:00")],
)
def test_a_clock_that_was_set_is_told_with_what_it_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], step_s: float, words: str | None
) -> None:
    """Nothing waits for it, so the node is ready all the same."""
    surface = FakeSurface(make_shard(retention="ok"))
    surface.clock_step_s = step_s
    with served_in_thread(surface, tmp_path):
        assert run(["status", "--data-dir", str(tmp_path)]) == 0
        told = "".join(capsys.readouterr())
        assert run(["status", "--shard", "app", "--data-dir", str(tmp_path)]) == 0
    assert ("the clock of this host was set" in told) == (words is not None)
    assert words is None or words in told
    assert words is None or "nothing is deleted by it" in told
    assert re.search("^retention +ok$", capsys.readouterr().out, re.MULTILINE)


class OneOfMany(FakeSurface):
    """Tells of a shard, and must not be asked for all of them."""

    def shard_ids(self) -> list[ShardId]:
        raise AssertionError("all shards were asked for")


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_one_shard_is_asked_for_alone(tmp_path: Path, form: list[str]) -> None:
    """The others may be thousands."""
    with served_in_thread(OneOfMany(make_shard()), tmp_path):
        assert run(["status", "--shard", "app", "--data-dir", str(tmp_path), *form]) == 0


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({}, "-"),
        ({"fence": FenceState.OPEN}, "open"),
        (
            {"fence": FenceState.CLOSED, "is_read_only": True},
            "closed, the file is marked read-only",
        ),
    ],
)
def test_the_fence_and_its_mark_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], facts: dict[str, Any], told: str
) -> None:
    """Whether it is the lock or the file itself that keeps an application from writing."""
    with served_in_thread(FakeSurface(make_shard(**facts)), tmp_path):
        assert run(["status", "--shard", "app", "--data-dir", str(tmp_path)]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["fence"].strip() == told


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", [[], ["--shard", "app"], ["--json"]])
def test_a_closed_standard_output_is_one_that_nobody_reads(
    tmp_path: Path, arguments: list[str], closed: str
) -> None:
    """No traceback, and nothing of ours is written to what took its descriptor."""
    command = [*program(), "--data-dir", str(tmp_path), *arguments]
    with served_in_thread(make_surface(), tmp_path):
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *command],
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_unknown_shard_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not found, in the daemon's words."""
    with served_in_thread(make_surface(), tmp_path):
        assert run(["status", "--shard", "nope", "--data-dir", str(tmp_path)]) == 3
    assert "there is no shard 'nope' here" in capsys.readouterr().err


def test_no_daemon_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence with the place that was tried and what to do."""
    monkeypatch.setenv("BASE_DATA_DIR", str(tmp_path))
    assert run(["status"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"basenet: no basenet daemon answers at {tmp_path}/basenet.sock; start one with "
        "`basenet serve`, or say with --data-dir or --url where it is\n"
    )


def test_the_daemon_is_found_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for `serve`, so that both can be started from one file of settings."""
    (tmp_path / ".basenet").mkdir()
    monkeypatch.delenv("BASE_DATA_DIR", raising=False)
    monkeypatch.setenv("BASE_SHARDS", f"{tmp_path}/app.db")
    with served_in_thread(make_surface(), tmp_path / ".basenet"):
        assert run(["status"]) == 0
    assert "node-a" in capsys.readouterr().out


def test_the_daemon_is_found_by_its_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From another host there is no socket."""
    with served_in_thread(make_surface(), tmp_path) as listeners:
        assert run(["status", "--url", f"http://{listeners.address}"]) == 0
    assert "node-a" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["80", "160"])
def test_a_terminal_gets_a_drawn_table(tmp_path: Path, columns: str) -> None:
    """The same words with colours, read from a real pseudo-terminal; ids and states are whole."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": columns}
    with served_in_thread(make_surface(), tmp_path):
        done = subprocess.run(
            [*program(), "--data-dir", str(tmp_path)],
            stdout=slave,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=30,
            check=False,
        )
    os.close(slave)
    drawn = os.read(master, 65536).decode()
    os.close(master)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "\x1b[" in drawn
    for word in ("node-a", "capturing", "stopped", "page 7 of orders.db is torn"):
        assert word in drawn


@pytest.mark.parametrize("is_json", [False, True])
def test_a_watch_repeats_until_it_is_interrupted(tmp_path: Path, *, is_json: bool) -> None:
    """It shows again, goes on while the daemon is away, and an interrupt is its good end."""
    options = ["--watch", "--data-dir", str(tmp_path), *(["--json"] if is_json else [])]
    with subprocess.Popen(
        [*program(), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        assert "no basenet daemon answers" in watch.stderr.readline()
        with served_in_thread(make_surface(), tmp_path):
            lines = [watch.stdout.readline() for _ in range(2 if is_json else 8)]
        watch.send_signal(signal.SIGINT)
        watch.communicate(timeout=10)
        assert watch.returncode == 0
    if is_json:
        assert [json.loads(line)["node_id"] for line in lines] == ["node-a", "node-a"]
    else:
        assert sum(line.startswith("node-a") for line in lines) == 2
