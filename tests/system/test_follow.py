"""`restore --follow`: a copy that keeps up from the archive alone, whenever it is killed.

More kills, by hand: FOLLOW_KILLS=200 pytest -m system tests/system/test_follow.py -k kills
"""

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

import pytest

from tests.system.harness import PATIENCE_S, Scene, compare, until
from tests.system.test_cluster_archive import archived, wait_archived, write

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

KILLS = int(os.environ.get("FOLLOW_KILLS", "5"))
EXIT_CONFLICT = 4


class Copy:
    """A `basenet restore --follow` of its own process, and what it said."""

    def __init__(self, scene: Scene, path: Path, log: Path, *options: str) -> None:
        self.path = path
        self._log = log
        inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
        command = [sys.executable, "-m", "basenet", "restore", str(scene.archive), str(path)]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "--follow", "--interval", "50ms", "--json", *options],
                env=inherited | {"BASE_DATA_DIR": str(scene.data_dir)},
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def read(self) -> str:
        return self._log.read_text()

    def events(self, *names: str) -> list[dict[str, Any]]:
        *lines, _ = self.read().split("\n")
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [one for one in found if not names or one["event"] in names]

    def wait_event(self, *names: str) -> dict[str, Any]:
        """Return the first event of one of these names."""

        def question() -> dict[str, Any] | None:
            assert self.process.poll() is None, self.read()
            return next(iter(self.events(*names)), None)

        return until(question, f"one of {names}", PATIENCE_S * 2)

    def wait_seq(self, seq: int) -> None:
        """Return once the copy has the state of frame ``seq`` or a later one."""

        def question() -> bool:
            assert self.process.poll() is None, self.read()
            return any(one.get("seq", 0) >= seq for one in self.events())

        until(question, f"seq {seq} in the copy", PATIENCE_S * 2)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


_READER = """
import sqlite3, sys, time
path, log = sys.argv[1:]
connection = sqlite3.connect(path, isolation_level=None, timeout=30)
last = looks = 0
with open(log, "w", buffering=1) as told:
    while True:
        connection.execute("BEGIN")
        (count, highest, first) = connection.execute(
            "SELECT count(*), coalesce(max(id), 0), coalesce(min(id), 1) FROM note"
        ).fetchone()
        time.sleep(0.002)
        again = connection.execute("SELECT count(*) FROM note NOT INDEXED").fetchone()[0]
        connection.execute("COMMIT")
        looks += 1
        if not (count == highest == again and first == 1) or highest < last:
            told.write("wrong: %r\\n" % ((count, highest, again, first, last),))
        last = highest
        if looks % 50 == 1:
            found = connection.execute("PRAGMA quick_check").fetchall()
            told.write("%d %d %r\\n" % (looks, last, found))
"""


class Watcher:
    """A reader of another process that looks at the copy all the time."""

    def __init__(self, path: Path, log: Path) -> None:
        self._log = log
        self.process = subprocess.Popen([sys.executable, "-c", _READER, str(path), str(log)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def check(self) -> None:
        """Assert that it looked and saw whole states only."""
        assert self.process.poll() is None, "the reader failed"
        lines = until(self.lines, "the reader has looked")
        assert [line for line in lines if not line.endswith("[('ok',)]")] == []


class Copies:
    """Followers of one copy, one after the other."""

    def __init__(self, scene: Scene, stack: ExitStack) -> None:
        self.path = scene.folder / "copy.db"
        self._scene = scene
        self._stack = stack
        self._serial = 0

    def start(self, *options: str) -> Copy:
        self._serial += 1
        log = self._scene.folder / f"follow-{self._serial}.log"
        return self._stack.enter_context(Copy(self._scene, self.path, log, *options))

    def watch(self) -> Watcher:
        return self._stack.enter_context(Watcher(self.path, self._scene.folder / "watch.txt"))


@pytest.fixture
def copies(scene: Scene) -> Iterator[Copies]:
    with ExitStack() as stack:
        yield Copies(scene, stack)


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def test_kills_at_any_moment_leave_a_copy_that_goes_on_and_readers_that_see_whole_states(
    scene: Scene, copies: Copies
) -> None:
    """SIGKILL again and again while an application commits; no restore but the first."""
    chance = random.Random(5)
    daemon = scene.serve(BASE_SNAPSHOT_INTERVAL="5s")
    with scene.start_writer(seed=3) as writer:
        writer.wait_for(50)
        daemon.wait_archived()
        first = copies.start()
        first.wait_event("restored")
        first.kill()
        with copies.watch() as watcher:
            for number in range(KILLS):
                follower = copies.start()
                if number % 3:
                    follower.wait_event("resumed")
                time.sleep(chance.uniform(0, 0.6))
                follower.kill()
            writer.kill()
            follower = copies.start()
            follower.wait_seq(daemon.wait_archived().seq)
            watcher.check()
        assert not follower.events("restored", "renewed")
        assert follower.stop() == 0
    compare(scene.database, copies.path, scene.folder / "scratch")


def test_a_copy_can_be_read_and_not_written_and_says_where_it_is(
    scene: Scene, copies: Copies
) -> None:
    daemon = scene.serve()
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 'one')")
    daemon.wait_archived()
    follower = copies.start()
    follower.wait_event("restored")
    with closing(sqlite3.connect(copies.path, isolation_level=None, timeout=0)) as reader:
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            reader.execute("INSERT INTO t VALUES (9, 'mine')")
        application.sql("INSERT INTO t VALUES (2, 'two')", "DELETE FROM t WHERE x = 1")
        follower.wait_seq(daemon.wait_archived().seq)
        assert reader.execute("SELECT * FROM t").fetchall() == [(2, "two")]
    second = copies.start()
    assert second.process.wait(PATIENCE_S) == EXIT_CONFLICT, second.read()
    assert follower.stop() == 0
    assert follower.events()[-1]["event"] == "stopped"
    resumed = copies.start()
    assert resumed.wait_event("resumed")["seq"] == follower.events()[-1]["seq"]


def test_a_copy_that_was_written_to_is_kept(scene: Scene, copies: Copies) -> None:
    """It was promoted, perhaps: what it holds now is somebody's."""
    daemon = scene.serve()
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 'one')")
    daemon.wait_archived()
    follower = copies.start()
    follower.wait_event("restored")
    assert follower.stop() == 0
    query(copies.path, "PRAGMA journal_mode")
    with closing(sqlite3.connect(copies.path)) as connection:
        connection.execute("INSERT INTO t VALUES (7, 'written here')")
        connection.commit()
    application.sql("INSERT INTO t VALUES (2, 'two')")
    daemon.wait_archived()
    for options in ((), ("--force",)):
        again = copies.start(*options)
        assert again.process.wait(PATIENCE_S) == EXIT_CONFLICT
        assert "does not hold what was followed" in again.read()
    assert query(copies.path, "SELECT x FROM t ORDER BY x") == [(1,), (7,)]
    Path(f"{copies.path}-follow").unlink()
    stranger = copies.start()
    assert stranger.process.wait(PATIENCE_S) == EXIT_CONFLICT
    assert "exists and is not overwritten" in stranger.read()
    replaced = copies.start("--force")
    replaced.wait_event("restored")
    assert query(copies.path, "SELECT x FROM t ORDER BY x") == [(1,), (2,)]


def test_a_copy_that_retention_overtook_is_brought_up_beside_its_readers(
    scene: Scene, copies: Copies
) -> None:
    daemon = scene.serve(BASE_RETENTION="1s", BASE_SNAPSHOT_INTERVAL="500ms")
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, randomblob(500000))")
    daemon.wait_archived()
    follower = copies.start()
    stood_at = follower.wait_event("restored")["seq"]
    assert follower.stop() == 0
    logs = list(scene.archive.rglob("log/*/*.lbn"))

    def is_overtaken() -> bool:
        application.sql("INSERT INTO t VALUES (2, randomblob(100000))")
        daemon.wait_archived()
        ends = [int(path.name[21:41]) for path in scene.archive.rglob("log/*/*.lbn")]
        return stood_at + 1 not in ends and max(ends) > stood_at + 2

    until(is_overtaken, "retention deletes what the copy needs", 120)
    assert logs
    with closing(sqlite3.connect(copies.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        before = reader.execute("SELECT count(*) FROM t").fetchone()
        again = copies.start()
        renewed = again.wait_event("renewed")
        assert renewed["seq"] > stood_at
        assert "gone or not as signed" in again.events("renewing")[0]["reason"]
        assert reader.execute("SELECT count(*) FROM t").fetchone() == before
        reader.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM t").fetchone() > before
    again.wait_seq(daemon.wait_archived().seq)
    assert again.stop() == 0
    compare(scene.database, copies.path, scene.folder / "scratch")


def test_a_child_lineage_is_followed_and_an_earlier_branch_too(
    scene: Scene, copies: Copies
) -> None:
    """A node that lost its journal goes on as a child; a database that went back as well."""
    daemon = scene.serve()
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 'one')")
    parent = daemon.wait_archived().lineage
    follower = copies.start()
    follower.wait_event("restored")
    assert daemon.stop() == 0
    for path in scene.data_dir.glob("journal.db*"):
        path.unlink()
    daemon = scene.serve()
    application.sql("INSERT INTO t VALUES (2, 'two')")
    reached = daemon.wait_archived()
    assert reached.lineage != parent
    follower.wait_seq(reached.seq)
    assert follower.events()[-1]["lineage"] == reached.lineage
    assert query(copies.path, "SELECT x FROM t ORDER BY x") == [(1,), (2,)]
    assert follower.stop() == 0
    compare(scene.database, copies.path, scene.folder / "scratch")


def test_the_archive_of_a_cluster_is_followed_by_its_certificates(tmp_path: Path) -> None:
    """With public keys alone, and nothing of the nodes."""
    with archived(tmp_path) as cluster, ExitStack() as stack:
        write(cluster, 5)
        wait_archived(cluster)
        copy, log = tmp_path / "copy.db", tmp_path / "follow.log"
        keys = tmp_path / "cluster" / "ca" / "trusted.keys"
        options = ["--follow", "--interval", "50ms", "--json", "--trusted-keys", str(keys)]
        command = [sys.executable, "-m", "basenet", "restore", f"file://{tmp_path}/archive"]
        inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
        process = stack.enter_context(
            subprocess.Popen(
                [*command, str(copy), *options],
                env=inherited | {"BASE_DATA_DIR": str(tmp_path / "reader")},
                stdout=stack.enter_context(log.open("wb")),
                stderr=subprocess.STDOUT,
            )
        )
        stack.callback(process.kill)
        until(lambda: '"restored"' in log.read_text(), "the first restore", 60)
        write(cluster, 5)
        wait_archived(cluster)

        def has_all() -> bool:
            assert process.poll() is None, log.read_text()
            return query(copy, "SELECT count(*) FROM t") == [(10,)]

        until(has_all, "ten rows in the copy", 60)
        assert '"applied"' in log.read_text()
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_an_archive_that_is_still_empty_is_waited_for(scene: Scene, copies: Copies) -> None:
    """It says so once, begins when there is something, and ends with 0 when it is told to."""
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 'one')")
    scene.serve().wait_archived()  # makes the keys
    archive, scene.archive = scene.archive, scene.folder / "later"
    copies.path.write_bytes(b"somebody's")
    refused = copies.start()
    assert refused.process.wait(PATIENCE_S) == EXIT_CONFLICT
    assert "exists and is not overwritten" in refused.read()
    copies.path.unlink()
    for attempt in range(2):
        follower = copies.start()
        said = follower.wait_event("waiting")["error"]
        assert "there is nothing in it" in said
        if attempt == 0:
            assert follower.stop() == 0
            assert follower.events()[-1] == {"event": "stopped", "seq": None}
    archive.rename(scene.archive)
    assert follower.wait_event("restored")["seq"]
    assert len(follower.events("waiting")) == 1
    assert follower.stop() == 0
    assert query(copies.path, "SELECT x FROM t") == [(1,)]


def test_a_misspelt_name_is_told_at_once(scene: Scene, copies: Copies) -> None:
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 'one')")
    scene.serve().wait_archived()
    for options, words in (
        (("--shard", "ap"), "it has app"),
        (("--service", "prod"), "the services in it are default"),
    ):
        follower = copies.start(*options)
        assert follower.process.wait(PATIENCE_S) == 3
        assert words in follower.read()
    assert not copies.path.exists()


@pytest.mark.parametrize("comes_back", [True, False])
def test_an_archive_that_vanishes_under_a_follower(
    scene: Scene, copies: Copies, *, comes_back: bool
) -> None:
    """Moved away and back, or begun anew in its place: a copy is never left wrong or half."""
    daemon = scene.serve()
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 'one')")
    daemon.wait_archived()
    follower = copies.start()
    follower.wait_event("restored")
    gone = scene.folder / "gone"
    scene.archive.rename(gone)
    application.sql("INSERT INTO t VALUES (2, 'two')")
    if comes_back:
        daemon.kill()
        if scene.archive.exists():
            scene.archive.rename(scene.folder / "begun")
        gone.rename(scene.archive)
        daemon = scene.serve()
    follower.wait_seq(daemon.wait_archived(patience_s=PATIENCE_S * 3).seq)
    until(lambda: len(query(copies.path, "SELECT x FROM t")) == 2, "both rows", PATIENCE_S * 3)
    assert follower.stop() == 0


def test_a_copy_that_is_deleted_under_its_follower_ends_it(scene: Scene, copies: Copies) -> None:
    """In one sentence; the next start makes it anew."""
    daemon = scene.serve()
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 'one')")
    daemon.wait_archived()
    follower = copies.start()
    follower.wait_event("restored")
    for name in (copies.path, Path(f"{copies.path}-wal"), Path(f"{copies.path}-shm")):
        name.unlink(missing_ok=True)
    application.sql("INSERT INTO t VALUES (2, 'two')")
    seq = daemon.wait_archived().seq
    assert follower.process.wait(PATIENCE_S * 2) == EXIT_CONFLICT
    said = follower.read()
    assert str(copies.path) in said
    assert "Traceback" not in said
    assert not copies.path.exists()
    again = copies.start()
    again.wait_seq(seq)
    assert again.stop() == 0
    assert query(copies.path, "SELECT x FROM t ORDER BY x") == [(1,), (2,)]


def test_a_reader_with_a_long_transaction_holds_nothing_up(scene: Scene, copies: Copies) -> None:
    """It sees its moment for as long as it likes; what comes is there for everybody else."""
    daemon = scene.serve()
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (0, 'zero')")
    daemon.wait_archived()
    follower = copies.start()
    follower.wait_event("restored")
    with closing(sqlite3.connect(copies.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
        for number in range(1, 6):
            application.sql(f"INSERT INTO t VALUES ({number}, randomblob(400000))")
            follower.wait_seq(daemon.wait_archived().seq)
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
        assert query(copies.path, "SELECT count(*) FROM t") == [(6,)]
        reader.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (6,)
    assert follower.stop() == 0
    compare(scene.database, copies.path, scene.folder / "scratch")
