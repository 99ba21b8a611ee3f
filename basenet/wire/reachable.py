"""Where a node's HTTP surface is reached, told by the node itself once it is connected.

HELLO is read before either side knows the other's version and has no room for more, so this is a
message of its own. A node that reads it says so by `READS_FACTS`, a bit of HELLO's features,
and nobody else is sent it: an older one would end the connection over a message that it does not
know (Q20).
"""

import re
from typing import Annotated, Final

import msgspec
from msgspec import Meta

READS_FACTS: Final = 4
"""The bit of ``features`` for `Reachable` and `wire.heights.Heights`; 1 and 2 are roles."""

# An authority as in a URL, without a user: it goes into a Location header.
_PATTERN: Final = (
    r"^(https?://)?([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?\Z|^:[0-9]{1,5}\Z"
)
ADDRESS_CHARACTERS_MAX: Final = 280

HttpAddress = Annotated[
    str, Meta(min_length=2, max_length=ADDRESS_CHARACTERS_MAX, pattern=_PATTERN)
]
"""``host:port``, a URL without a path, or ``:port``: the host is then where the node is dialled."""


def is_tellable(http: str) -> bool:
    """Return whether a peer would read ``http``; it may name an interface, which is ours alone."""
    return len(http) <= ADDRESS_CHARACTERS_MAX and bool(re.match(_PATTERN, http))


class Reachable(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True, kw_only=True
):
    """My HTTP surface is at ``http``, as clients may reach it."""

    http: HttpAddress
