"""Byzantine nodes: everything that a voter with a key of its own can do to the others.

A liar is one key. Its machine runs the honest engine, so that it takes part, leads, and knows what
to lie about; what it sends goes through the liar, which may change it, keep it back, or add to it.
Which lies it tells is drawn from the seed, one to three of them:

============  ====================================================================================
`twins`       two machines with this key and journal id, each honest by itself (Twins, 2020)
`votes`       a vote in both phases for everything that anybody proposes
`branches`    as a leader, another frame to one half of the others; certificates for both
`silence`     as a leader, heartbeats and no proposals, for seconds at a time
`low`         NewViews that hide what it has accepted
`withheld`    proposals without their frames, or frames for some only
`replays`     what it sent before, again, to anybody
`roots`       frames with wrong state roots
`forgeries`   certificates and NewViews in the name of others, with signatures that are not theirs
============  ====================================================================================

It cannot forge a signature of another node: the notary keeps it from that.
"""

from typing import TYPE_CHECKING, Any, Final

import msgspec

from basenet.engine.events import FramesReceived
from basenet.testing.simulator.chance import stream
from basenet.testing.simulator.checkers import quorum_of
from basenet.testing.simulator.clock import MILLISECOND
from basenet.testing.simulator.network import BULK, ORDINARY
from basenet.testing.simulator.state import encode_commits, root_after
from basenet.units import FrameHash, PublicKeyBytes
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Flag, Frame, Kind, seal
from basenet.wire.message import Certified, Mark, NewView, Propose, Vote

if TYPE_CHECKING:
    from basenet.testing.simulator.node import Node
    from basenet.testing.simulator.world import World

LIES: Final = (
    "twins",
    "votes",
    "branches",
    "silence",
    "low",
    "withheld",
    "replays",
    "roots",
    "forgeries",
)
_PHASES: Final = (1, 2)
_LIE_SHARE: Final = 0.4
_HALF: Final = 0.5
_MEMORY: Final = 40
_SPELL: Final = 2_000 * MILLISECOND
_REPLAY_EVERY: Final = 150 * MILLISECOND


class Liar:
    """One key whose owner lies."""

    def __init__(self, world: "World", key: PublicKeyBytes) -> None:
        self._world = world
        self._chance = stream(world.seed, "liar", world.by_key[key][0].place)
        self._key = key
        self._nodes = world.by_key[key]
        self._signer = self._nodes[0].signer
        self.lies = frozenset(self._chance.sample(LIES, self._chance.randint(1, 3)))
        self._said: list[tuple[int, Any]] = []
        self._votes: dict[tuple[int, int, int, int, FrameHash], dict[PublicKeyBytes, bytes]] = {}
        self._silent_until = 0

    def start(self) -> None:
        """Take the nodes of this key over."""
        for node in self._nodes:
            node.liar = self
        if "roots" in self.lies:
            for node in self._nodes:
                node.application.wrong_roots_until = self._world.horizon
        if self.lies & {"replays", "forgeries"}:
            self._world.scheduler.at(_REPLAY_EVERY, self._replay)

    @property
    def has_twin(self) -> bool:
        """Whether the second machine of this key runs, too."""
        return "twins" in self.lies

    # What it hears.

    def hears(self, node: "Node", sender: PublicKeyBytes, what: object) -> None:
        """Learn from what came for ``node``, beside what its engine does with it."""
        if isinstance(what, Propose) and "votes" in self.lies:
            for phase in _PHASES:
                message = self._sign_vote(what, phase)
                node.transmit((sender,), ORDINARY, message)
        elif isinstance(what, Vote) and "branches" in self.lies:
            self._collect(node, sender, what)

    def _sign_vote(self, proposal: Propose, phase: int) -> Vote:
        signed = self._world.scope.vote(
            proposal.epoch, proposal.view, phase, proposal.end_height, proposal.end_hash
        )
        return Vote(
            epoch=proposal.epoch,
            view=proposal.view,
            phase=phase,
            height=proposal.end_height,
            hash=proposal.end_hash,
            signature=self._signer.sign(signed),
        )

    def _collect(self, node: "Node", sender: PublicKeyBytes, vote: Vote) -> None:
        """Make certificates of whatever others vote for."""
        slot = (vote.epoch, vote.view, vote.phase, vote.height, vote.hash)
        votes = self._votes.setdefault(slot, {})
        votes[sender] = vote.signature
        signed = self._world.scope.vote(vote.epoch, vote.view, vote.phase, vote.height, vote.hash)
        votes[self._key] = self._signer.sign(signed)
        config = self._world.truth.configs.get(vote.epoch)
        if config is None or len(votes) < quorum_of(config):
            return
        certificate = Certificate(
            phase=vote.phase,
            epoch=vote.epoch,
            view=vote.view,
            height=vote.height,
            hash=vote.hash,
            votes=tuple(sorted(votes.items())),
        )
        node.transmit(
            self._others(), ORDINARY, Certified(epoch=vote.epoch, certificate=certificate)
        )

    def _others(self) -> tuple[PublicKeyBytes, ...]:
        return tuple(key for key in self._world.by_key if key != self._key)

    # What it says.

    def sends(self, node: "Node", to: tuple[PublicKeyBytes, ...], lane: int, what: Any) -> None:
        """Send what the engine of ``node`` wants to send, or something else."""
        self._said = [*self._said[-_MEMORY:], (lane, what)]
        if isinstance(what, Propose):
            self._propose(node, to, what)
        elif isinstance(what, NewView):
            node.transmit(to, lane, self._report(what))
        elif isinstance(what, FramesReceived) and "withheld" in self.lies:
            node.transmit(tuple(key for key in to if self._chance.random() < _HALF), lane, what)
        else:
            node.transmit(to, lane, what)

    def _propose(self, node: "Node", to: tuple[PublicKeyBytes, ...], what: Propose) -> None:
        now = self._world.scheduler.now
        if "silence" in self.lies:
            if now >= self._silent_until and self._chance.random() < _LIE_SHARE / 4:
                self._silent_until = now + self._chance.randrange(_SPELL)
            if now < self._silent_until:
                return
        branch = self._branch(node, what) if "branches" in self.lies else None
        if branch is None:
            node.transmit(to, ORDINARY, what)
            return
        frame, other = branch
        for key in to:
            if self._chance.random() < _HALF:
                node.transmit((key,), ORDINARY, what)
            else:
                node.transmit((key,), BULK, FramesReceived(sender=self._key, frames=(frame,)))
                node.transmit((key,), ORDINARY, other)

    def _branch(self, node: "Node", what: Propose) -> tuple[Frame, Propose] | None:
        """Return another last frame and the proposal that ends in it."""
        frame = node.disk.frames.get(what.end_hash)
        if frame is None or self._chance.random() > _LIE_SHARE:
            return None
        head = frame.head
        if head.author != self._key or head.kind != Kind.COMMIT or head.view != what.view:
            return None
        commit = self._world.new_commit()
        other = seal(
            shard=head.shard,
            seq=head.seq,
            timestamp_ns=head.timestamp_ns,
            salt=self._chance.randbytes(16),
            payload=encode_commits([commit]),
            kind=Kind.COMMIT,
            flags=Flag.NONE,
            epoch=head.epoch,
            view=head.view,
            prev_hash=head.prev_hash,
            state_root=root_after(node.root_below(head), [commit]),
            signer=self._signer,
        )
        return other, self._sign_proposal(what, other)

    def _sign_proposal(self, what: Propose, frame: Frame) -> Propose:
        anchor = what.anchor
        signed = self._world.scope.propose(
            what.epoch,
            what.view,
            what.prev_height,
            what.prev_hash,
            frame.head.seq,
            frame.head.hash,
            anchor.view,
            anchor.height,
            anchor.hash,
        )
        return msgspec.structs.replace(
            what, end_hash=frame.head.hash, signature=self._signer.sign(signed)
        )

    def _report(self, what: NewView) -> NewView:
        """Return the NewView, or one that says less."""
        config = self._world.truth.configs.get(what.epoch)
        if "low" not in self.lies or config is None:
            return what
        genesis = self._epoch_start(what)
        if genesis is None:
            return what
        signed = self._world.scope.new_view(
            what.epoch, what.view, -1, genesis.height, genesis.hash, bytes(32)
        )
        return msgspec.structs.replace(
            what, high=genesis, proof=None, signature=self._signer.sign(signed)
        )

    def _epoch_start(self, what: NewView) -> Mark | None:
        ballots = [node.disk.ballot for node in self._nodes]
        return next((one.genesis for one in ballots if one.epoch == what.epoch), None)

    # What it does by itself.

    def _replay(self, _: object) -> None:
        """Say something again, or in the name of others, to anybody."""
        world = self._world
        world.scheduler.at(world.scheduler.now + _REPLAY_EVERY, self._replay)
        node = self._chance.choice(self._nodes)
        if not node.is_up:
            return
        to = (self._chance.choice(self._others()),)
        if "replays" in self.lies and self._said:
            lane, what = self._chance.choice(self._said)
            node.transmit(to, lane, what)
        if "forgeries" in self.lies:
            self._forge(node, to)

    def _forge(self, node: "Node", to: tuple[PublicKeyBytes, ...]) -> None:
        """Certify the tip in the name of all, with signatures that nobody made."""
        assert node.replica is not None, "a forgery of a node that is down"
        ballot, tip = node.replica.ballot, node.replica.tip
        certificate = Certificate(
            phase=self._chance.choice(_PHASES),
            epoch=ballot.epoch,
            view=ballot.view,
            height=tip.seq,
            hash=tip.hash,
            votes=tuple(sorted((voter.key, voter.key * 2) for voter in ballot.config.voters)),
        )
        node.transmit(to, ORDINARY, Certified(epoch=ballot.epoch, certificate=certificate))
