"""``basenet query``: SQL on a past moment, of which only the pages that are asked for are read."""

import csv
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import click
import trio

from basenet.archive.catalog import find_shard
from basenet.archive.fetch import Fetcher
from basenet.archive.names import ShardNames
from basenet.archive.past import Past, open_past
from basenet.archive.plan import Wish
from basenet.cli import output
from basenet.cli.listing import format_moment
from basenet.cli.reading import open_archive, read_trust, run, trust_option
from basenet.cli.restore import parse_lineage, parse_moment
from basenet.config import Config, load
from basenet.errors import UsageError
from basenet.sqlite.pagevfs import PastConnection, Rows
from basenet.units import Seq, ShardId, parse_shard_id

TABLE_ROWS_MAX: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What is asked, of which shard, at which moment."""

    archive: str | None
    shard: ShardId | None
    wish: Wish
    statement: str
    trusted_keys: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """Where the rows came from, and what they cost."""

    service: str
    past: Past
    requests: int
    bytes_read: int


class _Printer(Rows, Protocol):
    """Prints rows as they come; `end` says what is to be said behind them."""

    def end(self, answer: _Answer) -> None:
        """Print what is left."""
        ...


@click.command()
@click.argument("places", metavar="[ARCHIVE] STATEMENT", nargs=-1)
@click.option("--archive", metavar="URL", help="Where to read.  [default: BASE_ARCHIVE]")
@click.option("--shard", metavar="ID", help="Which shard.  [default: the only one there is]")
@click.option("--service", metavar="NAME", help="Which service.  [default: BASE_SERVICE]")
@click.option("--to-seq", metavar="N", type=int, help="The state after frame N.")
@click.option(
    "--to-time", metavar="RFC3339", help="The last commit captured at or before a moment."
)
@click.option("--lineage", metavar="HEX", help="Which history, when there are several.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="How rows are printed.",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=0),
    help=f"Stop after N rows.  [default: {TABLE_ROWS_MAX} in a table, else none]",
)
@click.option("--verbose", is_flag=True, help="Say which moment it is and what was fetched.")
@trust_option
@output.json_option
def command(
    *,
    places: tuple[str, ...],
    archive: str | None,
    shard: str | None,
    service: str | None,
    to_seq: int | None,
    to_time: str | None,
    lineage: str | None,
    form: str,
    limit: int | None,
    verbose: bool,
    trusted_keys: Path | None,
    as_json: bool,
) -> None:
    """Ask a past moment of a database, without restoring it.

    Only the pages that the statement needs are fetched, and each is proven against the state root
    of that moment. Nothing can be written. --json is --format json.
    """
    if not places or len(places) > 1 + (archive is None):
        raise UsageError('write `basenet query ARCHIVE "SELECT ..."`, the statement in quotes')
    question = _Question(
        archive=archive or (places[0] if len(places) > 1 else None),
        shard=None if shard is None else parse_shard_id(shard),
        wish=make_wish(to_seq, to_time, lineage),
        statement=places[-1],
        trusted_keys=trusted_keys,
    )
    config = load(os.environ, arguments={"BASE_SERVICE": service} if service else None)
    printer: _Printer
    if as_json or form == "json":
        printer = _Json(limit)
    elif form == "csv":
        printer = _Csv(limit)
    else:
        printer = _Table(TABLE_ROWS_MAX if limit is None else limit, is_told=limit is None)
    answer = run(lambda: _ask(config, question, printer))
    printer.end(answer)
    if verbose and not isinstance(printer, _Json):
        _say_cost(answer)


def make_wish(to_seq: int | None, to_time: str | None, lineage: str | None) -> Wish:
    """Return the moment that the options name; raise `UsageError` if they name two."""
    if to_seq is not None and to_time is not None:
        raise UsageError("--to-seq and --to-time exclude each other; write one of them")
    return Wish(
        to_seq=None if to_seq is None else Seq(to_seq),
        to_time_ns=None if to_time is None else parse_moment(to_time),
        lineage=None if lineage is None else parse_lineage(lineage),
    )


async def _ask(config: Config, question: _Question, printer: Rows) -> _Answer:
    store = open_archive(question.archive, config)
    try:
        shard = await find_shard(store, config.service, question.shard)
        names = ShardNames(service=config.service, shard=shard)
        trusted = await read_trust(store, config, question.trusted_keys)
        fetcher = Fetcher(store, retry_seconds=config.retry_deadline_seconds)
        folder = Path(tempfile.gettempdir())
        async with open_past(
            store, fetcher, names, question.wish, trusted=trusted, folder=folder
        ) as past:
            # Left behind when the command is interrupted: a join of everything ends when it ends.
            await trio.to_thread.run_sync(
                _select, past, question.statement, printer, abandon_on_cancel=True
            )
            return _Answer(
                service=config.service,
                past=past,
                requests=fetcher.requests,
                bytes_read=fetcher.bytes_read,
            )
    finally:
        await store.aclose()


def _select(past: Past, statement: str, printer: Rows) -> None:
    with PastConnection(past) as connection:
        connection.run(statement, printer)


def _say_cost(answer: _Answer) -> None:
    past = answer.past
    for note in past.notes:
        output.say(f"note: {note}")
    size = past.db_pages * past.page_size
    output.say(
        f"seq {past.target.seq}, captured {format_moment(past.target.timestamp_ns)}; fetched "
        f"{output.format_size(answer.bytes_read)} in {answer.requests} reads, of a database of "
        f"{output.format_size(size)}"
    )


class _Table:
    """Aligned columns, so all rows are held: as many as fit a screen's owner's patience."""

    def __init__(self, limit: int, *, is_told: bool) -> None:
        self._limit = limit
        self._is_told = is_told
        self._columns: list[str] = []
        self._rows: list[list[str]] = []
        self._is_cut = False

    def begin(self, columns: Sequence[str]) -> None:
        self._columns = [_show(column) for column in columns]

    def row(self, values: Sequence[Any]) -> bool:
        if len(self._rows) >= self._limit:
            self._is_cut = True
            return False
        self._rows.append([_show(value) for value in values])
        return True

    def end(self, answer: _Answer) -> None:
        del answer
        if self._columns:
            output.print_table(self._columns, self._rows)
        if self._is_cut and self._is_told:
            output.say(f"the first {self._limit} rows; --limit N or --format csv gives more")


class _Csv:
    """Comma separated, a heading first; NULL is empty, a blob hexadecimal."""

    def __init__(self, limit: int | None) -> None:
        self._left = limit

    def begin(self, columns: Sequence[str]) -> None:
        if columns:
            self._write(columns)

    def row(self, values: Sequence[Any]) -> bool:
        if self._left is not None:
            if self._left == 0:
                return False
            self._left -= 1
        return self._write(
            ["" if v is None else v.hex() if isinstance(v, bytes) else v for v in values]
        )

    def _write(self, values: Sequence[Any]) -> bool:
        # The writer quotes what its line end holds: a lone CR ends a line for many readers, too.
        line = io.StringIO()
        csv.writer(line, lineterminator="\r\n").writerow(values)
        return _put(line.getvalue().removesuffix("\r\n") + "\n")

    def end(self, answer: _Answer) -> None:
        """Everything is printed already."""


class _Json:
    """One document, a row a line; a blob is hexadecimal, an infinite number a text."""

    def __init__(self, limit: int | None) -> None:
        self._left = limit
        self._count = 0

    def begin(self, columns: Sequence[str]) -> None:
        _put(f'{{\n"columns": {json.dumps(list(columns), ensure_ascii=False)},\n"rows": [\n')

    def row(self, values: Sequence[Any]) -> bool:
        if self._left is not None and self._count >= self._left:
            return False
        line = json.dumps([_plain(value) for value in values], ensure_ascii=False)
        self._count += 1
        return _put(f"{' ' if self._count == 1 else ','}{line}\n")

    def end(self, answer: _Answer) -> None:
        past = answer.past
        facts = {
            "service": answer.service,
            "lineage": past.target.lineage.hex(),
            "seq": past.target.seq,
            "timestamp_ns": past.target.timestamp_ns,
            "time": format_moment(past.target.timestamp_ns),
            "database_bytes": past.db_pages * past.page_size,
            "fetched_bytes": answer.bytes_read,
            "reads": answer.requests,
            "notes": list(past.notes),
        }
        _put(f"],\n{json.dumps(facts, indent=0, ensure_ascii=False)[2:]}\n")


def _put(text: str) -> bool:
    """Write to standard output as it is; return whether somebody still reads there."""
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        # `| head` has seen enough; what is still in the buffer must not fail at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _show(value: Any) -> str:
    """Return a value for a terminal, which must not take it for a command."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    text = str(value)
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
