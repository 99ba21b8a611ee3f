"""Where a snapshot lies until it is proven."""

import errno
import io
import os
import random
from pathlib import Path

import pytest

from basenet.archive.overlay import Overlay
from basenet.archive.spool import BlockSpool, PageSpool
from basenet.errors import UnavailableError


@pytest.mark.parametrize("memory_bytes", [0, 500, 1 << 20])
def test_blocks_come_back_as_they_were_put_also_after_they_were_replaced(
    memory_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory or in a file: the newest block of each group, joined in the order of groups."""
    monkeypatch.setattr("basenet.archive.spool.MEMORY_BYTES_MAX", memory_bytes)
    rng = random.Random(1)
    spool, model = BlockSpool(tmp_path), []
    for group in range(50):
        model.append(rng.randbytes(rng.randint(1, 90)))
        spool.put(group, model[-1])
    for _ in range(30):
        group = rng.randrange(50)
        model[group] = rng.randbytes(rng.randint(1, 90))
        spool.put(group, model[group])
    spool.cut(40)
    assert [spool.get(group) for group in range(40)] == model[:40]
    assert spool.join(range(3, 9)) == b"".join(model[3:9])
    assert list(spool.sizes) == [len(block) for block in model[:40]]
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_the_newest_image_of_a_page_wins(tmp_path: Path) -> None:
    """A page takes one place, however often it is put; pages beyond the end are passed over."""
    rng = random.Random(2)
    spool, model = PageSpool(tmp_path, 64), {}
    for _ in range(500):
        pgno = rng.choice([1, 2, 3, 1024, 5000, 200_000])
        model[pgno] = rng.randbytes(64)
        spool.put(pgno, model[pgno])
    assert {pgno: spool.get(pgno) for pgno in model} == model
    assert (spool.get(4), spool.get(10**6)) == (None, None)
    assert list(spool.pgnos(5000)) == [1, 2, 3, 1024, 5000]
    assert spool._spool.size == 6 * 64
    spool.close()


def test_a_disk_that_does_not_take_it_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot is tried again later; the sentence names the directory and the way out."""
    monkeypatch.setattr("basenet.archive.spool.MEMORY_BYTES_MAX", 10)
    spool = BlockSpool(tmp_path / "gone")
    with pytest.raises(UnavailableError, match=r"does not fit into .*gone .*: make room there"):
        spool.put(0, b"more than ten bytes")
    spool.close()


class _FullDisk(io.RawIOBase):
    """A file on a disk that takes nothing any more."""

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return offset if whence == 0 else 0

    def write(self, _data: object, /) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_still_buffered_on_a_full_disk_is_given_up_without_a_word(tmp_path: Path) -> None:
    """Python writes it when the file is read or closed: the one is said, the other nobody needs."""
    spool = PageSpool(tmp_path, 64)
    spool._spool._file.close()
    spool._spool._file = io.BufferedRandom(_FullDisk(), 1 << 16)  # type: ignore[assignment]
    spool.put(1, b"x" * 64)
    with pytest.raises(UnavailableError, match="does not fit into"):
        spool.get(1)
    spool.close()
    spool.close()


@pytest.mark.parametrize("is_folder_free", [True, False])
def test_changed_pages_that_do_not_fit_name_the_place_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_folder_free: bool
) -> None:
    """TMPDIR is advice for a query only: a copy that follows has them beside itself."""
    monkeypatch.setattr("basenet.archive.spool.MEMORY_BYTES_MAX", 10)
    overlay = Overlay(tmp_path / "gone", 512, 1, is_folder_free=is_folder_free)
    with pytest.raises(UnavailableError) as caught:
        overlay.put([1], bytes(512), [0])
    assert f"do not fit into {tmp_path / 'gone'}: make room there" in str(caught.value)
    assert ("TMPDIR" in str(caught.value)) == is_folder_free
    overlay.close()
