"""The child that proves: what it answers about a real database in a directory archive."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from basenet.daemon.prover import Answer, Order, Outcome, carry_out
from basenet.units import MIB
from tests.archive.builder import Archive
from tests.archive.recorder import Recorder, write
from tests.fakes.chain import signer


def recorded(folder: Path) -> tuple[Recorder, Path]:
    """Return a database of two moments with an index, and its archive."""
    recorder = Recorder(folder / "source.db")
    recorder.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    recorder.run("CREATE INDEX i ON t(x)")
    recorder.run(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
        "INSERT INTO t SELECT i, hex(randomblob(20)) FROM n"
    )
    recorder.begin()
    recorder.run("UPDATE t SET x = 'new' WHERE id = 7")
    recorder.commit()
    made = Archive()
    made.put_log(recorder.history, 1)
    made.put_set(recorder.history, 1)
    made.put_log(recorder.history, 2)
    made.put_tip(recorder.history)
    return recorder, write(made, folder / "archive")


def order(archive: Path, folder: Path, *, key: int = 1, bytes_max: int = 64 * MIB) -> Order:
    folder.mkdir(exist_ok=True)
    return Order(
        url=f"file://{archive}",
        service="default",
        shard="app",
        seq=None,
        trusted=(signer(key).public.hex(),),
        identity=None,
        folder=str(folder),
        bytes_max=bytes_max,
        retry_seconds=0,
        is_nice=False,
    )


async def test_a_sound_archive_is_proven(tmp_path: Path) -> None:
    recorder, archive = recorded(tmp_path)
    answer = await carry_out(order(archive, tmp_path / "scratch"), {})
    assert answer.outcome is Outcome.PROVEN, answer
    assert answer.seq in (1, 2)
    assert answer.sentence is None
    assert answer.database_bytes == len(recorder.history.contents())
    assert answer.bytes_read > 0


@pytest.mark.parametrize("pattern", ["*/part/*", "*.idx", "*/log/*/*.lbn"])
async def test_a_flipped_byte_is_a_failure(tmp_path: Path, pattern: str) -> None:
    _, archive = recorded(tmp_path)
    for path in archive.rglob("*"):
        if path.match(pattern):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 4
            path.write_bytes(bytes(data))
    answer = await carry_out(order(archive, tmp_path / "scratch"), {})
    assert answer.outcome is Outcome.FAILED
    assert answer.sentence


async def test_a_database_that_was_archived_damaged_is_a_failure(tmp_path: Path) -> None:
    """All pages are as signed; SQLite says what is wrong with them together."""
    recorder, _ = recorded(tmp_path)
    history = recorder.history
    swapped = {len(history.pages): history.pages[5], 5: history.pages[len(history.pages)]}
    history.commit(swapped)
    made = Archive()
    made.put_log(history, 1)
    made.put_set(history, history.tip.head.seq)
    made.put_log(history, 2, 3)
    archive = write(made, tmp_path / "damaged")
    damaged = msgspec.structs.replace(order(archive, tmp_path / "scratch"), seq=3)
    answer = await carry_out(damaged, {})
    assert answer.outcome is Outcome.FAILED
    assert "damaged" in (answer.sentence or "")


async def test_what_says_nothing_of_the_archive_is_no_failure(tmp_path: Path) -> None:
    _, archive = recorded(tmp_path)
    folder = tmp_path / "scratch"
    small = await carry_out(order(archive, folder, bytes_max=1000), {})
    assert small.outcome is Outcome.SKIPPED
    away = await carry_out(order(tmp_path / "nowhere", folder), {})
    assert away.outcome is Outcome.UNAVAILABLE
    assert list(folder.iterdir()) == []


async def test_a_key_that_is_not_trusted_is_a_failure(tmp_path: Path) -> None:
    """Whoever signed it, nobody who trusts what this node trusts could restore it."""
    _, archive = recorded(tmp_path)
    answer = await carry_out(order(archive, tmp_path / "scratch", key=2), {})
    assert answer.outcome is Outcome.FAILED
    assert "not trusted" in (answer.sentence or "")


def test_the_process_answers_and_ends_with_its_standard_input(tmp_path: Path) -> None:
    _, archive = recorded(tmp_path)
    line = msgspec.json.encode(order(archive, tmp_path / "scratch")) + b"\n"
    command = [sys.executable, "-m", "basenet.daemon.prover"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(line)
        child.stdin.flush()
        answer = msgspec.json.decode(child.stdout.read(), type=Answer)
    assert answer.outcome is Outcome.PROVEN
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as orphan:
        assert orphan.stdin is not None
        endless = msgspec.structs.replace(
            order(archive, tmp_path / "scratch"), url="s3://bucket/x", retry_seconds=3600
        )
        orphan.stdin.write(msgspec.json.encode(endless) + b"\n")
        orphan.stdin.close()
        assert orphan.wait(60) != 0
