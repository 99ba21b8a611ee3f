"""The guardian as the main process: fences outlive daemons, and nobody writes behind a fence."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guardian.node import MS, Node, Rogue, is_stopped, now_ns, running, until, until_instant
from tests.sqlite.application import Application, ApplicationError

# The guardian wakes when a lease ends; a busy machine may keep it from the processor for a while.
LATE_MS = 400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def app(path: Path) -> Iterator[Application]:
    with Application(path, timeout_s=0) as app:
        app.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
        yield app


@pytest.fixture
def node(tmp_path: Path, app: Application) -> Iterator[Node]:
    del app
    with running(tmp_path / "node") as node:
        yield node


def can_write(app: Application) -> bool:
    try:
        app.sql("INSERT INTO t VALUES (1)")
    except ApplicationError as error:
        if "database is locked" not in str(error):
            raise
        return False
    return True


def python(code: str, *arguments: str) -> str:
    return shlex.join([sys.executable, "-c", code, *arguments])


def test_a_dead_daemon_leaves_the_fence_closed_and_is_started_again(
    node: Node, path: Path, app: Application
) -> None:
    """SIGKILL of the daemon ends its lease at once; the next one finds the fence held."""
    daemon = node.accept()
    assert daemon.parent == node.process.pid
    assert daemon.ask("guard", path=str(path)) == {"held": True}
    daemon.ask("renew", ms=600_000)
    until(lambda: can_write(app), "the lease opens the fence")
    with Rogue(path) as rogue:
        os.kill(daemon.pid, signal.SIGKILL)
        killed_ns = now_ns()
        second = node.accept()
        assert second.ask("guard", path=str(path)) == {"held": True}
        began, refused = rogue.end()
    assert refused > 0
    assert [each for each in began if each > killed_ns + LATE_MS * MS] == []
    assert second.pid != daemon.pid
    assert not can_write(app)


def test_a_stopped_daemon_loses_its_lease_at_its_end(
    node: Node, path: Path, app: Application
) -> None:
    """Released until T runs out without a word, and a release that is sent late opens nothing."""
    daemon = node.accept()
    daemon.ask("guard", path=str(path))
    with Rogue(path) as rogue:
        end_ns = daemon.ask("renew", ms=300)["until"]
        daemon.start("renew", ms=400, stop=True)
        until(lambda: is_stopped(daemon.pid), "SIGSTOP")
        until_instant(end_ns + 500 * MS)
        os.kill(daemon.pid, signal.SIGCONT)
        assert daemon.read()["until"] < now_ns()
        daemon.ask("ready")  # a question later the guardian has taken the release
        assert not can_write(app)
        began, refused = rogue.end()
    assert began
    assert refused > 0
    assert max(began) <= end_ns + LATE_MS * MS


def test_a_release_that_waited_for_a_stopped_guardian_opens_nothing(
    node: Node, path: Path, app: Application
) -> None:
    """The instant is absolute, whoever was stopped (P18)."""
    daemon = node.accept()
    daemon.ask("guard", path=str(path))
    os.kill(node.process.pid, signal.SIGSTOP)
    until(lambda: is_stopped(node.process.pid), "SIGSTOP")
    end_ns = daemon.ask("renew", ms=100)["until"]
    until_instant(end_ns)
    os.kill(node.process.pid, signal.SIGCONT)
    assert daemon.ask("hold")["held"]
    assert not can_write(app)


def test_renewals_keep_a_writer_writing(node: Node, path: Path, app: Application) -> None:
    """A thousand commits that would not wait for a lock, and not one is refused."""
    daemon = node.accept()
    daemon.ask("guard", path=str(path))
    daemon.ask("lease", ms=1000, every=100)
    until(lambda: can_write(app), "the lease opens the fence")
    before = now_ns()
    app.run(
        "c.execute('PRAGMA synchronous=OFF')\n"
        "for _ in range(1000):\n"
        "    c.execute('INSERT INTO t VALUES (2)')\n"
        "    time.sleep(0.0005)\n"
    )
    assert now_ns() - before > 300 * MS  # some renewals came meanwhile
    assert app.sql("SELECT count(*) FROM t WHERE x = 2") == [[1000]]
    held_ns = daemon.ask("hold")["at_ns"]
    assert not can_write(app)
    assert held_ns < now_ns()


def test_a_transaction_that_is_open_at_the_end_may_commit_and_none_begins(
    node: Node, path: Path, app: Application
) -> None:
    """No lock takes the write lock away; the guardian has it as soon as it is free (P17).

    The kernel wakes whoever waits for a lock and gives it to whoever is first: somebody who polls
    may be quicker by a hair, and is then captured like the open one. After HELD nobody begins.
    """
    daemon = node.accept()
    daemon.ask("guard", path=str(path))
    daemon.ask("renew", ms=400)
    until(lambda: can_write(app), "the lease opens the fence")
    app.sql("BEGIN IMMEDIATE", "INSERT INTO t VALUES (3)")
    daemon.start("hold")
    with Rogue(path) as rogue:
        until_instant(now_ns() + 500 * MS)
        app.sql("COMMIT")
        assert daemon.read()["held"]
        held_ns = now_ns()
        assert not can_write(app)
        began, refused = rogue.end()
    assert ([at for at in began if at > held_ns], refused > 0) == ([], True)
    assert app.sql("SELECT count(*) FROM t WHERE x = 3") == [[1]]


@pytest.mark.system
def test_two_nodes_on_one_database_are_refused(node: Node, path: Path, tmp_path: Path) -> None:
    """The second one is told which database it is about."""
    assert node.accept().ask("guard", path=str(path)) == {"held": True}
    with running(tmp_path / "other") as other:
        answer = other.accept().ask("guard", path=str(path))
    assert answer["error"] == "ConflictError"
    assert str(path) in answer["sentence"]
    assert "looked after by another basenet" in answer["sentence"]


@pytest.mark.system
def test_a_file_that_is_replaced_is_told_and_the_next_daemon_guards_the_new_one(
    node: Node, path: Path, tmp_path: Path
) -> None:
    """The old fence never opens; the new file is fenced when a daemon asks for it."""
    daemon = node.accept()
    daemon.ask("guard", path=str(path))
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").rename(tmp_path / f"old.db{suffix}")
    with Application(path, timeout_s=0) as second:
        second.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
        until(lambda: daemon.ask("replaced") == {"replaced": [True]}, "the daemon is told")
        daemon.ask("renew", ms=60_000)
        with Application(tmp_path / "old.db", timeout_s=0) as old:
            assert not can_write(old)
        assert daemon.ask("hold")["error"] == "ConflictError"
        os.kill(daemon.pid, signal.SIGKILL)
        assert node.accept().ask("guard", path=str(path)) == {"held": True}
        assert not can_write(second)


def test_the_guardian_is_small(node: Node, path: Path) -> None:
    """It must not be what the kernel kills when memory is short."""
    node.accept().ask("guard", path=str(path))
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    (resident,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    assert int(resident.split()[1]) <= 15 * 1024


def test_a_guardian_that_is_killed_alone_leaves_the_fences_to_the_daemon(
    node: Node, path: Path, app: Application
) -> None:
    """As long as the daemon lives, nobody commits to a fenced database, not even once."""
    daemon = node.accept()
    daemon.ask("guard", path=str(path))
    daemon.ask("lease", ms=600_000, every=100)
    until(lambda: can_write(app), "the lease opens the fence")
    daemon.ask("hold")
    with Rogue(path) as rogue:
        os.kill(node.process.pid, signal.SIGKILL)
        answer = daemon.read()
        assert "guardian" in answer["gone"]
        assert answer["held"]
        until_instant(now_ns() + 300 * MS)
        began, refused = rogue.end()
    assert (began, refused > 0) == ([], True)
    daemon.exit(0)


def test_what_was_open_when_the_guardian_died_is_locked_by_the_daemon(
    node: Node, path: Path, app: Application
) -> None:
    """Through the duplicates, against a busy writer, before it says that the guardian is gone."""
    daemon = node.accept()
    daemon.ask("guard", path=str(path))
    daemon.ask("renew", ms=600_000)
    until(lambda: can_write(app), "the lease opens the fence")
    with Rogue(path) as rogue:
        os.kill(node.process.pid, signal.SIGKILL)
        answer = daemon.read()
        assert answer["held"]
        until_instant(now_ns() + 200 * MS)
        assert not can_write(app)
        began, refused = rogue.end()
    assert refused > 0
    assert [each for each in began if each > answer["at_ns"]] == []
    daemon.exit(0)


@pytest.mark.system
def test_a_daemon_that_dies_again_and_again_is_started_ever_later(node: Node) -> None:
    """1 s, 2 s, ...; each death is logged with its code and the wait."""
    for _ in range(2):
        node.accept().exit(1)
    third = node.accept()
    died = [event for event in node.events() if event["event"] == "daemon_died"]
    assert [(event["exit_code"], event["again_seconds"]) for event in died] == [(1, 1), (1, 2)]
    assert third.parent == node.process.pid


@pytest.mark.parametrize("code", [2, 3, 4, 0])
def test_a_daemon_that_cannot_start_at_all_is_the_guardians_end(node: Node, code: int) -> None:
    """A command line that cannot be used does not become better by repetition."""
    node.accept().exit(code)
    assert node.wait() == code
    assert node.names() == ["daemon_started"]


@pytest.mark.system
def test_a_daemon_that_was_ready_is_started_again_whatever_its_code(node: Node) -> None:
    """The fence stays closed rather than go with the guardian."""
    daemon = node.accept()
    daemon.ask("ready")
    daemon.exit(4)
    node.accept()
    assert "daemon_died" in node.names()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_and_its_code_is_ours(
    tmp_path: Path, number: signal.Signals
) -> None:
    """It is passed on once; the daemon flushes, and what it ends with counts."""
    with running(tmp_path / "node", PUPPET_CODE="7") as node:
        daemon = node.accept()
        os.kill(node.process.pid, number)
        if number == signal.SIGINT:  # the puppet takes only SIGTERM for a wish
            assert node.wait() != 0
        else:
            assert node.wait() == 7
            assert node.flushed.read_text() == "flushed\n"
        assert not Path(f"/proc/{daemon.pid}").exists()


@pytest.mark.system
def test_a_second_signal_waits_for_nobody(tmp_path: Path) -> None:
    """A daemon that hangs in its flush is killed, and the code says that not all went well."""
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up', file=sys.stderr, flush=True)\n"
        "time.sleep(600)"
    )
    with running(tmp_path / "node", command=python(code), PUPPET_SIGTERM="ignore") as node:
        daemon = node.accept()
        daemon.ask("ready")
        until(lambda: "up" in node.log.read_text(), "the application")
        os.kill(node.process.pid, signal.SIGTERM)
        until_instant(now_ns() + 600 * MS)  # sooner it would be one wish
        os.kill(node.process.pid, signal.SIGTERM)
        assert node.wait() == 137
        assert "hurried" in node.names()
        assert not Path(f"/proc/{daemon.pid}").exists()


@pytest.mark.system
def test_the_application_starts_when_the_daemon_is_ready_and_outlives_its_crash(
    tmp_path: Path,
) -> None:
    """It is the guardian's own child; when it ends, the daemon flushes and its code is ours."""
    note = tmp_path / "note"
    os.mkfifo(note)
    code = (
        "import os, sys, signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(42))\n"
        "open(sys.argv[1], 'w').write(f'{os.getpid()} {os.getppid()}')\n"
        "while True: signal.pause()"
    )
    with running(tmp_path / "node", command=python(code, str(note))) as node:
        first = node.accept()
        assert node.names() == ["daemon_started"]
        first.ask("ready")
        pid, parent = map(int, note.read_text().split())
        assert parent == node.process.pid
        os.kill(first.pid, signal.SIGKILL)
        second = node.accept()
        second.ask("ready")
        assert Path(f"/proc/{pid}").exists()
        os.kill(node.process.pid, signal.SIGUSR1)
        assert node.wait() == 42
        assert node.flushed.read_text() == "flushed\n"
        assert node.names().count("application_started") == 1


def test_a_signal_goes_to_the_application_first(tmp_path: Path) -> None:
    """It may still commit while it ends; the daemon is told afterwards."""
    code = (
        "import os, sys, signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0 if not os.path.exists(sys.argv[1]) "
        "else 9))\n"
        "print('up', file=sys.stderr, flush=True)\n"
        "while True: signal.pause()"
    )
    flushed = tmp_path / "node" / "flushed.txt"
    with running(tmp_path / "node", command=python(code, str(flushed))) as node:
        node.accept().ask("ready")
        until(lambda: "up" in node.log.read_text(), "the application")
        os.kill(node.process.pid, signal.SIGTERM)
        assert node.wait() == 0
        assert flushed.read_text() == "flushed\n"


def test_an_application_that_cannot_be_started_ends_the_node(tmp_path: Path) -> None:
    """With the sentence and the code of `--exec` everywhere."""
    with running(tmp_path / "node", command="no-such-program-here --x") as node:
        node.accept().start("ready")
        assert node.wait() == 3
        assert "--exec 'no-such-program-here' cannot be started" in node.log.read_text()
    with running(tmp_path / "other", command="sh -c 'x") as node:
        assert node.wait() == 2
        assert "cannot be split into words" in node.log.read_text()


def test_strangers_that_become_our_children_are_reaped(tmp_path: Path) -> None:
    """As process 1 of a container it inherits every orphan."""
    become_reaper = "import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); "
    note = tmp_path / "note"
    os.mkfifo(note)
    # The parenthesis ends at once; what it left behind waits for a reader and then ends, too.
    code = f"(sh -c 'echo $$ > {note}' &); exec sleep 600"
    command = shlex.join(["sh", "-c", code])
    with running(tmp_path / "node", command=command, before=become_reaper) as node:
        node.accept().ask("ready")
        orphan = int(note.read_text())
        until(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan is reaped")
        os.kill(node.process.pid, signal.SIGTERM)
        assert node.wait() == 128 + signal.SIGTERM


def test_an_upgrade_keeps_locks_application_and_process(
    tmp_path: Path, path: Path, app: Application
) -> None:
    """The guardian is exec'd in place while a rogue writer hammers, and it never gets through."""
    code = "import sys, time; print('up', file=sys.stderr, flush=True); time.sleep(600)"
    with running(tmp_path / "node", command=python(code)) as node:
        daemon = node.accept()
        assert daemon.ask("guard", path=str(path)) == {"held": True}
        daemon.ask("ready")
        until(lambda: "up" in node.log.read_text(), "the application")
        (started,) = [each for each in node.events() if each["event"] == "application_started"]
        with Rogue(path) as rogue:
            for _ in range(2):
                os.kill(node.process.pid, signal.SIGUSR2)
                daemon = node.accept()
                assert daemon.parent == node.process.pid
                assert daemon.ask("guard", path=str(path)) == {"held": True}
            began, refused = rogue.end()
        assert (began, refused > 100) == ([], True)
        assert node.names().count("upgrading") == 2
        assert node.names().count("application_started") == 1
        assert node.flushed.read_text() == "flushed\n" * 2
        daemon.ask("renew", ms=60_000)
        until(lambda: can_write(app), "the new guardian opens what the old one locked")
        daemon.exit(4)  # "ready" was handed over: this is no start that failed
        node.accept()
        os.kill(started["pid"], signal.SIGKILL)
        assert node.wait() == 137


def test_signals_that_come_during_the_exec_wait_for_the_new_program(node: Node) -> None:
    """Most would end a process that does not listen to them yet."""
    node.accept()
    hammer = threading.Event()

    def send() -> None:
        while not hammer.wait(0.0005):
            os.kill(node.process.pid, signal.SIGHUP)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        os.kill(node.process.pid, signal.SIGUSR2)
        assert node.accept().ask("ready") == {}
    finally:
        hammer.set()
        thread.join()
    assert node.process.poll() is None


def test_an_upgrade_to_what_does_not_start_is_refused(
    tmp_path: Path, path: Path, app: Application
) -> None:
    """A trial runs first: the old program, its daemon and its fences go on."""
    del app
    broken = tmp_path / "modules"
    broken.mkdir()
    with running(tmp_path / "node", PYTHONPATH=str(broken)) as node:
        daemon = node.accept()
        daemon.ask("guard", path=str(path))
        (broken / "selectors.py").write_text("raise ImportError('a half-installed program')")
        os.kill(node.process.pid, signal.SIGUSR2)
        until(lambda: "upgrade_refused" in node.names(), "the refusal")
        assert daemon.ask("hold")["held"]


@pytest.mark.system
def test_a_daemon_that_talks_nonsense_does_not_harm_the_guardian(
    node: Node, path: Path, app: Application
) -> None:
    """Its socket is closed, its fences are closed, and it counts as gone."""
    daemon = node.accept()
    daemon.ask("guard", path=str(path))
    daemon.ask("renew", ms=600_000)
    until(lambda: can_write(app), "the lease opens the fence")
    daemon.ask("nonsense")
    assert "guardian" in daemon.read()["gone"]
    assert not can_write(app)
    daemon.exit(1)
    node.accept()
