"""Which rows differ between two states of one database, as the statements that lead to the second.

Theory of operation
===================

Both databases are whole and quiet files of ours: one *kept*, one *lost*. The statements would turn
the first into the second; they are meant for a third, the one that the application goes on with,
where other commits have happened since. So each is made to fail or to do nothing rather than to
guess:

* a row that is only in *lost* becomes an INSERT, which fails where the key was given away since;
* a row that is only in *kept* becomes a DELETE, and one that differs an UPDATE, both only of a row
  that still has all the values it had at the kept place.

A row is known by the declared primary key, as long as none of it is NULL, else by its rowid. A
table with neither (a virtual one, one whose columns hide the rowid) cannot be told by rows, and is
named; so is one that needs a collation or a function of the application's own. Schema objects that
are new are created, those that are gone are dropped; a table that was altered is one of those that
cannot be told.

Values are compared by type and bytes, whatever the collation, and written by SQLite's own quote().
SQLite's own tables (statistics, AUTOINCREMENT's counters) follow by themselves and are left out.
"""

# ruff: noqa: S608  (names are quoted by _quote, values by SQLite itself; both files are ours)

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Self

import apsw

from basenet.errors import CorruptionError

_ROWID_NAMES: Final = ("rowid", "_rowid_", "oid")
_GENERATED: Final = frozenset({2, 3})  # of pragma table_xinfo's column "hidden"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDiff:
    """How many rows of one table differ, and by what a row is known."""

    table: str
    key: tuple[str, ...]
    inserted: int
    updated: int
    deleted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A table, and by what its rows are known. ``is_new``: only the lost database has it."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    is_new: bool = False

    @property
    def is_one(self) -> str:
        """Return the condition that a kept and a lost row are one; a key is never NULL."""
        return " and ".join(f"k.{_quote(c)} = l.{_quote(c)}" for c in self.key)

    @property
    def differs(self) -> str:
        """Return the condition that a row of both has changed."""
        return " or ".join(
            f"typeof(k.{c}) <> typeof(l.{c}) or k.{c} is not l.{c} collate binary"
            for c in map(_quote, self.columns)
        )

    def from_clause(self, change: str) -> str:
        """Return the rows of one ``change``, "insert", "update" or "delete", as FROM and WHERE."""
        kept, lost = f"kept.{_quote(self.name)} k", f"lost.{_quote(self.name)} l"
        if self.is_new:
            return f"from {lost}" if change == "insert" else f"from {lost} where 0"
        if change == "update":
            return f"from {kept} join {lost} on {self.is_one} where {self.differs}"
        here, there = (lost, kept) if change == "insert" else (kept, lost)
        return f"from {here} where not exists (select 1 from {there} where {self.is_one})"


class RowDiff:
    """The difference of two databases; a context manager that has both open.

    ``untold``: the tables that differ and cannot be told by rows, each with the reason.
    """

    def __init__(self, kept: Path, lost: Path) -> None:
        """Open both, which nobody else has open; raise `CorruptionError` if SQLite cannot."""
        self._connection = apsw.Connection(":memory:")
        self.untold: dict[str, str] = {}
        try:
            self._connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
            self._connection.execute("attach ? as kept", (os.fspath(kept),))
            self._connection.execute("attach ? as lost", (os.fspath(lost),))
            self._objects = {side: self._list_objects(side) for side in ("kept", "lost")}
            self._kinds = {side: self._list_kinds(side) for side in ("kept", "lost")}
            self._tables = list(self._list_tables())
        except (apsw.Error, UnicodeDecodeError) as error:
            self._connection.close()
            raise _unreadable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def triggers(self) -> list[str]:
        """The names of the kept database's triggers, which fire when the statements are run."""
        return sorted(name for kind, name in self._objects["kept"] if kind == "trigger")

    def schema(self) -> list[tuple[str, str, str]]:
        """Return (change, kind, name) of schema objects: "created", "dropped" or "altered"."""
        kept, lost = self._objects["kept"], self._objects["lost"]
        changes = [("dropped", *place) for place in kept if place not in lost]
        changes += [("created", *place) for place in lost if place not in kept]
        changes += [
            ("altered", *place)
            for place in lost
            if place in kept and kept[place][1] != lost[place][1]
        ]
        return [change for change in changes if self._is_told(change[2], ())]

    def tables(self) -> list[TableDiff]:
        """Return the tables of which rows differ, as far as they can be told."""
        counted = (
            TableDiff(
                table=table.name,
                key=table.key,
                inserted=self._count(table, "insert"),
                updated=self._count(table, "update"),
                deleted=self._count(table, "delete"),
            )
            for table in self._tables
        )
        try:
            return [diff for diff in counted if diff.inserted or diff.updated or diff.deleted]
        except apsw.Error as error:
            raise _unreadable(error) from error

    def statements(self, skipped: Collection[str] = ()) -> Iterator[str]:
        """Yield the statements, each ended by a semicolon, of all tables but the ``skipped``."""
        try:
            yield from self._schema_statements(skipped)
            tables = [table for table in self._tables if table.name not in skipped]
            for make in (self._deletes, self._updates, self._inserts):
                for table in tables:
                    yield from make(table)
        except (apsw.Error, UnicodeDecodeError) as error:
            raise _unreadable(error) from error

    # -- the schema --

    def _list_objects(self, side: str) -> dict[tuple[str, str], tuple[str, str]]:
        """Return (kind, name) -> (table, SQL) in the order of creation."""
        rows = self._connection.execute(
            "select type, name, tbl_name, sql "
            f"from {side}.sqlite_schema where sql is not null "
            "and name not like 'sqlite\\_%' escape '\\' order by rowid"
        )
        return {(str(kind), str(name)): (str(table), str(sql)) for kind, name, table, sql in rows}

    def _list_kinds(self, side: str) -> dict[str, str]:
        """Return table -> table, view, virtual or shadow."""
        rows = self._connection.execute(
            "select name, type from pragma_table_list where schema = ?", (side,)
        )
        return {str(name): str(kind) for name, kind in rows}

    def _list_tables(self) -> Iterator[_Table]:
        """Yield the tables to compare, and note those that differ and cannot be told."""
        kept, lost = self._objects["kept"], self._objects["lost"]
        for (kind, name), (_, sql) in lost.items():
            if kind != "table":
                continue
            how = self._kinds["lost"].get(name)
            before = kept.get((kind, name))
            if how == "virtual":
                if before is None or before[1] != sql or self._has_changed_inside(name):
                    self.untold[name] = "it is a virtual table"
            elif how == "shadow":
                continue
            elif before is not None and before[1] != sql:
                self.untold[name] = "its columns were altered"
            elif (table := self._find_table(name, is_new=before is None)) is not None:
                yield table

    def _find_table(self, name: str, *, is_new: bool) -> _Table | None:
        """Return a table whose rows can be told; else None, and note it if it differs."""
        try:
            table = self._look_at(name, is_new=is_new)
            if table is None and (is_new or self._is_different(name)):
                self.untold[name] = "it has no key and its columns hide the rowid"
        except apsw.SQLError as error:
            # A collation or a function that only the application has.
            if is_new or self._may_differ(name):
                self.untold[name] = f"it cannot be read here ({error})"
            return None
        return table

    def _has_changed_inside(self, virtual: str) -> bool:
        """Return whether a table behind a virtual one differs."""
        return any(
            kind == "shadow" and name.startswith(f"{virtual}_") and self._is_different(name)
            for name, kind in self._kinds["lost"].items()
        )

    def _may_differ(self, name: str) -> bool:
        """Return whether a table that cannot be told differs, or cannot be read at all."""
        columns = ", ".join(
            f"quote({_quote(str(column))})"  # which has no collation
            for column, hidden in self._connection.execute(
                "select name, hidden from pragma_table_xinfo(?, 'lost')", (name,)
            )
            if hidden not in _GENERATED
        )
        try:
            return self._is_different(name, columns)
        except apsw.SQLError:
            return True

    def _is_different(self, name: str, columns: str = "*") -> bool:
        """Return whether two tables of one form hold different rows, whatever their keys."""
        sides = [
            f"select {columns} from {side}.{_quote(name)} not indexed" for side in ("kept", "lost")
        ]
        counts = [self._get(f"select count(*) from ({side})") for side in sides]
        return counts[0] != counts[1] or any(
            self._get(f"select exists ({one} except {other})")
            for one, other in (sides, reversed(sides))
        )

    def _look_at(self, name: str, *, is_new: bool) -> _Table | None:
        """Return the table with its key; None if it has none.

        Raises `apsw.SQLError` for one that needs what only the application has.
        """
        rows = list(
            self._connection.execute(
                "select name, pk, hidden from pragma_table_xinfo(?, 'lost') order by cid", (name,)
            )
        )
        columns = [str(column) for column, _, hidden in rows if hidden not in _GENERATED]
        declared = [str(column) for column, pk, _ in sorted(rows, key=itemgetter(1)) if pk]
        taken = {column.lower() for column in columns}
        rowid = next((word for word in _ROWID_NAMES if word not in taken), None)
        if declared and not self._has_null(name, declared, is_new=is_new):
            key = tuple(declared)
        elif rowid is not None:
            key = (rowid,)
        else:
            return None
        table = _Table(name=name, columns=tuple(columns), key=key, is_new=is_new)
        for change in ("insert", "update", "delete"):
            clause = table.from_clause(change)
            for query in (f"select count(*) {clause}", f"select * {clause} order by 1"):
                self._connection.execute(f"explain {query}")
        return table

    def _has_null(self, name: str, columns: Sequence[str], *, is_new: bool) -> bool:
        condition = " or ".join(f"{_quote(column)} is null" for column in columns)
        return any(
            self._get(f"select exists (select 1 from {side}.{_quote(name)} where {condition})")
            for side in (("lost",) if is_new else ("kept", "lost"))
        )

    def _schema_statements(self, skipped: Collection[str]) -> Iterator[str]:
        kept, lost = self._objects["kept"], self._objects["lost"]
        gone = {name for kind, name in kept if kind == "table" and (kind, name) not in lost}
        for place, (table, sql) in kept.items():
            kind, name = place
            is_altered = place in lost and lost[place][1] != sql and kind != "table"
            is_carried = kind != "table" and table in gone  # it goes with its table
            if (
                (place not in lost or is_altered)
                and not is_carried
                and self._is_told(name, skipped)
            ):
                yield f"DROP {kind.upper()} {_quote(name)};"
        for place, (table, sql) in lost.items():
            is_changed = place not in kept or (kept[place][1] != sql and place[0] != "table")
            if is_changed and self._is_told(place[1], skipped) and table not in skipped:
                yield f"{sql};"

    def _is_told(self, name: str, skipped: Collection[str]) -> bool:
        is_inner = "shadow" in (self._kinds["lost"].get(name), self._kinds["kept"].get(name))
        return name not in skipped and not is_inner

    # -- the rows --

    def _count(self, table: _Table, change: str) -> int:
        return int(self._get(f"select count(*) {table.from_clause(change)}"))

    def _rows(self, table: _Table, change: str, values: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Yield the ``values`` of the rows of a change, as literals, in the order of their keys."""
        if table.is_new and change != "insert":
            return
        side = "l" if change == "insert" else "k"
        order = ", ".join(f"{side}.{_quote(column)}" for column in table.key)
        literals = ", ".join(map(_literal, values))
        yield from self._connection.execute(
            f"select {literals} {table.from_clause(change)} order by {order}"
        )

    def _deletes(self, table: _Table) -> Iterator[str]:
        names = _unique((*table.key, *table.columns))
        for values in self._rows(table, "delete", [f"k.{_quote(name)}" for name in names]):
            yield f"DELETE FROM {_quote(table.name)} WHERE {_conditions(table, names, values)};"

    def _updates(self, table: _Table) -> Iterator[str]:
        names = _unique((*table.key, *table.columns))
        news = [f"l.{_quote(name)}" for name in table.columns]
        olds = [f"k.{_quote(name)}" for name in names]
        for values in self._rows(table, "update", [*news, *olds]):
            new, old = values[: len(news)], values[len(news) :]
            before = dict(zip(names, old, strict=True))
            sets = ", ".join(
                f"{_quote(name)} = {value}"
                for name, value in zip(table.columns, new, strict=True)
                if before[name] != value
            )
            condition = _conditions(table, names, old)
            yield f"UPDATE {_quote(table.name)} SET {sets} WHERE {condition};"

    def _inserts(self, table: _Table) -> Iterator[str]:
        columns = ", ".join(map(_quote, table.columns))
        for values in self._rows(table, "insert", [f"l.{_quote(name)}" for name in table.columns]):
            yield f"INSERT INTO {_quote(table.name)} ({columns}) VALUES ({', '.join(values)});"

    def _get(self, query: str) -> Any:
        for (value,) in self._connection.execute(query):
            return value
        raise AssertionError("an aggregate has a row")


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    """Return the expression that gives ``value`` as a literal; quote() stops at a NUL in a text."""
    return (
        f"case when typeof({value}) = 'text' and instr({value}, char(0)) "
        f"then 'CAST(X''' || hex({value}) || ''' AS TEXT)' else quote({value}) end"
    )


def _conditions(table: _Table, names: Sequence[str], values: Sequence[str]) -> str:
    """Return the condition that a row is still the one that was seen."""
    return " AND ".join(
        f"{_quote(name)} {'=' if name in table.key else 'IS'} {value}"
        for name, value in zip(names, values, strict=True)
    )


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _unreadable(error: Exception) -> CorruptionError:
    return CorruptionError(f"SQLite cannot compare the two states: {error}.")
