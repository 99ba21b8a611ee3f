"""Who may command over HTTP, and how a command is written in a request.

Theory of operation
===================

The surface has no password. What reads may be asked by whoever reaches the listener; what changes
the members of a shard is for the operator of this host. So a command is taken over the Unix socket,
which only the daemon's own user can open, and over TCP only where the listener itself is bound to
the loopback. A listener on every interface takes none, whoever asks: a proxy on this host would
otherwise lend its loopback address to the world.

A web page in a browser on this host also reaches the loopback. It can send a plain POST to any
address, but neither without an Origin, nor with a header of ours (the browser would ask first, with
OPTIONS, and be refused), nor, after bending a name of its own to 127.0.0.1, with a Host that is the
loopback's. All three are checked.

A command has no body: its parts stand in the query, ``node=a,b``, ``lineage=HEX``,
``final-commits-may-be-lost=1``; of a reset ``keep=chain|file``, ``force=1``.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request

from basenet.config.values import parse_switch
from basenet.control.members import (
    COMMAND_HEADER,
    COMMAND_WORD,
    LOSS_PARAMETER,
    MembersCommand,
    MembersVerb,
)
from basenet.control.reset import Keep, ResetCommand
from basenet.control.surface import Forbidden
from basenet.errors import NotFoundError, UsageError

_PARAMETERS: Final = frozenset({"node", "lineage", LOSS_PARAMETER})
_RESET_PARAMETERS: Final = frozenset({"keep", "force"})


def check_operator(request: Request, listens_at: str) -> None:
    """Raise `Forbidden` unless the request comes from an operator of this host.

    ``listens_at`` is the host that the TCP listener is bound to.
    """
    headers = request.headers
    if headers.get(COMMAND_HEADER) != COMMAND_WORD or "origin" in headers:
        raise Forbidden(
            f"a command needs the header {COMMAND_HEADER}: {COMMAND_WORD} and no Origin, so that "
            "no web page can give it: use `basenet members`"
        )
    if request.client is None:
        return  # the Unix socket has no addresses, and its file's mode has judged already
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    if not (is_loopback(listens_at) and is_loopback(request.client.host) and is_loopback(host)):
        raise Forbidden(
            "commands are taken over the socket in the data directory, or at a BASE_LISTEN_HTTP on "
            "the loopback: run `basenet members` on this node's host"
        )


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is this host's own address and nobody else's."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def parse_command(verb: str, query: Sequence[tuple[str, str]]) -> MembersCommand:
    """Return the command of a request.

    Raises `NotFoundError` for an unknown verb, `UsageError` for a query that is not understood.
    """
    if verb not in tuple(MembersVerb):
        raise NotFoundError(
            f"there is no command {verb[:64]!r} for members: there are {', '.join(MembersVerb)}"
        )
    _check_parameters(query, _PARAMETERS)
    given = dict(query)
    nodes = given.get("node", "")
    return MembersCommand(
        verb=MembersVerb(verb),
        nodes=tuple(nodes.split(",")) if nodes else (),
        lineage=given.get("lineage"),
        is_loss_accepted=parse_switch(given.get(LOSS_PARAMETER, "0")),
    )


def parse_reset(query: Sequence[tuple[str, str]]) -> ResetCommand:
    """Return the reset of a request; raises `UsageError` for one that is not understood."""
    _check_parameters(query, _RESET_PARAMETERS)
    given = dict(query)
    keep = given.get("keep", "")
    if keep not in tuple(Keep):
        raise UsageError(
            f"keep={keep[:64]!r} is no decision: chain sets the file aside, file takes what it "
            "holds for commits of this node"
        )
    return ResetCommand(keep=Keep(keep), is_forced=parse_switch(given.get("force", "0")))


def _check_parameters(query: Sequence[tuple[str, str]], known: frozenset[str]) -> None:
    names = [name for name, _ in query]
    for name in names:
        if name not in known or names.count(name) > 1:
            raise UsageError(
                f"a command takes {', '.join(sorted(known))}, each once: not {name[:64]!r}"
            )
