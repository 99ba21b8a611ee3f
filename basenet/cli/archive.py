"""What the commands that read an archive share: where it is, whose keys count, how far it is."""

import os
import re
import sys
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from basenet.archive.fetch import Fetcher
from basenet.archive.port import Store, StoreNotFound
from basenet.errors import UsageError
from basenet.keys.trust import explain_missing_trust, find_trusted_keys
from basenet.units import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    Lineage,
    PublicKeyBytes,
    TimestampNs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_Command = TypeVar("_Command", bound=Callable[..., Any])
OnBytes = Callable[[int, int], None]

# RFC 3339 with up to nine digits of a second: datetime knows six.
_TIME = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?(Z|z|[+-]\d{2}:\d{2})\Z", re.ASCII
)
_LINEAGE = re.compile(r"[0-9a-f]{32}\Z")


def trust_options(command: _Command) -> _Command:
    """Give a command ``--trusted-keys`` and ``--service``."""
    by_keys = click.option(
        "--trusted-keys",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The file of trusted keys.  [default: BASE_TRUSTED_KEYS, or trusted.keys in the data "
        "directory]",
    )
    by_service = click.option("--service", help="[default: BASE_SERVICE, or default]")
    return by_keys(by_service(command))


def get_service(service: str | None) -> str:
    """Return the service that is meant."""
    return service or os.environ.get("BASE_SERVICE") or "default"


async def find_trust(
    store: Store, option: Path | None, beside: Path | None
) -> frozenset[PublicKeyBytes]:
    """Return the keys that the operator trusts (formats.md: option, BASE_TRUSTED_KEYS, data).

    ``beside``: a path whose ``.basenet`` is the data directory when none is configured. Raises the
    error that names the signer of what lies there when no key is known: there is no trust on first
    use.
    """
    configured = os.environ.get("BASE_TRUSTED_KEYS")
    data_dir = os.environ.get("BASE_DATA_DIR")
    if data_dir:
        directories = [Path(data_dir)]
    else:
        directories = [Path(".basenet")] + ([beside.parent / ".basenet"] if beside else [])
    for directory in directories:
        found = find_trusted_keys(
            option=option, configured=Path(configured) if configured else None, data_dir=directory
        )
        if found is not None:
            return found.publics
    raise explain_missing_trust(signer=await _find_signer(store))


async def _find_signer(store: Store) -> bytes | None:
    """Return the key that signed some object of the archive, unverified, to show it."""
    async for entry in store.list(""):
        if entry.name.endswith(".lbn"):
            try:
                data = await Fetcher(store).get(entry.name)
            except StoreNotFound:
                continue
            end = len(data) - SIGNATURE_BYTES
            return data[end - KEY_BYTES : end]
    return None


def parse_time(text: str) -> TimestampNs:
    """Return RFC 3339 as nanoseconds since 1970; raise `UsageError` if it is none."""
    match = _TIME.match(text)
    try:
        if match is None:
            raise ValueError  # noqa: TRY301  (both ways of being wrong have one sentence)
        zone = "+00:00" if match[4] in "Zz" else match[4]
        seconds = int(datetime.fromisoformat(f"{match[1]}T{match[2]}{zone}").timestamp())
    except ValueError as error:
        raise UsageError(
            f"{text!r} is not a time; write it as 2026-11-21T09:30:00Z or 2026-11-21T09:30:00+02:00"
        ) from error
    return TimestampNs(seconds * 1_000_000_000 + int((match[3] or "0").ljust(9, "0")))


def parse_lineage(text: str) -> Lineage:
    """Return a lineage from its 32 hex digits; raise `UsageError` if they are none."""
    if not _LINEAGE.match(text):
        raise UsageError(f"{text!r} is not a lineage; write its 32 hex digits")
    return Lineage(bytes.fromhex(text))


@contextmanager
def progress_bar(what: str) -> "Iterator[OnBytes | None]":
    """Show a bar on a terminal; elsewhere yield None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415  (rich costs 0.1 s, and only a person sees it)
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show
