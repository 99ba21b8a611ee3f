"""Where peers may be found: literal addresses, host names (A, AAAA) and services (SRV).

DNS finds *addresses and candidates*, nothing more: who answers there is told by the certificate,
and who votes by the shard's chain. So an answer that is wrong, late or missing can delay a
connection and never change a quorum:

- names are asked again when their TTL is over, at least every `REFRESH_MAX_S`, at most every
  `REFRESH_MIN_S`;
- a name that cannot be resolved keeps its last good answer, however old, and the others go on;
- literal addresses are used as they are and never asked.

An entry whose host begins with an underscore (``_basenet._tcp.example:0``) is a service: SRV gives
hosts and ports.
"""

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver
import trio

from basenet.config.values import Endpoint

REFRESH_MIN_S: Final = 1.0
REFRESH_MAX_S: Final = 5.0
LOOKUP_S: Final = 2.0
# A question or an answer that got lost is noticed after so long, and asked again.
_TRY_S: Final = 0.9
_ADDRESSES_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one entry resolved to, and for how long that holds."""

    endpoints: tuple[Endpoint, ...]
    ttl_s: float


class LookupFailed(Exception):  # noqa: N818  (a fact about one lookup, not a program's end)
    """A name could not be resolved now; the text says why."""


class Resolver:
    """Asks DNS for one entry of BASE_PEERS."""

    def __init__(self, resolver: dns.asyncresolver.Resolver | None = None) -> None:
        """Use ``resolver``, or what the machine is configured with."""
        self._resolver = resolver or _configured()
        self._resolver.lifetime = LOOKUP_S
        self._resolver.timeout = _TRY_S

    async def resolve(self, entry: Endpoint) -> Answer:
        """Return the endpoints of ``entry``, in the order of their addresses.

        Raises `LookupFailed`.
        """
        if entry.host.startswith("_"):
            return await self._resolve_service(entry)
        return await self._resolve_host(entry.host, entry.port)

    async def _resolve_service(self, entry: Endpoint) -> Answer:
        found = await self._ask(entry.host, "SRV")
        if found is None:
            raise LookupFailed(f"{entry.host} has no SRV record")
        endpoints: list[Endpoint] = []
        ttl_s = _get_ttl(found)
        for record in sorted(found, key=lambda record: (record.priority, str(record.target))):
            answer = await self._resolve_host(
                record.target.to_text(omit_final_dot=True), record.port
            )
            endpoints += answer.endpoints
            ttl_s = min(ttl_s, answer.ttl_s)
        return Answer(endpoints=tuple(dict.fromkeys(endpoints)), ttl_s=ttl_s)

    async def _resolve_host(self, host: str, port: int) -> Answer:
        if is_literal(host):
            return Answer(endpoints=(Endpoint(host=host, port=port),), ttl_s=float("inf"))
        addresses: list[str] = []
        ttls: list[float] = []
        for kind in ("A", "AAAA"):
            if (found := await self._ask(host, kind)) is not None:
                addresses += [record.address for record in found]
                ttls.append(_get_ttl(found))
        if not addresses:
            raise LookupFailed(f"{host} has no A or AAAA record")
        ordered = sorted(set(addresses), key=_address_order)
        endpoints = tuple(Endpoint(host=text, port=port) for text in ordered[:_ADDRESSES_MAX])
        return Answer(endpoints=endpoints, ttl_s=min(ttls))

    async def _ask(self, name: str, kind: str) -> dns.resolver.Answer | None:
        """Return the answer, None when the name has no record of the kind."""
        try:
            return await self._resolver.resolve(name, kind, search=True)
        except dns.resolver.NoAnswer:
            return None
        except dns.exception.DNSException as error:
            raise LookupFailed(f"{name} ({kind}): {error}") from error
        except OSError as error:
            raise LookupFailed(f"{name} ({kind}): {error.strerror or error}") from error


def _configured() -> dns.asyncresolver.Resolver:
    try:
        return dns.asyncresolver.Resolver()
    except dns.resolver.NoResolverConfiguration:
        # A machine without DNS: literal addresses need none, and a name says why it has no answer.
        return dns.asyncresolver.Resolver(configure=False)


def _get_ttl(answer: dns.resolver.Answer) -> float:
    # An answer without a set of records holds for no time at all.
    return float(answer.rrset.ttl) if answer.rrset is not None else 0.0


def _address_order(text: str) -> tuple[int, bytes]:
    address = ipaddress.ip_address(text)
    return address.version, address.packed


def is_literal(host: str) -> bool:
    """Return whether ``host`` is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class AddressBook:
    """Keeps the addresses of all entries fresh."""

    def __init__(
        self,
        entries: Iterable[Endpoint],
        *,
        resolver: Resolver,
        on_change: Callable[[tuple[Endpoint, ...]], None],
        on_problem: Callable[[Endpoint, str], None],
    ) -> None:
        """Resolve ``entries`` with ``resolver``.

        ``on_change`` is given all addresses whenever the set changes; ``on_problem`` is told once
        per change of its text why an entry keeps an old answer or has none.
        """
        self._entries = tuple(entries)
        self._resolver = resolver
        self._on_change = on_change
        self._on_problem = on_problem
        self._answers: dict[Endpoint, tuple[Endpoint, ...]] = {}
        self._problems: dict[Endpoint, str] = {}
        self._published: tuple[Endpoint, ...] | None = None

    @property
    def problems(self) -> dict[Endpoint, str]:
        """Which entries could not be resolved when last asked, and why."""
        return dict(self._problems)

    async def run(self) -> None:
        """Resolve, publish, wait for the shortest TTL, for ever."""
        async with trio.open_nursery() as nursery:
            for entry in self._entries:
                nursery.start_soon(self._keep, entry)

    async def _keep(self, entry: Endpoint) -> None:
        while True:
            ttl_s = REFRESH_MAX_S
            try:
                answer = await self._resolver.resolve(entry)
            except LookupFailed as error:
                if self._problems.get(entry) != str(error):
                    self._problems[entry] = str(error)
                    self._on_problem(entry, str(error))
            else:
                self._problems.pop(entry, None)
                self._answers[entry] = answer.endpoints
                ttl_s = answer.ttl_s
                self._publish()
            if ttl_s == float("inf"):
                return
            await trio.sleep(min(max(ttl_s, REFRESH_MIN_S), REFRESH_MAX_S))

    def _publish(self) -> None:
        merged = tuple(
            dict.fromkeys(
                found for entry in self._entries for found in self._answers.get(entry, ())
            )
        )
        if merged != self._published:
            self._published = merged
            self._on_change(merged)
