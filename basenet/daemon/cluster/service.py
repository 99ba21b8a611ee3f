"""Builds a cluster node from its configuration, runs it, and takes it down in order.

The same life as `daemon.assembly` gives a standalone node, with two things in front: the socket to
the guardian, which is this process's parent, and the connections to the other nodes.
"""

import gc
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import structlog
import trio

from basenet.archive.keyring import make_writing_keyring
from basenet.archive.store import Store, StoreUsage, make_encryption, open_store
from basenet.config.model import Config
from basenet.control.listeners import Listeners, open_listeners
from basenet.control.server import serve as serve_http
from basenet.daemon.chain import Author
from basenet.daemon.cluster.facts import ClusterFacts
from basenet.daemon.cluster.gate import Gates
from basenet.daemon.cluster.guard import Guard, inherited_connection
from basenet.daemon.cluster.heights import HeightTeller
from basenet.daemon.cluster.keeping import ClusterKeeper
from basenet.daemon.cluster.node import ClusterNode
from basenet.daemon.cluster.reaching import choose_http
from basenet.daemon.cluster.shard import ClusterRoom, ClusterShard
from basenet.daemon.cluster.tending import Steward
from basenet.daemon.cluster.transfer import ServingBudget
from basenet.daemon.cluster.watch import JournalWatch
from basenet.daemon.journalist import Journalist
from basenet.daemon.listing import find_databases, watched_directories
from basenet.daemon.node import Node
from basenet.daemon.proof import Proofs
from basenet.daemon.tracefile import TraceFile
from basenet.daemon.waker import Waker
from basenet.errors import UnavailableError, UsageError
from basenet.journal.journal import Journal
from basenet.keys import signing
from basenet.keys.signing import SigningKey
from basenet.keys.trust import TRUSTED_KEYS_NAME, add_trusted_key, find_trusted_keys
from basenet.sqlite.wake import open_wake
from basenet.units import PublicKeyBytes

if TYPE_CHECKING:
    from basenet.units import ShardId

log = structlog.get_logger()

_SWITCH_INTERVAL_S: Final = 0.0005
_LISTING_S: Final = 10.0
_LISTING: Final = "//listing/"
_LEAVE_S: Final = 20.0
_SETTLE_S: Final = 15.0
_ONE_WISH_S: Final = 0.5


async def run_cluster(config: Config, *, environment: Mapping[str, str]) -> int:
    """Serve until a signal and return the exit code.

    Raises what makes a start impossible: `UsageError`, `ConflictError`, `CorruptionError`.
    """
    connection = inherited_connection(environment)
    if connection is None:
        raise UsageError(
            "a cluster node is served by the guardian: start it with `basenet serve`, which "
            "starts this process itself."
        )
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    key = load_node_key(config)
    journal = await trio.to_thread.run_sync(Journal, config.data_dir)
    if journal.copied_from is not None:
        log.warning("journal_copied", journal=journal.journal_id.hex())
    listeners: Listeners | None = None
    traces = TraceFile(config.trace_file) if config.trace_file else None
    wake = open_wake()
    store: Store | None = None
    try:
        listeners = open_listeners(config.listen_http, config.data_dir)
        usage = StoreUsage()
        store = _open_archive(config, environment, key, usage)
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
        return await _ClusterService(node, listeners, Guard(connection)).run()
    finally:
        if store is not None:
            await store.aclose()
        if listeners is not None:
            listeners.close()
        wake.close()
        if traces is not None:
            traces.close()
        journal.close()


def _trusted_keys(config: Config, key: SigningKey) -> frozenset[PublicKeyBytes]:
    found = find_trusted_keys(option=None, configured=config.trusted_keys, data_dir=config.data_dir)
    return frozenset(found.publics if found else ()) | {key.public}


def _open_archive(
    config: Config, environment: Mapping[str, str], key: SigningKey, usage: StoreUsage
) -> Store | None:
    if config.archive is None:
        return None
    if config.archive_unconditional:
        raise UsageError(
            "BASE_ARCHIVE_UNCONDITIONAL is for a node alone: the writers of a cluster take turns, "
            "and only a store that keeps conditions tells them apart."
        )
    identity = config.archive_identity
    keyring = make_writing_keyring(
        config.archive_recipients, identity.reveal() if identity else None, key.signer()
    )
    return open_store(
        config.archive.url,
        environment=environment,
        encryption=make_encryption(config.archive_sse, config.archive_sse_kms_key_id),
        keyring=keyring,
        usage=usage,
    )


def load_node_key(config: Config) -> SigningKey:
    """Return the node's signing key: BASE_SIGNING_KEY, or that of its certificate.

    Raises `UsageError` when neither is an Ed25519 key that can be read.
    """
    if config.signing_key is not None or config.cluster.tls is None:
        override = config.signing_key.reveal() if config.signing_key is not None else None
        return signing.load_or_create(config.data_dir, override, comment=config.node_id)
    key = signing.load(config.cluster.tls.server_key)
    config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    add_trusted_key(config.data_dir / TRUSTED_KEYS_NAME, key.public, comment=config.node_id)
    return key


class _ClusterService:
    """A cluster node that runs."""

    def __init__(self, node: Node, listeners: Listeners, guard: Guard) -> None:
        self._node = node
        self._listeners = listeners
        self._guard = guard
        self._stop = trio.Event()
        self._listed = trio.Event()
        self._scope = trio.CancelScope()
        self._shards: dict[ShardId, ClusterShard] = {}
        self._watch = JournalWatch(node.journalist)
        self._exit_code = 0
        self._rolled_back: str | None = None
        self._cluster = ClusterNode(
            config=node.config,
            signer=node.author.signer,
            journalist=node.journalist,
            journal_is_alive=self._watch.is_alive,
            on_rolled_back=self._on_rolled_back,
            http=choose_http(node.config.cluster, listeners.address),
        )
        self._gates = Gates(node.config.cluster, guard, lease=self._cluster.timing.lease)
        self._room = ClusterRoom(
            cluster=self._cluster,
            guard=guard,
            gates=self._gates,
            budget=ServingBudget(),
            turns=trio.CapacityLimiter(2),
        )
        self._teller = HeightTeller(
            self._shards,
            connected=lambda: self._cluster.connected,
            count=lambda: node.journalist.journal.jcount,
            send=self._cluster.send_heights,
        )
        self._keeper = ClusterKeeper(node, self._shards)
        self._facts = ClusterFacts(node, self._room, self._shards)
        self._proofs = Proofs(node, self._list_archived)
        self._steward = Steward(self._shards, cluster=self._cluster, config=node.config.cluster)

    async def run(self) -> int:
        """Serve until told to stop; return the exit code."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen_to_signals)
                nursery.start_soon(self._node.journalist.run)
                nursery.start_soon(self._node.waker.run)
                nursery.start_soon(self._guard.run)
                nursery.start_soon(self._gates.run)
                nursery.start_soon(self._watch.run)
                nursery.start_soon(self._steward.run)
                nursery.start_soon(self._teller.run)
                nursery.start_soon(self._proofs.run)
                port = await nursery.start(self._cluster.run)
                log.info("serving_peers", port=port, node=self._node.config.node_id)
                http_stop = trio.Event()
                async with trio.open_nursery() as serving:
                    serving.start_soon(self._serve_http, http_stop)
                    await self._serve_shards()
                    http_stop.set()
                nursery.cancel_scope.cancel()
        if self._rolled_back is not None:
            # The writing task has ended with the scope.
            await trio.to_thread.run_sync(self._node.journalist.journal.renew_id)
            raise UnavailableError(
                f"this journal came back from a backup ({self._rolled_back}): it takes a new id "
                "and starts again, as a member that has to be added."
            )
        log.info("stopped")
        return self._exit_code

    async def _serve_shards(self) -> None:
        async with trio.open_nursery() as shards:
            shards.start_soon(self._list_shards, shards)
            gc.freeze()
            shards.start_soon(self._be_ready)
            shards.start_soon(self._keeper.run)
            await self._stop.wait()
            self._facts.is_stopping = True
            log.info("stopping")
            with trio.move_on_after(_LEAVE_S):
                async with trio.open_nursery() as flushes:
                    for shard in list(self._shards.values()):
                        flushes.start_soon(shard.archiver.close)
                for shard in list(self._shards.values()):
                    shard.stop()
                for shard in list(self._shards.values()):
                    await shard.ended.wait()
            shards.cancel_scope.cancel()

    async def _be_ready(self) -> None:
        """Let the application start when every database is fenced, or said why it is not."""
        with trio.move_on_after(_SETTLE_S):
            await self._listed.wait()
            for shard in list(self._shards.values()):
                await shard.progress.wait_until(shard.has_settled)
        self._guard.ready()

    def _list_archived(self) -> list["ShardId"]:
        """Return the shards that this node archives and that can be restored."""
        return [
            name
            for name, shard in self._shards.items()
            if shard.archiver.uploader is not None
            and shard.archiver.history.base_seq
            and not shard.archiver.history.is_broken
        ]

    async def _list_shards(self, nursery: trio.Nursery) -> None:
        """Serve what is configured, also what appears later."""
        doorbell = self._node.waker.doorbell(_LISTING)
        specs = self._node.config.shards
        directories = watched_directories(specs)
        for directory in directories:
            key = _LISTING + str(directory)
            self._node.waker.share(key, doorbell)
            self._node.waker.wake.watch_directory(key, directory)
        while not self._stop.is_set():
            served = {shard.path for shard in self._shards.values()}
            listing = await trio.to_thread.run_sync(find_databases, specs, served)
            for shard, path in listing.databases.items():
                if shard not in self._shards:
                    made = ClusterShard(node=self._node, room=self._room, shard=shard, path=path)
                    self._shards[shard] = made
                    nursery.start_soon(made.run)
            self._listed.set()
            # A file may get SQLite's header after its name.
            await doorbell.wait(_LISTING_S if directories else None)

    async def _serve_http(self, stop: trio.Event) -> None:
        await serve_http(self._facts, self._listeners, stop=stop)

    def _on_rolled_back(self, why: str) -> None:
        """End; the next start is with a new journal id, and so as a learner (B49)."""
        log.error("journal_rolled_back", why=why)
        self._rolled_back = why
        self._scope.cancel()

    async def _listen_to_signals(self) -> None:
        told_s = float("-inf")
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                now_s = trio.current_time()
                # A supervisor may signal both us and our process group: that is one wish.
                if now_s - told_s < _ONE_WISH_S:
                    continue
                told_s = now_s
                if self._stop.is_set():
                    log.warning("hurried", signal=number)
                    self._exit_code = 1
                    self._scope.cancel()
                self._stop.set()
