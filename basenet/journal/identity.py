r"""Which journal this is: a copy is another one, whatever its content says (Q9).

Theory of operation
===================

A journal keeps a voter's promises, and its id is what peers and CONFIGs know it by. Two files with
one id could promise twice. So the journal records where it lies (device, inode, birth time and
machine) and compares that whenever it is opened:

=========================================  =====================================================
what happened to the data directory        what differs, and so
=========================================  =====================================================
nothing; or it was moved or renamed        nothing: the same journal
its volume was mounted again (container)   the device alone: the same journal
a copy, a file-level restore (cp, rsync,   inode or birth time: a copy, a new id
tar), a restored migration backup
its disk came to another machine, or a     the machine: a copy, a new id; from within nobody can
clone of it did                            tell the disk from its clone
=========================================  =====================================================

A device number is given to a mount and not to a volume, so it says nothing where the birth time is
known: inode and birth time (in nanoseconds) go with the file system wherever that is mounted, and
no copy has both. Where the file system does not tell birth times an inode number alone could be
met by chance, and the device must be the same, too. A machine without an id says nothing about the
machine (many containers).

What this cannot see is a file system that was put back as a whole, on the same machine. For that
the journal counts its transactions, and others remember the count (`engine.roster`).

What follows from a new id is not decided here: with peers this node is a learner; alone it begins a
child lineage.
"""

import ctypes
import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from struct import Struct
from typing import Final

import apsw
import msgspec

from basenet.engine.roster import JournalPlace, is_same_journal
from basenet.units import JOURNAL_ID_BYTES, JournalId

_MACHINE_ID: Final = Path("/etc/machine-id")
_AT_EMPTY_PATH: Final = 0x1000
_STATX_BTIME: Final = 0x800
_STATX_BYTES: Final = 256
_STATX_MASK: Final = Struct("=I")
_STATX_BORN: Final = Struct("=qI")  # stx_btime
_STATX_BORN_OFFSET: Final = 80
_SECOND_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A journal's id; ``copied_from``: the one that it had before it was found to be a copy."""

    journal_id: JournalId
    copied_from: JournalId | None


def new_id() -> JournalId:
    """Return a random journal id."""
    return JournalId(secrets.token_bytes(JOURNAL_ID_BYTES))


def find_place(descriptor: int) -> JournalPlace:
    """Return where the file of ``descriptor`` lies."""
    facts = os.fstat(descriptor)
    return JournalPlace(
        device=facts.st_dev,
        inode=facts.st_ino,
        born_ns=_birth_time_ns(descriptor),
        machine_id=_machine_id(),
    )


def _machine_id() -> str:
    try:
        return _MACHINE_ID.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _birth_time_ns(descriptor: int) -> int:
    """Return when a file was made, in nanoseconds; 0 where that is not known."""
    try:
        statx = ctypes.CDLL(None, use_errno=True).statx
    except AttributeError:
        return 0
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer) != 0:
        return 0
    (mask,) = _STATX_MASK.unpack_from(buffer)
    if not mask & _STATX_BTIME:
        return 0
    seconds, nanoseconds = _STATX_BORN.unpack_from(buffer, _STATX_BORN_OFFSET)
    return max(int(seconds) * _SECOND_NS + int(nanoseconds), 0)


def is_copy(recorded: JournalPlace, found: JournalPlace) -> bool:
    """Return whether the journal that lay at ``recorded`` is another file than the one ``found``.

    The rule is that of `engine.roster`, over what says something about this file.
    """
    if recorded.born_ns and found.born_ns:
        recorded = replace(recorded, device=found.device)
    if not (recorded.machine_id and found.machine_id):
        recorded = replace(recorded, machine_id=found.machine_id)
    return not is_same_journal(recorded, found)


def judge(known: JournalId, recorded: JournalPlace | None, found: JournalPlace) -> Identity:
    """Return who the journal at ``found`` is, which calls itself ``known``."""
    if recorded is None or not is_copy(recorded, found):
        return Identity(journal_id=known, copied_from=None)
    return Identity(journal_id=new_id(), copied_from=known)


# In the file.


def new_meta(place: JournalPlace) -> dict[str, object]:
    """Return what a new journal at ``place`` says of itself."""
    return {"journal_id": new_id(), "jcount": 0, "place": _encode(place)}


def read(connection: apsw.Connection) -> tuple[int, JournalId, JournalPlace | None]:
    """Return the count of transactions, the id, and where the journal lay when last opened.

    None for one that an older program wrote. Raises `ValueError` if the rows are not ours.
    """
    rows = dict(connection.execute("SELECT key, value FROM meta"))
    count, journal_id, place = (rows.get(key) for key in ("jcount", "journal_id", "place"))
    if type(count) is not int or count < 0:
        raise ValueError("its count of transactions is missing")
    if not isinstance(journal_id, bytes) or len(journal_id) != JOURNAL_ID_BYTES:
        raise ValueError("its id is missing")
    if place is not None and not isinstance(place, bytes):
        raise ValueError("its place is missing")
    recorded = None if place is None else msgspec.json.decode(place, type=JournalPlace)
    return count, JournalId(journal_id), recorded


def record(connection: apsw.Connection, journal_id: JournalId, place: JournalPlace) -> None:
    """Note who the journal is and where it lies."""
    set_id(connection, journal_id)
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('place', ?)", (_encode(place),))


def set_id(connection: apsw.Connection, journal_id: JournalId) -> None:
    """Give the journal another id."""
    connection.execute("UPDATE meta SET value = ? WHERE key = 'journal_id'", (journal_id,))


def _encode(place: JournalPlace) -> bytes:
    return msgspec.json.encode(place)
