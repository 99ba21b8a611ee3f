"""An archive that is away, unwilling or full, and a journal that must not grow for ever."""

from pathlib import Path

import pytest

from basenet.archive.names import ShardNames
from basenet.control.surface import ShardState
from basenet.errors import BasenetError
from basenet.units import MIB, ShardId
from tests.system.harness import Daemon, Scene, until

LOST = "INSERT INTO t VALUES (2, randomblob(100000))"
RETRY_S = 20.0


def wait_trouble(daemon: Daemon) -> str:
    """Return the sentence that says what is wrong with the archive."""
    return daemon.wait_status(
        lambda status: status.archive not in ("ok", "off") and "not compared" not in status.archive,
        "the archive's sentence",
    ).archive


def test_an_archive_out_of_reach_costs_nothing_but_time(scene: Scene) -> None:
    """The application commits on, status has the sentence, and all is archived afterwards."""
    scene.archive.write_text("a file stands where the archive should be")
    application = scene.start_wal_application()
    daemon = scene.serve()
    assert str(scene.archive) in wait_trouble(daemon)
    application.sql(*["INSERT INTO t VALUES (1, randomblob(3000))"] * 20)
    assert daemon.wait_final().archived_seq == 0
    scene.archive.unlink()
    daemon.wait_archived(patience_s=RETRY_S)
    assert daemon.status().archive == "ok"
    scene.check_restore()


def test_a_database_that_was_let_go_still_gets_its_first_snapshot(scene: Scene) -> None:
    """The archive came only after the application had gone: we come back to the file for it."""
    scene.archive.write_text("a file stands where the archive should be")
    with scene.start_wal_application() as application:
        application.sql("INSERT INTO t VALUES (1, 2)")
    daemon = scene.serve()
    wait_trouble(daemon)
    daemon.wait_state(ShardState.DETACHED)
    scene.archive.unlink()
    daemon.wait_archived(patience_s=RETRY_S)
    scene.check_restore()
    daemon.wait_state(ShardState.DETACHED)


def test_an_archive_that_goes_away_and_comes_back_is_caught_up_with(scene: Scene) -> None:
    """Also when it went away in mid-run, and over a restart of the daemon."""
    application = scene.start_wal_application()
    daemon = scene.serve()
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon.wait_archived()
    away = scene.folder / "away"
    scene.archive.rename(away)
    scene.archive.write_text("a file")
    application.sql("INSERT INTO t VALUES (3, 4)")
    wait_trouble(daemon)
    daemon.kill()
    daemon = scene.serve()
    application.sql("INSERT INTO t VALUES (5, 6)")
    daemon.wait_final()
    scene.archive.unlink()
    away.rename(scene.archive)
    daemon.wait_archived(patience_s=RETRY_S)
    scene.check_restore()
    assert daemon.status().recovered == 0


def test_an_archive_that_cannot_be_written_is_one_sentence(scene: Scene) -> None:
    """The kernel's own file system takes no files, whoever asks."""
    scene.start_wal_application()
    daemon = scene.serve(archive="/sys/kernel/basenet-archive")
    sentence = wait_trouble(daemon)
    assert "/sys/kernel" in sentence
    assert sentence.count(". ") == 0
    code, _, _ = scene.run("wait", "--now", "--timeout", "200ms")
    assert code == 1
    assert scene.run("wait", "--now", "--level", "final")[0] == 0


@pytest.mark.timeout(120)
def test_a_journal_at_its_cap_drops_restore_points_and_nothing_else(scene: Scene) -> None:
    """The oldest waiting frames go, loudly; a snapshot mends the gap; a restore never guesses."""
    application = scene.start_wal_application()
    daemon = scene.serve(BASE_JOURNAL_MAX_BYTES="1MiB", BASE_SHARD_BACKLOG_MAX="1MiB")
    application.sql("INSERT INTO t VALUES (1, 2)")
    before = daemon.wait_archived().seq
    away = scene.folder / "away"
    scene.archive.rename(away)
    scene.archive.write_text("a file")
    for _ in range(4):
        application.sql(*[LOST] * 10)  # 1 MB, which zstd cannot shrink
        lost = daemon.wait_final().seq
    gap = daemon.wait_status(lambda status: status.archive_broken_seq, "the gap is told")
    application.sql(LOST)
    daemon.wait_final()
    until(lambda: daemon.metric("base_journal_bytes") < 2 * MIB, "the journal is small")
    assert "journal_full" in daemon.read_log()
    scene.archive.unlink()
    away.rename(scene.archive)
    daemon.wait_archived(patience_s=RETRY_S)
    daemon.wait_snapshot(above=lost - 1)
    restored = scene.check_restore()
    assert restored.query("SELECT count(*) FROM t") == [(42,)]
    assert scene.restore(to_seq=before).query("SELECT count(*) FROM t") == [(1,)]
    with pytest.raises(BasenetError):
        scene.restore(to_seq=gap.archive_broken_seq)
    status = daemon.status()
    assert (status.archive_broken_seq, status.recovered) == (None, 0)


def test_an_object_that_is_damaged_is_named(scene: Scene) -> None:
    """One flipped byte: restore and verify refuse, and say which object it is."""
    application = scene.start_wal_application()
    daemon = scene.serve()
    daemon.wait_archived()
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon.wait_archived()
    daemon.stop()
    names = ShardNames(service="default", shard=ShardId("app"))
    (newest,) = sorted(scene.archive.glob(f"{names.tip[:-3]}*/log/*/*.lbn"))[-1:]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    for arguments in (["verify", str(scene.archive)], ["restore", str(scene.archive), "out.db"]):
        code, output, error = scene.run(*arguments)
        assert code == 1, output
        assert newest.name in output + error
    assert not Path("out.db").exists()
