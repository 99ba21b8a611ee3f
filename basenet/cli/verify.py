"""``basenet verify``: read a whole archive and prove it, or name what is wrong."""

import os
from dataclasses import asdict
from pathlib import Path

import click
import trio

from basenet.archive.store import open_store
from basenet.archive.verify import ShardReport, VerifyReport, verify
from basenet.cli.archive import find_trust, progress_bar, trust_options
from basenet.cli.output import (
    format_duration,
    format_size,
    format_time,
    json_option,
    print_json,
    say,
)
from basenet.config.values import parse_duration
from basenet.errors import UsageError
from basenet.units import parse_shard_id


@click.command("verify")
@click.argument("archive", required=False)
@click.option("--shard", help="Verify only this shard.")
@trust_options
@click.option(
    "--retention",
    help="The retention of whoever writes the archive.  [default: BASE_RETENTION, or 7d]",
)
@json_option
def command(
    archive: str | None,
    shard: str | None,
    trusted_keys: Path | None,
    service: str | None,
    retention: str | None,
    *,
    as_json: bool,
) -> int:
    """Read every object of ARCHIVE (or BASE_ARCHIVE) and check all that is signed in it.

    Signatures of objects and frames, the chain, the state root after every commit, every page of
    every snapshot, names against content, and that nothing is missing below TIP. Prints what can
    be restored; exits with 1 and the object's name when anything is wrong.
    """
    url = archive or os.environ.get("BASE_ARCHIVE")
    if not url or url == "off":
        raise UsageError("no archive is given: name it, or set BASE_ARCHIVE")
    retention_seconds = parse_duration(retention or os.environ.get("BASE_RETENTION") or "7d")

    async def run() -> VerifyReport:
        store = open_store(url, environment=os.environ)
        try:
            with progress_bar("verify") as show:
                return await verify(
                    store,
                    trusted=await find_trust(store, trusted_keys, None),
                    service=service or os.environ.get("BASE_SERVICE") or None,
                    shard=parse_shard_id(shard) if shard else None,
                    retention_seconds=retention_seconds,
                    on_progress=show,
                )
        finally:
            await store.aclose()

    report = trio.run(run)
    if as_json:
        print_json({**asdict(report), "ok": not report.problems})
    else:
        _print(report)
    return 1 if report.problems else 0


def _print(report: VerifyReport) -> None:
    for shard in report.shards:
        _print_shard(shard)
    for note in report.notes:
        say(f"note: {note}")
    count = len(report.problems)
    verdict = "verified" if not count else f"{count} problems"
    click.echo(f"{report.url}: {verdict} in {format_duration(report.seconds)}")


def _print_shard(shard: ShardReport) -> None:
    click.echo(
        f"{shard.service}/{shard.shard}: {shard.objects} objects, "
        f"{format_size(shard.stored_bytes)}, {shard.frames} frames"
    )
    for span in shard.ranges:
        click.echo(
            f"  restorable: seq {span.first_seq}..{span.last_seq} of {span.lineage.hex()}, "
            f"captured {format_time(span.first_ns)} .. {format_time(span.last_ns)}"
        )
    for problem in shard.problems:
        click.echo(f"  PROBLEM {problem.object}: {problem.sentence}")
    for note in shard.notes:
        say(f"  note: {note}")
