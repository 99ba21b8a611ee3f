"""The scrubber at work on one session: pages of the file against the chain's leaf hashes.

It reads with a connection of its own, captures to the tip, and then compares, while the framer
stands still for the moment of the comparison. What differs for sure means that a commit was missed
or that somebody else changed the file: the cursor is forgotten, and the next session's diff brings
the difference into the chain, flagged RECOVERED and told loudly.
"""

import secrets
import time
from typing import Final

import structlog
import trio

from basenet.daemon.node import Node
from basenet.daemon.session import Session
from basenet.errors import UnavailableError
from basenet.sqlite.pages import read_pages
from basenet.sqlite.scrub import Scrubber
from basenet.units import ShardId

log = structlog.get_logger()

_PAUSE_S_MIN: Final = 0.05


class ScrubFound(UnavailableError):  # noqa: N818  (what happened; the session ends with it)
    """The file differs from the chain; the next session brings the difference into it."""


async def scrub_forever(node: Node, shard: ShardId, session: Session) -> None:
    """Scrub until cancelled; raise `ScrubFound` when a page differs for sure."""
    settings = node.config.scrub
    if settings is None:
        return
    scrubber = Scrubber(
        start_ns=time.monotonic_ns(),
        # Anywhere: a daemon that is restarted every day would else never see the end of a file.
        next_pgno=1 + secrets.randbelow(max(session.framer.tree.db_pages, 1)),
        bytes_per_second=settings.bytes_per_second_max,
        pass_seconds=settings.interval_seconds,
    )
    session.pump.on_captured = scrubber.on_captured
    while True:
        await trio.sleep(max(scrubber.seconds_to_next(time.monotonic_ns()), _PAUSE_S_MIN))
        bad = await _step(node, session, scrubber)
        if bad:
            log.error("scrub_mismatch", shard=shard, pages=bad[:20], count=len(bad))
            await node.journalist.perform(lambda journal: journal.forget_cursor(shard))
            raise ScrubFound(
                f"{len(bad)} pages of shard {shard} (first {bad[0]}) are not what was captured: "
                "somebody changed the file without SQLite, or its disk did; they are captured now."
            )


async def _step(node: Node, session: Session, scrubber: Scrubber) -> list[int]:
    async with session.pump.chain_lock:
        batch = scrubber.begin(session.framer.tree, time.monotonic_ns())
    if batch is None:
        return []
    async with session.file_lock:
        # Whoever held the lock may have let go of the file.
        if not session.is_live:
            return []
        pages = await trio.to_thread.run_sync(
            read_pages,
            session.database,
            batch.first,
            batch.count,
            limiter=node.background_limiter,
        )
    if not await session.capture_now():
        return []
    async with session.pump.chain_lock:
        if session.framer.is_run_open:
            return []
        return scrubber.judge(pages, session.framer.tree, time.monotonic_ns())
