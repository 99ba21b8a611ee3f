"""What only the directory store does: files, permissions, crashes and full disks."""

import errno
import hashlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from basenet.archive import directory, files
from basenet.archive.directory import DirectoryStore, DirectoryTree
from basenet.archive.port import (
    StoreConflict,
    StoreNotFound,
    StoreRefused,
    StoreUnavailable,
    Token,
)
from basenet.errors import BasenetError


def failing(number: int) -> Any:
    """Return a function that fails as the operating system would."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def files_in(path: Path) -> list[str]:
    """Return the names of what lies in a directory."""
    return [child.name for child in path.iterdir()]


async def test_objects_are_private_files(tmp_path: Path) -> None:
    """0600 and 0700, whatever the umask: a database's pages are in them."""
    before = os.umask(0)
    try:
        store = DirectoryStore(tmp_path / "archive")
        await store.put_if_absent("svc/shard/LEASE", b"data")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "archive/svc/shard/LEASE").stat().st_mode) == 0o600
    for path in ("archive", "archive/svc", "archive/svc/shard"):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o700


async def test_a_token_is_the_hash_of_the_content(tmp_path: Path) -> None:
    """So it is the same on every machine that mounts the directory."""
    store = DirectoryStore(tmp_path)
    token = await store.put_if_absent("name", b"data")
    assert token == hashlib.sha256(b"data").hexdigest()


async def test_no_temporary_file_stays_behind(tmp_path: Path) -> None:
    """After success, after a conflict, and after a failure between write and link."""
    store = DirectoryStore(tmp_path)
    token = await store.put_if_absent("name", b"data")
    await store.replace_if("name", b"other", token)
    for expected in (None, token):
        with pytest.raises(StoreConflict):
            await store.replace_if("name", b"third", expected)
    await store.put_unconditional("name", b"fourth")
    assert files_in(tmp_path) == ["name"]


async def test_what_a_killed_writer_left_is_not_an_object(tmp_path: Path) -> None:
    """A process dies between write and link: no object, and another writer is not disturbed."""
    script = (
        "import os, pathlib, signal\n"
        "from basenet.archive.directory import DirectoryTree\n"
        "os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"DirectoryTree(pathlib.Path({str(tmp_path)!r})).put_if_absent('name', b'data')\n"
    )
    done = await trio.run_process([sys.executable, "-c", script], check=False)
    assert done.returncode == -9
    (leftover_name,) = files_in(tmp_path)
    leftover = tmp_path / leftover_name
    assert leftover.name.startswith(".tmp-")
    store = DirectoryStore(tmp_path)
    assert [entry async for entry in store.list("")] == []
    with pytest.raises(StoreRefused, match="temporary"):
        await store.get(leftover.name)
    await store.put_if_absent("name", b"other data")
    assert leftover.exists()  # it could still be another writer's


async def test_leftovers_older_than_a_day_are_removed(tmp_path: Path) -> None:
    """The first write of a day does it; younger ones may be in use."""
    old, young = tmp_path / ".tmp-1-old", tmp_path / ".tmp-1-young"
    for path in (old, young):
        path.write_bytes(b"leftover")
    yesterday = time.time() - directory.LEFTOVER_AGE_SECONDS - 60
    os.utime(old, (yesterday, yesterday))
    store = DirectoryStore(tmp_path)
    await store.put_if_absent("name", b"data")
    assert young.exists()
    assert not old.exists()


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, StoreUnavailable, "is full"),
        (errno.EDQUOT, StoreUnavailable, "is full"),
        (errno.EROFS, StoreRefused, "read-only file system"),
        (errno.EACCES, StoreRefused, "no permission"),
        (errno.EPERM, StoreRefused, "hard links"),
        (errno.EIO, StoreUnavailable, "look at the disk"),
    ],
)
async def test_what_the_file_system_says_becomes_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[BasenetError],
    words: str,
) -> None:
    """It names the directory, and nothing stays behind."""
    store = DirectoryStore(tmp_path)
    monkeypatch.setattr(os, "link", failing(number))
    with pytest.raises(kind, match=words) as caught:
        await store.put_if_absent("name", b"data")
    assert str(tmp_path) in str(caught.value)
    assert files_in(tmp_path) == []


async def test_a_name_that_could_not_be_synced_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hears of it, and writing the same again succeeds once the disk does."""
    store = DirectoryStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.EIO))
        with pytest.raises(StoreUnavailable):
            await store.put_if_absent("name", b"data")
    await store.put_if_absent("name", b"data")


async def test_a_missing_disk_is_not_an_empty_archive(tmp_path: Path) -> None:
    """Nothing is made where a mount should be; the last directory alone is made."""
    store = DirectoryStore(tmp_path / "mount/archive")
    with pytest.raises(StoreRefused, match=r"mount/archive is missing"):
        await store.put_if_absent("name", b"data")
    with pytest.raises(StoreRefused, match=r"is missing"):
        await store.get("name")
    with pytest.raises(StoreRefused, match=r"is missing"):
        [entry async for entry in store.list("")]
    (tmp_path / "mount").mkdir()
    with pytest.raises(StoreNotFound):
        await store.get("name")
    assert [entry async for entry in store.list("")] == []
    await store.put_if_absent("name", b"data")


async def test_a_file_in_the_place_of_the_archive_is_refused(tmp_path: Path) -> None:
    """Reading, listing and writing all say so, whatever object it was about."""
    (tmp_path / "archive").write_bytes(b"no directory")
    store = DirectoryStore(tmp_path / "archive")
    told = (
        f"^{tmp_path}/archive is a file and no directory: give the archive a directory of its own$"
    )
    with pytest.raises(StoreRefused, match=told):
        await store.put_if_absent("a/name", b"data")
    with pytest.raises(StoreRefused, match=told):
        await store.get("name")
    with pytest.raises(StoreRefused, match=told):
        [entry async for entry in store.list("")]


async def test_an_object_cannot_be_a_directory_too(tmp_path: Path) -> None:
    """Object stores allow "a" beside "a/b"; a file system does not, and says so."""
    store = DirectoryStore(tmp_path)
    await store.put_if_absent("a", b"data")
    with pytest.raises(StoreRefused, match="in the way"):
        await store.put_if_absent("a/b", b"data")
    await store.put_if_absent("c/d", b"data")
    with pytest.raises(StoreRefused, match="in the way"):
        await store.put_if_absent("c", b"data")


async def test_a_listing_longer_than_a_page_is_whole(tmp_path: Path) -> None:
    """Thousands of objects in one directory and in several."""
    wanted = [f"{number // 400:02}/{number:05}" for number in range(2 * directory.PAGE_ENTRIES + 5)]
    for name in wanted:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    store = DirectoryStore(tmp_path)
    assert [entry.name async for entry in store.list("")] == wanted
    assert [entry.name async for entry in store.list("", wanted[1500])] == wanted[1501:]


def test_a_lock_that_is_never_released_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process may hold it: wait a while, then say which file is locked."""
    monkeypatch.setattr(files, "LOCK_WAIT_SECONDS", 0.05)
    tree = DirectoryTree(tmp_path)
    token = tree.put_if_absent("LEASE", b"first")
    with (
        files.locked(tmp_path / "LEASE"),
        pytest.raises(StoreUnavailable, match=r"LEASE has been locked"),
    ):
        tree.replace_if("LEASE", b"second", token)
    tree.replace_if("LEASE", b"second", token)


def test_of_many_processes_exactly_one_replaces(tmp_path: Path) -> None:
    """The lock is between processes, not only between threads of one."""
    tree = DirectoryTree(tmp_path)
    token = tree.put_if_absent("LEASE", b"first")
    script = (
        "import pathlib, sys\n"
        "from basenet.archive.directory import DirectoryTree\n"
        "from basenet.errors import ConflictError\n"
        f"tree = DirectoryTree(pathlib.Path({str(tmp_path)!r}))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try: tree.replace_if('LEASE', sys.argv[1].encode(), sys.argv[2]); print('won')\n"
        "except ConflictError: print('lost')\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, f"writer {number}", token],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    results = [writer.communicate(timeout=20)[0].strip() for writer in writers]
    assert sorted(results) == ["lost", "lost", "won"]
    assert tree.get_data("LEASE") == f"writer {results.index('won')}".encode()


async def test_a_replacement_and_a_deletion_do_not_mix(tmp_path: Path) -> None:
    """Either the deletion comes first and the replacement conflicts, or it comes last."""
    store = DirectoryStore(tmp_path)
    for number in range(50):
        token = await store.put_if_absent("LEASE", b"first")
        replaced: list[Token] = []

        async def replace(token: Token, replaced: list[Token]) -> None:
            try:
                replaced.append(await store.replace_if("LEASE", b"second", token))
            except StoreConflict:
                return

        async with trio.open_nursery() as nursery:
            if number % 2:
                nursery.start_soon(store.delete, "LEASE")
            nursery.start_soon(replace, token, replaced)
            if not number % 2:
                nursery.start_soon(store.delete, "LEASE")
        assert not (tmp_path / "LEASE").exists()
