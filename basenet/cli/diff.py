"""``basenet diff``: which tables and rows changed between two moments of a database."""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import click
import trio

from basenet.archive.catalog import find_shard
from basenet.archive.fetch import Fetcher
from basenet.archive.names import ShardNames
from basenet.archive.place import Place
from basenet.archive.plan import Wish
from basenet.archive.restore import RestoreReport, restore
from basenet.cli import output
from basenet.cli.listing import format_moment
from basenet.cli.query import make_wish
from basenet.cli.reading import LazyBar, open_archive, read_trust, run, trust_option
from basenet.config import Config, load
from basenet.errors import UsageError
from basenet.sqlite.rowdiff import RowDiff, TableDiff
from basenet.units import ShardId, parse_shard_id

STATEMENTS_MAX: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moments:
    """What is compared, of which shard; ``statements_max`` is 0 when none are wanted."""

    archive: str | None
    shard: ShardId | None
    earlier: Wish
    later: Wish
    trusted_keys: Path | None
    statements_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Difference:
    """What was found. ``untold``: tables that differ and cannot be told by rows, and why."""

    earlier: RestoreReport
    later: RestoreReport
    schema: Sequence[tuple[str, str, str]]
    tables: Sequence[TableDiff]
    untold: dict[str, str]
    statements: Sequence[str]
    is_cut: bool

    @property
    def is_empty(self) -> bool:
        return not (self.schema or self.tables or self.untold)


@click.command()
@click.argument("archive", required=False)
@click.option("--archive", "named", metavar="URL", help="The archive, as an option.")
@click.option("--shard", metavar="ID", help="Which shard.  [default: the only one there is]")
@click.option("--service", metavar="NAME", help="Which service.  [default: BASE_SERVICE]")
@click.option("--from-seq", metavar="N", type=int, help="From the state after frame N.")
@click.option("--from-time", metavar="RFC3339", help="From the last commit at or before a moment.")
@click.option("--to-seq", metavar="N", type=int, help="To the state after frame N.")
@click.option(
    "--to-time",
    metavar="RFC3339",
    help="To the last commit at or before a moment.  [default: the newest state]",
)
@click.option("--lineage", metavar="HEX", help="Which history, when there are several.")
@click.option("--sql", is_flag=True, help="Show the rows, as statements that lead to the second.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    default=STATEMENTS_MAX,
    show_default=True,
    help="At most N statements of --sql.",
)
@trust_option
@output.json_option
def command(
    *,
    archive: str | None,
    named: str | None,
    shard: str | None,
    service: str | None,
    from_seq: int | None,
    from_time: str | None,
    to_seq: int | None,
    to_time: str | None,
    lineage: str | None,
    sql: bool,
    limit: int,
    trusted_keys: Path | None,
    as_json: bool,
) -> None:
    """Show which tables and rows changed between two moments of a database.

    Both states are restored to temporary files (TMPDIR), proven, and compared row by row.
    """
    if (from_seq is None) == (from_time is None):
        raise UsageError("name where to begin with --from-seq or with --from-time, one of them")
    moments = _Moments(
        archive=archive or named,
        shard=None if shard is None else parse_shard_id(shard),
        earlier=make_wish(from_seq, from_time, lineage),
        later=make_wish(to_seq, to_time, lineage),
        trusted_keys=trusted_keys,
        statements_max=limit if sql else 0,
    )
    config = load(os.environ, arguments={"BASE_SERVICE": service} if service else None)
    with LazyBar("restoring", is_shown=not as_json and sys.stderr.isatty()) as bar:
        found = run(lambda: _compare(config, moments, bar))
    if as_json:
        output.print_json(_make_document(found, has_statements=sql))
    elif sql:
        _print_statements(found)
    else:
        _print_tables(found)


async def _compare(config: Config, moments: _Moments, bar: LazyBar) -> _Difference:
    store = open_archive(moments.archive, config)
    try:
        shard = await find_shard(store, config.service, moments.shard)
        names = ShardNames(service=config.service, shard=shard)
        trusted = await read_trust(store, config, moments.trusted_keys)
        with tempfile.TemporaryDirectory(prefix="basenet-diff-") as folder:

            async def restored(name: str, wish: Wish) -> RestoreReport:
                return await restore(
                    store,
                    names,
                    Place(Path(folder) / name),
                    trusted=trusted,
                    wish=wish,
                    fetcher=Fetcher(store, retry_seconds=config.retry_deadline_seconds),
                    on_progress=lambda progress: bar.show(
                        progress.bytes_done, progress.bytes_total
                    ),
                )

            later = await restored("later.db", moments.later)
            earlier = await restored("earlier.db", moments.earlier)
            if earlier.seq > later.seq:
                raise UsageError(
                    f"the first moment, seq {earlier.seq}, lies after the second, seq {later.seq}: "
                    "change their places"
                )
            return await trio.to_thread.run_sync(_look, moments, earlier, later)
    finally:
        await store.aclose()


def _look(moments: _Moments, earlier: RestoreReport, later: RestoreReport) -> _Difference:
    with RowDiff(earlier.path, later.path) as diff:
        statements = list(islice(diff.statements(), moments.statements_max + 1))
        return _Difference(
            earlier=earlier,
            later=later,
            schema=diff.schema(),
            tables=diff.tables(),
            untold=dict(diff.untold),
            statements=statements[: moments.statements_max],
            is_cut=len(statements) > moments.statements_max,
        )


def _print_tables(found: _Difference) -> None:
    output.print_facts(
        {
            "from": f"seq {found.earlier.seq}, {format_moment(found.earlier.timestamp_ns)}",
            "to": f"seq {found.later.seq}, {format_moment(found.later.timestamp_ns)}",
        }
    )
    for change, kind, name in found.schema:
        click.echo(f"{change} {kind} {name}")
    if found.tables:
        output.print_table(
            ["TABLE", "INSERTED", "UPDATED", "DELETED"],
            [
                [table.table, str(table.inserted), str(table.updated), str(table.deleted)]
                for table in found.tables
            ],
        )
    for name, reason in found.untold.items():
        click.echo(f"{name} differs, and its rows cannot be told: {reason}")
    if found.is_empty:
        click.echo("no table, no row and no schema object differs")


def _print_statements(found: _Difference) -> None:
    for statement in found.statements:
        click.echo(statement)
    for name, reason in found.untold.items():
        output.say(f"{name} differs and is left out: {reason}")
    if found.is_cut:
        output.say(f"the first {len(found.statements)} statements; --limit N gives more")


def _make_document(found: _Difference, *, has_statements: bool) -> dict[str, object]:
    document: dict[str, object] = {
        "shard": found.later.shard,
        "from": _make_moment(found.earlier),
        "to": _make_moment(found.later),
        "schema": [
            {"change": change, "kind": kind, "name": name} for change, kind, name in found.schema
        ],
        "tables": [
            {
                "table": table.table,
                "key": list(table.key),
                "inserted": table.inserted,
                "updated": table.updated,
                "deleted": table.deleted,
            }
            for table in found.tables
        ],
        "untold": found.untold,
    }
    if has_statements:
        document |= {"statements": list(found.statements), "truncated": found.is_cut}
    return document


def _make_moment(report: RestoreReport) -> dict[str, object]:
    return {
        "lineage": report.lineage.hex(),
        "seq": report.seq,
        "timestamp_ns": report.timestamp_ns,
        "time": format_moment(report.timestamp_ns),
    }
