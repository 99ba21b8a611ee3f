"""The steps of a replica as facts, for whoever checks them against the specification.

Off costs one comparison a step. An event is gathered where the step happens and handed out when the
step's effects are, so what the trace says is what was persisted and sent. Marks are lists ``[view,
height, hash]``, hashes are hexadecimal::

    Restart   view, voted, prepared, final       a replica is made from its ballot
    Enter     view                               a higher view, persisted
    NewView   high, proof                        sent to the leader of the view, or counted by it
    Start     anchor, new_views, end             the leader fixed where its view starts
    Propose   prev, end, anchor
    Vote      phase, height, hash                the leader's own too
    Prepared  height, hash, cview                the PREPARE certificate became the lock
    Refuse    height, hash
    Final     height, hash, cview, signers
    Frame     height, hash, prev, fepoch, fview, kind     sealed, or stored the first time
    Epoch     voters
"""

from collections.abc import Callable, Sequence

from basenet.units import Epoch, FrameHash, PublicKeyBytes, Seq
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Head
from basenet.wire.message import Mark, NewView, Propose

Trace = Callable[[dict[str, object]], None]


def _mark(mark: Mark | None) -> list[object] | None:
    return None if mark is None else [mark.view, mark.height, mark.hash.hex()]


class Tracer:
    """Gathers the events of one replica's step."""

    __slots__ = ("_events", "_node", "_trace")

    def __init__(self, trace: Trace, key: PublicKeyBytes) -> None:
        self._trace = trace
        self._node = key.hex()
        self._events: list[dict[str, object]] = []

    def flush(self) -> None:
        """Hand out what the step did."""
        for event in self._events:
            self._trace(event)
        self._events.clear()

    def _tell(self, name: str, epoch: Epoch, view: int, **facts: object) -> None:
        self._events.append({"ev": name, "node": self._node, "epoch": epoch, "view": view, **facts})

    def restart(
        self,
        epoch: Epoch,
        view: int,
        voted: Mark | None,
        prepared: Certificate | None,
        final: Mark,
    ) -> None:
        """Tell of a replica made from its ballot."""
        lock = None
        if prepared is not None:
            lock = Mark(prepared.view, prepared.height, prepared.hash)
        self._tell(
            "Restart", epoch, view, voted=_mark(voted), prepared=_mark(lock), final=_mark(final)
        )

    def enter(self, epoch: Epoch, view: int) -> None:
        """Tell of a higher view."""
        self._tell("Enter", epoch, view)

    def new_view(self, message: NewView) -> None:
        """Tell of a NewView of this node."""
        proof = message.proof
        shown = None if proof is None else [proof.view, proof.height, proof.hash.hex()]
        self._tell("NewView", message.epoch, message.view, high=_mark(message.high), proof=shown)

    def start(
        self,
        epoch: Epoch,
        view: int,
        anchor: Mark,
        new_views: Sequence[NewView],
        end: tuple[Seq, FrameHash],
    ) -> None:
        """Tell where this node's view starts."""
        self._tell(
            "Start",
            epoch,
            view,
            anchor=_mark(anchor),
            new_views=[[one.sender.hex(), _mark(one.high)] for one in new_views],
            end=[end[0], end[1].hex()],
        )

    def propose(self, message: Propose) -> None:
        """Tell of a proposal of this node."""
        self._tell(
            "Propose",
            message.epoch,
            message.view,
            prev=[message.prev_height, message.prev_hash.hex()],
            end=[message.end_height, message.end_hash.hex()],
            anchor=_mark(message.anchor),
        )

    def vote(self, epoch: Epoch, mark: Mark, phase: int) -> None:
        """Tell of a vote of this node."""
        self._tell("Vote", epoch, mark.view, phase=phase, height=mark.height, hash=mark.hash.hex())

    def prepared(self, epoch: Epoch, view: int, certificate: Certificate) -> None:
        """Tell of a new lock."""
        self._tell(
            "Prepared",
            epoch,
            view,
            height=certificate.height,
            hash=certificate.hash.hex(),
            cview=certificate.view,
        )

    def refuse(self, epoch: Epoch, view: int, height: Seq, digest: FrameHash) -> None:
        """Tell of a promise never to vote for a frame."""
        self._tell("Refuse", epoch, view, height=height, hash=digest.hex())

    def final(self, epoch: Epoch, view: int, mark: Mark, signers: Sequence[bytes]) -> None:
        """Tell of finality."""
        self._tell(
            "Final",
            epoch,
            view,
            height=mark.height,
            hash=mark.hash.hex(),
            cview=mark.view,
            signers=[key.hex() for key in signers],
        )

    def frame(self, epoch: Epoch, view: int, head: Head) -> None:
        """Tell of a frame that this node has not held before."""
        self._tell(
            "Frame",
            epoch,
            view,
            height=head.seq,
            hash=head.hash.hex(),
            prev=head.prev_hash.hex(),
            fepoch=head.epoch,
            fview=head.view,
            kind=head.kind.name,
        )

    def epoch(self, epoch: Epoch, voters: Sequence[bytes]) -> None:
        """Tell who votes from now."""
        self._tell("Epoch", epoch, 0, voters=[key.hex() for key in voters])
