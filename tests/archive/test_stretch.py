"""Who speaks for which frames when log objects overlap."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.archive.catalog import LogItem
from basenet.archive.facts import LogFacts, Signed
from basenet.archive.names import LogName
from basenet.archive.stretch import Span, Stretch, find_doubtful, find_gap, resolve
from basenet.errors import ConflictError
from basenet.units import Lineage, PublicKeyBytes, Seq, TimestampNs

LINEAGE = Lineage(bytes(16))
Made = tuple[LogItem, LogFacts]


def made(start: int, end: int, *, epoch: int = 1, branch: str = "", certified_to: int = 0) -> Made:
    """Return a log object; ``branch`` names the history that each of its frames is of.

    One letter a frame; frames at one seq are equal when their letters are.
    """
    letters = branch or "a" * (end - start + 1)
    name = LogName(
        lineage=LINEAGE, start=Seq(start), end=Seq(end), nanos=TimestampNs(start * 1000 + epoch)
    )
    item = LogItem(name=f"{start}-{end}-{epoch}", size=1, log=name)
    count = end - start + 1
    return item, LogFacts(
        signed=Signed(name=item.name, archive_epoch=epoch, signer=PublicKeyBytes(bytes(32))),
        log=name,
        hashes=b"".join(f"{start + i}{letters[i]}".encode().ljust(32) for i in range(count)),
        timestamps_ns=array("q", range(count)),
        epochs=array("Q", [1] * count),
        flags=bytes(count),
        configs=(),
        certified_to=certified_to,
    )


def settle(*objects: Made) -> tuple[Stretch, int]:
    """Return how the objects are resolved, and how many had to be opened for it."""
    items = sorted((item for item, _ in objects), key=lambda item: item.log)
    known = {item.name: facts for item, facts in objects}
    opened: dict[str, LogFacts] = {}
    while doubtful := find_doubtful(items, opened):
        opened |= {item.name: known[item.name] for item in doubtful}
    return resolve(items, opened), len(opened)


def spell(spans: tuple[Span, ...]) -> list[tuple[str, int, int]]:
    return [(span.item.name, span.first, span.last) for span in spans]


def test_names_in_a_row_need_no_look() -> None:
    """Nor do gaps between them."""
    stretch, opened = settle(made(1, 3), made(4, 9), made(20, 20))
    assert spell(stretch.spans) == [("1-3-1", 1, 3), ("4-9-1", 4, 9), ("20-20-1", 20, 20)]
    assert opened == 0


def test_equal_frames_are_used_once() -> None:
    """Only the objects that overlap are opened, whatever their epochs."""
    stretch, opened = settle(made(1, 3), made(4, 9), made(6, 12, epoch=2), made(13, 14))
    assert spell(stretch.spans) == [
        ("1-3-1", 1, 3),
        ("4-9-1", 4, 9),
        ("6-12-2", 10, 12),
        ("13-14-1", 13, 14),
    ]
    assert stretch.orphans == ()
    assert opened == 2


def test_after_a_fork_the_higher_epoch_wins_from_its_first_seq() -> None:
    """What the older one wrote there or beyond is orphaned, also where nothing overlaps."""
    stretch, opened = settle(
        made(1, 40),
        made(41, 60),
        made(51, 70, epoch=2, branch="aa" + "b" * 18),
        made(61, 90),
        made(91, 95),
        made(96, 99, epoch=2),
    )
    assert spell(stretch.spans) == [
        ("1-40-1", 1, 40),
        ("41-60-1", 41, 52),
        ("51-70-2", 53, 70),
        ("96-99-2", 96, 99),
    ]
    assert spell(stretch.orphans) == [
        ("41-60-1", 53, 60),
        ("61-90-1", 61, 90),
        ("91-95-1", 91, 95),
    ]
    assert opened == 5


def test_a_third_epoch_overrules_the_second() -> None:
    """Each takeover counts from its own first seq."""
    stretch, _ = settle(
        made(1, 9),
        made(4, 9, epoch=2, branch="bbbbbb"),
        made(6, 7, epoch=3, branch="cc"),
    )
    assert spell(stretch.spans) == [("1-9-1", 1, 3), ("4-9-2", 4, 5), ("6-7-3", 6, 7)]


def test_one_epoch_cannot_have_two_histories() -> None:
    """The error names both objects and the seq."""
    with pytest.raises(ConflictError, match=r"1-5-1 and 4-8-1 .* at seq 5 "):
        settle(made(1, 5), made(4, 8, branch="abbbb"))


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 6)), max_size=12), st.integers(1, 3))
def test_nothing_is_used_twice_and_nothing_is_lost(
    cuts: list[tuple[int, int]], spread: int
) -> None:
    """Of equal frames, each seq that any object holds is in exactly one span."""
    objects = {
        (start, start + more): made(start, start + more, epoch=1 + index % spread)
        for index, (start, more) in enumerate(cuts)
    }
    stretch, _ = settle(*objects.values())
    used = [seq for span in stretch.spans for seq in range(span.first, span.last + 1)]
    held = {seq for start, end in objects for seq in range(start, end + 1)}
    assert used == sorted(held)


@given(st.sets(st.integers(1, 20)), st.integers(1, 20), st.integers(0, 8))
def test_the_first_gap_is_found(held: set[int], first: int, more: int) -> None:
    """It begins with the first missing seq and ends before the next one that is there."""
    spans = [Span(item=made(seq, seq)[0], first=Seq(seq), last=Seq(seq)) for seq in sorted(held)]
    last = first + more
    missing = [seq for seq in range(first, last + 1) if seq not in held]
    gap = find_gap(spans, first, last)
    if not missing:
        assert gap is None
        return
    end = missing[0]
    while end + 1 <= last and end + 1 not in held:
        end += 1
    assert gap == (missing[0], end)


def test_an_epoch_does_not_decide_between_certified_frames() -> None:
    """Both are final for somebody: that is the alarm. One that is not is orphaned as ever."""
    ours = made(1, 4, epoch=2, branch="aabb", certified_to=4)
    with pytest.raises(ConflictError, match=r"two final histories: .* at seq 3"):
        settle(made(1, 4, branch="aaaa", certified_to=4), ours)
    stretch, _ = settle(made(1, 4, branch="aaaa", certified_to=2), ours)
    assert spell(stretch.orphans) == [("1-4-1", 3, 4)]
