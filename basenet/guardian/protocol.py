"""What daemon and guardian say to each other, over a socket pair of packets.

Each packet is one message: a kind, then fixed fields. Fences are named by a number that the daemon
chooses, so that one packet renews the leases of all shards of the node, 12 bytes each; 4 bytes for
each of those to which nothing happens, since they share one lease.

::

    to the guardian                                     to the daemon
    GUARD  fence u32 | dev u64 | ino u64 | path         HELD      fence u32 | ticket u32
    DROP   fence u32                                    FAILED    fence u32 | conflict u8 | reason
    CLOSE  fence u32 | ticket u32                       REPLACED  fence u32
    RENEW  (fence u32 | until u64) *
    SHARE  until u64 | fence u32 *
    READY

``until``: CLOCK_BOOTTIME in nanoseconds, absolute: a message that is late opens nothing (P18). HELD
answers GUARD (ticket 0, with descriptors of database and -shm as SCM_RIGHTS) and CLOSE, as soon as
the write lock is ours; the daemon injects only after it. The ticket tells which CLOSE is answered:
a HELD that crosses a RENEW on its way must not be taken for the answer to a later question.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from struct import Struct
from typing import Final

PACKET_BYTES_MAX: Final = 128 * 1024
RENEWALS_MAX: Final = 8_000
"""So many fences are renewed by one packet."""
FENCE_BYTES: Final = 4

# The daemon's end of the pair, as the guardian tells it; a name that the loader does not look at.
GUARDIAN_FD: Final = "BASENET_GUARDIAN_FD"

_KIND_AND_FENCE: Final = Struct(">BI")
_TICKET: Final = Struct(">I")
_GUARD: Final = Struct(">QQ")
_RENEWAL: Final = Struct(">IQ")
_UNTIL: Final = Struct(">Q")


class Kind(IntEnum):
    """What a packet says."""

    GUARD = 1
    DROP = 2
    CLOSE = 3
    RENEW = 4
    READY = 5
    SHARE = 6
    HELD = 16
    FAILED = 17
    REPLACED = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Fence this database, and close the fence."""

    fence: int
    device: int
    inode: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Forget this fence: its shard is gone."""

    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Close this fence now; ``ticket``, from 1, comes back with HELD."""

    fence: int
    ticket: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """Keep these fences open until the given instants."""

    leases: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Keep these fences open until one instant; ``fences``: their packed numbers."""

    until: int
    fences: bytes

    def numbers(self) -> tuple[int, ...]:
        """Return the fences' numbers."""
        return struct.unpack(f">{len(self.fences) // FENCE_BYTES}I", self.fences)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The daemon serves: the application may start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The fence is closed."""

    fence: int
    ticket: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The fence could not be set up; ``reason`` is a sentence.

    ``is_conflict``: somebody else has the database; otherwise trying again can help.
    """

    fence: int
    is_conflict: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """Another file lies where the fenced one was; what is fenced stays so."""

    fence: int


ToGuardian = Guard | Drop | Close | Renew | Share | Ready
ToDaemon = Held | Failed | Replaced


_NUMBER_ONLY: Final[dict[Kind, type[Drop | Replaced]]] = {
    Kind.DROP: Drop,
    Kind.REPLACED: Replaced,
}
_TICKETED: Final[dict[Kind, type[Close | Held]]] = {Kind.CLOSE: Close, Kind.HELD: Held}
_KINDS: Final = {found: kind for kind, found in (_NUMBER_ONLY | _TICKETED).items()}


def encode(message: ToGuardian | ToDaemon) -> bytes:
    """Return the packet of ``message``."""
    match message:
        case Guard():
            head = _KIND_AND_FENCE.pack(Kind.GUARD, message.fence)
            return head + _GUARD.pack(message.device, message.inode) + os.fsencode(message.path)
        case Renew() | Share():
            return _encode_renewals(message)
        case Ready():
            return bytes([Kind.READY])
        case Failed():
            head = _KIND_AND_FENCE.pack(Kind.FAILED, message.fence)
            return head + bytes([message.is_conflict]) + message.reason.encode(errors="replace")
        case Close() | Held():
            kind = _KINDS[type(message)]
            return _KIND_AND_FENCE.pack(kind, message.fence) + _TICKET.pack(message.ticket)
    return _KIND_AND_FENCE.pack(_KINDS[type(message)], message.fence)


def _encode_renewals(message: Renew | Share) -> bytes:
    if isinstance(message, Share):
        return bytes([Kind.SHARE]) + _UNTIL.pack(message.until) + message.fences
    assert len(message.leases) <= RENEWALS_MAX, "renewals are cut into packets"
    return bytes([Kind.RENEW]) + b"".join(_RENEWAL.pack(*each) for each in message.leases)


def decode(packet: bytes) -> ToGuardian | ToDaemon:
    """Return the message of a packet; raises `ValueError` when it is none.

    The other end is our own program: a packet that is none is a bug there, which must not become
    the end of the guardian here.
    """
    try:
        if packet[0] == Kind.RENEW:
            return Renew(leases=tuple(_RENEWAL.iter_unpack(packet[1:])))
        if packet[0] == Kind.SHARE:
            return _decode_share(packet)
        if packet == bytes([Kind.READY]):
            return Ready()
        return _decode_numbered(packet)
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise ValueError(f"a packet of {len(packet)} bytes is no message") from error


def _decode_share(packet: bytes) -> Share:
    until, fences = _UNTIL.unpack_from(packet, 1)[0], packet[1 + _UNTIL.size :]
    if len(fences) % FENCE_BYTES:
        raise ValueError("half a number")
    return Share(until=until, fences=fences)


def _decode_numbered(packet: bytes) -> ToGuardian | ToDaemon:
    number, fence = _KIND_AND_FENCE.unpack_from(packet)
    kind = Kind(number)
    rest = packet[_KIND_AND_FENCE.size :]
    if kind is Kind.GUARD:
        device, inode = _GUARD.unpack_from(rest)
        path = Path(os.fsdecode(rest[_GUARD.size :]))
        return Guard(fence=fence, device=device, inode=inode, path=path)
    if kind is Kind.FAILED:
        return Failed(fence=fence, is_conflict=bool(rest[0]), reason=rest[1:].decode())
    if kind in _TICKETED:
        return _TICKETED[kind](fence=fence, ticket=_TICKET.unpack(rest)[0])
    return _NUMBER_ONLY[kind](fence=fence)


def pack_fences(numbers: Iterable[int]) -> bytes:
    """Return the numbers of fences as a `Share` has them."""
    chosen = tuple(numbers)
    return struct.pack(f">{len(chosen)}I", *chosen)


def renewals(leases: Iterable[tuple[int, int]]) -> Iterator[Renew]:
    """Yield ``leases`` (fence, until) as messages that fit a packet each."""
    batch: list[tuple[int, int]] = []
    for lease in leases:
        batch.append(lease)
        if len(batch) == RENEWALS_MAX:
            yield Renew(leases=tuple(batch))
            batch = []
    if batch:
        yield Renew(leases=tuple(batch))
