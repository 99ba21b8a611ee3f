"""`basenet serve` in a cluster: the process that was started becomes the guardian."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from basenet.guardian import become
from basenet.guardian.handover import Handover, is_readable
from basenet.guardian.protocol import GUARDIAN_FD
from basenet.guardian.report import report


def serve(
    folder: Path, *arguments: str, **environment: str
) -> tuple["subprocess.CompletedProcess[str]", list[str]]:
    """Run `basenet serve` in a cluster to its end; return it and the guardian's events."""
    inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
    cluster = {"BASE_NETWORK": "Quasar ", "BASE_DATA_DIR": str(folder / "data")}
    done = subprocess.run(
        [sys.executable, "-m", "basenet", "serve", *arguments],
        env=inherited | cluster | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    lines = [line for line in done.stderr.splitlines() if '"process": "guardian"' in line]
    return done, [json.loads(line)["event"] for line in lines]


def test_a_configuration_that_cannot_be_used_is_the_daemons_to_say(tmp_path: Path) -> None:
    """The guardian knows BASE_NETWORK only; sentence and code are those of any other node."""
    done, events = serve(tmp_path, "app.db", BASE_REPLICATION="zero")
    assert done.returncode == 2
    assert "BASE_REPLICATION" in done.stderr
    assert events == ["daemon_started"]


@pytest.mark.system
def test_words_of_the_command_line_reach_the_daemon_as_they_are(tmp_path: Path) -> None:
    """A path that begins with a hyphen is none of the guardian's options."""
    done, events = serve(tmp_path, "--", "--help", "ftp://nowhere", BASE_REPLICATION="zero")
    assert done.returncode == 2
    assert "'ftp://nowhere' is not an archive" in done.stderr
    assert events == ["daemon_started"]


def test_a_command_that_cannot_be_split_ends_before_anything_starts(tmp_path: Path) -> None:
    """`--exec` is the guardian's own."""
    done, events = serve(tmp_path, "app.db", "--exec", "sh -c 'x")
    assert (done.returncode, events) == (2, [])
    assert done.stderr.startswith('basenet: --exec "sh -c \'x" cannot be split into words')


@pytest.mark.parametrize(
    ("environment", "is_wanted"),
    [
        ({"BASE_NETWORK": "quasar"}, True),
        ({"BASE_NETWORK": " QUASAR"}, True),
        ({"BASE_NETWORK": "standalone"}, False),
        ({"BASE_NETWORK": "quasars"}, False),
        ({}, False),
        ({"BASE_NETWORK": "quasar", GUARDIAN_FD: "7"}, False),
    ],
)
def test_only_a_cluster_has_a_guardian(environment: dict[str, str], *, is_wanted: bool) -> None:
    """And the daemon that it starts does not become one again."""
    assert become.is_wanted(environment) is is_wanted


@pytest.mark.system
def test_the_present_directory_is_searched_for_modules_only_if_it_was(tmp_path: Path) -> None:
    """A file beside the database must not become part of the program."""
    (tmp_path / "selectors.py").write_text("raise SystemExit('a stranger was imported')")
    code = "from basenet.cli.main import main; main(['serve', 'app.db'])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"PATH": os.environ["PATH"], "BASE_NETWORK": "quasar", "BASE_REPLICATION": "zero"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "stranger" not in done.stderr


def test_a_log_that_nobody_reads_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that would have to wait is dropped: the next fence must close at its time."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 65536)
    os.set_blocking(writer, True)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        report("daemon_started", pid=1)
        monkeypatch.undo()
    os.close(reader)


@pytest.mark.parametrize("version", ["0", "2", ""])
def test_a_state_of_another_version_is_refused_by_the_trial(version: str) -> None:
    """Before the old program ends, so nothing is lost by it."""
    assert is_readable("1")
    assert not is_readable(version)


@pytest.mark.parametrize(
    "text",
    ["basenet guardian 2\n", "basenet guardian 1\nflag 1\n", "basenet guardian 1\nfence x\n"],
)
def test_a_state_that_cannot_be_read_is_an_error(text: str) -> None:
    """To go on with half of it would open a fence."""
    with pytest.raises((ValueError, TypeError)):
        Handover.decode(text)


def test_every_event_of_the_guardian_is_explained() -> None:
    """An operator who meets a line of it finds it in the table of events."""
    root = Path(__file__).resolve().parents[2]
    source = (root / "basenet/guardian/parent.py").read_text()
    events = set(re.findall(r"\breport\(\s*\"([a-z_]+)\"", source))
    assert "daemon_died" in events
    text = (root / "docs/operations.md").read_text()
    assert [event for event in sorted(events) if f"`{event}`" not in text] == []
