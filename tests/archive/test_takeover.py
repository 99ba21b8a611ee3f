"""How far the archive reaches when another node begins to write it."""

from collections.abc import Mapping

import pytest

from basenet.archive.fetch import Fetcher
from basenet.archive.seal import TwoHistories
from basenet.archive.takeover import Own, Reached, find_reached
from basenet.errors import ConflictError
from basenet.units import FrameHash, Seq
from tests.archive.builder import Archive, History


async def find(archive: Archive, history: History, known: int = 0) -> Reached:
    async def hashes(first: Seq, last: Seq) -> Mapping[Seq, FrameHash]:
        return {Seq(seq): history.frame(seq).head.hash for seq in range(first, last + 1)}

    own = Own(
        lineage=history.lineage,
        parent=None,
        genesis_seq=Seq(1),
        archived_seq=Seq(known),
        hashes=hashes,
    )
    return await find_reached(archive.store, archive.names(history), own, Fetcher(archive.store))


def grown(count: int, number: int = 1) -> History:
    history = History(number=number)
    for _ in range(count):
        history.random_commit()
    return history


async def test_nothing_is_there_yet() -> None:
    """The genesis comes first."""
    reached = await find(Archive(), grown(3))
    assert (reached.archived_seq, reached.has_tip) == (0, False)


async def test_what_another_wrote_is_not_written_again() -> None:
    """From our watermark on, object by object; an archive epoch above all that was met."""
    archive, history = Archive(), grown(9)
    archive.put_log(history, 1, 4)
    archive.put_log(history, 5, 7, archive_epoch=6)
    archive.put_tip(history, 7)
    reached = await find(archive, history, 4)
    assert (reached.archived_seq, reached.archive_epoch, reached.has_tip) == (7, 6, True)


async def test_a_hole_is_filled() -> None:
    """Behind it nothing counts as archived: it is written again, and is equal."""
    archive, history = Archive(), grown(9)
    archive.put_log(history, 1, 3)
    archive.put_log(history, 7, 9)
    assert (await find(archive, history)).archived_seq == 3


async def test_other_frames_are_the_alarm() -> None:
    """Final here and archived there, and not the same: nobody goes on."""
    archive = Archive()
    archive.put_log(grown(6), 4, 6)
    ours = History(key=2)
    for _ in range(6):
        ours.random_commit()
    with pytest.raises(TwoHistories, match=r"two final histories: object .* another frame 4"):
        await find(archive, ours, 3)


async def test_an_archive_of_another_database_is_refused() -> None:
    """A cluster does not begin beside a history that it does not continue."""
    archive = Archive()
    archive.put_log(grown(3, number=2), 1, 3)
    with pytest.raises(ConflictError, match="does not continue"):
        await find(archive, grown(3))
