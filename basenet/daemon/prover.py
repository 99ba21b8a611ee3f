"""The child process that proves an archive: one moment, at the lowest priority, and then it ends.

A process of its own, since hashing pages in Python takes turns with the capture otherwise, and what
it needed of memory goes with it. It gets its order as one line of JSON on standard input (which may
hold an identity, so neither an argument nor a variable is the place for it), answers with one line
on standard output, and ends when standard input does: whatever became of the daemon, nobody goes on
reading an archive for it.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec
import trio

from basenet.archive.fetch import Fetcher
from basenet.archive.keyring import make_reading_keyring
from basenet.archive.names import ShardNames
from basenet.archive.proof import ProofFailed, ProofTooLarge, prove
from basenet.archive.scratch import Scratch, ScratchDraft, ScratchTooSmall
from basenet.archive.store import open_store
from basenet.errors import BasenetError, ConflictError, CorruptionError
from basenet.sqlite.integrity import check_integrity
from basenet.units import MIB, PublicKeyBytes, Seq, ShardId

_NICE: Final = 19
_AUTOGROUP: Final = Path("/proc/self/autogroup")
_CONNECTIONS_MAX: Final = 2
_IN_FLIGHT_BYTES_MAX: Final = 16 * MIB
_DECODERS_MAX: Final = 1
_ABANDONED: Final = 3


class Outcome(StrEnum):
    """What became of a proof."""

    PROVEN = "proven"
    FAILED = "failed"
    """A kept moment cannot be restored, or SQLite finds it damaged."""

    SKIPPED = "skipped"
    """Too large for the bounds that were set."""

    UNAVAILABLE = "unavailable"
    """The store did not answer, or does not let us read; that says nothing of what it holds."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be proven, and within which bounds."""

    url: str
    service: str
    shard: str
    seq: int | None
    trusted: tuple[str, ...]
    identity: str | None
    folder: str
    bytes_max: int
    retry_seconds: float
    is_nice: bool


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. ``sentence``: why it is not proven, or what could not be looked at."""

    outcome: Outcome
    seq: int | None = None
    timestamp_ns: int | None = None
    database_bytes: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    sentence: str | None = None


def main() -> None:
    """Carry out the order on standard input."""
    # A terminal signals the whole group; what ends this process is its standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()
    order = msgspec.json.decode(line, type=Order)
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    if order.is_nice:
        _give_way()
    answer = trio.run(carry_out, order, dict(os.environ))
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.flush()


def _give_way() -> None:
    """Take the lowest priority, of which Linux derives that of reads and writes, too."""
    os.nice(_NICE)
    # Where sessions are scheduled as groups, a nice value counts only among those of one session.
    with suppress(OSError):
        os.setsid()
        _AUTOGROUP.write_text(str(_NICE))


def _end_with_standard_input() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(_ABANDONED)


async def carry_out(order: Order, environment: Mapping[str, str]) -> Answer:
    """Return what a proof as ordered finds; raises nothing that an archive can cause."""
    started = time.monotonic()
    read = 0
    notes: list[str] = []
    seq = order.seq

    def examine(draft: ScratchDraft) -> None:
        findings, note = check_integrity(draft)
        if note is not None:
            notes.append(f"integrity_check could not be run: {note}")
        if findings:
            raise _UnsoundError(
                f"every page is as it was signed, and SQLite finds the database damaged: "
                f"{'; '.join(findings)}"
            )

    try:
        keyring = make_reading_keyring(order.identity)
        store = open_store(order.url, environment=environment, keyring=keyring)
        fetcher = Fetcher(
            store,
            connections_max=_CONNECTIONS_MAX,
            in_flight_bytes_max=_IN_FLIGHT_BYTES_MAX,
            decoders_max=_DECODERS_MAX,
            retry_seconds=order.retry_seconds,
        )
        try:
            folder = Path(order.folder)
            report = await prove(
                store,
                ShardNames(service=order.service, shard=ShardId(order.shard)),
                Scratch(folder, bytes_max=_find_room(folder), examine=examine),
                trusted=frozenset(PublicKeyBytes(bytes.fromhex(key)) for key in order.trusted),
                bytes_max=order.bytes_max,
                seq=None if order.seq is None else Seq(order.seq),
                fetcher=fetcher,
            )
        finally:
            read = fetcher.bytes_read
            await store.aclose()
    except BasenetError as error:
        if isinstance(error, ProofFailed):
            seq = error.seq
        return Answer(
            outcome=_outcome_of(error),
            seq=seq,
            bytes_read=read,
            seconds=time.monotonic() - started,
            sentence=str(error),
        )
    return Answer(
        outcome=Outcome.PROVEN,
        seq=report.seq,
        timestamp_ns=report.timestamp_ns,
        database_bytes=report.database_bytes,
        bytes_read=read,
        seconds=time.monotonic() - started,
        sentence="; ".join(notes) or None,
    )


class _UnsoundError(CorruptionError):
    """The database was damaged before it was captured."""


def _outcome_of(error: BasenetError) -> Outcome:
    if isinstance(error, CorruptionError | ConflictError):
        return Outcome.FAILED
    if isinstance(error, ProofTooLarge | ScratchTooSmall):
        return Outcome.SKIPPED
    return Outcome.UNAVAILABLE


def _find_room(folder: Path) -> int:
    """Return how large a scratch file may become: half of what is free there."""
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize // 2


if __name__ == "__main__":
    main()
