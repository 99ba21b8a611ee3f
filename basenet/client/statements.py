"""Which statements commit by themselves.

SQLite does not tell an application that a statement has committed; `sqlite3.Connection` tells only
whether a transaction is open and how many rows were changed in all. Together with the statement's
first word that is enough, in one direction: whoever waits without need loses a moment, whoever does
not wait would lie. So a statement that is not known to commit nothing is taken to have committed.
"""

import re
from typing import Final

_SPACE_AND_COMMENTS: Final = re.compile(r"(?:\s+|;|--[^\n]*(?:\n|\Z)|/\*.*?(?:\*/|\Z))*", re.DOTALL)
_WORD: Final = re.compile(r"[a-z]+", re.IGNORECASE)
_PRAGMA: Final = re.compile(r"pragma\s+(?:[\w\"'`\[\]]+\s*\.\s*)?\"?(\w+)", re.IGNORECASE)

# A statement that begins so writes only what the count of changed rows shows, or nothing. What
# WITH introduces changes rows, if anything.
_READERS: Final = frozenset(
    {"select", "values", "explain", "with", "begin", "savepoint", "attach", "detach", "rollback"}
)
_BEGINNERS: Final = frozenset({"begin", "savepoint", "with"})
_WRITING_PRAGMAS: Final = frozenset(
    {"application_id", "incremental_vacuum", "optimize", "schema_version", "user_version"}
)


def get_first_word(sql: str) -> str:
    """Return the first word of ``sql`` in lower case, behind comments; empty if there is none."""
    start = _SPACE_AND_COMMENTS.match(sql)
    word = _WORD.match(sql, start.end() if start else 0)
    return word[0].lower() if word else ""


def is_reader(sql: str) -> bool:
    """Return whether ``sql`` commits nothing but changed rows when it runs by itself."""
    word = get_first_word(sql)
    if word == "pragma":
        start = _SPACE_AND_COMMENTS.match(sql)
        pragma = _PRAGMA.match(sql, start.end() if start else 0)
        return pragma is None or pragma[1].lower() not in _WRITING_PRAGMAS
    return not word or word in _READERS


def may_begin(sql: str) -> bool:
    """Return whether ``sql`` may begin a transaction that writes, or be one by itself."""
    return not is_reader(sql) or get_first_word(sql) in _BEGINNERS


def has_committed(sql: str, *, was_open: bool, is_open: bool, has_changed_rows: bool) -> bool:
    """Return whether ``sql`` may have committed something.

    ``was_open``, ``is_open``: whether a transaction was open before and after it.
    """
    if is_open:
        return False
    if was_open:
        return get_first_word(sql) != "rollback"
    return has_changed_rows or not is_reader(sql)
