"""The name of a node: a DNS name in lower case, since it is the SAN of the node's certificate."""

import re

from basenet.errors import UsageError

_NODE_ID = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9.-]*[a-z0-9])?\Z")


def parse_node_id(text: str) -> str:
    """Return ``text`` as a node id; raise `UsageError` if it is not one."""
    if not _NODE_ID.match(text) or ".." in text:
        raise UsageError(
            f"{text!r} is not a node id: it must be a DNS name of 1 to 253 characters a-z, 0-9, "
            "dot and hyphen, such as db-0.example"
        )
    return text


def node_id_of_hostname(hostname: str) -> str:
    """Return the node id of a machine that is called ``hostname``, whatever stands in that."""
    name = re.sub(r"[^a-z0-9.-]|\.(?=\.)", "-", hostname.lower())[:253]
    return name.strip(".-") or "node"
