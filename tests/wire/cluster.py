"""A history of a few voters with real keys, for whoever has public keys alone."""

from dataclasses import replace

from basenet.units import (
    Epoch,
    FrameHash,
    JournalId,
    Lineage,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
    View,
)
from basenet.wire.certificate import COMMIT, CONSENT, Certificate
from basenet.wire.finality import Electors, Succession, found
from basenet.wire.frame import Flag, Frame, Head, Kind, genesis_prev_hash, seal
from basenet.wire.payload import ConfigPayload, FaultModel, Voter, encode_config
from basenet.wire.signature import Signer
from basenet.wire.tuples import Scope

SHARD = ShardId("orders")
SIGNERS = [Signer(bytes([number + 1]) * 32) for number in range(5)]
VOTERS = tuple(
    Voter(node_id=f"node-{number}", key=signer.public, journal_id=JournalId(bytes([number]) * 16))
    for number, signer in enumerate(SIGNERS)
)


def config_of(
    count: int, model: FaultModel = FaultModel.CRASH, *, is_forced: bool = False
) -> ConfigPayload:
    """Return a CONFIG of the first ``count`` voters."""
    return ConfigPayload(
        lineage=Lineage(b"l" * 16),
        parent=None,
        voters=VOTERS[:count],
        page_size=4096,
        members_hash=b"m" * 32,
        fault_model=model,
        is_forced=is_forced,
    )


class History:
    """Seals frames one after another, as the leader of their view would."""

    def __init__(self, config: ConfigPayload) -> None:
        self.config = config
        self.epoch = Epoch(1)
        self.scope = Scope(config.lineage, SHARD)
        payload = encode_config(config)
        self.genesis = self._seal(1, payload, genesis_prev_hash(payload), kind=Kind.CONFIG)
        self.heads = [self.genesis.head]

    def _seal(
        self,
        seq: int,
        payload: bytes,
        prev_hash: FrameHash,
        *,
        kind: Kind = Kind.COMMIT,
        flags: Flag = Flag.NONE,
        view: int = 0,
        author: int | None = None,
    ) -> Frame:
        leader = view % len(self.config.voters) if author is None else author
        return seal(
            shard=SHARD,
            seq=Seq(seq),
            timestamp_ns=TimestampNs(seq),
            salt=bytes(16),
            payload=payload,
            kind=kind,
            flags=flags,
            epoch=self.epoch,
            view=View(view),
            prev_hash=prev_hash,
            state_root=StateRoot(bytes(32) if flags & Flag.PARTIAL else b"r" * 32),
            signer=SIGNERS[leader],
        )

    def add(
        self,
        payload: bytes = b"",
        *,
        kind: Kind = Kind.COMMIT,
        flags: Flag = Flag.NONE,
        view: int = 0,
        author: int | None = None,
    ) -> Head:
        """Add a frame to the history."""
        last = self.heads[-1]
        frame = self._seal(
            last.seq + 1, payload, last.hash, kind=kind, flags=flags, view=view, author=author
        )
        self.heads.append(frame.head)
        return frame.head

    def certify(self, head: Head, *voters: int, view: int = 0, phase: int = COMMIT) -> Certificate:
        """Return the votes of these voters for ``head``."""
        message = self.scope.vote(self.epoch, View(view), phase, head.seq, head.hash)
        return self._certificate(head, message, voters, view, phase)

    def consent(self, *voters: int) -> Certificate:
        """Return the consent of these voters to the genesis."""
        message = self.scope.genesis(self.genesis.head.hash)
        return self._certificate(self.genesis.head, message, voters, 0, CONSENT)

    def _certificate(
        self, head: Head, message: bytes, voters: tuple[int, ...], view: int, phase: int
    ) -> Certificate:
        votes = ((SIGNERS[number].public, SIGNERS[number].sign(message)) for number in voters)
        return Certificate(
            phase=phase,
            epoch=self.epoch,
            view=View(view),
            height=head.seq,
            hash=head.hash,
            votes=tuple(sorted(votes)),
        )

    def change(self, config: ConfigPayload, *voters: int) -> Succession:
        """End the epoch with ``config``, made final by ``voters`` (none: of a single voter)."""
        head = self.add(encode_config(config), kind=Kind.CONFIG)
        certificate = self.certify(head, *voters) if voters else None
        self.config, self.epoch = config, Epoch(self.epoch + 1)
        return Succession(head=head, config=config, certificate=certificate)

    def electors(self) -> Electors:
        """Return who decides after the genesis."""
        count = len(self.config.voters)
        return found(self.genesis.head, self.config, self.consent(*range(count)))


def with_config(succession: Succession, config: ConfigPayload) -> Succession:
    """Return the succession with another payload than its head's."""
    return replace(succession, config=config)
