"""Where the HTTP surfaces of the nodes are: ours, told to peers, and theirs, as they told it.

Theory of operation
===================

A client that asks a replica for the writer is sent to the writer's own surface, so every node tells
its peers where that is: BASE_ADVERTISE_HTTP, and unset, what follows from BASE_LISTEN_HTTP::

    an address of this host     told as it is
    every interface             its port; a peer adds the host at which it dials this node
    the loopback                told only if peers connect on the loopback, too: else it would
                                lead a client of another host to itself

What a peer tells holds for that peer alone, whose key the connection proved, and until it tells
something else: a node that is away is still where it was.
"""

import ipaddress
from collections.abc import Iterable
from typing import Final

from basenet.config.model import ClusterConfig
from basenet.config.values import Endpoint
from basenet.units import PublicKeyBytes
from basenet.wire.hello import Hello
from basenet.wire.reachable import READS_FACTS, Reachable, is_tellable

_EVERYWHERE: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  (compared, not listened on)


def choose_http(config: ClusterConfig, listens_at: Endpoint) -> str | None:
    """Return what to tell peers of this node's HTTP surface; None: nothing that would help them.

    ``listens_at``: BASE_LISTEN_HTTP with the port that it really has.
    """
    if config.advertise_http is not None:
        http = config.advertise_http
    elif listens_at.host in _EVERYWHERE:
        http = f":{listens_at.port}"
    elif _is_loopback(listens_at.host) and not _is_loopback(config.listen_p2p.host):
        return None
    else:
        http = str(listens_at)
    return http if is_tellable(http) else None


class HttpBook:
    """The HTTP addresses of this node and of those that told theirs."""

    def __init__(self, me: PublicKeyBytes, http: str | None) -> None:
        """``http``: of `choose_http`."""
        self.message = Reachable(http=http) if http is not None else None
        """What peers are told; None: nothing."""
        own = None if http is None or http.startswith(":") else http
        self._told: dict[PublicKeyBytes, str] = {me: own} if own is not None else {}

    def is_told(self, peer: Hello) -> bool:
        """Return whether ``peer`` reads what we tell."""
        return self.message is not None and bool(peer.features & READS_FACTS)

    def on_told(self, peer: Hello, message: Reachable) -> None:
        """Take in what a peer says of itself."""
        self._told[peer.key] = message.http

    def find(self, key: PublicKeyBytes, dialled: Iterable[tuple[Endpoint, Hello]]) -> str | None:
        """Return where the surface of the node ``key`` is; None where that is not known.

        ``dialled``: who said HELLO at which address.
        """
        http = self._told.get(key)
        if http is None or not http.startswith(":"):
            return http
        hosts = (address.host for address, hello in dialled if hello.key == key)
        host = next(hosts, None)
        return None if host is None else str(Endpoint(host=host, port=int(http[1:])))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
