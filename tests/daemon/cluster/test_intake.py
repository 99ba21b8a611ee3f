"""What peers send of a shard's frames is counted by what became of it."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.intake import Intake
from basenet.engine.effects import Persist
from basenet.engine.limits import HEADS_MAX
from basenet.errors import PeerError, UnavailableError
from basenet.units import FrameHash, Seq, ShardId
from basenet.wire.frame import Frame, encode_frame
from basenet.wire.payload import CommitPayload
from tests.daemon.cluster.alone import Alone, alone
from tests.daemon.cluster.nodes import hello_of
from tests.daemon.cluster.test_writing import in_thread
from tests.fakes.branching import SHARD, Branching
from tests.fakes.chain import signer
from tests.sqlite.application import Application

PEER = hello_of("b", key=2)


def counts_of(intake: Intake) -> dict[str, int]:
    """The counts that are not 0."""
    names = ("ingested", "duplicate", "invalid", "shard_mismatch", "seq_gap", "unapplied")
    return {name: getattr(intake, name) for name in names if getattr(intake, name)}


def altered(frame: Frame, **fields: Any) -> Frame:
    return replace(frame, head=replace(frame.head, **fields))


async def write_some(here: Alone, path: Path) -> list[Frame]:
    """Commit three times; return the frames, which are final."""
    await here.writable()
    with Application(path) as app:
        await in_thread(app, "PRAGMA busy_timeout=20000")
        await in_thread(app, "CREATE TABLE t (x)")
        for number in range(2):
            await in_thread(app, f"INSERT INTO t VALUES ({number})")
        await here.captured()
    return here.frames()


async def test_frames_of_the_branch_are_told_apart(tmp_path: Path, socket: Path) -> None:
    """What was kept, what was here, what is too far above, and what nobody may have sent."""
    async with alone(tmp_path, socket) as here:
        frames = await write_some(here, tmp_path / "app.db")
        replica = here.term.driver.replica
        final = replica.final.height
        assert final == frames[-1].head.seq
        next_seq = Seq(final + 1)
        fresh = altered(frames[-1], seq=next_seq, hash=FrameHash(b"n" * 32))
        intake = Intake(SHARD)
        intake.on_frames(frames, replica, final, [])
        assert counts_of(intake) == {"duplicate": len(frames)}
        intake.on_frames([fresh], replica, final, [Persist(frames=(fresh,))])
        assert counts_of(intake) == {"duplicate": len(frames), "ingested": 1}
        intake.on_frames([fresh], replica, final, [])
        assert intake.duplicate == len(frames) + 1
        far = altered(fresh, seq=Seq(final + HEADS_MAX + 1), hash=FrameHash(b"f" * 32))
        intake.on_frames([far], replica, final, [])
        assert intake.seq_gap == 1
        forged = altered(fresh, signature=bytes(64), hash=FrameHash(b"g" * 32))
        strange = altered(forged, author=signer(9).public, hash=FrameHash(b"s" * 32))
        intake.on_frames([forged, strange], replica, final, [])
        assert intake.invalid == 2
        # A late one, of another view: nobody's fault. Its hash and signature are a real frame's.
        late = altered(frames[-1], seq=next_seq)
        intake.on_frames([late], replica, final, [])
        assert intake.invalid == 2


async def test_final_history_is_taken_whole_or_not_at_all(tmp_path: Path, socket: Path) -> None:
    async with alone(tmp_path, socket) as here:
        frames = await write_some(here, tmp_path / "app.db")
        replica = here.term.driver.replica
        final = replica.final.height
        intake = Intake(SHARD)
        intake.on_final(frames[-2:], replica, Seq(final - 2))
        assert counts_of(intake) == {"ingested": 2}
        intake.on_final(frames[-2:], replica, final)
        assert counts_of(intake) == {"ingested": 2, "duplicate": 2}
        beyond = [altered(frames[-1], seq=Seq(final + 2)), altered(frames[-1], seq=Seq(final + 3))]
        intake.on_final(beyond, replica, final)
        assert intake.seq_gap == 2
        intake.on_final([altered(frames[-1], seq=Seq(final + 1))], replica, final)
        assert intake.invalid == 1


async def test_a_term_counts_what_it_is_sent(tmp_path: Path, socket: Path) -> None:
    """A frame that cannot be read ends the connection; one of another shard is not given on."""
    async with alone(tmp_path, socket) as here:
        frames = await write_some(here, tmp_path / "app.db")
        intake = here.term._intake
        records = [encode_frame(frame) for frame in frames]
        await here.term.on_frames(PEER, records)
        await here.term.on_final(PEER, records, None)
        assert counts_of(intake) == {"duplicate": 2 * len(frames)}
        other = Branching()
        other.chain.shard = ShardId("other")
        (row,) = other.others()
        await here.term.on_frames(PEER, [row.record])
        assert intake.shard_mismatch == 1
        damaged = bytearray(records[-1])
        damaged[-1] ^= 1
        for bad in (bytes(damaged[:-3]), b"", b"\xff" * 300):
            with pytest.raises(PeerError, match="cannot be read"):
                await here.term.on_frames(PEER, [bad])
        assert intake.invalid == 3
        assert intake.duplicate == 2 * len(frames)


async def test_a_batch_that_the_file_does_not_take_is_counted(tmp_path: Path, socket: Path) -> None:
    """Each try; what a mending writes is none."""
    intake = Intake(SHARD)
    async with alone(tmp_path, socket) as here:
        await here.writable()
        file: ReplicaFile = here.file
        file._on_unapplied = intake.on_unapplied
        change = CommitPayload(
            page_size=4096,
            db_pages=1,
            commits=1,
            pgnos=np.array([1], dtype=np.uint32),
            pages=bytes(4096),
        )
        with suppress(UnavailableError):
            await file.prepare([[change]])  # the fence is open
    assert counts_of(intake) == {"unapplied": 1}
