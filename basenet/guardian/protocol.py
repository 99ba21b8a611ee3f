"""What daemon and guardian say to each other, over a socket pair of packets.

Each packet is one message: a kind, then fixed fields. Fences are named by a number that the daemon
chooses, so that one packet renews the leases of all shards of the node, 12 bytes each.

::

    to the guardian                                       to the daemon
    GUARD    fence u32 | dev u64 | ino u64 | path          HELD      fence u32     (with GUARD also
    DROP     fence u32                                               two descriptors, SCM_RIGHTS)
    CLOSE    fence u32                                     FAILED    fence u32 | reason
    RENEW    (fence u32 | until u64) *                     REPLACED  fence u32

``until``: CLOCK_BOOTTIME in nanoseconds, absolute: a message that is late opens nothing (P18). HELD
answers GUARD and CLOSE, as soon as the write lock is ours; the daemon injects only after it.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from struct import Struct
from typing import Final

PACKET_BYTES_MAX: Final = 128 * 1024
RENEWALS_MAX: Final = 8_000

_KIND_AND_FENCE: Final = Struct(">BI")
_GUARD: Final = Struct(">QQ")
_RENEWAL: Final = Struct(">IQ")


class Kind(IntEnum):
    """What a packet says."""

    GUARD = 1
    DROP = 2
    CLOSE = 3
    RENEW = 4
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
    """Close this fence now."""

    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """Keep these fences open until the given instants."""

    leases: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The fence is closed."""

    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The fence could not be set up; ``reason`` is a sentence."""

    fence: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """Another file lies where the fenced one was; what is fenced stays so."""

    fence: int


ToGuardian = Guard | Drop | Close | Renew
ToDaemon = Held | Failed | Replaced


_NUMBER_ONLY: Final[dict[Kind, type[Drop | Close | Held | Replaced]]] = {
    Kind.DROP: Drop,
    Kind.CLOSE: Close,
    Kind.HELD: Held,
    Kind.REPLACED: Replaced,
}
_KINDS: Final = {found: kind for kind, found in _NUMBER_ONLY.items()}


def encode(message: ToGuardian | ToDaemon) -> bytes:
    """Return the packet of ``message``."""
    if isinstance(message, Guard):
        head = _KIND_AND_FENCE.pack(Kind.GUARD, message.fence)
        return head + _GUARD.pack(message.device, message.inode) + os.fsencode(message.path)
    if isinstance(message, Renew):
        assert len(message.leases) <= RENEWALS_MAX, "renewals are cut into packets"
        return bytes([Kind.RENEW]) + b"".join(_RENEWAL.pack(*each) for each in message.leases)
    if isinstance(message, Failed):
        return _KIND_AND_FENCE.pack(Kind.FAILED, message.fence) + message.reason.encode()
    return _KIND_AND_FENCE.pack(_KINDS[type(message)], message.fence)


def decode(packet: bytes) -> ToGuardian | ToDaemon:
    """Return the message of a packet that the other end of our own socket pair sent."""
    if packet[0] == Kind.RENEW:
        return Renew(leases=tuple(_RENEWAL.iter_unpack(packet[1:])))
    kind, fence = _KIND_AND_FENCE.unpack_from(packet)
    rest = packet[_KIND_AND_FENCE.size :]
    if kind == Kind.GUARD:
        device, inode = _GUARD.unpack_from(rest)
        path = Path(os.fsdecode(rest[_GUARD.size :]))
        return Guard(fence=fence, device=device, inode=inode, path=path)
    if kind == Kind.FAILED:
        return Failed(fence=fence, reason=rest.decode())
    return _NUMBER_ONLY[Kind(kind)](fence=fence)


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
