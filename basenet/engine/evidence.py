"""What peers did that the protocol forbids, reported once each and within bounds (Q24).

Evidence never changes who votes: a human decides. What it is made of is signed by the accused, so
that anybody can check it (docs/protocol.md, 9).
"""

from basenet.engine.effects import Report
from basenet.engine.limits import EVIDENCE_MAX
from basenet.units import PublicKeyBytes
from basenet.wire.message import Message


class Evidence:
    """What was reported in this epoch, by peer."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[PublicKeyBytes, set[tuple[str, tuple[Message, ...]]]] = {}

    def take(self, what: str, peer: PublicKeyBytes, proof: tuple[Message, ...]) -> Report | None:
        """Return the report, or None when it was made before or the peer has had its share."""
        seen = self._seen.setdefault(peer, set())
        if len(seen) >= EVIDENCE_MAX or (what, proof) in seen:
            return None
        seen.add((what, proof))
        return Report(what=what, peer=peer, proof=proof)
