"""Whether SQLite finds a database sound that is no file: `pragma integrity_check` over its pages.

A schema can need what only the application has: a collation, a function in an index or a CHECK, a
module. Then SQLite cannot check it here, and that says nothing against the database.
"""

from collections.abc import Sequence
from typing import Any, Final

from basenet.errors import UsageError
from basenet.sqlite.pagevfs import PageSource, PastConnection

FINDINGS_MAX: Final = 10
_SOUND: Final = "ok"


class _Lines:
    """Takes the first column of each row."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, columns: Sequence[str]) -> None:
        """Need no names."""

    def row(self, values: Sequence[Any]) -> bool:
        """Take a line."""
        self.lines.append(str(values[0]))
        return True


def check_integrity(source: PageSource) -> tuple[list[str], str | None]:
    """Return what integrity_check finds, none if all is sound, and why it could not check or None.

    Raises `CorruptionError` for pages that are no database at all, and what ``source`` raises.
    """
    if source.db_pages == 0:
        return [], None
    taken = _Lines()
    with PastConnection(source) as connection:
        try:
            connection.run(f"pragma integrity_check({FINDINGS_MAX})", taken)
        except UsageError as error:
            return [], str(error)
    return [line for line in taken.lines if line != _SOUND], None
