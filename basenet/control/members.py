"""What an operator can do to the members of a shard, as one value that cannot be half said."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from basenet.errors import UsageError
from basenet.keys.node import parse_node_id

# How a request says that it is a command, which no page in a browser can.
COMMAND_HEADER: Final = "x-base-command"
COMMAND_WORD: Final = "members"
LOSS_PARAMETER: Final = "final-commits-may-be-lost"
_LINEAGE: Final = re.compile(r"[0-9a-f]{32}\Z", re.ASCII)


class MembersVerb(StrEnum):
    """What is to be done."""

    INIT = "init"
    """Decide whose file the shard is born with, where several nodes have one (Q3)."""

    ADD = "add"
    REMOVE = "remove"
    TRANSFER = "transfer"
    """Move the writer to another member."""

    FORCE = "force"
    """Leave a lost quorum behind: a forced child lineage of one survivor alone (Q5)."""

    ACCEPT = "accept"
    """Follow a forced lineage, and keep what it loses as an orphan bundle (Q5)."""


_OF_SEVERAL: Final = frozenset({MembersVerb.ADD, MembersVerb.REMOVE})


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersCommand:
    """One command; raises `UsageError` when its parts do not belong together.

    ``nodes``: node ids, each once; at least one to add or remove, none to accept, else exactly one.
    """

    verb: MembersVerb
    nodes: tuple[str, ...] = ()
    lineage: str | None = None  # ACCEPT: 32 hex digits
    is_loss_accepted: bool = False  # FORCE: it was said that final commits may be lost

    def __post_init__(self) -> None:
        problem = self._nodes_contradiction() or self._rest_contradiction()
        if problem is not None:
            raise UsageError(f"members {self.verb}: {problem}")

    def _nodes_contradiction(self) -> str | None:
        for node in self.nodes:
            parse_node_id(node)
        if len(set(self.nodes)) != len(self.nodes):
            return "a node is named twice"
        if self.verb is MembersVerb.ACCEPT:
            return "name the lineage, not a node" if self.nodes else None
        if self.verb in _OF_SEVERAL:
            return None if self.nodes else "name at least one node"
        return None if len(self.nodes) == 1 else "name exactly one node"

    def _rest_contradiction(self) -> str | None:
        is_accept, is_force = self.verb is MembersVerb.ACCEPT, self.verb is MembersVerb.FORCE
        if is_accept and not (self.lineage and _LINEAGE.match(self.lineage)):
            return "name the forced lineage by its 32 hex digits, as the nodes report it"
        if not is_accept and self.lineage is not None:
            return "it names no lineage"
        if is_force and not self.is_loss_accepted:
            return "final commits may be lost by it: say --yes-final-commits-may-be-lost"
        if not is_force and self.is_loss_accepted:
            return "no final commit is lost by it, so nothing of that is to be said"
        return None
