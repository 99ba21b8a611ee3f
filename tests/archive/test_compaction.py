"""What is merged: a bounded number of objects for few writes."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.archive.compaction import (
    CLOSED_PIECES_MIN,
    FAN_IN,
    FULL_BYTES,
    Piece,
    merged_level,
    plan_merge,
)
from basenet.archive.names import LogName
from basenet.units import SEGMENT_TARGET_BYTES, Lineage, Seq, TimestampNs

LINEAGE = Lineage(bytes(16))


def piece(start: int, raw_bytes: int = 4_000, *, level: int = 0, count: int = 1) -> Piece:
    log = LogName(
        lineage=LINEAGE,
        start=Seq(start),
        end=Seq(start + count - 1),
        nanos=TimestampNs(start),
        level=level,
    )
    return Piece(log=log, raw_bytes=raw_bytes)


def row(count: int, raw_bytes: int = 4_000) -> list[Piece]:
    return [piece(start, raw_bytes) for start in range(1, count + 1)]


def apply(pieces: list[Piece], chosen: range) -> list[Piece]:
    """Return ``pieces`` after the merge of ``chosen``."""
    sources = pieces[chosen.start : chosen.stop]
    log = replace(sources[0].log, end=sources[-1].log.end, level=merged_level(sources))
    merged = Piece(log=log, raw_bytes=sum(source.raw_bytes for source in sources))
    return [*pieces[: chosen.start], merged, *pieces[chosen.stop :]]


def test_neighbours_of_one_level_are_merged_when_there_are_enough() -> None:
    """The newest object is not one of them."""
    assert plan_merge(row(FAN_IN)) is None
    assert plan_merge(row(FAN_IN + 1)) == range(FAN_IN)


def test_a_stretch_that_one_object_cannot_hold_gives_up_its_oldest() -> None:
    """As many as fit into one object."""
    pieces = row(10, FULL_BYTES - 1)
    assert plan_merge(pieces) == range(SEGMENT_TARGET_BYTES // (FULL_BYTES - 1))


def test_full_pieces_are_left_alone_and_end_a_stretch() -> None:
    """A stretch that is ended waits for nothing more."""
    full = piece(CLOSED_PIECES_MIN + 1, FULL_BYTES)
    small = row(CLOSED_PIECES_MIN)
    assert plan_merge([*small, full]) == range(CLOSED_PIECES_MIN)
    assert plan_merge([*small[1:], full]) is None
    assert plan_merge([piece(seq, FULL_BYTES) for seq in range(1, 99)]) is None


def test_a_gap_and_a_fixed_piece_end_a_stretch_too() -> None:
    """What lies on both sides of them is never one object."""
    gap = [*row(20), *(piece(start) for start in range(30, 60))]
    assert plan_merge(gap) == range(20)
    fixed = row(40)
    fixed[10] = replace(fixed[10], is_fixed=True)
    assert plan_merge(fixed) == range(10)
    assert plan_merge(apply(fixed, range(10))) is None


def test_levels_end() -> None:
    """A name has room for nine."""
    pieces = [piece(start, level=9) for start in range(1, FAN_IN + 2)]
    assert plan_merge(pieces) is None


@settings(deadline=None)
@given(
    sizes=st.lists(
        st.sampled_from([400, 4_400, 88_000, 300_000, FULL_BYTES, SEGMENT_TARGET_BYTES]),
        max_size=900,
    ),
    fan_in=st.integers(2, 40),
)
def test_any_log_becomes_a_bounded_number_of_objects(sizes: list[int], fan_in: int) -> None:
    """However it came: the bound of the docstring holds, and so does that on writes."""
    pieces: list[Piece] = []
    puts = written = 0
    for start, size in enumerate(sizes, 1):
        pieces.append(piece(start, size))
        while chosen := plan_merge(pieces, fan_in=fan_in):
            sources = pieces[chosen.start : chosen.stop]
            assert sum(source.raw_bytes for source in sources) <= SEGMENT_TARGET_BYTES
            assert chosen.stop < len(pieces)
            pieces = apply(pieces, chosen)
            puts, written = puts + 1, written + sum(source.raw_bytes for source in sources)
    assert sum(found.log.end - found.log.start + 1 for found in pieces) == len(sizes)
    levels = 1 + max((found.log.level for found in pieces), default=0)
    full = sum(found.raw_bytes >= FULL_BYTES for found in pieces)
    bound = max(fan_in, CLOSED_PIECES_MIN)
    assert len(pieces) <= full + (full + 1) * (CLOSED_PIECES_MIN - 1) + levels * bound
    assert puts <= len(sizes) / (min(fan_in, 7) - 1) + 1
    assert written <= sum(sizes) * levels


def test_small_commits_for_a_day_are_few_objects() -> None:
    """20 commits a second, flushed once a second: one object holds half a minute and more."""
    pieces: list[Piece] = []
    puts = 0
    for second in range(1, 20_001):
        pieces.append(piece(second, 88_000))
        while chosen := plan_merge(pieces):
            pieces = apply(pieces, chosen)
            puts += 1
    assert len(pieces) < 20_000 / 30 + 2 * FAN_IN
    assert puts < 20_000 / 30
