"""``basenet restore``: a database from an archive, as of any commit, proven."""

import os
from dataclasses import asdict
from pathlib import Path

import click
import trio

from basenet.archive.catalog import find_shard
from basenet.archive.names import ShardNames
from basenet.archive.place import Place
from basenet.archive.plan import Wish
from basenet.archive.restore import Progress, RestoreReport, restore
from basenet.archive.store import open_store
from basenet.cli.archive import (
    find_trust,
    get_service,
    parse_lineage,
    parse_time,
    progress_bar,
    trust_options,
)
from basenet.cli.output import (
    format_duration,
    format_size,
    format_time,
    json_option,
    print_facts,
    print_json,
    say,
)
from basenet.errors import UsageError
from basenet.units import Seq, parse_shard_id


@click.command("restore")
@click.argument("archive_given", metavar="[ARCHIVE]", required=False)
@click.argument("out_given", metavar="[OUT]", required=False, type=click.Path(path_type=Path))
@click.option("--archive", help="The archive.  [default: BASE_ARCHIVE]")
@click.option("--shard", help="The shard; not needed when the archive holds one.")
@click.option("--out", type=click.Path(path_type=Path), help="The database file to write.")
@click.option("--to-seq", type=click.IntRange(min=1), help="Restore as of this frame.")
@click.option(
    "--to-time", metavar="RFC3339", help="Restore the last commit captured at or before this time."
)
@click.option("--lineage", metavar="HEX", help="Choose one of several histories.")
@click.option(
    "--expect-seq", type=click.IntRange(min=1), help="Fail if the archive ends before this frame."
)
@trust_options
@click.option("--force", is_flag=True, help="Replace OUT; what stands beside it is moved aside.")
@click.option("--if-not-exists", is_flag=True, help="Do nothing, with success, when OUT exists.")
@click.option("--dry-run", is_flag=True, help="Show what would be read and reached.")
@json_option
def command(  # noqa: PLR0917  (click passes what it was declared with, by name)
    archive_given: str | None,
    out_given: Path | None,
    archive: str | None,
    shard: str | None,
    out: Path | None,
    to_seq: int | None,
    to_time: str | None,
    lineage: str | None,
    expect_seq: int | None,
    trusted_keys: Path | None,
    service: str | None,
    *,
    force: bool,
    if_not_exists: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Rebuild a database from ARCHIVE into OUT.

    Everything that is used is verified: signatures, checksums, the chain of frames, and the state
    root of the result. OUT appears only when all of it holds; on any failure nothing is left.
    Without --to-seq or --to-time the newest archived commit is restored.
    """
    url = archive or archive_given or os.environ.get("BASE_ARCHIVE")
    path = out or out_given
    if not url or url == "off":
        raise UsageError("no archive is given: name it, or set BASE_ARCHIVE")
    if path is None:
        raise UsageError("no database file is given: name it after the archive, or with --out")
    if to_seq is not None and to_time is not None:
        raise UsageError("--to-seq and --to-time are two moments: give one of them")
    place = Place(path, force=force)
    if if_not_exists and place.is_taken:
        say(f"{path} exists; nothing is restored")
        return 0
    wish = Wish(
        to_seq=Seq(to_seq) if to_seq else None,
        to_time_ns=parse_time(to_time) if to_time else None,
        lineage=parse_lineage(lineage) if lineage else None,
        expect_seq=Seq(expect_seq) if expect_seq else None,
    )

    async def run() -> RestoreReport:
        return await _restore(
            url,
            place,
            wish=wish,
            shard=shard,
            service=get_service(service),
            trusted_keys=trusted_keys,
            dry_run=dry_run,
        )

    report = trio.run(run)
    if as_json:
        print_json(_as_document(report))
    else:
        _print(report)
    return 0


async def _restore(
    url: str,
    place: Place,
    *,
    wish: Wish,
    shard: str | None,
    service: str,
    trusted_keys: Path | None,
    dry_run: bool,
) -> RestoreReport:
    store = open_store(url, environment=os.environ)
    try:
        wanted = parse_shard_id(shard) if shard else None
        names = ShardNames(service=service, shard=await find_shard(store, service, wanted))
        trusted = await find_trust(store, trusted_keys, place.path)
        with progress_bar("restore") as show:

            def on_progress(progress: Progress) -> None:
                if show is not None:
                    show(progress.bytes_done, progress.bytes_total)

            return await restore(
                store,
                names,
                place,
                trusted=trusted,
                wish=wish,
                dry_run=dry_run,
                on_progress=on_progress,
            )
    finally:
        await store.aclose()


def _as_document(report: RestoreReport) -> dict[str, object]:
    document = asdict(report)
    document["path"] = str(report.path)
    document["moved"] = [str(path) for path in report.moved]
    document["time"] = format_time(report.timestamp_ns)
    return document


def _print(report: RestoreReport) -> None:
    facts = {
        "shard": f"{report.shard} ({report.service})",
        "lineage": report.lineage.hex(),
        "seq": str(report.seq),
        "captured": format_time(report.timestamp_ns),
        "read": f"{report.objects} objects, {format_size(report.stored_bytes)}",
    }
    if report.is_dry_run:
        facts["page set"] = ", ".join(report.page_sets) or "none (born empty)"
        say(f"would restore {report.path}:")
    else:
        facts["database"] = format_size(report.database_bytes)
        facts["took"] = format_duration(report.seconds)
        say(f"restored {report.path}, verified")
    print_facts(facts)
    for path in report.moved:
        say(f"moved aside: {path}")
    for note in report.notes:
        say(note)
