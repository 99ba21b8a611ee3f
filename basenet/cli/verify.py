"""``basenet verify``: read a whole archive and prove it, or name what is wrong."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from basenet.archive.fetch import Fetcher
from basenet.archive.verify import ShardReport, VerifyReport, verify
from basenet.archive.walk import RestorableRange
from basenet.cli import output
from basenet.cli.listing import format_moment
from basenet.cli.reading import LazyBar, open_archive, read_trust, run, trust_option
from basenet.config import Config, load
from basenet.errors import NotFoundError
from basenet.units import ShardId, parse_shard_id

FAILED = 1


@click.command()
@click.argument("archive", required=False)
@click.option("--archive", "named", metavar="URL", help="The archive, as an option.")
@click.option("--service", metavar="NAME", help="Only this service.  [default: all]")
@click.option("--shard", metavar="ID", help="Only this shard.  [default: all]")
@click.option(
    "--retention",
    metavar="TIME",
    help="How long the writer keeps every moment, such as 7d.  [default: BASE_RETENTION]",
)
@trust_option
@output.json_option
def command(
    *,
    archive: str | None,
    named: str | None,
    service: str | None,
    shard: str | None,
    retention: str | None,
    trusted_keys: Path | None,
    as_json: bool,
) -> int:
    """Read a whole archive and prove it, or name what is wrong.

    Every object, signature, link, state root and page is checked. Ends with 1 if there is any
    problem. What retention may have deleted is judged by --retention: give the writer's.
    """
    config = load(os.environ, arguments={"BASE_RETENTION": retention} if retention else None)
    shard_id = None if shard is None else parse_shard_id(shard)
    with LazyBar("verifying", is_shown=not as_json and sys.stderr.isatty()) as bar:
        report = run(
            lambda: _verify(
                config,
                archive or named,
                service=service,
                shard=shard_id,
                trusted_keys=trusted_keys,
                on_progress=bar.show,
            )
        )
    if as_json:
        output.print_json(_make_document(report))
    else:
        _print_report(report)
    return FAILED if report.problems else 0


async def _verify(
    config: Config,
    archive: str | None,
    *,
    service: str | None,
    shard: ShardId | None,
    trusted_keys: Path | None,
    on_progress: Callable[[int, int], None],
) -> VerifyReport:
    store = open_archive(archive, config)
    try:
        report = await verify(
            store,
            trusted=await read_trust(store, config, trusted_keys),
            service=service,
            shard=shard,
            retention_seconds=config.retention_seconds,
            on_progress=on_progress,
            fetcher=Fetcher(store, retry_seconds=config.retry_deadline_seconds),
        )
        if not report.shards:
            raise NotFoundError(f"{store.url} holds no shard{' of that name' if shard else ''}")
        return report
    finally:
        await store.aclose()


def _print_report(report: VerifyReport) -> None:
    for shard in report.shards:
        name = f"{shard.service}/{shard.shard}"
        click.echo(
            f"{name}: {shard.objects} objects, {output.format_size(shard.stored_bytes)}, "
            f"{shard.frames} frames"
        )
        for found in shard.ranges:
            click.echo(f"  restorable  {_spell_range(found)}")
        for note in shard.notes:
            click.echo(f"  note        {note}")
        for problem in shard.problems:
            click.echo(f"  PROBLEM     {problem.object}: {problem.sentence}")
    for note in report.notes:
        click.echo(f"note: {note}")
    count = len(report.problems)
    verdict = "sound" if not count else f"{count} problem{'s' if count > 1 else ''}"
    click.echo(f"{report.url}: {verdict} ({output.format_duration(report.seconds)})")


def _spell_range(found: RestorableRange) -> str:
    return (
        f"{found.first_seq}..{found.last_seq} of {found.lineage.hex()}, "
        f"{format_moment(found.first_ns)} .. {format_moment(found.last_ns)}"
    )


def _make_document(report: VerifyReport) -> dict[str, object]:
    return {
        "archive": report.url,
        "sound": not report.problems,
        "seconds": report.seconds,
        "notes": list(report.notes),
        "shards": [_make_shard_document(shard) for shard in report.shards],
    }


def _make_shard_document(shard: ShardReport) -> dict[str, object]:
    return {
        "service": shard.service,
        "shard": shard.shard,
        "objects": shard.objects,
        "stored_bytes": shard.stored_bytes,
        "frames": shard.frames,
        "lineages": [lineage.hex() for lineage in shard.lineages],
        "restorable": [
            {
                "lineage": found.lineage.hex(),
                "first_seq": found.first_seq,
                "last_seq": found.last_seq,
                "first_time": format_moment(found.first_ns),
                "last_time": format_moment(found.last_ns),
            }
            for found in shard.ranges
        ],
        "problems": [
            {"object": problem.object, "problem": problem.sentence} for problem in shard.problems
        ],
        "notes": list(shard.notes),
    }
