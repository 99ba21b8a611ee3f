"""What a careless daemon would damage, refuse or lose, case by case (docs/pitfalls.md)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from basenet.control.surface import Level, ShardState
from basenet.daemon.supervisor import DESCRIPTORS_PER_SHARD
from basenet.errors import UnavailableError
from tests.sqlite.application import ApplicationError
from tests.system.harness import Scene, until

# Runs a command under a soft and a hard limit of open files.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
os.execv(sys.executable, [sys.executable, "-m", "basenet", *sys.argv[3:]])
"""


def test_a_stop_just_after_the_application_leaves_no_log(scene: Scene) -> None:
    """The log of a file that nobody has open any more is not left for whatever comes next (P5)."""
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon = scene.serve(BASE_DETACH_AFTER="60s")
    daemon.wait_archived()
    application.close()
    assert Path(f"{scene.database}-wal").exists()
    assert daemon.stop() == 0
    assert [path.name for path in scene.folder.glob("app.db*")] == ["app.db"]
    scene.check_restore()


def test_modes_that_keep_others_out_are_refused_to_the_application_and_nothing_else(
    scene: Scene,
) -> None:
    """Leaving WAL mode needs the file alone: SQLite says "locked", and all goes on (P37)."""
    scene.start_wal_application().sql("INSERT INTO t VALUES (1, 2)")
    application = scene.start_application(timeout_s=0.1)
    daemon = scene.serve()
    daemon.wait_archived()
    with pytest.raises(ApplicationError, match="locked"):
        application.sql("PRAGMA journal_mode=DELETE")
    application.sql("INSERT INTO t VALUES (3, 4)", "PRAGMA locking_mode=EXCLUSIVE")
    with pytest.raises(ApplicationError, match="locked"):
        application.sql("INSERT INTO t VALUES (5, 6)")
    application.sql("PRAGMA locking_mode=NORMAL", "INSERT INTO t VALUES (7, 8)")
    daemon.wait_archived()
    assert daemon.status().state is ShardState.CAPTURING
    scene.check_restore()


def test_what_was_refused_while_we_were_there_works_when_we_have_been_stopped(
    scene: Scene,
) -> None:
    """To change the mode for once, stop basenet: it leaves nothing in the way (P37)."""
    application = scene.start_wal_application()
    daemon = scene.serve()
    daemon.wait_archived()
    assert daemon.stop() == 0
    assert application.sql("PRAGMA journal_mode=DELETE") == [["delete"]]
    assert application.sql("PRAGMA journal_mode=WAL") == [["wal"]]
    application.sql("INSERT INTO t VALUES (1, 2)")
    scene.serve().wait_archived()
    scene.check_restore()


def test_a_transaction_over_attached_files_is_one_of_each(scene: Scene) -> None:
    """Each file is a shard with a history of its own, whole at its own moments (P46)."""
    other = scene.folder / "other.db"
    scene.start_wal_application(other)
    application = scene.start_wal_application()
    application.sql(f"ATTACH '{other}' AS other")
    daemon = scene.serve(databases=f"{scene.database},{other}")
    for shard in ("app", "other"):
        daemon.wait_archived(shard)
    for number in range(5):
        application.sql(
            "BEGIN",
            f"INSERT INTO main.t VALUES ({number}, 0)",
            f"INSERT INTO other.t VALUES ({number}, 0)",
            "COMMIT",
        )
    for shard, path in (("app", scene.database), ("other", other)):
        daemon.wait_archived(shard)
        assert scene.check_restore(shard=shard, database=path).query("SELECT count(*) FROM t") == [
            (5,)
        ]


def test_more_databases_than_open_files_allow_are_refused_at_the_start(scene: Scene) -> None:
    """One sentence with both numbers, instead of databases that fail one by one (P44)."""
    count = 10
    names = ",".join(str(scene.folder / f"db{number}.db") for number in range(count))
    limit = DESCRIPTORS_PER_SHARD * count - 1
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), str(limit), "serve", names],
        env=os.environ | {"BASE_DATA_DIR": str(scene.data_dir)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(limit) in done.stderr
    assert str(DESCRIPTORS_PER_SHARD * count) in done.stderr


def read_limits(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    """Return the soft and the hard limit of open files of a process that runs."""
    text = Path(f"/proc/{process.pid}/limits").read_text()
    ((soft, hard),) = re.findall(r"^Max open files +(\d+) +(\d+)", text, re.MULTILINE)
    return soft, hard


def test_the_soft_limit_of_open_files_is_raised(scene: Scene) -> None:
    """1,024 is the usual one, and 85 databases would reach it (P44)."""
    process = subprocess.Popen(
        [sys.executable, "-c", LIMITED, "64", "1000", "serve", str(scene.database)],
        env=os.environ | {"BASE_DATA_DIR": str(scene.data_dir), "BASE_LISTEN_HTTP": "127.0.0.1:0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: read_limits(process) == ("1000", "1000"), "the limit is raised")
    finally:
        process.kill()
        process.wait()


def test_a_new_archive_is_not_taken_for_the_old_one(scene: Scene) -> None:
    """What the journal remembers as archived, snapshot included, lies in another place (P9).

    `wait` answers only once the new archive alone gives everything back.
    """
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    first = scene.serve()
    first.wait_archived()
    assert first.stop() == 0
    other = scene.folder / "other-archive"
    second = scene.serve(archive=str(other))
    second.wait_archived()
    second.kill()
    scene.check_restore(archive=other)


def test_nothing_counts_as_archived_before_the_archive_was_asked(scene: Scene) -> None:
    """The journal says that all is archived, but the archive is not to be reached (P9)."""
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    first = scene.serve()
    first.wait_archived()
    assert first.stop() == 0
    away = scene.folder / "no-directory"
    away.write_bytes(b"a file where the archive should be")
    second = scene.serve(archive=str(away))
    second.wait_capturing()
    with pytest.raises(UnavailableError, match="not up to the present commit"):
        second.client.wait("app", None, Level.ARCHIVED, 0.5)


def test_a_child_lineage_can_move_to_a_new_archive_without_its_parent(scene: Scene) -> None:
    """What the parent held is in the child's own snapshot there (P9)."""
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    first = scene.serve()
    first.wait_archived()
    assert first.stop() == 0
    key = scene.folder / "signing.key"
    shutil.copy(scene.data_dir / "signing.key", key)
    shutil.rmtree(scene.data_dir)
    child = scene.serve(BASE_SIGNING_KEY=str(key))
    child.wait_archived()
    application.sql("INSERT INTO t VALUES (3, 4)")
    child.wait_archived()
    assert child.stop() == 0
    other = scene.folder / "other-archive"
    moved = scene.serve(archive=str(other), BASE_SIGNING_KEY=str(key))
    moved.wait_archived()
    moved.kill()
    scene.check_restore(archive=other)
