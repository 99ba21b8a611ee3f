"""Proving the archive, for ever: now and then a moment of one shard is restored and thrown away.

Theory of operation
===================

One proof at a time and a node, every BASE_PROOF_INTERVAL, of the shard whose last attempt is the
longest ago; `archive.proof` draws the moment, and a process of its own (`daemon.prover`) does the
work. What a failed proof could not restore is what the next one of that shard tries, so that an
error goes away when it is mended and not when luck draws another moment.

What it may cost: one process of lowest priority with some 100 MB; a scratch file without a name,
at most half of what is free on the data directory's disk; and of the archive what a restore of that
moment reads. Over time that is at most BASE_PROOF_BYTES_PER_DAY: after a proof that read more the
next one waits until the average is right. A moment beyond `_DAYS_AT_ONCE` days' worth is skipped.

A proof never stops anything. What it finds goes into the metrics, the log and `status`.

In a cluster only the writer of a shard proves it: whoever archives it.
"""

import os
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog
import trio

from basenet.archive.clock import SECOND_NS
from basenet.config.model import Proof
from basenet.daemon.node import Node
from basenet.daemon.prover import Answer, Order, Outcome
from basenet.errors import UnavailableError
from basenet.guardian.become import module_words
from basenet.keys.files import make_private_directory
from basenet.units import ShardId

log = structlog.get_logger()

FOLDER_NAME: Final = "proof"
_DAYS_AT_ONCE: Final = 7
_DAY_S: Final = 86_400
# A first proof comes soon after the first start, but not while everything else begins.
_FIRST_S_MAX: Final = 600.0
_LOOK_S: Final = 5.0
_SLEEP_S_MAX: Final = 300.0
# A process that takes longer than this hangs.
_PATIENCE_S: Final = 12 * 3600.0
_ANSWER_BYTES_MAX: Final = 1 << 20
_OUTAGE_S: Final = 900.0


class Proofs:
    """The proofs of one node's shards."""

    def __init__(self, node: Node, list_provable: Callable[[], Sequence[ShardId]]) -> None:
        """``list_provable``: the shards that this node archives and that can be restored now."""
        self._node = node
        self._ledger = node.proofs
        self._list_provable = list_provable
        self._folder = node.config.data_dir / FOLDER_NAME

    async def run(self) -> None:
        """Prove for ever; return at once if it is off."""
        settings = self._node.config.proof
        if settings is None or self._node.store is None:
            return
        try:
            await trio.to_thread.run_sync(self._prepare, settings)
        except UnavailableError as error:
            log.warning("proof_skipped", error=str(error))
            return
        while True:
            left_s = (self._ledger.next_ns - time.time_ns()) / SECOND_NS
            # Later than that it was only by a wall clock that was ahead.
            if 0 < left_s <= _find_latest_s(settings):
                await trio.sleep(min(left_s, _SLEEP_S_MAX))
                continue
            shard = self._choose()
            if shard is None:
                await trio.sleep(min(_LOOK_S, settings.interval_seconds))
                continue
            answer = await self._ask_child(shard, settings)
            await self._take(shard, answer, settings)

    def _prepare(self, settings: Proof) -> None:
        """Make the scratch folder, empty, and find out when the next proof is due."""
        make_private_directory(self._folder)
        # Files lose their names at once; one that was killed in between is all there can be.
        for left in self._folder.iterdir():
            left.unlink(missing_ok=True)
        ledger, now_ns = self._ledger, time.time_ns()
        ledger.load(self._node.config.data_dir)
        latest_ns = now_ns + int(_find_latest_s(settings) * SECOND_NS)
        if not 0 < ledger.next_ns <= latest_ns:
            first_s = min(settings.interval_seconds, _FIRST_S_MAX) * random.uniform(0.5, 1)  # noqa: S311
            ledger.next_ns = now_ns + int(first_s * SECOND_NS)

    def _choose(self) -> ShardId | None:
        """Return the shard whose last attempt is the longest ago; by chance among equals."""
        shards = list(self._list_provable())
        random.shuffle(shards)
        return min(shards, key=lambda shard: self._ledger.of(shard).attempted_ns, default=None)

    async def _take(self, shard: ShardId, answer: Answer, settings: Proof) -> None:
        now_ns = time.time_ns()
        before = self._ledger.of(shard).skipped
        self._ledger.take(shard, answer, now_ns)
        pause_s = settings.interval_seconds
        if answer.outcome is Outcome.UNAVAILABLE:
            pause_s = min(pause_s, _OUTAGE_S)
        pause_s = max(pause_s, answer.bytes_read / settings.bytes_per_day_max * _DAY_S)
        # Nodes that were started together do not all read at the same moment for ever.
        self._ledger.next_ns = now_ns + int(pause_s * random.uniform(0.9, 1.1) * SECOND_NS)  # noqa: S311
        told = log.bind(shard=shard, seq=answer.seq, bytes_read=answer.bytes_read)
        match answer.outcome:
            case Outcome.PROVEN:
                told.info("proof_done", seconds=round(answer.seconds, 2), note=answer.sentence)
            case Outcome.FAILED:
                told.error("proof_failed", error=answer.sentence)
            case Outcome.SKIPPED | Outcome.UNAVAILABLE:
                if answer.sentence != before:
                    told.warning("proof_skipped", error=answer.sentence)
        try:
            await trio.to_thread.run_sync(self._ledger.save)
        except UnavailableError as error:
            told.warning("proof_skipped", error=str(error))

    def _make_order(self, shard: ShardId, settings: Proof) -> Order:
        config = self._node.config
        assert config.archive is not None, "a node with a store has an archive"
        identity = config.archive_identity
        return Order(
            url=config.archive.url,
            service=config.service,
            shard=shard,
            seq=self._ledger.of(shard).failed_seq,
            trusted=tuple(key.hex() for key in sorted(self._node.trusted)),
            identity=None if identity is None else identity.reveal(),
            folder=str(self._folder.absolute()),
            bytes_max=_DAYS_AT_ONCE * settings.bytes_per_day_max,
            retry_seconds=config.retry_deadline_seconds,
            # A test waits for it, and beside a busy machine the lowest priority never ends.
            is_nice=not config.is_test,
        )

    async def _ask_child(self, shard: ShardId, settings: Proof) -> Answer:
        """Return what the child answers; it is gone when this returns or is cancelled."""
        order = msgspec.json.encode(self._make_order(shard, settings)) + b"\n"
        try:
            process = await trio.lowlevel.open_process(
                module_words("basenet.daemon.prover"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=dict(os.environ),
            )
        except OSError as error:
            return _unavailable(f"no process can be started ({os.strerror(error.errno or 0)})")
        assert process.stdin is not None, "a pipe was asked for"
        assert process.stdout is not None, "a pipe was asked for"
        data = b""
        try:
            with trio.move_on_after(_PATIENCE_S):
                await process.stdin.send_all(order)
                async for piece in process.stdout:
                    data += piece
                    if len(data) > _ANSWER_BYTES_MAX:
                        break
                await process.wait()
        except trio.BrokenResourceError:
            pass  # it ended before it had read its order
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()
        try:
            return msgspec.json.decode(data, type=Answer)
        except msgspec.DecodeError:
            return _unavailable(f"the process that proves ended with code {process.returncode}")


def _find_latest_s(settings: Proof) -> float:
    """Return after how long the next proof is due at the latest, whatever the last one read."""
    return 1.2 * _DAYS_AT_ONCE * max(settings.interval_seconds, _DAY_S)


def _unavailable(sentence: str) -> Answer:
    return Answer(outcome=Outcome.UNAVAILABLE, sentence=sentence)
