"""Builds a node from its configuration, runs it, and takes it down in order.

Starting: key, journal, store, waker, shards, HTTP, and last the application (``--exec``), which so
never commits before capture can see it. Stopping is the same backwards: on SIGTERM the node says
that it is not ready, lets the application end, stops capturing at a commit boundary, flushes what
is final to the archive, releases its leases and goes. A second signal hurries: it goes at once,
and what was not flushed waits in the journal.
"""

import gc
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Final

import structlog
import trio

from basenet import failpoints
from basenet.archive.keyring import make_writing_keyring
from basenet.archive.store import Store, StoreUsage, make_encryption, open_store
from basenet.config.model import Config, Network
from basenet.control.listeners import Listeners, open_listeners
from basenet.control.server import serve as serve_http
from basenet.daemon.chain import Author
from basenet.daemon.child import PASSED_ON, Child
from basenet.daemon.facts import Facts
from basenet.daemon.journalist import Journalist
from basenet.daemon.keeper import Keeper
from basenet.daemon.missing import restore_missing
from basenet.daemon.node import Node
from basenet.daemon.proof import Proofs
from basenet.daemon.supervisor import DESCRIPTORS_PER_SHARD, Supervisor, check_configured
from basenet.daemon.tracefile import TraceFile
from basenet.daemon.waker import Waker
from basenet.errors import UsageError
from basenet.journal.journal import Journal
from basenet.keys.signing import SigningKey, load_or_create
from basenet.keys.trust import TRUSTED_KEYS_NAME, find_trusted_keys
from basenet.sqlite.wake import open_wake
from basenet.units import PublicKeyBytes

log = structlog.get_logger()

# The default of 5 ms would let a busy pump keep a capture thread from the GIL for a whole
# generation of a fast application's log.
_SWITCH_INTERVAL_S: Final = 0.0005
_SETTLE_S: Final = 15.0
_ONE_WISH_S: Final = 0.5
_LAST_LOOK_S: Final = 3.0


async def run(config: Config, *, environment: Mapping[str, str], command: str | None = None) -> int:
    """Serve until a signal, or the application's end, and return the exit code.

    Raises what makes a start impossible: `UsageError`, `ConflictError`, `CorruptionError`.
    """
    failpoints.arm((point.name, point.action) for point in config.failpoints)
    if config.network is Network.QUASAR:
        from basenet.daemon.cluster.service import run_cluster  # noqa: PLC0415  (cluster only)

        return await run_cluster(config, environment=environment)
    check_configured(config)
    if not config.data_dir.absolute().parent.is_dir():
        raise UsageError(
            f"the directory of {config.data_dir} does not exist: make it, or set BASE_DATA_DIR."
        )
    _raise_descriptor_limit(len(config.shards))
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    key = load_or_create(
        config.data_dir,
        config.signing_key.reveal() if config.signing_key else None,
        comment=config.node_id,
    )
    _announce_key(config, key)
    journal = await trio.to_thread.run_sync(Journal, config.data_dir)
    _tell_copied(journal)
    listeners: Listeners | None = None
    traces = TraceFile(config.trace_file) if config.trace_file else None
    wake = open_wake()
    try:
        listeners = open_listeners(config.listen_http, config.data_dir)
        usage = StoreUsage()
        store = await _open_archive(config, environment, key, usage)
        node = Node(
            config=config,
            author=Author(
                node_id=config.node_id, signer=key.signer(), journal_id=journal.journal_id
            ),
            journalist=Journalist(journal),
            waker=Waker(wake),
            store=store,
            store_usage=usage,
            trusted=_trusted_keys(config, key),
            traces=traces,
        )
        try:
            return await _Service(node, listeners, environment).run(command)
        finally:
            if store is not None:
                await store.aclose()
    finally:
        if listeners is not None:
            listeners.close()
        wake.close()
        if traces is not None:
            traces.close()
        journal.close()


def _raise_descriptor_limit(shards: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if shards * DESCRIPTORS_PER_SHARD > hard:
        raise UsageError(
            f"{shards} databases need {shards * DESCRIPTORS_PER_SHARD} open files and the limit "
            f"is {hard}: raise it (ulimit -Hn, LimitNOFILE= in the unit)."
        )


def _announce_key(config: Config, key: SigningKey) -> None:
    if key.created:
        log.info(
            "signing_key_made",
            path=str(key.path),
            public=key.public_text,
            trusted_keys=str(config.data_dir / TRUSTED_KEYS_NAME),
            hint="keep a copy of the public key: a restore elsewhere needs it",
        )


def _tell_copied(journal: Journal) -> None:
    if journal.copied_from is not None:
        log.warning(
            "journal_copied",
            path=str(journal.path),
            journal_id=journal.journal_id.hex(),
            copied_from=journal.copied_from.hex(),
        )


def _trusted_keys(config: Config, key: SigningKey) -> frozenset[PublicKeyBytes]:
    found = find_trusted_keys(option=None, configured=config.trusted_keys, data_dir=config.data_dir)
    return frozenset(found.publics if found else ()) | {key.public}


async def _open_archive(
    config: Config, environment: Mapping[str, str], key: SigningKey, usage: StoreUsage
) -> Store | None:
    if config.archive is None:
        log.warning(
            "archive_off", hint="nothing leaves this host: name an archive, or set BASE_ARCHIVE"
        )
        return None
    # The loader knows every way of saying no.
    unconditional = {"BASE_ARCHIVE_UNCONDITIONAL": "1" if config.archive_unconditional else "0"}
    keyring = make_writing_keyring(
        config.archive_recipients,
        config.archive_identity.reveal() if config.archive_identity else None,
        key.signer(),
    )
    return open_store(
        config.archive.url,
        environment={**environment, **unconditional},
        encryption=make_encryption(config.archive_sse, config.archive_sse_kms_key_id),
        keyring=keyring,
        usage=usage,
    )


class _Service:
    """A node that runs."""

    def __init__(self, node: Node, listeners: Listeners, environment: Mapping[str, str]) -> None:
        self._node = node
        self._listeners = listeners
        self._environment = environment
        self._supervisor = Supervisor(node)
        self._keeper = Keeper(node, self._supervisor)
        self._facts = Facts(node, self._supervisor, self._keeper)
        self._proofs = Proofs(node, self._supervisor.list_restorable)
        self._stop = trio.Event()
        self._child: Child | None = None
        self._exit_code = 0
        self._scope = trio.CancelScope()

    async def run(self, command: str | None) -> int:
        """Serve until told to stop; return the exit code."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen_to_signals)
                nursery.start_soon(self._node.journalist.run)
                nursery.start_soon(self._node.waker.run)
                nursery.start_soon(self._proofs.run)
                http_stop = trio.Event()
                async with trio.open_nursery() as serving:
                    await self._serve(serving, nursery, http_stop, command)
                nursery.cancel_scope.cancel()
        return self._exit_code

    async def _serve(
        self,
        serving: trio.Nursery,
        background: trio.Nursery,
        http_stop: trio.Event,
        command: str | None,
    ) -> None:
        serving.start_soon(self._serve_http, http_stop)
        await self._restore_missing()
        async with trio.open_nursery() as shards:
            shards.start_soon(self._supervisor.run, shards)
            shards.start_soon(self._keeper.run)
            gc.freeze()
            # Told to stop while a database was restored: then none may be found missing.
            if command is not None and not self._stop.is_set():
                # So that no commit of its precedes us; an archive that is away does not hold it up.
                with trio.move_on_after(_SETTLE_S):
                    await self._supervisor.settled()
                self._child = await Child.start(command, self._environment)
                background.start_soon(self._outlive_child, self._child)
            await self._stop.wait()
            self._facts.is_stopping = True
            log.info("stopping")
            # A file that has just become a database is still taken in, and a log gets its first
            # snapshot: without one it could not be restored.
            with trio.move_on_after(_LAST_LOOK_S):
                await self._supervisor.settled()
            with trio.move_on_after(_SETTLE_S):
                await self._supervisor.restorable()
            self._supervisor.stop()
            shards.start_soon(self._end_when_quiet, shards)
        http_stop.set()
        log.info("stopped")

    async def _restore_missing(self) -> None:
        """Bring back what is missing, if that is wanted, until we are told to stop."""
        if not self._node.config.restore_if_missing:
            return
        self._facts.is_restoring = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_restoring, nursery.cancel_scope)
            await restore_missing(self._node)
            nursery.cancel_scope.cancel()
        self._facts.is_restoring = False

    async def _stop_restoring(self, scope: trio.CancelScope) -> None:
        await self._stop.wait()
        scope.cancel()

    async def _end_when_quiet(self, shards: trio.Nursery) -> None:
        """End the helpers of the supervisor once every shard has flushed."""
        for shard in list(self._supervisor.shards.values()):
            await shard.ended.wait()
        shards.cancel_scope.cancel()

    async def _serve_http(self, stop: trio.Event) -> None:
        await serve_http(self._facts, self._listeners, stop=stop)

    async def _outlive_child(self, child: Child) -> None:
        self._exit_code = await child.wait()
        log.info("application_ended", exit_code=self._exit_code)
        self._stop.set()

    async def _listen_to_signals(self) -> None:
        told, told_s = 0, 0.0
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, *PASSED_ON) as received:
            async for number in received:
                # The terminal signals the whole foreground group, the application included.
                is_typed = number == signal.SIGINT and sys.stdin.isatty()
                if self._child is not None and not is_typed:
                    self._child.send(number)
                now_s = trio.current_time()
                # A supervisor may signal both us and our process group: that is one wish.
                if number in PASSED_ON or (told and now_s - told_s < _ONE_WISH_S):
                    continue
                told_s = now_s
                told += 1
                if told > 1:
                    log.warning("hurried", signal=number)
                    self._exit_code = self._exit_code or 1
                    self._scope.cancel()
                elif self._child is None:
                    self._stop.set()
                else:
                    self._facts.is_stopping = True
