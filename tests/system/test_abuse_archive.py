"""An archive that is away, unwilling or full, and a journal that must not grow for ever."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from basenet.archive.names import ShardNames
from basenet.archive.plan import Wish
from basenet.archive.store import open_store
from basenet.archive.verify import verify
from basenet.control.surface import ShardState
from basenet.errors import BasenetError
from basenet.units import MIB, PublicKeyBytes, ShardId
from tests.system.harness import Daemon, Scene, read_publics, restore_file, until

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


# An archive with parts, two shards, two lineages, and whatever can befall one of its objects.


def copy_archive(scene: Scene) -> Path:
    """Return a copy whose files are links, so that harming one replaces it."""
    copy = scene.folder / "harmed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(scene.archive, copy, copy_function=os.link)
    return copy


def write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def flipped(data: bytes, place: float) -> bytes:
    """Return ``data`` with one bit turned, at that part of its length."""
    harmed = bytearray(data)
    harmed[min(int(len(data) * place), len(data) - 1)] ^= 4
    return bytes(harmed)


def harms_of(scene: Scene, name: Path, strangers: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield what may stand in the place of an object: a name of the harm, and the bytes."""
    data = (scene.archive / name).read_bytes()
    for place in (0.0, 0.3, 0.7, 1.0):
        yield f"flipped at {place}", flipped(data, place)
    yield "cut", data[: len(data) // 2]
    yield "longer", data + b"\0"
    yield "empty", b""
    for origin, other in strangers.items():
        if other != data:
            yield origin, other


def make_rich_archive(scene: Scene) -> None:
    """Make two shards with page sets of several parts; `app` goes on in a child lineage."""
    for name in ("app", "other"):
        with contextlib.closing(sqlite3.connect(scene.folder / f"{name}.db")) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE t(x, y)")
            rows = [(number, os.urandom(1_000_000)) for number in range(20)]
            connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
            connection.commit()
    databases = f"{scene.database},{scene.folder / 'other.db'}"
    daemon = scene.serve(databases=databases)
    daemon.wait_archived(patience_s=RETRY_S)
    daemon.wait_archived("other", patience_s=RETRY_S)
    assert daemon.stop() == 0
    key = scene.folder / "signing.key"
    shutil.copy(scene.data_dir / "signing.key", key)
    shutil.rmtree(scene.data_dir)
    application = scene.start_application()
    application.sql("INSERT INTO t VALUES (3, 4)")
    daemon = scene.serve(databases=databases, BASE_SIGNING_KEY=str(key))
    daemon.wait_archived(patience_s=RETRY_S)
    application.sql("INSERT INTO t VALUES (5, 6)")
    daemon.wait_archived()
    assert daemon.stop() == 0


def find_strangers(scene: Scene, name: Path) -> dict[str, bytes]:
    """Return true objects of the same kind from elsewhere: another shard, lineage, seq, key."""
    found: dict[str, bytes] = {}
    for archive in (scene.archive, scene.folder / "foreign"):
        for path in sorted(archive.rglob(f"*{name.suffix}" if name.suffix else name.name)):
            place = path.relative_to(archive)
            if path.is_file() and place.parts[3:4] == name.parts[3:4]:
                origin = "of another key" if archive != scene.archive else f"from {place.parts[1]}"
                found.setdefault(f"{origin} {place.name[-12:]}", path.read_bytes())
    return found


@pytest.mark.timeout(600)
def test_whatever_befalls_an_object_is_named(scene: Scene) -> None:
    """Index, part, manifest, log, TIP: flipped, cut, exchanged, deleted, signed by a stranger."""
    make_rich_archive(scene)
    foreign = scene.serve(
        archive=str(scene.folder / "foreign"), data_dir=scene.folder / "foreign-data"
    )
    foreign.wait_archived(patience_s=RETRY_S)
    assert foreign.stop() == 0
    sound = read_trust_and_verify(scene, scene.archive)
    assert sound == []
    trusted = read_publics(scene.data_dir)
    names = sorted(
        path.relative_to(scene.archive) for path in scene.archive.rglob("*") if path.is_file()
    )
    names = [name for name in names if name.parts[1:2] == ("app",) and name.name != "LEASE"]
    assert {name.suffix for name in names} == {"", ".lbn", ".idx", ".pg"}
    copy = copy_archive(scene)
    used = restore_and_list(scene, copy, trusted)
    for name in names:
        harms = [*harms_of(scene, name, find_strangers(scene, name)), ("deleted", None)]
        for harm, data in harms:
            if data is None:
                (copy / name).unlink()
            else:
                write(copy / name, data)
            problems = read_trust_and_verify(scene, copy)
            is_tip_gone = name.name == "TIP" and data is None
            assert is_tip_gone or any(is_about(problem, name) for problem in problems), (
                name,
                harm,
                problems,
            )
            if str(name) in used:
                with pytest.raises(BasenetError) as raised:
                    restore_and_list(scene, copy, trusted)
                told = str(raised.value)
                said = (name.name, "missing", "genesis", "TIP proves")
                assert any(word in told for word in said), (harm, told)
        write(copy / name, (scene.archive / name).read_bytes())
    assert read_trust_and_verify(scene, copy) == []


def is_about(problem: str, name: Path) -> bool:
    """Return whether a problem names the object, perhaps with a star where the end is unknown."""
    return str(name) == problem or (problem.endswith("*") and str(name).startswith(problem[:-1]))


def read_trust_and_verify(scene: Scene, archive: Path) -> list[str]:
    """Return the objects that verify complains about."""

    async def run() -> list[str]:
        store = open_store(f"file://{archive}", environment={})
        try:
            report = await verify(store, trusted=read_publics(scene.data_dir))
        finally:
            await store.aclose()
        return [problem.object for problem in report.problems]

    return trio.run(run)


def restore_and_list(
    scene: Scene, archive: Path, trusted: frozenset[PublicKeyBytes]
) -> frozenset[str]:
    """Restore the shard, and return the names of the objects that were read for it."""
    out = scene.folder / "out.db"
    out.unlink(missing_ok=True)
    report = restore_file(archive, out, shard="app", wish=Wish(), trusted=trusted)
    names = [*report.page_sets, *report.log_objects]
    names += [f"{name.removesuffix('.lbn')}.idx" for name in report.page_sets]
    parts = [str(path.relative_to(archive)) for path in archive.rglob("default/app/*/part/*.pg")]
    return frozenset([*names, *parts, "default/app/TIP"]) - {"default/app/TIP"}
