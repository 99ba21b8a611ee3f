"""How often the journals of others have written, as far as this node has heard (Q9).

The rows stand in the order in which the journals were last heard of: `engine.roster.Roster` lets go
of the oldest first.
"""

from collections.abc import Iterable
from typing import Final

import apsw

from basenet.engine.liveness import Member
from basenet.units import JournalId, PublicKeyBytes

# SQLite's integers are signed; a peer may claim any u64.
_COUNT_MAX: Final = 2**63 - 1
# Numbered anew behind the highest: the order of the rows is that of when they were heard of.
_INSERT: Final = "INSERT INTO peer (key, journal_id, jcount) VALUES (?, ?, ?)"


def remember_peer(
    connection: apsw.Connection, key: PublicKeyBytes, journal_id: JournalId, jcount: int
) -> None:
    """Raise what is remembered of one journal; it was heard of just now."""
    known = (key, journal_id)
    rows = connection.execute("SELECT jcount FROM peer WHERE key = ? AND journal_id = ?", known)
    highest = max([jcount, *(count for (count,) in rows)])
    connection.execute("DELETE FROM peer WHERE key = ? AND journal_id = ?", known)
    connection.execute(_INSERT, (*known, min(highest, _COUNT_MAX)))


def replace_peers(connection: apsw.Connection, counts: Iterable[tuple[Member, int]]) -> None:
    """Remember exactly these counts, the one heard of for longest first."""
    connection.execute("DELETE FROM peer")
    connection.executemany(
        _INSERT,
        ((key, journal_id, min(jcount, _COUNT_MAX)) for (key, journal_id), jcount in counts),
    )


def load_peers(connection: apsw.Connection) -> dict[Member, int]:
    """Return the counts, the one heard of for longest first."""
    rows = connection.execute("SELECT key, journal_id, jcount FROM peer ORDER BY heard")
    return {
        (PublicKeyBytes(key), JournalId(journal_id)): jcount for key, journal_id, jcount in rows
    }
