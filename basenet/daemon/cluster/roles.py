"""What a node is, as its HELLO says: two bits of ``features``, since only some may vote.

A node without either bit is a validator, also one of an older release. Nothing is believed of a
node because of its role: who says "validator" and keeps no database harms nobody but its operator.
"""

from typing import Final

from basenet.config.model import NodeRole
from basenet.wire.hello import Hello
from basenet.wire.payload import VoterRole
from basenet.wire.reachable import READS_FACTS

_WITNESS: Final = 1
_ARCHIVE: Final = 2
_BITS: Final = {NodeRole.VALIDATOR: 0, NodeRole.WITNESS: _WITNESS, NodeRole.ARCHIVE: _ARCHIVE}

VOTER_ROLES: Final = {
    NodeRole.VALIDATOR: VoterRole.VALIDATOR,
    NodeRole.WITNESS: VoterRole.WITNESS,
}
"""As what a node votes; an archive node never does."""


def features_of(role: NodeRole) -> int:
    """Return the ``features`` of this node's HELLO."""
    return _BITS[role] | READS_FACTS


def role_of(hello: Hello) -> NodeRole:
    """Return what a peer is; one that says both is taken for what may do less."""
    if hello.features & _ARCHIVE:
        return NodeRole.ARCHIVE
    return NodeRole.WITNESS if hello.features & _WITNESS else NodeRole.VALIDATOR
