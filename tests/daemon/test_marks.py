"""How much lies between the chain's tip and the archive."""

from basenet.daemon.marks import _MARKS_MAX, Mark, Marks
from basenet.units import LocalNumber, Seq, TimestampNs


def mark(seq: int, *, local: int | None = None) -> Mark:
    return Mark(
        seq=Seq(seq),
        size=10,
        local_last=LocalNumber(seq - 1 if local is None else local),
        timestamp_ns=TimestampNs(1_000 + seq),
    )


def test_nothing_waits_when_the_tip_is_archived() -> None:
    """A restart with all shipped shows a lag of zero."""
    marks = Marks()
    marks.reset(mark(7), Seq(7))
    assert marks.count_commits() == 0
    assert marks.oldest_ns is None


def test_each_final_commit_counts_until_it_is_archived() -> None:
    """The count falls as the watermark moves, also over several frames at once."""
    marks = Marks()
    marks.reset(mark(1), Seq(1))
    for seq in range(2, 12):
        marks.add(mark(seq))
    assert (marks.count_commits(), marks.waiting_bytes, marks.oldest_ns) == (10, 100, 1_002)
    marks.on_archived(Seq(4))
    assert (marks.count_commits(), marks.waiting_bytes, marks.oldest_ns) == (7, 70, 1_005)
    marks.on_archived(Seq(11))
    assert (marks.count_commits(), marks.waiting_bytes) == (0, 0)


def test_a_frame_of_many_commits_counts_them_all() -> None:
    """What was merged is not one commit."""
    marks = Marks()
    marks.reset(mark(1), Seq(1))
    marks.add(mark(2, local=100))
    assert marks.count_commits() == 100


def test_an_unarchived_tip_counts_after_a_restart() -> None:
    """How many wait before it is not known, so at least it does."""
    marks = Marks()
    marks.reset(mark(9), Seq(3))
    assert marks.count_commits() == 1
    marks.add(mark(10))
    assert marks.count_commits() == 2


def test_a_long_outage_is_counted_exactly_in_bounded_memory() -> None:
    """Thinning keeps the newest mark and every byte, so neither sum gets lost."""
    marks = Marks()
    marks.reset(mark(1), Seq(1))
    count = 5 * _MARKS_MAX + 3
    for seq in range(2, count + 2):
        marks.add(mark(seq))
        assert len(marks._waiting) <= _MARKS_MAX
    assert (marks.count_commits(), marks.waiting_bytes) == (count, 10 * count)
    marks.on_archived(Seq(count + 1))
    assert (marks.count_commits(), marks.waiting_bytes) == (0, 0)


def test_a_new_beginning_forgets_what_waited() -> None:
    """The next session counts from the journal's tip."""
    marks = Marks()
    marks.reset(mark(1), Seq(0))
    marks.add(mark(2))
    marks.reset(mark(2), Seq(2))
    assert (marks.count_commits(), marks.waiting_bytes) == (0, 0)
