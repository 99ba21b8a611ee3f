"""``basenet archive``: what lies in an archive, what it costs, and deleting what nobody needs."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from basenet.archive.catalog import Catalog, find_shard, list_shards, read_catalog
from basenet.archive.cutoff import Witness
from basenet.archive.fetch import Fetcher
from basenet.archive.lease import Holder, Lease, read_lease
from basenet.archive.names import ShardNames
from basenet.archive.plan import Wish
from basenet.archive.port import Store
from basenet.archive.prune import Pruner, PruneReport
from basenet.archive.stats import Listed, ShardStats, Tally, add, list_objects, read_stats
from basenet.archive.survey import survey_shard
from basenet.cli import output
from basenet.cli.listing import format_moment
from basenet.cli.reading import open_archive, read_trust, run, trust_option
from basenet.cli.restore import parse_lineage
from basenet.config import Config, load
from basenet.errors import ConflictError, NotFoundError
from basenet.units import (
    JOURNAL_ID_BYTES,
    KEY_BYTES,
    JournalId,
    Lineage,
    PublicKeyBytes,
    ShardId,
    parse_shard_id,
)

_ALL: Final = 2**62
_NOBODY: Final = PublicKeyBytes(bytes(KEY_BYTES))


@click.group("archive")
def command() -> None:
    """Look into an archive, count what it costs, and delete what no kept moment needs."""


@command.command("ls")
@click.argument("archive", required=False)
@click.option("--archive", "named", metavar="URL", help="The archive, as an option.")
@click.option("--service", metavar="NAME", help="Which service.  [default: BASE_SERVICE]")
@click.option("--shard", metavar="ID", help="Only this shard.  [default: all]")
@output.json_option
def ls_command(
    *, archive: str | None, named: str | None, service: str | None, shard: str | None, as_json: bool
) -> None:
    """List the objects of an archive, and what their names say.

    No key is needed, and nothing is read but names: `basenet verify` reads and proves.
    """
    config = _load(service)
    catalogs = run(lambda: _read_catalogs(config, archive or named, shard))
    if as_json:
        output.print_json(
            [
                {
                    "service": catalog.names.service,
                    "shard": catalog.shard,
                    "objects": [_make_listed(listed) for listed in list_objects(catalog)],
                }
                for catalog in catalogs
            ]
        )
        return
    output.print_table(
        ["KIND", "FROM", "TO", "SIZE", "NAME"],
        [
            [
                f"{listed.kind}, covered" if listed.is_covered else listed.kind,
                "" if listed.first_seq is None else str(listed.first_seq),
                "" if listed.last_seq is None else str(listed.last_seq),
                output.format_size(listed.size),
                listed.name,
            ]
            for catalog in catalogs
            for listed in list_objects(catalog)
        ],
    )


@command.command("stats")
@click.argument("archive", required=False)
@click.option("--archive", "named", metavar="URL", help="The archive, as an option.")
@click.option("--service", metavar="NAME", help="Which service.  [default: BASE_SERVICE]")
@click.option("--shard", metavar="ID", help="Only this shard.  [default: all]")
@output.json_option
def stats_command(
    *, archive: str | None, named: str | None, service: str | None, shard: str | None, as_json: bool
) -> None:
    """Count objects and bytes by kind, what page sets share, and what a restore would read.

    No key is needed: the manifests of page sets are read, and nothing is believed.
    """
    config = _load(service)
    found = run(lambda: _read_all_stats(config, archive or named, shard))
    if as_json:
        output.print_json([_make_stats(names, stats) for names, stats in found])
        return
    for number, (names, stats) in enumerate(found):
        if number:
            click.echo()
        _print_stats(names, stats)


@command.command("prune")
@click.argument("archive", required=False)
@click.option("--archive", "named", metavar="URL", help="The archive, as an option.")
@click.option("--service", metavar="NAME", help="Which service.  [default: BASE_SERVICE]")
@click.option("--shard", metavar="ID", help="Which shard.  [default: the only one there is]")
@click.option("--lineage", metavar="HEX", help="Which history, when there are several.")
@click.option(
    "--retention",
    metavar="TIME",
    help="Keep every moment since this long, such as 7d.  [default: BASE_RETENTION]",
)
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@click.option(
    "--by-clock",
    is_flag=True,
    help="Believe this machine's clock: only if `date` is right, because a clock that is ahead "
    "would delete history. Needed for a directory, which has no clock of its own.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Prune although the lease is not released: only if the basenet that holds it is gone "
    "for good, because one that runs would stop archiving.",
)
@trust_option
@output.json_option
def prune_command(
    *,
    archive: str | None,
    named: str | None,
    service: str | None,
    shard: str | None,
    lineage: str | None,
    retention: str | None,
    dry_run: bool,
    by_clock: bool,
    take_over: bool,
    trusted_keys: Path | None,
    as_json: bool,
) -> None:
    """Delete what no kept moment needs: a running basenet does so by itself every hour.

    How old an object is, its store says; the time of this machine counts with --by-clock alone.
    Every commit of the retention stays restorable, and so does the newest state, however old it
    is. Before anything is deleted, a restore of the oldest and of the newest kept moment is planned
    without it. It can be interrupted at any moment, and goes on when it is run again.
    """
    arguments = {"BASE_RETENTION": retention} if retention else {}
    config = _load(service, **arguments)

    async def prune() -> tuple[ShardNames, PruneReport]:
        store = open_archive(archive or named, config)
        try:
            shard_id = None if shard is None else parse_shard_id(shard)
            names = ShardNames(
                service=config.service, shard=await find_shard(store, config.service, shard_id)
            )
            trusted = await read_trust(store, config, trusted_keys)
            chosen = None if lineage is None else parse_lineage(lineage)
            order = _Order(lineage=chosen, dry_run=dry_run, by_clock=by_clock, take_over=take_over)
            report = await _prune(store, names, config, trusted, order)
            return names, report
        finally:
            await store.aclose()

    names, report = run(prune)
    if as_json:
        output.print_json(_make_prune(names, report, dry_run=dry_run))
    else:
        _print_prune(names, report, dry_run=dry_run)


def _load(service: str | None, **arguments: str) -> Config:
    if service:
        arguments["BASE_SERVICE"] = service
    return load(os.environ, arguments=arguments or None)


# Reading.


async def _read_catalogs(config: Config, archive: str | None, shard: str | None) -> list[Catalog]:
    store = open_archive(archive, config)
    try:
        return [await read_catalog(store, names) for names in await _find(store, config, shard)]
    finally:
        await store.aclose()


async def _read_all_stats(
    config: Config, archive: str | None, shard: str | None
) -> list[tuple[ShardNames, ShardStats]]:
    store = open_archive(archive, config)
    try:
        fetcher = Fetcher(store, retry_seconds=config.retry_deadline_seconds)
        return [
            (names, await read_stats(await read_catalog(store, names), fetcher))
            for names in await _find(store, config, shard)
        ]
    finally:
        await store.aclose()


async def _find(store: Store, config: Config, shard: str | None) -> list[ShardNames]:
    """Return the shards that are meant; raises `NotFoundError` that says what there is instead."""
    if shard is not None:
        chosen: list[ShardId] = [await find_shard(store, config.service, parse_shard_id(shard))]
    else:
        chosen = await list_shards(store, config.service)
        if not chosen:
            await find_shard(store, config.service, None)  # says what is there
            raise NotFoundError(f"{store.url} holds no shard of service {config.service!r}")
    return [ShardNames(service=config.service, shard=one) for one in chosen]


# Deleting.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """How to prune: see the options."""

    lineage: Lineage | None
    dry_run: bool
    by_clock: bool
    take_over: bool


async def _prune(
    store: Store,
    names: ShardNames,
    config: Config,
    trusted: frozenset[PublicKeyBytes],
    order: _Order,
) -> PruneReport:
    lineage = order.lineage
    fetcher = Fetcher(store, retry_seconds=config.retry_deadline_seconds)
    if lineage is None:
        survey = await survey_shard(store, fetcher, names, Wish())
        lineage = (await survey.make_plan(Wish(), trusted)).target.lineage
    if not order.dry_run:
        await _require_free(store, names, take_over=order.take_over)
    lease = Lease(
        store=store,
        names=names,
        holder=Holder(
            node="basenet-archive-prune",
            key=_NOBODY,
            journal_id=JournalId(secrets.token_bytes(JOURNAL_ID_BYTES)),
            lineage=lineage,
        ),
    )
    pruner = Pruner(
        store=store,
        names=names,
        lease=lease,
        lineage=lineage,
        trusted=trusted,
        retention_seconds=config.retention_seconds,
        fetcher=fetcher,
        is_by_clock=order.by_clock,
    )
    if order.dry_run:
        return await pruner.run(dry_run=True)
    await lease.acquire()
    try:
        return await pruner.run(deletes_max=_ALL)
    finally:
        await lease.release()


async def _require_free(store: Store, names: ShardNames, *, take_over: bool) -> None:
    """Raise `ConflictError` while a basenet may be running that writes this shard.

    An idle one does not renew its lease, so its age says nothing.
    """
    seen = await read_lease(store, names)
    if seen is None or seen.body.is_released or take_over:
        return
    raise ConflictError(
        f"shard {names.shard} in {store.url} is archived by node {seen.body.node}, which prunes it "
        "by itself every hour: stop that basenet first, or look with --dry-run; if it is gone for "
        "good, use --take-over"
    )


# Showing.


def _make_listed(listed: Listed) -> dict[str, object]:
    return {
        "name": listed.name,
        "bytes": listed.size,
        "kind": listed.kind,
        "lineage": None if listed.lineage is None else listed.lineage.hex(),
        "first_seq": listed.first_seq,
        "last_seq": listed.last_seq,
        "covered": listed.is_covered,
    }


def _make_tally(tally: Tally) -> dict[str, int]:
    return {"objects": tally.objects, "bytes": tally.stored_bytes}


def _make_stats(names: ShardNames, stats: ShardStats) -> dict[str, object]:
    return {
        "service": names.service,
        "shard": names.shard,
        "total": _make_tally(add(list(stats.kinds.values()))),
        "kinds": {kind: _make_tally(tally) for kind, tally in stats.kinds.items()},
        "page_sets": [
            {
                "lineage": one.lineage.hex(),
                "seq": one.seq,
                "time": format_moment(one.timestamp_ns),
                "parts": one.parts,
                "bytes": one.stored_bytes,
                "shared_bytes": one.shared_bytes,
                "complete": one.is_complete,
            }
            for one in stats.sets
        ],
        "restore": None if stats.restore is None else _make_tally(stats.restore),
        "damaged": list(stats.damaged),
    }


def _print_stats(names: ShardNames, stats: ShardStats) -> None:
    total = add(list(stats.kinds.values()))
    click.echo(
        f"{names.service}/{names.shard}: {total.objects} objects, "
        f"{output.format_size(total.stored_bytes)}"
    )
    output.print_table(
        ["KIND", "OBJECTS", "SIZE"],
        [
            [kind, str(tally.objects), output.format_size(tally.stored_bytes)]
            for kind, tally in sorted(stats.kinds.items())
        ],
    )
    if stats.sets:
        click.echo()
        output.print_table(
            ["PAGE SET AT", "TIME", "PARTS", "SIZE", "SHARED", ""],
            [
                [
                    str(one.seq),
                    output.format_time(one.timestamp_ns),
                    str(one.parts) if one.parts else "inline",
                    output.format_size(one.stored_bytes),
                    output.format_size(one.shared_bytes),
                    "" if one.is_complete else "PARTS ARE MISSING",
                ]
                for one in stats.sets
            ],
        )
    for sentence in stats.damaged:
        output.say(f"damaged: {sentence}")
    if stats.restore is not None:
        click.echo(
            f"a restore of the newest state reads {stats.restore.objects} objects, "
            f"{output.format_size(stats.restore.stored_bytes)}"
        )


def _make_prune(names: ShardNames, report: PruneReport, *, dry_run: bool) -> dict[str, object]:
    return {
        "service": names.service,
        "shard": names.shard,
        "dry_run": dry_run,
        "base": None if report.plan.base is None else report.plan.base.name,
        "witness": str(report.cutoff.witness),
        "deleted": report.deleted,
        "deleted_bytes": report.deleted_bytes,
        "objects": [
            {"name": one.name, "bytes": one.size, "why": str(one.why)}
            for one in report.plan.deletions[: report.deleted]
        ],
        "notes": list(report.plan.notes),
    }


def _print_prune(names: ShardNames, report: PruneReport, *, dry_run: bool) -> None:
    if dry_run:
        output.print_table(
            ["WHY", "SIZE", "NAME"],
            [
                [str(one.why), output.format_size(one.size), one.name]
                for one in report.plan.deletions[: report.deleted]
            ],
        )
    for note in report.plan.notes:
        output.say(f"note: {note}")
    if report.cutoff.witness is Witness.NOBODY:
        output.say(
            "note: no history was taken for expired, because the store does not say how old any of "
            "it is, or no snapshot in it is old enough: if `date` is right on this machine, add "
            "--by-clock"
        )
    base = "what there is" if report.plan.base is None else report.plan.base.name
    verb = "would be deleted" if dry_run else "deleted"
    click.echo(
        f"{names.service}/{names.shard}: {report.deleted} objects, "
        f"{output.format_size(report.deleted_bytes)} {verb}; the kept moments begin with {base}"
    )
