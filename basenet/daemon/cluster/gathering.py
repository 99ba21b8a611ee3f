"""Gathering pages: from all peers at once, each page believed for its leaf hash.

Theory of operation
===================

What is wanted is cut into batches of at most 256 pages and 1 MiB; four of them are under way at a
time. Each batch goes its own way from peer to peer until nothing of it is lacking or nobody is left
to ask, always to the one that has the least to do::

    Pages      what came is kept; the rest is not asked of this peer again
    busy       asked again after a pause, up to 40 times
    silence    asked again, up to 3 times
    wrong      the peer is reported and shunned; what is lacking goes to others

The database moves on while its pages are gathered, so at the end pages may be lacking. That is no
error: whoever wants them aims at a newer state, and has fewer left to want.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import trio

from basenet.daemon.cluster.asking import Asker, check_refusal
from basenet.errors import PeerError
from basenet.units import MIB, PublicKeyBytes, lock_page
from basenet.wire.merkle import leaf_hash, normalised_first_page
from basenet.wire.transfer import ASKED_PAGES_MAX, Pages, PagesAsk, StateRefused, Why

ASK_BYTES: Final = MIB
ASKS_MAX: Final = 4
SILENCES_MAX: Final = 3
BUSY_MAX: Final = 40
BUSY_PAUSE_S: Final = 0.25

Wants = Iterable[tuple[int, bytes]]
"""Pages, each once, as (page number, leaf hash)."""


async def gather(
    asker: Asker,
    wants: Wants,
    *,
    page_size: int,
    voters: Sequence[PublicKeyBytes] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[int, bytes]:
    """Return the contents of what of ``wants`` any peer has, by page number, all verified.

    ``page_size`` in bytes. Page 1 comes with the file format versions of a WAL database, the lock
    page as zeros. ``voters`` are asked before others. The result is in memory, so the caller bounds
    ``wants``; 64 MiB of pages keep the peers busy. ``on_progress`` is told after each answer how
    many pages and bytes were found in all.
    """
    found: dict[int, bytes] = {}
    gathering = _Gathering(asker, voters)
    batches = deque(_cut(_but_lock_page(wants, page_size, found), page_size))

    async def work() -> None:
        while batches:
            batch = _Batch(batches.popleft(), page_size)
            while (pages := await gathering.next_pages(batch)) is not None:
                found.update(pages)
                if on_progress is not None:
                    on_progress(len(found), len(found) * page_size)

    async with trio.open_nursery() as nursery:
        for _ in range(min(ASKS_MAX, len(batches))):
            nursery.start_soon(work)
    return found


def _but_lock_page(wants: Wants, page_size: int, found: dict[int, bytes]) -> Wants:
    """Yield ``wants`` without the lock page, which nobody stores: it is put into ``found``."""
    for pgno, digest in wants:
        if pgno != lock_page(page_size):
            yield pgno, digest
        elif digest == leaf_hash(pgno, bytes(page_size)):
            found[pgno] = bytes(page_size)


def _cut(wants: Wants, page_size: int) -> Iterator[dict[int, bytes]]:
    """Yield ``wants`` in batches that one ask may hold."""
    pages_max = min(ASKED_PAGES_MAX, ASK_BYTES // page_size)
    batch: dict[int, bytes] = {}
    for pgno, digest in wants:
        batch[pgno] = digest
        if len(batch) == pages_max:
            yield batch
            batch = {}
    if batch:
        yield batch


class _Batch:
    """Pages on their way from peer to peer; ``lacking``: their leaf hashes by number."""

    def __init__(self, lacking: dict[int, bytes], page_size: int) -> None:
        self.lacking = lacking
        self._page_size = page_size
        self._silences: Counter[PublicKeyBytes] = Counter()
        self._refusals: Counter[PublicKeyBytes] = Counter()
        self._spent: set[PublicKeyBytes] = set()

    def may_ask(self, peer: PublicKeyBytes) -> bool:
        """Return whether ``peer`` may still have something of it."""
        return (
            peer not in self._spent
            and self._silences[peer] < SILENCES_MAX
            and self._refusals[peer] < BUSY_MAX
        )

    def on_silence(self, peer: PublicKeyBytes) -> None:
        """Count that ``peer`` did not answer."""
        self._silences[peer] += 1

    def on_refused(self, peer: PublicKeyBytes, why: Why) -> None:
        """Count a refusal; only a busy peer is asked again."""
        self._refusals[peer] += 1
        if why != Why.BUSY:
            self._spent.add(peer)

    def take(self, peer: PublicKeyBytes, answer: Pages, asked: set[int]) -> dict[int, bytes]:
        """Return what ``peer`` sent, verified; raise `PeerError` if anything in it is wrong."""
        self._spent.add(peer)
        if {pgno for pgno, _ in answer.pages} | set(answer.missing) != asked:
            raise PeerError("the peer answers about other pages than it was asked for")
        pages: dict[int, bytes] = {}
        for pgno, content in answer.pages:
            if len(content) != self._page_size or leaf_hash(pgno, content) != self.lacking[pgno]:
                raise PeerError(f"the peer sends a wrong page {pgno}")
            # Bytes 18 and 19 are not in the leaf hash, so the peer's word for them is nobody's.
            pages[pgno] = normalised_first_page(content) if pgno == 1 else content
        for pgno in pages:
            del self.lacking[pgno]
        return pages


class _Gathering:
    """One fetch: who is asked next, by how much everybody has to do."""

    def __init__(self, asker: Asker, voters: Sequence[PublicKeyBytes]) -> None:
        self._asker, self._voters = asker, voters
        self._load: Counter[PublicKeyBytes] = Counter()

    async def next_pages(self, batch: _Batch) -> dict[int, bytes] | None:
        """Return the next pages of ``batch`` that a peer sent; None when there will be no more."""
        while batch.lacking:
            peer = self._choose(batch)
            if peer is None:
                return None
            pages = await self._ask(peer, batch)
            if pages:
                return pages
        return None

    def _choose(self, batch: _Batch) -> PublicKeyBytes | None:
        peers = filter(batch.may_ask, self._asker.in_order(self._voters))
        return min(peers, key=lambda peer: self._load[peer], default=None)

    async def _ask(self, peer: PublicKeyBytes, batch: _Batch) -> dict[int, bytes]:
        """Return what ``peer`` sends of ``batch``."""
        ask = PagesAsk(number=self._asker.next_number(), pages=tuple(batch.lacking.items()))
        self._load[peer] += 1
        try:
            answer = await self._asker.ask(peer, ask)
        finally:
            self._load[peer] -= 1
        match answer:
            case Pages():
                try:
                    return batch.take(peer, answer, {pgno for pgno, _ in ask.pages})
                except PeerError as error:
                    self._asker.report(peer, error)
            case StateRefused():
                batch.on_refused(peer, answer.why)
                await trio.sleep(BUSY_PAUSE_S)
            case None:
                batch.on_silence(peer)
                if self._asker.may_ask(peer):
                    await trio.sleep(BUSY_PAUSE_S)
            case _:
                batch.on_refused(peer, Why.NO_STATE)
                try:
                    check_refusal(answer)
                except PeerError as error:
                    self._asker.report(peer, error)
        return {}
