"""Locks as other processes and our own SQLite connections see them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from basenet.sqlite import locks

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], 'r+b')
fcntl.lockf(file, fcntl.LOCK_EX, 1, int(sys.argv[2]))
print('held', flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def test_a_second_description_is_refused_at_once(tmp_path: Path, descriptor: int) -> None:
    """Also within one process: the lock belongs to the description."""
    other = os.open(tmp_path / "file", os.O_RDWR)
    assert locks.try_lock(descriptor, locks.OWNER_BYTE)
    assert not locks.try_lock(other, locks.OWNER_BYTE)
    holder = locks.anyone(other, locks.OWNER_BYTE)
    assert holder is not None
    assert (holder.pid, holder.is_exclusive) == (-1, True)
    assert locks.anyone(descriptor, locks.OWNER_BYTE) is None
    locks.unlock(descriptor, locks.OWNER_BYTE)
    assert locks.try_lock(other, locks.OWNER_BYTE)
    os.close(other)


def test_a_posix_lock_of_another_process_is_seen_with_its_pid(
    tmp_path: Path, descriptor: int
) -> None:
    """SQLite's locks are POSIX locks: both kinds exclude each other."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "file"), str(locks.WAL_WRITE_BYTE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert not locks.try_lock(descriptor, locks.WAL_WRITE_BYTE)
    for query in (locks.anyone, locks.other_process):
        holder = query(descriptor, locks.WAL_WRITE_BYTE)
        assert holder is not None
        assert holder.pid == process.pid
    assert locks.anyone(descriptor, locks.WAL_CHECKPOINT_BYTE) is None
    process.communicate(b"\n")
    assert locks.anyone(descriptor, locks.WAL_WRITE_BYTE) is None


def test_our_own_connections_are_seen_only_by_the_ofd_query(tmp_path: Path) -> None:
    """`other_process` looks past what this process holds, `anyone` does not."""
    path = tmp_path / "app.db"
    connection = apsw.Connection(str(path))
    connection.execute("pragma journal_mode=wal").fetchall()
    connection.execute("create table t(x)").fetchall()
    number = os.open(path, os.O_RDWR)
    holder = locks.anyone(number, locks.SHARED_FIRST_BYTE, length=locks.SHARED_BYTES)
    assert holder is not None
    assert holder.pid == os.getpid()
    assert not holder.is_exclusive
    found = locks.other_process(number, locks.SHARED_FIRST_BYTE, length=locks.SHARED_BYTES)
    assert found is None
    connection.close()
    os.close(number)
