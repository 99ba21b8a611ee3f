"""``basenet restore --list``: which moments of a shard can be restored."""

from pathlib import Path
from typing import Final

from basenet.archive.catalog import find_shard
from basenet.archive.fetch import Fetcher
from basenet.archive.names import ShardNames
from basenet.archive.ranges import Outlook, look_ahead
from basenet.cli import output
from basenet.cli.reading import open_archive, read_trust, run
from basenet.config import Config
from basenet.units import Lineage, ShardId

_NS_PER_SECOND: Final = 1_000_000_000


def show_moments(
    config: Config,
    archive: str | None,
    *,
    shard: ShardId | None,
    lineage: Lineage | None,
    trusted_keys: Path | None,
    as_json: bool,
) -> None:
    """Print the ranges of moments that can be restored, and the snapshots in them."""

    async def look() -> Outlook:
        store = open_archive(archive, config)
        try:
            names = ShardNames(
                service=config.service, shard=await find_shard(store, config.service, shard)
            )
            return await look_ahead(
                store,
                names,
                trusted=await read_trust(store, config, trusted_keys),
                lineage=lineage,
                fetcher=Fetcher(store, retry_seconds=config.retry_deadline_seconds),
            )
        finally:
            await store.aclose()

    found = run(look)
    if as_json:
        output.print_json(_make_document(found))
        return
    for trouble in found.troubles:
        output.say(f"trouble: {trouble}")
    output.print_facts(
        {
            "shard": f"{found.names.shard} of service {found.names.service}",
            "lineage": found.lineage.hex(),
            "snapshots": ", ".join(f"{seq}" for seq in found.snapshots) or "none",
        }
    )
    output.print_table(
        ["FROM SEQ", "TO SEQ", "FROM", "TO"],
        [
            [
                str(one.first_seq),
                str(one.last_seq),
                format_moment(one.first_ns),
                format_moment(one.last_ns),
            ]
            for one in found.ranges
        ],
    )


def _make_document(found: Outlook) -> dict[str, object]:
    return {
        "service": found.names.service,
        "shard": found.names.shard,
        "lineage": found.lineage.hex(),
        "restorable": [
            {
                "first_seq": one.first_seq,
                "last_seq": one.last_seq,
                "first_time": format_moment(one.first_ns),
                "last_time": format_moment(one.last_ns),
            }
            for one in found.ranges
        ],
        "snapshots": list(found.snapshots),
        "troubles": list(found.troubles),
    }


def format_moment(timestamp_ns: int) -> str:
    """Return a moment exactly, so that it can be given to --to-time again."""
    seconds, ns = divmod(timestamp_ns, _NS_PER_SECOND)
    whole = output.format_time(seconds * _NS_PER_SECOND).removesuffix(".000Z")
    return f"{whole}.{ns:09d}Z"
