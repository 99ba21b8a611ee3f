"""``basenet restore``: a database as of any commit, out of an archive, proven or not at all."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import click

from basenet.archive.catalog import find_shard, list_shards, read_catalog
from basenet.archive.fetch import Fetcher
from basenet.archive.names import ShardNames
from basenet.archive.partial import get_partial_path
from basenet.archive.place import Place
from basenet.archive.plan import Wish, list_lineages
from basenet.archive.port import Store
from basenet.archive.restore import Progress, RestoreReport, restore
from basenet.cli import output
from basenet.cli.listing import format_moment, show_moments
from basenet.cli.reading import LazyBar, open_archive, read_trust, run, trust_option
from basenet.config import Config, load
from basenet.errors import UnavailableError, UsageError
from basenet.units import LINEAGE_BYTES, Lineage, Seq, ShardId, TimestampNs, parse_shard_id

_NS_PER_SECOND: Final = 1_000_000_000
_SECOND_DIGITS: Final = 9
# RFC 3339, and no moment without its offset: a local time names another commit elsewhere.
_MOMENT = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})\Z", re.ASCII
)


@click.command()
@click.argument("places", metavar="[ARCHIVE] [OUT]", nargs=-1)
@click.option("--archive", metavar="URL", help="Where to restore from.  [default: BASE_ARCHIVE]")
@click.option("--shard", metavar="ID", help="Which shard.  [default: the only one there is]")
@click.option("--service", metavar="NAME", help="Which service.  [default: BASE_SERVICE]")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Where to restore to.")
@click.option("--to-seq", metavar="N", type=int, help="Restore the state after frame N.")
@click.option(
    "--to-time", metavar="RFC3339", help="Restore the last commit captured at or before a moment."
)
@click.option("--lineage", metavar="HEX", help="Which history, when there are several.")
@click.option(
    "--expect-seq", metavar="N", type=int, help="Refuse if the result would be older than frame N."
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists and nobody has it open.")
@click.option("--if-not-exists", is_flag=True, help="Do nothing, successfully, if OUT exists.")
@click.option(
    "--if-archive-exists",
    is_flag=True,
    help="Do nothing, successfully, if the archive holds nothing of the shard.",
)
@click.option(
    "--list", "is_listing", is_flag=True, help="Show which moments can be restored; no OUT."
)
@click.option("--dry-run", is_flag=True, help="Say what would be restored, and from what.")
@click.option(
    "--follow",
    "is_following",
    is_flag=True,
    help="Keep OUT up to date, for readers, until SIGTERM; go on with a copy that is there.",
)
@click.option(
    "--interval",
    metavar="DURATION",
    help="With --follow: how often to ask for news.  [default: 1s]",
)
@trust_option
@output.json_option
def command(
    *,
    places: tuple[str, ...],
    archive: str | None,
    shard: str | None,
    service: str | None,
    out: Path | None,
    to_seq: int | None,
    to_time: str | None,
    lineage: str | None,
    expect_seq: int | None,
    force: bool,
    if_not_exists: bool,
    if_archive_exists: bool,
    is_listing: bool,
    dry_run: bool,
    is_following: bool,
    interval: str | None,
    trusted_keys: Path | None,
    as_json: bool,
) -> None:
    """Rebuild a database, as of any commit, from an archive.

    Everything that is used is verified: signatures, the chain of frames, and at the end the state
    root. OUT appears whole or not at all, and nothing is ever overwritten without --force.

    With --follow it stays and keeps OUT up to date: other programs may read OUT all the time, and
    none can write to it. With --json it then prints one document a line.
    """
    if is_listing:
        if out is not None or len(places) > (archive is None):
            raise UsageError("--list restores nothing: write `basenet restore ARCHIVE --list`")
        config = load(os.environ, arguments={"BASE_SERVICE": service} if service else None)
        show_moments(
            config,
            archive or next(iter(places), None),
            shard=None if shard is None else parse_shard_id(shard),
            lineage=None if lineage is None else parse_lineage(lineage),
            trusted_keys=trusted_keys,
            as_json=as_json,
        )
        return
    archive, out = _choose_places(places, archive, out)
    wish = Wish(
        to_seq=None if to_seq is None else Seq(to_seq),
        to_time_ns=None if to_time is None else parse_moment(to_time),
        lineage=None if lineage is None else parse_lineage(lineage),
        expect_seq=None if expect_seq is None else Seq(expect_seq),
    )
    if to_seq is not None and to_time is not None:
        raise UsageError("--to-seq and --to-time exclude each other; write one of them")
    if is_following:
        _refuse_with_follow(
            {
                "--to-seq": to_seq is not None,
                "--to-time": to_time is not None,
                "--expect-seq": expect_seq is not None,
                "--if-not-exists": if_not_exists,
                "--if-archive-exists": if_archive_exists,
                "--dry-run": dry_run,
            }
        )
    elif interval is not None:
        raise UsageError("--interval is for --follow; write both or neither")
    place = Place(out, force=force)
    # A directory is no database that is there already: `Place.check` will say so.
    if if_not_exists and place.is_taken and not place.path.is_dir() and not dry_run:
        _print_taken(place, as_json=as_json)
        return
    config = load(os.environ, arguments={"BASE_SERVICE": service} if service else None)
    shard_id = None if shard is None else parse_shard_id(shard)
    if is_following:
        from basenet.cli.following import run_follow  # noqa: PLC0415  (a restore needs no SQLite)

        run_follow(
            config,
            archive,
            shard_id,
            place,
            lineage=wish.lineage,
            interval=interval,
            trusted_keys=trusted_keys,
            as_json=as_json,
        )
        return
    try:
        with LazyBar("restoring", is_shown=not as_json and sys.stderr.isatty()) as bar:
            report = run(
                lambda: _restore(
                    config,
                    archive,
                    shard_id,
                    place,
                    wish=wish,
                    dry_run=dry_run,
                    if_archive_exists=if_archive_exists,
                    trusted_keys=trusted_keys,
                    on_progress=lambda done: bar.show(done.bytes_done, done.bytes_total),
                )
            )
    except UnavailableError as error:
        raise _tell_kept(error, place) from error
    if report is None:
        _print_absent(place, as_json=as_json)
    else:
        _print_report(report, as_json=as_json)


def _refuse_with_follow(given: Mapping[str, bool]) -> None:
    for name, is_given in given.items():
        if is_given:
            raise UsageError(f"--follow keeps the newest state, so {name} does not go with it")


def _tell_kept(error: UnavailableError, place: Place) -> UnavailableError:
    """Return ``error``, with what was kept if something was."""
    path = get_partial_path(place)
    if not path.exists():
        return error
    return UnavailableError(
        f"{str(error).rstrip('.')}; what is proven already is kept in {path}, and the same command "
        "goes on with it"
    )


async def _restore(
    config: Config,
    archive: str | None,
    shard: ShardId | None,
    place: Place,
    *,
    wish: Wish,
    dry_run: bool,
    if_archive_exists: bool,
    trusted_keys: Path | None,
    on_progress: Callable[[Progress], None],
) -> RestoreReport | None:
    store = open_archive(archive, config)
    try:
        if if_archive_exists and not await _holds_history(store, config.service, shard):
            return None
        names = ShardNames(
            service=config.service, shard=await find_shard(store, config.service, shard)
        )
        trusted = await read_trust(store, config, trusted_keys, out=place.path)
        return await restore(
            store,
            names,
            place,
            trusted=trusted,
            wish=wish,
            dry_run=dry_run,
            on_progress=on_progress,
            is_resumable=True,
            fetcher=Fetcher(store, retry_seconds=config.retry_deadline_seconds),
        )
    finally:
        await store.aclose()


async def _holds_history(store: Store, service: str, shard: ShardId | None) -> bool:
    """Return whether a frame or a page set of the shard is there; of any, when None is given."""
    shards = await list_shards(store, service) if shard is None else [shard]
    for one in shards:
        if list_lineages(await read_catalog(store, ShardNames(service=service, shard=one))):
            return True
    return False


def _choose_places(
    places: tuple[str, ...], archive: str | None, out: Path | None
) -> tuple[str | None, Path]:
    """Return the archive and the file, each from its option or its place among the arguments."""
    left = list(places)
    if archive is None and len(left) > (out is None):
        archive = left.pop(0)
    if out is None and left:
        out = Path(left.pop(0))
    if left:
        raise UsageError(f"{left[0]!r} is one argument too many: ARCHIVE and OUT are named already")
    if out is None:
        raise UsageError("no file to restore to is named; write `basenet restore ARCHIVE OUT`")
    return archive, out


def parse_moment(text: str) -> TimestampNs:
    """Return the nanoseconds since 1970 of an RFC 3339 moment; raise `UsageError` if it is none."""
    match = _MOMENT.match(text.strip())
    try:
        if match is None:
            raise ValueError  # noqa: TRY301  (one sentence for both ways to be wrong)
        date, time, fraction, offset = match.groups()
        moment = datetime.fromisoformat(f"{date}T{time}{offset.upper()}")
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no moment: write it as 2026-11-21T10:00:00Z, with up to nine digits "
            "after a point, and Z or an offset such as +01:00"
        ) from error
    seconds = (moment - datetime.fromisoformat("1970-01-01T00:00:00Z")) // timedelta(seconds=1)
    return TimestampNs(seconds * _NS_PER_SECOND + int((fraction or "0").ljust(_SECOND_DIGITS, "0")))


def parse_lineage(text: str) -> Lineage:
    """Return the lineage of 32 hex digits; raise `UsageError` if ``text`` is none."""
    if not re.match(rf"[0-9a-fA-F]{{{2 * LINEAGE_BYTES}}}\Z", text):
        raise UsageError(f"{text!r} is no lineage: write its {2 * LINEAGE_BYTES} hex digits")
    return Lineage(bytes.fromhex(text))


def _print_taken(place: Place, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"restored": False, "path": str(place.path)})
    else:
        output.say(f"{place.path} exists; nothing was done")


def _print_absent(place: Place, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"restored": False, "path": str(place.path)})
    else:
        output.say("the archive holds nothing of the shard; nothing was done")


def _print_report(report: RestoreReport, *, as_json: bool) -> None:
    if as_json:
        output.print_json(_make_document(report))
        return
    for note in report.notes:
        output.say(f"note: {note}")
    for path in report.moved:
        output.say(f"moved aside and kept: {path}")
    facts = {
        "shard": f"{report.shard} of service {report.service}",
        "seq": f"{report.seq}, captured {format_moment(report.timestamp_ns)}",
        "lineage": report.lineage.hex(),
        "from": f"{len(report.page_sets)} page set, {len(report.log_objects)} log objects, "
        f"{report.objects} objects, {output.format_size(report.stored_bytes)}",
    }
    if report.is_dry_run:
        output.print_facts({**facts, "to": f"{report.path} (dry run: nothing was written)"})
        return
    if report.kept_bytes:
        facts["from"] += f", {output.format_size(report.kept_bytes)} of it kept from before"
    rate = report.database_bytes / max(report.seconds, 1e-9)
    facts["to"] = (
        f"{report.path}, {output.format_size(report.database_bytes)} in "
        f"{output.format_duration(report.seconds)}, {output.format_size(int(rate))}/s"
    )
    output.print_facts(facts)


def _make_document(report: RestoreReport) -> dict[str, object]:
    return {
        "restored": not report.is_dry_run,
        "dry_run": report.is_dry_run,
        "path": str(report.path),
        "service": report.service,
        "shard": report.shard,
        "lineage": report.lineage.hex(),
        "line": [lineage.hex() for lineage in report.line],
        "seq": report.seq,
        "timestamp_ns": report.timestamp_ns,
        "time": format_moment(report.timestamp_ns),
        "page_sets": list(report.page_sets),
        "log_objects": list(report.log_objects),
        "objects": report.objects,
        "stored_bytes": report.stored_bytes,
        "kept_bytes": report.kept_bytes,
        "database_bytes": report.database_bytes,
        "seconds": report.seconds,
        "moved": [str(path) for path in report.moved],
        "notes": list(report.notes),
    }
