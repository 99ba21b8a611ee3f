"""A proof restores a random kept moment, keeps nothing of it, and tells what is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest

from basenet.archive.port import StoreRefused
from basenet.archive.proof import ProofFailed, ProofTooLarge, prove
from basenet.archive.restore import RestoreReport
from basenet.archive.scratch import Scratch, ScratchDraft, ScratchTooSmall
from basenet.errors import CorruptionError, NotFoundError
from basenet.units import MIB, Seq
from basenet.wire.frame import Flag
from tests.archive.builder import Archive, History
from tests.archive.test_restore import archived, grown, leftovers
from tests.fakes.chain import signer
from tests.fakes.memory_store import Fault, always


async def proven(
    archive: Archive,
    history: History,
    folder: Path,
    *,
    seq: int | None = None,
    bytes_max: int = 64 * MIB,
    room: int = 64 * MIB,
    choose: Callable[[int], int] | None = None,
    examine: Callable[[ScratchDraft], None] = lambda _draft: None,
) -> RestoreReport:
    """Prove, and see that nothing is left in ``folder``."""
    options = {} if choose is None else {"choose": choose}
    try:
        return await prove(
            archive.store,
            archive.names(history),
            Scratch(folder, bytes_max=room, examine=examine),
            trusted=frozenset([signer(1).public]),
            bytes_max=bytes_max,
            seq=None if seq is None else Seq(seq),
            **options,
        )
    finally:
        assert leftovers(folder) == []


async def test_any_kept_moment_can_be_drawn_and_is_seen_whole(tmp_path: Path) -> None:
    """What is looked at is the database at that seq, page for page, and has no name."""
    history = grown()
    archive = archived(history, base=7)
    last = history.tip.head.seq
    seen = []

    def examine(draft: ScratchDraft) -> None:
        assert leftovers(tmp_path) == []
        pages = [draft.read_page(pgno) for pgno in range(1, draft.db_pages + 1)]
        seen.append(b"".join(pages))

    for number in range(last):
        # Of a database that was born empty every seq can be restored.
        report = await proven(
            archive,
            history,
            tmp_path,
            choose=lambda count, number=number: number % count,
            examine=examine,
        )
        assert report.seq == number + 1
        assert seen[-1] == history.contents(number + 1)


async def test_a_flipped_byte_anywhere_in_the_objects_that_are_read_is_found(
    tmp_path: Path,
) -> None:
    history = grown()
    archive = archived(history, base=7)
    last = history.tip.head.seq
    read = [name for name in archive.store.objects if "/part/" in name or ".idx" in name]
    read += [name for name in archive.store.objects if "/log/" in name][-1:]
    assert len(read) == 3
    for name in read:
        archive.flip(name, 1000, 0x40)
        with pytest.raises(ProofFailed) as caught:
            await proven(archive, history, tmp_path, seq=last)
        assert name in str(caught.value)
        archive.flip(name, 1000, 0x40)
        assert (await proven(archive, history, tmp_path, seq=last)).seq == last


async def test_a_part_that_was_deleted_is_found_whichever_moment_is_drawn(tmp_path: Path) -> None:
    history = grown()
    archive = archived(history, base=history.tip.head.seq)
    (part,) = [name for name in archive.store.objects if "/part/" in name]
    archive.delete(part)
    with pytest.raises(ProofFailed, match="part/"):
        await proven(archive, history, tmp_path, choose=lambda count: count - 1)


async def test_a_failure_that_passes_has_not_failed(tmp_path: Path) -> None:
    """Only what fails twice has failed: a stale answer is read again."""
    history = grown()
    archive = archived(history, base=7)
    name = next(name for name in archive.store.objects if "/part/" in name)
    archive.flip(name, 900, 1)
    reads = []

    def mend(method: str, asked: str) -> Fault | None:
        if (method, asked) == ("get", name):
            reads.append(asked)
            if len(reads) == 2:
                archive.flip(name, 900, 1)
        return None

    archive.store.fate = mend
    report = await proven(archive, history, tmp_path, seq=history.tip.head.seq)
    assert report.seq == history.tip.head.seq
    assert len(reads) == 2


async def test_what_the_examiner_finds_is_a_failure(tmp_path: Path) -> None:
    history = grown()
    archive = archived(history)

    def examine(_draft: ScratchDraft) -> None:
        raise CorruptionError("row 7 missing from index i")

    with pytest.raises(ProofFailed, match="seq 3 cannot be restored: row 7 missing"):
        await proven(archive, history, tmp_path, seq=3, examine=examine)


async def test_a_seq_inside_a_transaction_of_several_frames_is_drawn_again(
    tmp_path: Path,
) -> None:
    history = grown(commits=2)
    first = history.tip.head.seq + 1
    history.commit({pgno: history.page() for pgno in (1, 2, 3)}, run=3)
    assert history.frame(first).head.flags & Flag.PARTIAL
    archive = archived(history)
    drawn = iter([first - 1, first, first + 1])
    report = await proven(archive, history, tmp_path, choose=lambda _count: next(drawn))
    assert report.seq == first + 2


async def test_a_moment_that_is_not_kept_any_more_gives_way_to_another(tmp_path: Path) -> None:
    history = grown()
    archive = archived(history)
    report = await proven(archive, history, tmp_path, seq=10_000, choose=lambda _count: 0)
    assert report.seq == 1


async def test_bounds_are_kept_and_said(tmp_path: Path) -> None:
    """Neither is a failure: what would be read, and what would be written."""
    history = grown()
    archive = archived(history, base=7)
    with pytest.raises(ProofTooLarge, match="BASE_PROOF_BYTES_PER_DAY"):
        await proven(archive, history, tmp_path, bytes_max=100)
    with pytest.raises(ScratchTooSmall, match="make room"):
        await proven(archive, history, tmp_path, seq=history.tip.head.seq, room=4096)


async def test_a_store_that_does_not_answer_proves_nothing(tmp_path: Path) -> None:
    history = grown()
    archive = archived(history)
    archive.store.fate = always(Fault.REFUSE, method="get")
    with pytest.raises(StoreRefused):
        await proven(archive, history, tmp_path)
    with pytest.raises(NotFoundError):
        await proven(Archive(), history, tmp_path)
