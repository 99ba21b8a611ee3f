"""What is too slow for every day: full disks, a database past 1 GiB, a hundred databases."""

import contextlib
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from basenet.units import GIB, MIB, lock_page
from tests.system.harness import Scene, compare, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

PAGE_SIZE = 65536
DATABASES = 100
INSERT = "INSERT INTO t VALUES (1, randomblob(2000))"


@contextmanager
def small_disk(path: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own at ``path``, which can be full without harm to anybody."""
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "none", str(path)], check=True
    )
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte free; the file that does it is returned."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_full_disk_under_the_journal_does_not_touch_the_application(scene: Scene) -> None:
    """The application commits on, the daemon says why it waits, and goes on by itself."""
    with small_disk(scene.folder / "disk", 64) as disk, contextlib.ExitStack() as daemons:
        application = scene.start_wal_application()
        scene.data_dir = disk / "data"
        daemon = daemons.enter_context(scene.serve())
        application.sql(INSERT)
        daemon.wait_archived()
        filler = fill(disk)
        application.sql(*[INSERT] * 200)
        until(lambda: daemon.client.get_node_status().reasons, "the daemon says that it is full")
        application.sql(*[INSERT] * 200)
        filler.unlink()
        daemon.wait_archived()
        restored = scene.check_restore()
        assert restored.query("SELECT count(*) FROM t") == [(401,)]
        assert daemon.stop() == 0


def test_a_full_archive_is_one_sentence_and_heals(scene: Scene) -> None:
    """Nothing half-written counts, and what waited is shipped once there is room."""
    with small_disk(scene.folder / "disk", 32) as disk:
        scene.archive = disk / "archive"
        application = scene.start_wal_application()
        daemon = scene.serve()
        application.sql(INSERT)
        daemon.wait_archived()
        filler = fill(disk)
        application.sql(*[INSERT] * 200)
        status = daemon.wait_status(lambda status: status.archive != "ok", "the sentence")
        assert "full" in status.archive or "space" in status.archive
        filler.unlink()
        daemon.wait_archived(patience_s=60)
        scene.check_restore()
        assert daemon.stop() == 0


def test_an_application_on_a_full_disk_goes_on_as_without_us(scene: Scene) -> None:
    """Its own disk is full: it gets SQLite's error, and later commits are captured."""
    with small_disk(scene.folder / "disk", 16) as disk:
        scene.database = disk / "app.db"
        with scene.start_wal_application() as application:
            daemon = scene.serve()
            application.sql(INSERT)
            daemon.wait_archived()
            filler = fill(disk)
            code = f"result = 0\ntry:\n    for _ in range(10000): c.execute({INSERT!r})\n"
            code += "except sqlite3.OperationalError as error: result = str(error)\n"
            assert "full" in application.run(code)
            filler.unlink()
            application.sql(INSERT)
            daemon.wait_archived()
            scene.check_restore()
        assert daemon.stop() == 0


def test_a_database_grows_past_the_lock_page(scene: Scene) -> None:
    """The page at 1 GiB is SQLite's own: captured around, zero in a restore."""
    lock = lock_page(PAGE_SIZE)
    with contextlib.closing(sqlite3.connect(scene.database, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={PAGE_SIZE}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t(x INTEGER, y)")
        for number in range(127):
            connection.execute("INSERT INTO t VALUES (?, zeroblob(?))", (number, 8 * MIB))
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    assert lock - 400 < pages < lock
    daemon = scene.serve()
    daemon.wait_archived(patience_s=120)
    application = scene.start_wal_application()
    for number in range(12):
        application.sql(f"INSERT INTO t VALUES ({1000 + number}, zeroblob({4 * MIB}))")
    ((pages,),) = application.sql("PRAGMA page_count")
    assert pages > lock
    daemon.wait_archived(patience_s=120)
    assert daemon.status().recovered == 0
    restored = scene.restore()
    compare(scene.database, restored.path, scene.folder / "scratch")
    with restored.path.open("rb") as file:
        file.seek(GIB)
        assert file.read(PAGE_SIZE) == bytes(PAGE_SIZE)


MANY = """
import sqlite3, sys
folder, count, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
connections = []
for number in range(count):
    c = sqlite3.connect(f"{folder}/db-{number}.db", isolation_level=None, timeout=60)
    c.execute("PRAGMA journal_mode=WAL")
    c.execute("CREATE TABLE IF NOT EXISTS t(x, y)")
    connections.append(c)
for _ in range(rounds):
    for c in connections:
        c.execute("INSERT INTO t VALUES (1, randomblob(500))")
print("done", flush=True)
sys.stdin.read()
"""


def test_a_hundred_databases_are_one_daemons_work(scene: Scene) -> None:
    """All are captured, none is mixed up with another, and idle ones cost next to nothing."""
    folder = scene.folder / "many"
    folder.mkdir()
    with subprocess.Popen(
        ["python", "-c", MANY, str(folder), str(DATABASES), "50"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as application:
        assert application.stdin is not None
        assert application.stdout is not None
        daemon = scene.serve(databases=f"{folder}/")
        assert application.stdout.readline() == "done\n"
        names = [f"db-{number}" for number in range(DATABASES)]
        for name in names:
            daemon.wait_archived(name, patience_s=120)
        used_s = cpu_seconds(daemon.process.pid)
        began_s = time.monotonic()
        until(lambda: time.monotonic() > began_s + 5, "five idle seconds")
        assert cpu_seconds(daemon.process.pid) - used_s < 0.5
        daemon.kill()
        daemon = scene.serve(databases=f"{folder}/")
        for name in names:
            daemon.wait_archived(name, patience_s=120)
        for name in names[::20]:
            restored = scene.check_restore(shard=name, database=folder / f"{name}.db")
            assert restored.query("SELECT count(*) FROM t") == [(50,)]
        assert daemon.stop(patience_s=120) == 0
        application.stdin.close()


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
