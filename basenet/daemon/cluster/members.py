"""Who said HELLO, and the membership M that follows from it (Q1; docs/protocol/birth.md, B1 to B4).

What was heard is kept for as long as the process runs: a member that has since gone stays one. Two
nodes of one id or key make no membership, so a node that was given another key or certificate is
told to the operator until the others are restarted; lineages that are known need no M.
"""

from collections.abc import Iterable

from basenet.config.values import Endpoint
from basenet.engine.placement import (
    Membership,
    Peer,
    compute_expected_membership,
    compute_static_membership,
)
from basenet.transport.addresses import is_literal
from basenet.wire.hello import Hello


class MemberBook:
    """M, computed from configuration and from the HELLOs of this run."""

    def __init__(self, me: Peer, entries: Iterable[Endpoint], expected: int | None) -> None:
        """``entries``: BASE_PEERS. ``expected``: BASE_BOOTSTRAP_EXPECT."""
        self._me = me
        self._expected = expected
        self._answered: dict[Endpoint, Peer | None] = dict.fromkeys(entries)
        self._is_static = all(is_literal(entry.host) for entry in self._answered)
        self._greeted: set[Peer] = set()
        self.members: Membership | str = ""
        self._compute()

    def on_answered(self, address: Endpoint, hello: Hello) -> bool:
        """Take note of who said HELLO at ``address``; return whether M is another one now."""
        peer = Peer(hello.node_id, hello.key)
        if address in self._answered:
            self._answered[address] = peer
        self._greeted.add(peer)
        return self._compute()

    def on_greeted(self, hello: Hello) -> bool:
        """Take note of who dialled this node and said HELLO; return as `on_answered`."""
        self._greeted.add(Peer(hello.node_id, hello.key))
        return self._compute()

    def _compute(self) -> bool:
        before = self.members
        if self._is_static:
            entries = {str(address): peer for address, peer in self._answered.items()}
            self.members = compute_static_membership(self._me, entries)
        else:
            self.members = compute_expected_membership(self._me, self._greeted, self._expected)
        return self.members != before
