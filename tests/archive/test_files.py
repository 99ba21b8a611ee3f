"""Durable files: syncs that are shared, and locks that follow the name."""

import threading
from pathlib import Path

import pytest

from basenet.archive import files
from basenet.archive.files import DirectorySyncs, locked, read_descriptor, write_durable


def test_threads_that_wait_for_a_sync_share_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one sync runs, eight threads come: one more sync serves them all."""
    syncs = DirectorySyncs()
    running, go_on = threading.Event(), threading.Event()
    count = 0

    def slow_sync(_: Path) -> None:
        nonlocal count
        count += 1
        running.set()
        assert go_on.wait(10)

    monkeypatch.setattr(files, "_sync_directory", slow_sync)
    first = threading.Thread(target=syncs.sync, args=(tmp_path,))
    first.start()
    assert running.wait(10)
    directory = syncs._directories[tmp_path]
    arrived = threading.Semaphore(0)

    class ToldLock:
        """The directory's lock, telling who has read the count and now waits."""

        def __init__(self, lock: threading.Lock) -> None:
            self.lock = lock

        def __enter__(self) -> None:
            arrived.release()
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()

    directory.lock = ToldLock(directory.lock)  # type: ignore[assignment]  # (a test's stand-in)
    others = [threading.Thread(target=syncs.sync, args=(tmp_path,)) for _ in range(8)]
    for thread in others:
        thread.start()
    for _ in others:
        assert arrived.acquire(timeout=10)
    go_on.set()
    for thread in (first, *others):
        thread.join(10)
    assert count == 2


def test_a_sync_that_failed_serves_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each caller that cannot rely on a success tries for itself, and hears of its failure."""
    syncs = DirectorySyncs()
    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync_directory", lambda _: (tmp_path / "missing").stat())
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                syncs.sync(tmp_path)
    syncs.sync(tmp_path)


def test_a_lock_is_on_what_the_name_leads_to_now(tmp_path: Path) -> None:
    """Who waited for a file that has been replaced locks the new one."""
    path = tmp_path / "LEASE"
    path.write_bytes(b"old")
    (tmp_path / "new").write_bytes(b"new")
    seen: list[bytes] = []

    def wait() -> None:
        with locked(path) as file:
            seen.append(read_descriptor(file))

    with locked(path):
        waiter = threading.Thread(target=wait)
        waiter.start()
        (tmp_path / "new").rename(path)
    waiter.join(10)
    assert seen == [b"new"]


def test_a_lock_on_nothing_is_an_error(tmp_path: Path) -> None:
    """There is nothing to lock where there is no file."""
    with pytest.raises(FileNotFoundError), locked(tmp_path / "missing"):
        pass


def test_a_durable_file_never_overwrites(tmp_path: Path) -> None:
    """Two writers never share a temporary file."""
    write_durable(tmp_path / "file", b"first")
    with pytest.raises(FileExistsError):
        write_durable(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
