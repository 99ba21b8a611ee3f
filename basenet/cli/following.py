"""What ``basenet restore --follow`` says and is told; `follow` does it."""

import json
import time
from pathlib import Path
from typing import Final

import click
import trio

from basenet.archive.catalog import find_shard
from basenet.archive.fetch import Fetcher
from basenet.archive.names import ShardNames
from basenet.archive.place import Place
from basenet.archive.restore import Progress
from basenet.cli import output
from basenet.cli.follow import Source, Tell, follow
from basenet.cli.reading import open_archive, read_trust
from basenet.config import Config
from basenet.config.values import duration_between
from basenet.errors import BasenetError, UsageError
from basenet.units import Lineage, ShardId

_INTERVAL: Final = "1s"
_PROGRESS_S: Final = 2.0
_FOR_PROGRAMS: Final = ("timestamp_ns", "lineage")


def run_follow(
    config: Config,
    archive: str | None,
    shard: ShardId | None,
    place: Place,
    *,
    lineage: Lineage | None,
    interval: str | None,
    trusted_keys: Path | None,
    as_json: bool,
) -> None:
    """Follow until a signal; raises what `follow` raises."""
    try:
        interval_seconds = duration_between("10ms", "1d")(interval or _INTERVAL)
    except UsageError as error:
        raise UsageError(f"--interval: {error}") from error
    teller = _tell_json if as_json else _tell_people
    failures: list[BasenetError] = []

    async def run() -> None:
        store = open_archive(archive, config)
        try:
            trusted = await read_trust(store, config, trusted_keys, out=place.path)

            async def open_source() -> Source:
                names = ShardNames(
                    service=config.service, shard=await find_shard(store, config.service, shard)
                )
                return Source(
                    store=store,
                    names=names,
                    trusted=trusted,
                    lineage=lineage,
                    fetcher=Fetcher(store, retry_seconds=config.retry_deadline_seconds),
                )

            await follow(
                open_source,
                place,
                interval_seconds=interval_seconds,
                tell=teller,
                on_progress=_Sparing(teller).show,
            )
        except* BasenetError as group:
            failures.append(_first(group))
        finally:
            await store.aclose()

    trio.run(run)
    if failures:
        raise failures[0]


class _Sparing:
    """Tells how far a restore is, now and then."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._told_s = time.monotonic()

    def show(self, progress: Progress) -> None:
        """Tell it if it is time."""
        if time.monotonic() - self._told_s < _PROGRESS_S:
            return
        self._told_s = time.monotonic()
        self._tell(
            "restoring",
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            bytes_per_second=int(progress.bytes_per_second),
        )


def _first(group: BaseException) -> BasenetError:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    assert isinstance(group, BasenetError), "a group of nothing else"
    return group


def _tell_json(event: str, **facts: object) -> None:
    click.echo(json.dumps({"event": event, **facts}))


def _tell_people(event: str, **facts: object) -> None:
    match event:
        case "waiting":
            sentence = f"waiting: {facts['error']}"
        case "renewing":
            sentence = f"restoring anew, aside: {facts['reason']}"
        case _:
            shown = [
                f"{name} {value}"
                for name, value in facts.items()
                if name not in _FOR_PROGRAMS and value is not None
            ]
            sentence = f"{event}: {', '.join(shown)}" if shown else event
    output.say(sentence)
