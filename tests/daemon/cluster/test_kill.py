"""SIGKILL at any moment of applying and mending: the file is before or after, and the log tells."""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random

import pytest
import trio

from tests.daemon.cluster.applier import STATES, Journal, recover, states_of
from tests.daemon.cluster.files import State, opened
from tests.daemon.cluster.guarding import guardian
from tests.sqlite.application import Application
from tests.sqlite.replica import Source

ROOT = Path(__file__).parents[3]
READ_S_MAX = 5.0
_READING = """
while not os.path.exists({stop}):
    assert c.execute('pragma integrity_check').fetchone() == ('ok',)
    number, length = c.execute('select count(*), total(length(v)) from t').fetchone()
"""


def write_states(folder: Path) -> None:
    """Small and large changes, growth and VACUUM, and all the way back."""
    with closing(Source(folder / "source.db")) as source:
        for number in range(STATES):
            if number == STATES - 1:
                source.run("DELETE FROM t WHERE id > 2")
                source.run("VACUUM")
            else:
                source.run(f"INSERT INTO t (v) VALUES (randomblob({10 ** (number + 2)}))")
            (folder / f"state-{number}.db").write_bytes(State.of(source).image)


def run_and_kill(folder: Path, random: Random) -> None:
    """Start a daemon and kill it a moment after it is open."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.daemon.cluster.applier",
            str(folder),
            str(random.randrange(10**6)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        for _ in range(random.randint(0, 4)):
            assert process.stdout.readline() == "step\n"
        # The moment of the death, not a wait for anything.
        select.select([], [], [], random.uniform(0, 0.05))
        assert process.poll() is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


async def check(folder: Path, states: list[State]) -> int:
    """Open the file as the next daemon does; return at which state it is."""
    journal = Journal(folder)
    async with opened(folder / "app.db", folder / "guardian.socket") as here:
        place = await recover(here.file, journal)
        root = (await here.file.facts()).state_root
        allowed = [states[journal.place].root]
        if journal.intent is not None:
            allowed.append(states[journal.intent.place[0]].root)
        assert root in allowed
        if place >= 0:
            assert root == states[place].root
        else:
            place = next(n for n, state in enumerate(states) if state.root == root)
        journal.keep(place, await here.file.cursor(), None, place)
        here.die()
    return place


def run_rounds(folder: Path, rounds: int) -> None:
    random = Random(rounds)
    write_states(folder)
    states = states_of(folder)
    path = folder / "app.db"
    path.write_bytes(states[0].image)
    stop = folder / "stop"
    places: list[int] = []
    for number in range(rounds):
        with ExitStack() as stack:
            socket = stack.enter_context(guardian(folder))
            reader = stack.enter_context(Application(path, timeout_s=0))
            reader.start(_READING.format(stop=repr(str(stop))))
            run_and_kill(folder, random)
            if number % 2:
                # The guardian lives and keeps the lock; the next daemon repairs what it must.
                places.append(trio.run(check, folder, states))
                began = time.monotonic()
                with Application(path, timeout_s=0) as late:
                    assert late.sql("PRAGMA integrity_check") == [["ok"]]
                assert time.monotonic() - began < READ_S_MAX
            stop.touch()
            reader.finish()
            stop.unlink()
            socket.unlink()
        if number % 4 == 0:
            Path(f"{path}-shm").unlink()  # as after a reboot
    assert set(places) <= set(range(STATES))


@pytest.mark.timeout(120)
def test_a_killed_daemon_leaves_the_state_before_or_after(tmp_path: Path) -> None:
    """A few rounds, with and without a guardian and a wal-index that outlive it."""
    run_rounds(tmp_path, 6)


@pytest.mark.system
@pytest.mark.timeout(600)
def test_many_killed_daemons_leave_the_state_before_or_after(tmp_path: Path) -> None:
    """Many rounds."""
    run_rounds(tmp_path, 40)
