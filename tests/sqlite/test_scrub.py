"""The scrubber: real differences are found, a busy writer is never accused."""

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from basenet.sqlite.attach import attach
from basenet.sqlite.capture import Capture, CapturePolicy
from basenet.sqlite.capture import Captured as Change
from basenet.sqlite.pages import read_pages
from basenet.sqlite.scrub import BATCH_BYTES, PAGES_LISTED_MAX, Scrubber, scrub_step
from basenet.sqlite.tail import Gap
from basenet.units import lock_page
from basenet.wire.merkle import StateTree, leaf_hash

PAGE_SIZE = 512
SECOND_NS = 1_000_000_000
BATCH_PAGES = BATCH_BYTES // PAGE_SIZE


class File:
    """A database file with a writer, and a capture that follows it."""

    def __init__(self, db_pages: int, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        self.pages: list[bytes] = []
        self.tree = StateTree(PAGE_SIZE)
        self.pending: list[tuple[list[int], list[bytes], int]] = []
        self.scrubber: Scrubber | None = None
        self.now_ns = 0
        self.on_read: Callable[[], None] = lambda: None
        self.before_settle: Callable[[], None] = lambda: None
        self.bytes_read = 0
        self.commit(list(range(1, db_pages + 1)), db_pages)
        self.settle()

    def commit(self, pgnos: list[int], db_pages: int) -> None:
        """The application writes these pages; capture has not seen it yet."""
        images = [self.chance.randbytes(PAGE_SIZE) for _ in pgnos]
        self.pages = self.pages[:db_pages] + [bytes(PAGE_SIZE)] * (db_pages - len(self.pages))
        for pgno, image in zip(pgnos, images, strict=True):
            self.pages[pgno - 1] = image
        self.pending.append((pgnos, images, db_pages))

    def settle(self) -> None:
        """Capture to the tip: leaves first, then the scrubber hears of it."""
        self.before_settle()
        for pgnos, images, db_pages in self.pending:
            hashes = [leaf_hash(pgno, image) for pgno, image in zip(pgnos, images, strict=True)]
            self.tree.update(pgnos, hashes, db_pages)
            if self.scrubber is not None:
                self.scrubber.on_captured(pgnos, db_pages, PAGE_SIZE)
        self.pending.clear()

    def read_pages(self, first: int, count: int) -> bytes:
        self.on_read()
        data = b"".join(self.pages[first - 1 : first - 1 + count])
        self.bytes_read += len(data)
        return data

    def scrub(self, **options: float) -> Scrubber:
        self.scrubber = Scrubber(start_ns=self.now_ns, **options)  # type: ignore[arg-type]
        return self.scrubber

    def step(self) -> list[int]:
        """Wait until a step is due and do it."""
        assert self.scrubber is not None
        self.now_ns += round(self.scrubber.seconds_to_next(self.now_ns) * SECOND_NS) + 1
        return scrub_step(
            self.scrubber, self.read_pages, self.tree, self.settle, lambda: self.now_ns
        )

    def a_pass(self) -> list[int]:
        assert self.scrubber is not None
        before = self.scrubber.report().passes
        found = []
        while self.scrubber.report().passes == before:
            found += self.step()
        return found


def flip(file: File, pgno: int) -> None:
    """Change a page behind everybody's back, as a disk or a missed commit does."""
    page = bytearray(file.pages[pgno - 1])
    page[100] ^= 1
    file.pages[pgno - 1] = bytes(page)


def test_a_sound_file_passes_whole_and_page_by_page() -> None:
    """Every page is compared once in a pass, and nothing is said."""
    file = File(3 * BATCH_PAGES + 5)
    scrubber = file.scrub()
    assert file.a_pass() == []
    report = scrubber.report()
    assert (report.passes, report.pages, report.skipped) == (1, 3 * BATCH_PAGES + 5, 0)
    assert (report.mismatches, report.bad_pages) == (0, ())
    assert report.pass_finished_ns == file.now_ns


def test_flipped_bits_are_found_in_both_of_two_looks() -> None:
    """One bit in two pages: named in the pass, after the second look and not before."""
    file = File(2 * BATCH_PAGES)
    scrubber = file.scrub()
    flip(file, 7)
    flip(file, BATCH_PAGES + 1)
    assert file.step() == []
    assert file.step() == [7]
    assert file.a_pass() == [BATCH_PAGES + 1]
    assert scrubber.report().bad_pages == (7, BATCH_PAGES + 1)
    assert scrubber.report().mismatches == 2


def test_a_single_bad_read_accuses_nobody() -> None:
    """The memory or the cable erred once; the second look is right."""
    file = File(10)
    scrubber = file.scrub()
    good = file.pages[3]
    flip(file, 4)
    assert file.step() == []
    file.pages[3] = good
    assert file.step() == []
    assert scrubber.report().mismatches == 0
    assert scrubber.report().passes == 1


def test_a_commit_at_any_moment_of_a_step_is_no_difference() -> None:
    """Before the read but not captured, during, and between read and comparison."""
    file = File(10)
    scrubber = file.scrub()

    def write() -> None:
        file.commit([2, 5], 10)

    for _ in range(4):
        write()
        file.on_read = file.before_settle = write
        assert file.step() == []
    assert scrubber.report().mismatches == 0
    assert scrubber.report().skipped == 8
    assert scrubber.report().pages == 4 * 8


def test_a_difference_beside_a_busy_page_is_still_found() -> None:
    """Skipping is per page, not per batch."""
    file = File(10)
    file.scrub()
    file.on_read = lambda: file.commit([2], 10)
    flip(file, 3)
    assert [file.step(), file.step()] == [[], [3]]


def test_a_missed_commit_is_found() -> None:
    """The writer's change never reached the leaves: a fault of capture, seen in the file."""
    file = File(10)
    file.scrub()
    file.commit([4, 9], 10)
    file.pending.clear()
    assert file.a_pass() == [4, 9]


def test_a_missed_shrink_is_found_as_pages_that_are_not_there() -> None:
    """The file ends before the chain does."""
    file = File(10)
    file.scrub()
    del file.pages[8:]
    assert file.a_pass() == [9, 10]


def test_a_page_that_is_rewritten_is_mended() -> None:
    """The RECOVERED frame for it is a capture like any other."""
    file = File(10)
    scrubber = file.scrub()
    flip(file, 3)
    assert file.a_pass() == [3]
    file.commit([3], 10)
    file.settle()
    assert scrubber.report().bad_pages == ()
    assert file.a_pass() == []
    assert scrubber.report().mismatches == 1


def test_growing_and_shrinking_under_the_scrubber_accuses_nobody() -> None:
    """Cut off and grown back between read and comparison counts as changed."""
    file = File(3 * BATCH_PAGES)
    scrubber = file.scrub()
    chance = random.Random(1)

    def write() -> None:
        db_pages = chance.randrange(5, 4 * BATCH_PAGES)
        grown = list(range(len(file.pages) + 1, db_pages + 1))
        file.commit(sorted({*grown, chance.randrange(1, 5)}), db_pages)

    file.on_read = file.before_settle = write
    for _ in range(60):
        assert file.step() == []
    assert scrubber.report().mismatches == 0


def test_it_goes_on_where_it_stopped() -> None:
    """The journal keeps one number; a page number beyond a shrunk file starts again."""
    file = File(3 * BATCH_PAGES)
    scrubber = file.scrub()
    file.step()
    assert scrubber.next_pgno == BATCH_PAGES + 1
    resumed = file.scrub(next_pgno=scrubber.next_pgno)
    flip(file, 1)
    flip(file, BATCH_PAGES + 2)
    assert file.a_pass() == [BATCH_PAGES + 2]
    assert resumed.report().pages == 2 * BATCH_PAGES
    beyond = file.scrub(next_pgno=10**6)
    file.step()
    file.step()
    assert beyond.next_pgno == BATCH_PAGES + 1


def test_a_pass_is_spread_evenly_and_never_faster_than_the_limit() -> None:
    """A pass per day when that is slow enough, else at most so many bytes a second."""
    file = File(4 * BATCH_PAGES)
    file.scrub(pass_seconds=400)
    file.a_pass()
    assert 300 <= file.now_ns / SECOND_NS <= 301, "the fourth batch is due after three intervals"
    file.now_ns = 0
    limited = file.scrub(pass_seconds=1, bytes_per_second=BATCH_BYTES)
    file.a_pass()
    assert file.now_ns / SECOND_NS >= 3
    file.step()
    assert limited.report().bytes_per_second <= BATCH_BYTES


def test_nothing_is_due_before_its_time_and_an_empty_database_waits() -> None:
    """`begin` says None, and a step without it reads nothing."""
    file = File(10)
    scrubber = file.scrub(pass_seconds=100)
    file.step()
    before = file.bytes_read
    assert scrub_step(scrubber, file.read_pages, file.tree, file.settle, lambda: file.now_ns) == []
    assert file.bytes_read == before
    assert scrubber.seconds_to_next(file.now_ns) == pytest.approx(100)
    empty = File(0)
    empty.scrub(pass_seconds=100)
    assert empty.step() == []
    assert empty.bytes_read == 0


def test_an_error_of_the_reader_passes_through_and_the_batch_comes_again() -> None:
    """A disk that is gone for a while costs nothing but the step."""
    file = File(10)
    scrubber = file.scrub()
    flip(file, 2)

    def fail() -> None:
        raise OSError(5, "Input/output error")

    file.on_read = fail
    with pytest.raises(OSError, match="Input/output"):
        file.step()
    file.on_read = lambda: None
    assert file.a_pass() == [2]
    assert scrubber.report().passes == 1


def test_page_1_and_the_lock_page_are_judged_as_the_state_root_sees_them() -> None:
    """The fence's byte 18, and anything on SQLite's lock page, are no differences."""

    class Big:
        """Leaves of a database beyond 1 GiB, of which the last pages before it are read."""

        page_size = 65536
        db_pages = lock_page(65536)

        def leaf(self, pgno: int) -> bytes:
            return leaf_hash(pgno, bytes(65536))

    def nothing() -> None:
        """Nothing is written meanwhile."""

    class Reader:
        def read_pages(self, first: int, count: int) -> bytes:
            pages = [bytes(65536) for _ in range(count)]
            if first == 1:
                pages[0] = bytes(18) + b"\x03\x02" + bytes(65516)
            if first + count - 1 == Big.db_pages:
                pages[-1] = b"\xff" * 65536
            return b"".join(pages)

    for first in (1, Big.db_pages - 1):
        scrubber = Scrubber(start_ns=0, next_pgno=first)
        times = count(1, 10**12)
        for _ in range(2):
            assert scrub_step(scrubber, Reader().read_pages, Big(), nothing, times.__next__) == []
        assert scrubber.report().pages


def test_the_list_of_bad_pages_is_bounded_and_the_count_is_not() -> None:
    """A file of another database would fill every log."""
    file = File(PAGES_LISTED_MAX + 200)
    scrubber = file.scrub()
    for pgno in range(1, PAGES_LISTED_MAX + 201):
        flip(file, pgno)
    file.a_pass()
    assert len(scrubber.report().bad_pages) == PAGES_LISTED_MAX
    assert scrubber.report().mismatches == PAGES_LISTED_MAX + 200


def test_a_new_page_size_voids_the_batch_in_flight() -> None:
    """All pages are another size; the next batch is cut anew."""
    file = File(10)
    scrubber = file.scrub()
    batch = scrubber.begin(file.tree, 1)
    assert batch is not None
    scrubber.on_captured([1], 5, 4096)
    assert scrubber.judge(b"", StateTree(4096, bytes(32 * 5)), 2) == []
    assert scrubber.report().skipped == 10


WRITER = """
import random, sqlite3, sys
app = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
app.execute("pragma wal_autocheckpoint=50")
chance = random.Random(3)
print("writing", flush=True)
import itertools, select
for number in itertools.count():
    if select.select([sys.stdin], [], [], 0)[0]:
        break
    app.execute("begin")
    app.execute("update t set x = randomblob(?) where id = ?",
                (chance.randrange(2000), chance.randrange(1, 200)))
    app.execute("insert into t(x) values (randomblob(300))")
    app.execute("delete from t where id = ?", (chance.randrange(200, 4000),))
    app.execute("commit")
    if number % 300 == 299:
        app.execute("vacuum")
app.close()
"""


class Captured:
    """A real database, captured, with its leaves."""

    def __init__(self, path: Path) -> None:
        self.database = attach(path)
        self.capture = Capture(self.database, policy=CapturePolicy.STRICT)
        found = self.capture.adopt()
        self.tree = StateTree(found.page_size, found.leaves)
        self.scrubber = Scrubber(start_ns=0)
        self.now_ns = 0

    def settle(self) -> None:
        try:
            self.take_in(self.capture.poll())
        except Gap:
            self.take_in(self.capture.recover(self.tree.leaves))
        self.capture.steer()

    def take_in(self, changes: Iterator[Change]) -> None:
        for change in changes:
            view, size = memoryview(change.pages), change.page_size
            pgnos = change.pgnos.tolist()
            hashes = [
                leaf_hash(pgno, view[row * size : (row + 1) * size])
                for row, pgno in enumerate(pgnos)
            ]
            self.tree.update(pgnos, hashes, change.db_pages)
            self.scrubber.on_captured(pgnos, change.db_pages, size)

    def step(self) -> list[int]:
        """A step without waiting for its time."""
        read = partial(read_pages, self.database)
        self.now_ns += 10**15
        return scrub_step(self.scrubber, read, self.tree, self.settle, lambda: self.now_ns)


def spoil(captured: Captured, pgno: int) -> bool:
    """Change a page in the file; return whether it is read from there, and not from the log."""
    place = (pgno - 1) * 512 + 77
    before = os.pread(captured.database.database_fd, 3, place)
    os.pwrite(captured.database.database_fd, b"rot", place)
    if bytes(read_pages(captured.database, pgno, 1))[77:80] == b"rot":
        return True
    os.pwrite(captured.database.database_fd, before, place)
    return False


def test_beside_a_live_writer_nothing_is_accused_and_a_changed_byte_is_found(
    tmp_path: Path,
) -> None:
    """Updates, growth, VACUUM and the application's own checkpoints under the scrubber's eyes."""
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as app:
        app.execute("pragma page_size=512")
        app.execute("pragma journal_mode=wal")
        app.execute("create table t(id integer primary key, x blob)")
        app.execute("create table still(x blob)")
        app.execute("insert into still values (randomblob(60000))")
        for _ in range(200):
            app.execute("insert into t(x) values (randomblob(500))")
    captured = Captured(path)
    command = [sys.executable, "-c", WRITER, os.fspath(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        while captured.scrubber.report().passes < 50 or not captured.scrubber.report().skipped:
            assert captured.step() == []
        assert writer.poll() is None
        writer.communicate()
    assert writer.returncode == 0
    captured.settle()
    report = captured.scrubber.report()
    assert report.mismatches == 0
    assert report.pages > report.skipped > 0

    captured.database.checkpoint(captured.database.connections[0])
    captured.settle()
    page = next(filter(partial(spoil, captured), range(captured.tree.db_pages // 2, 0, -1)))
    found: list[int] = []
    before = captured.scrubber.report().passes
    while captured.scrubber.report().passes < before + 2:
        found += captured.step()
    assert set(found) == {page}
    captured.capture.close()
