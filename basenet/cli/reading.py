"""What `restore` and `verify` share: which archive, whose keys, and how to be stopped.

Trust comes from one place, never from a union of several. What the operator names comes first:
``--trusted-keys``, BASE_TRUSTED_KEYS, BASE_DATA_DIR. Else it is the data directory of the database
that is restored, beside OUT, since that is the one whose history is meant; then the one beside
BASE_SHARDS; and the present directory last, which says least about the archive. A file that was
found and not named must be one that nobody else could have put there: it and its directory belong
to us or to root, and others cannot write them. (In /tmp anybody can leave a ``.basenet``.)

Nothing that lies in the archive is ever trusted for lying there; when there is no key at all, the
refusal shows the fingerprint that was met, for the operator to compare.
"""

import os
import signal
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

import click
import trio

from basenet.archive.catalog import list_services, list_shards
from basenet.archive.facts import get_signer
from basenet.archive.keyring import make_reading_keyring
from basenet.archive.names import ShardNames
from basenet.archive.port import Store
from basenet.archive.store import open_store
from basenet.config import Config
from basenet.errors import BasenetError, CorruptionError, UnavailableError, UsageError
from basenet.keys.trust import TRUSTED_KEYS_NAME, explain_missing_trust, find_trusted_keys
from basenet.units import PublicKeyBytes

if TYPE_CHECKING:
    from basenet.cli.bar import Bar

_Result = TypeVar("_Result")
_Command = TypeVar("_Command", bound=Callable[..., object])

DATA_DIR_NAME: Final = ".basenet"


def trust_option(command: _Command) -> _Command:
    """Give a command ``--trusted-keys``, which arrives as ``trusted_keys``."""
    return click.option(
        "--trusted-keys",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The public keys to believe, a line each, as `basenet keys show` prints them.  "
        "[default: BASE_TRUSTED_KEYS, or trusted.keys in the data directory]",
    )(command)


def open_archive(archive: str | None, config: Config) -> Store:
    """Return the store of ``archive``, by default BASE_ARCHIVE; the caller closes it."""
    url = archive or (config.archive.url if config.archive else None)
    if url is None:
        raise UsageError("no archive is named; write it as the first argument or in BASE_ARCHIVE")
    identity = config.archive_identity
    keyring = make_reading_keyring(identity.reveal() if identity else None)
    return open_store(url, environment=os.environ, keyring=keyring)


async def read_trust(
    store: Store, config: Config, option: Path | None, *, out: Path | None = None
) -> frozenset[PublicKeyBytes]:
    """Return the keys to believe; ``out`` is the database that is restored.

    Raises `UsageError` when there are none, with the fingerprint that the archive shows.
    """
    is_named = bool(os.environ.get("BASE_DATA_DIR"))
    data_dirs = [config.data_dir]
    if not is_named and out is not None:
        data_dirs.insert(0, out.parent / DATA_DIR_NAME)
    held = [path for path in data_dirs if (path / TRUSTED_KEYS_NAME).exists()]
    if held and not is_named and option is None and config.trusted_keys is None:
        _require_own(held[0])
    keys = find_trusted_keys(
        option=option, configured=config.trusted_keys, data_dir=held[0] if held else None
    )
    if keys is None:
        raise explain_missing_trust(signer=await _find_signer(store, config.service))
    return keys.publics


def _require_own(data_dir: Path) -> None:
    """Raise `UsageError` if somebody else could have put keys into ``data_dir``."""
    for path in (data_dir, data_dir / TRUSTED_KEYS_NAME):
        facts = path.stat()
        if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UsageError(
                f"{path} can be written by somebody else, so the keys in it are not believed: name "
                "the file that you mean with --trusted-keys"
            )


async def _find_signer(store: Store, service: str) -> PublicKeyBytes | None:
    """Return the key that some signed object shows; nothing is believed of it."""
    services = await list_services(store)
    for folder in sorted(services, key=lambda name: name != service):
        for shard in await list_shards(store, folder):
            names = ShardNames(service=folder, shard=shard)
            async for entry in store.list(names.prefix):
                if entry.name == names.tip or entry.name.endswith(".lbn"):
                    try:
                        return get_signer(await store.get_data(entry.name), entry.name)
                    except CorruptionError:
                        continue
    return None


class LazyBar:
    """A progress bar that is loaded when there is something to show, and only on a terminal."""

    def __init__(self, what: str, *, is_shown: bool) -> None:
        """Take what is being done; nothing is drawn unless ``is_shown``."""
        self._what = what
        self._is_shown = is_shown
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes are through."""
        if not self._is_shown:
            return
        if self._bar is None:
            from basenet.cli.bar import Bar  # noqa: PLC0415  (rich takes 100 ms to load)

            self._bar = Bar(self._what, total)
        self._bar.show(done)


def run(action: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run ``action`` to its end; SIGTERM and SIGHUP cancel it, so that it cleans up."""
    return trio.run(_run_until_told, action)


async def _run_until_told(action: Callable[[], Awaitable[_Result]]) -> _Result:
    results: list[_Result] = []
    failure: BasenetError | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(_cancel_on_signal, nursery.cancel_scope)
        try:
            results.append(await action())
        except BasenetError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not results:
        raise UnavailableError("stopped by a signal")
    return results[0]


async def _cancel_on_signal(
    scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
            return
