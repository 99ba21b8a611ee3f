"""What became of a replica's file while no daemon looked: our batch, a stranger's commits, neither.

Theory of operation
===================

Before a batch is written the journal holds its *intent*: the end of the log before and after it
(Q13). iChange says how many commits there were, but it begins anew with the wal-index, at a reboot
for instance; what cannot be forged is the chain of checksums in the log. So the end of the log is
looked for at each place where we may have left it, the furthest first::

    after the batch                  the log goes on from there: it was applied
    after a restart behind it        the log was begun anew by us (`salts_after_restart`)
    before the batch, or a restart   it was not

and what the log holds beyond that place are commits of somebody else, to be followed from there by
an ordinary capture. A log that has none of these places was begun anew by a stranger, or is the
empty log of a file that was closed: then only the pages tell (`Outcome.UNKNOWN`, `recover.diff`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto, unique
from struct import Struct
from typing import Final

from basenet.errors import CorruptionError, UnavailableError
from basenet.sqlite.attach import Database
from basenet.sqlite.captured import Cursor
from basenet.sqlite.inject import Position, salts_after_restart
from basenet.sqlite.resume import Outcome as Found
from basenet.sqlite.resume import find_place
from basenet.sqlite.tail import growth
from basenet.units import FrameHash, Seq

_POSITION: Final = Struct(">8sIIIII")
_HEAD: Final = Struct(">BQ32s")
_VERSION: Final = 1
_INTENT_BYTES: Final = _HEAD.size + 2 * _POSITION.size


@unique
class Outcome(Enum):
    """How the file stands to what the journal says."""

    NOT_APPLIED = auto()
    APPLIED = auto()
    AHEAD = auto()
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A batch that was about to be written between two ends of the log.

    ``place``: the frame (seq, hash) whose state the file has once it is.
    """

    before: Position
    after: Position
    place: tuple[Seq, FrameHash]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What was found.

    ``is_applied``: whether the intent's batch is in the file (of no meaning for UNKNOWN).
    ``cursor``: up to where the file holds what the journal knows of, and from where a capture goes
    on; None for UNKNOWN. ``commits``: of somebody else, behind it. ``reason``: a sentence.
    """

    outcome: Outcome
    is_applied: bool
    cursor: Cursor | None
    commits: int
    reason: str


def encode_intent(before: Position, after: Position, place: tuple[Seq, FrameHash]) -> bytes:
    """Return the bytes that `decode_intent` reads, 89 of them."""
    return _HEAD.pack(_VERSION, *place) + _pack(before) + _pack(after)


def decode_intent(data: bytes) -> Intent:
    """Return the intent; raises `CorruptionError` for bytes that `encode_intent` did not write."""
    if len(data) != _INTENT_BYTES or data[0] != _VERSION:
        raise CorruptionError(
            f"an intent of {len(data)} bytes in the journal is not readable; move journal.db and "
            "what begins with its name out of the data directory"
        )
    _, seq, frame_hash = _HEAD.unpack_from(data)
    return Intent(
        before=_unpack(data, _HEAD.size),
        after=_unpack(data, _HEAD.size + _POSITION.size),
        place=(Seq(seq), FrameHash(frame_hash)),
    )


def _pack(position: Position) -> bytes:
    return _POSITION.pack(
        position.salts,
        position.frame_max,
        *position.checksum,
        position.change,
        position.db_pages,
    )


def _unpack(data: bytes, offset: int) -> Position:
    salts, frame_max, sum0, sum1, change, db_pages = _POSITION.unpack_from(data, offset)
    return Position(
        salts=salts,
        frame_max=frame_max,
        checksum=(sum0, sum1),
        change=change,
        db_pages=db_pages,
    )


def cursor_of(database: Database, position: Position) -> Cursor:
    """Return ``position`` as the place from which a capture goes on."""
    return Cursor(
        device=database.device,
        inode=database.inode,
        page_size=database.page_size,
        salts=position.salts,
        frame=position.frame_max,
        checksum=position.checksum,
        change=position.change,
    )


def find_standing(database: Database, cursor: Cursor | None, intent: Intent | None) -> Standing:
    """Return how the file stands; the caller holds the fence.

    ``cursor``, ``intent``: what the journal has; None for none. Raises `UnavailableError` while the
    index cannot be read.
    """
    index = database.read_index()
    if index is None:
        raise UnavailableError(f"{database.path}-shm is being changed; trying again.")
    reason = f"nothing in the journal tells where {database.path} was left."
    for is_applied, place in _candidates(database, cursor, intent):
        found = find_place(database, index, place, None)
        if found.outcome is not Found.RESUMED or found.place is None:
            reason = found.reason
            continue
        commits = growth(index.header.change, found.place.change)
        outcome = Outcome.APPLIED if is_applied else Outcome.NOT_APPLIED
        return Standing(
            outcome=Outcome.AHEAD if commits else outcome,
            is_applied=is_applied,
            cursor=found.place,
            commits=commits,
            reason=found.reason,
        )
    return Standing(
        outcome=Outcome.UNKNOWN, is_applied=False, cursor=None, commits=0, reason=reason
    )


def _candidates(
    database: Database, cursor: Cursor | None, intent: Intent | None
) -> Iterator[tuple[bool, Cursor]]:
    """Yield where the log may have been left, the furthest first, and if the batch is in then."""
    if intent is not None:
        yield from _with_restart(cursor_of(database, intent.after), is_applied=True)
        yield from _with_restart(cursor_of(database, intent.before), is_applied=False)
    if cursor is not None:
        yield from _with_restart(cursor, is_applied=False)


def _with_restart(place: Cursor, *, is_applied: bool) -> Iterator[tuple[bool, Cursor]]:
    yield is_applied, place
    if place.frame:
        yield (
            is_applied,
            Cursor(
                device=place.device,
                inode=place.inode,
                page_size=place.page_size,
                salts=salts_after_restart(place.salts, place.frame, place.checksum),
                frame=0,
                checksum=(0, 0),
                change=place.change,
            ),
        )
