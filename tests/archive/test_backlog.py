"""Which frames wait: sums, bounds, order."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from basenet.archive.backlog import Backlog, Batch
from basenet.errors import CorruptionError
from basenet.units import Seq, TimestampNs


def frame(seq: int, size: int = 100) -> bytes:
    return seq.to_bytes(8, "big").ljust(size, b".")


class Journal:
    """Frames by number; remembers what was read back."""

    def __init__(self) -> None:
        self.kept: dict[int, bytes] = {}
        self.reads: list[tuple[int, int]] = []

    async def frames(self, start: Seq, end: Seq, bytes_max: int) -> list[bytes]:
        self.reads.append((start, end))
        out: list[bytes] = []
        for seq in range(start, end + 1):
            if seq not in self.kept or (
                out and sum(map(len, out)) + len(self.kept[seq]) > bytes_max
            ):
                break
            out.append(self.kept[seq])
        return out


def append(backlog: Backlog, journal: Journal, seq: int, size: int = 100) -> None:
    journal.kept[seq] = frame(seq, size)
    backlog.append(seq=Seq(seq), timestamp_ns=TimestampNs(seq * 10), encoded=journal.kept[seq])


async def read(backlog: Backlog, journal: Journal, bytes_max: int = 1000) -> Batch:
    batch = await backlog.read_batch(journal, bytes_max=bytes_max)
    assert batch is not None
    return batch


async def test_what_fits_in_memory_is_never_read_back() -> None:
    """Frames come out of the cache in order, as many as fit a batch, and are gone once archived."""
    backlog, journal = Backlog(archived_seq=Seq(4)), Journal()
    for seq in range(5, 9):
        append(backlog, journal, seq)
    assert (backlog.count, backlog.size, backlog.oldest_ns) == (4, 400, 50)
    batch = await read(backlog, journal, bytes_max=250)
    assert batch == Batch(start=Seq(5), frames=(frame(5), frame(6)))
    assert backlog.count == 4, "what is on its way still waits"
    backlog.remove(batch, last_ns=TimestampNs(60))
    assert (backlog.next_seq, backlog.count, backlog.size, backlog.oldest_ns) == (7, 2, 200, 70)
    assert journal.reads == []


async def test_one_frame_larger_than_a_batch_still_goes() -> None:
    """The bound cuts between frames; a frame is never cut, and never stuck."""
    backlog, journal = Backlog(archived_seq=Seq(0)), Journal()
    append(backlog, journal, 1, size=5000)
    append(backlog, journal, 2)
    assert (await read(backlog, journal, bytes_max=1000)).frames == (frame(1, 5000),)


async def test_memory_is_bounded_and_the_rest_is_read_back() -> None:
    """Beyond the bound only numbers and sums are kept; the journal gives the frames back."""
    backlog = Backlog(archived_seq=Seq(0), bytes_max=300)
    journal = Journal()
    for seq in range(1, 11):
        append(backlog, journal, seq)
    assert (backlog.cached_bytes, backlog.count, backlog.size) == (300, 10, 1000)
    seen: list[bytes] = []
    while backlog.count:
        batch = await read(backlog, journal, bytes_max=400)
        seen += batch.frames
        backlog.remove(batch, last_ns=TimestampNs(batch.end * 10))
        assert backlog.size == 100 * backlog.count
    assert seen == [frame(seq) for seq in range(1, 11)]
    assert journal.reads == [(4, 10), (8, 10)]


async def test_the_number_of_frames_in_memory_is_bounded_too() -> None:
    """A hundred thousand tiny frames are as much of a burden as their bytes."""
    backlog, journal = Backlog(archived_seq=Seq(0), entries_max=2), Journal()
    for seq in range(1, 6):
        append(backlog, journal, seq)
    assert (backlog.cached_bytes, backlog.count) == (200, 5)


async def test_a_drained_backlog_caches_again() -> None:
    """Once the journal is caught up with, new frames go through memory alone."""
    backlog, journal = Backlog(archived_seq=Seq(0), bytes_max=100), Journal()
    for seq in range(1, 4):
        append(backlog, journal, seq)
    while backlog.count:
        batch = await read(backlog, journal)
        backlog.remove(batch, last_ns=TimestampNs(0))
    journal.reads.clear()
    append(backlog, journal, 4)
    assert (await read(backlog, journal)).frames == (frame(4),)
    assert journal.reads == []


async def test_frames_of_an_earlier_run_are_adopted_by_their_sums() -> None:
    """A start tells what waits in the journal without reading it."""
    backlog, journal = Backlog(archived_seq=Seq(10)), Journal()
    for seq in range(11, 21):
        journal.kept[seq] = frame(seq)
    backlog.adopt(end=Seq(20), size=1000, oldest_ns=TimestampNs(110))
    append(backlog, journal, 21)
    assert (backlog.count, backlog.size, backlog.oldest_ns) == (11, 1100, 110)
    batch = await read(backlog, journal, bytes_max=500)
    backlog.remove(batch, last_ns=TimestampNs(150))
    assert (backlog.next_seq, backlog.size, backlog.oldest_ns) == (16, 600, 150)


async def test_a_journal_without_a_waiting_frame_is_an_error() -> None:
    """A gap is never passed over in silence."""
    backlog = Backlog(archived_seq=Seq(0))
    backlog.adopt(end=Seq(3), size=300, oldest_ns=TimestampNs(1))
    with pytest.raises(CorruptionError, match="no frame 1"):
        await backlog.read_batch(Journal(), bytes_max=100)


async def test_frames_dropped_while_they_are_read_are_read_anew() -> None:
    """The journal's own limit may strike between the question and the answer."""
    backlog, journal = Backlog(archived_seq=Seq(0), bytes_max=0), Journal()
    for seq in range(1, 7):
        append(backlog, journal, seq)

    class Dropping(Journal):
        async def frames(self, start: Seq, end: Seq, bytes_max: int) -> list[bytes]:
            if start == 1:
                assert backlog.skip(Seq(4)) == 4
                return []
            return await journal.frames(start, end, bytes_max)

    batch = await backlog.read_batch(Dropping(), bytes_max=1000)
    assert batch is not None
    assert (batch.start, backlog.count, backlog.size) == (5, 2, 200)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 300)),
            st.tuples(st.just("ship"), st.integers(1, 900)),
            st.tuples(st.just("skip"), st.integers(1, 5)),
        ),
        max_size=60,
    ),
    st.integers(0, 700),
    st.integers(1, 6),
)
def test_sums_are_exact_and_no_frame_is_lost_or_reordered(
    acts: list[tuple[str, int]], bytes_max: int, entries_max: int
) -> None:
    """For any appends, shipments and drops: every frame is shipped or skipped, once, in order."""

    async def scenario() -> None:
        backlog = Backlog(archived_seq=Seq(0), bytes_max=bytes_max, entries_max=entries_max)
        journal = Journal()
        expected, tip = 1, 0
        is_exact = True
        for act, number in [*acts, *[("ship", 300)] * 80]:
            if act == "append":
                tip += 1
                append(backlog, journal, tip, size=number + 8)
            elif act == "skip":
                gone = backlog.skip(Seq(expected + number - 1))
                assert gone == min(number, tip - expected + 1)
                is_exact = is_exact and gone == 0  # inside a span sizes are estimates after this
                expected += gone
            else:
                batch = await backlog.read_batch(journal, bytes_max=number)
                assert (batch is None) == (expected > tip)
                if batch is not None:
                    assert batch.start == expected
                    assert list(batch.frames) == [
                        journal.kept[seq] for seq in range(batch.start, batch.end + 1)
                    ]
                    backlog.remove(batch, last_ns=TimestampNs(batch.end * 10))
                    expected = batch.end + 1
            assert backlog.count == tip - expected + 1
            assert backlog.cached_bytes <= bytes_max
            if is_exact:
                assert backlog.size == sum(
                    len(journal.kept[seq]) for seq in range(expected, tip + 1)
                )
        assert backlog.count == 0

    trio.run(scenario)
