"""A shard with peers as its journal is told of it: branches, ballots, and what is settled.

`Chain` makes the frames; a rival branch is made on a `fork`.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from basenet.engine.ballot import Ballot, begin_epoch
from basenet.journal.records import BranchRow, FrameRow, Settled, Step
from basenet.units import Epoch, FrameHash, JournalId, LocalNumber, Seq, ShardId
from basenet.wire.certificate import COMMIT, CONSENT, Certificate
from basenet.wire.frame import Flag, Frame, Head, Kind, encode_frame
from basenet.wire.merkle import StateTree, leaf_hash
from basenet.wire.message import Mark
from basenet.wire.payload import ConfigPayload, Voter, decode_config, encode_config
from tests.fakes.chain import Chain, signer

SHARD = ShardId("app")
NO_COMMITS = (LocalNumber(1), LocalNumber(0))


def cursor_at(seq: int) -> bytes:
    """The capture cursor that belongs to the state behind frame ``seq``."""
    return b"cursor behind frame %d" % seq


def mark_of(head: Head) -> Mark:
    return Mark(head.view, head.seq, head.hash)


def certify(head: Head, phase: int = COMMIT) -> Certificate:
    """A certificate of the right form, which no voter signed."""
    return Certificate(
        phase=phase,
        epoch=head.epoch,
        view=head.view,
        height=head.seq,
        hash=head.hash,
        votes=((head.author, bytes(64)),),
    )


def ballot_of(config: ConfigPayload, final: Head, voted: Head | None = None) -> Ballot:
    """A ballot that calls ``final`` final, and has voted for ``voted``."""
    genesis = Mark(-1, final.seq, final.hash)
    ballot = begin_epoch(config, final.epoch, genesis, certify(final))
    return ballot if voted is None else replace(ballot, voted=mark_of(voted))


def row_of(frame: Frame, local: tuple[LocalNumber, LocalNumber] = NO_COMMITS) -> BranchRow:
    """A frame on its way into the branch; without ``local`` it is another node's."""
    return BranchRow(
        head=frame.head,
        record=encode_frame(frame),
        local_first=local[0],
        local_last=local[1],
    )


def groups_of(tree: StateTree) -> dict[int, bytes]:
    """All leaf hashes, by group."""
    return {group: tree.group_leaves(group) for group in range(-(-tree.db_pages // 16))}


class Branching:
    """One lineage of a shard with peers; this node's commits are those of `own`."""

    def __init__(self, chain: Chain | None = None, *, shard: ShardId = SHARD) -> None:
        self.chain = chain or Chain(
            pages={pgno: bytes([pgno % 251]) * 512 for pgno in range(1, 21)}
        )
        self.shard = shard
        self.local_last = 0

    def fork(self) -> "Branching":
        """Another branch from here; it counts local numbers on by itself."""
        return copy.deepcopy(self, {id(self.chain.signer): self.chain.signer})

    @property
    def config(self) -> ConfigPayload:
        return decode_config(self.chain.frames[0].payload)

    def birth(self) -> dict[str, Any]:
        """The arguments of `Journal.begin_replica` for the genesis."""
        genesis = self.chain.frames[0]
        head = genesis.head
        return {
            "shard": self.shard,
            "path": "/data/app.db",
            "genesis": FrameRow(
                head=head,
                record=encode_frame(genesis),
                local_first=LocalNumber(1),
                local_last=LocalNumber(0),
            ),
            "certificate": certify(head, CONSENT),
            "ballot": ballot_of(self.config, head),
            "page_size": self.chain.page_size,
            "db_pages": len(self.chain.images[0]),
            "groups": groups_of(self.tree_at(self.chain.start)),
            "place": (head.seq, head.hash),
            "cursor": cursor_at(head.seq),
            "local_last": LocalNumber(0),
        }

    def tree_at(self, seq: int) -> StateTree:
        """The state tree behind the frame ``seq``."""
        image = self.chain.image(seq)
        leaves = b"".join(leaf_hash(pgno, image[pgno]) for pgno in sorted(image))
        return StateTree(self.chain.page_size, leaves)

    # Frames

    def own(self, count: int = 1, *, pieces: int = 1) -> list[BranchRow]:
        """``count`` commits of this node, each in ``pieces`` frames."""
        return [self._own_row(frame) for frame in self._commits(count, pieces)]

    def others(self, count: int = 1, *, pieces: int = 1) -> list[BranchRow]:
        """``count`` commits of another node, each in ``pieces`` frames."""
        return [row_of(frame) for frame in self._commits(count, pieces)]

    def _commits(self, count: int, pieces: int) -> Iterable[Frame]:
        for _ in range(count):
            changes = {pgno: self.chain.page() for pgno in range(1, self.chain.db_pages + 1)}
            yield from self.chain.commit(changes, run=pieces)

    def _own_row(self, frame: Frame) -> BranchRow:
        first = LocalNumber(self.local_last + 1)
        if frame.head.kind == Kind.COMMIT and not frame.head.flags & Flag.PARTIAL:
            self.local_last += 1
        return row_of(frame, (first, LocalNumber(self.local_last)))

    def new_config(self, *, voters: int = 1) -> list[BranchRow]:
        """A CONFIG; what follows is of the next epoch, in which so many vote."""
        chain = self.chain
        more = tuple(
            Voter(
                node_id=f"more{number}",
                key=signer(20 + number).public,
                journal_id=JournalId(bytes([200 + number]) * 16),
            )
            for number in range(1, voters)
        )
        config = replace(
            self.config,
            voters=self.config.voters + more,
            members_hash=bytes([chain.epoch]) * 32,
        )
        before = chain.tip.head
        frame = chain._append(
            encode_config(config),
            Kind.CONFIG,
            Flag.NONE,
            seq=Seq(before.seq + 1),
            prev_hash=before.hash,
            state_root=chain.tree.root(),
        )
        chain.epoch = Epoch(chain.epoch + 1)
        return [row_of(frame)]

    # What the journal is told

    def step(self, rows: Sequence[BranchRow], *, ballot: Ballot | None = None) -> Step:
        """``rows``, and when there are own ones the file and capture stand behind the last."""
        own = [row for row in rows if row.local_last > 0]
        head = own[-1].head if own else None
        return Step(
            shard=self.shard,
            frames=tuple(rows),
            ballot=ballot,
            cursor=cursor_at(head.seq) if head is not None else None,
            place=(head.seq, head.hash) if head is not None else None,
        )

    def settled(
        self,
        rows: Sequence[BranchRow],
        *,
        is_certified: bool = True,
        place: tuple[Seq, FrameHash] | None = None,
        intent: bytes | None = None,
    ) -> Settled:
        """The frames of ``rows`` are final, with all leaf hashes of the state behind them."""
        tree = self.tree_at(rows[-1].head.seq)
        return Settled(
            shard=self.shard,
            heads=tuple(row.head for row in rows),
            certificate=certify(rows[-1].head) if is_certified else None,
            page_size=self.chain.page_size,
            db_pages=tree.db_pages,
            groups=groups_of(tree),
            place=place,
            intent=intent,
        )
