"""How far the archive of a shard with peers reaches, when another of them begins to write it.

Theory of operation
===================

Only final frames are archived, and any two nodes have the same ones. So the next writer need not
decide anything: it looks what lies above the watermark that it knows, with one listing from there,
compares frames by seq with its journal's, and goes on behind them. What it finds there and holds
otherwise is the one thing that must never be: two final histories, which a person has to look at.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from basenet.archive.catalog import LogItem, read_catalog
from basenet.archive.facts import TipFacts, make_log_facts, open_log, open_tip
from basenet.archive.fetch import Fetcher
from basenet.archive.names import LOG_FOLDER_SEQS, LogName, ShardNames
from basenet.archive.plan import list_lineages
from basenet.archive.port import Store, StoreNotFound
from basenet.archive.seal import TwoHistories
from basenet.archive.stretch import list_visible
from basenet.errors import ConflictError, CorruptionError
from basenet.units import FrameHash, Lineage, Seq

_NO_EPOCH: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What this node has of the lineage.

    ``parent``: the lineage that it continues. ``archived_seq``: what it knows to be archived.
    ``hashes``: returns the hashes of its frames between two seqs, as far as it holds them, once the
    last of them is final here; raises `UnavailableError` when that takes too long.
    """

    lineage: Lineage
    parent: Lineage | None
    genesis_seq: Seq
    archived_seq: Seq
    hashes: Callable[[Seq, Seq], Awaitable[Mapping[Seq, FrameHash]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """Everything up to ``archived_seq`` is there; ``archive_epoch``: the highest that was met."""

    archived_seq: Seq
    archive_epoch: int
    has_tip: bool


async def find_reached(store: Store, names: ShardNames, own: Own, fetcher: Fetcher) -> Reached:
    """Return how far the archive reaches.

    Raises `TwoHistories` if it holds other frames than ours, `ConflictError` if it holds another
    database, `CorruptionError` for an object that is not as signed, and what the store raises.
    """
    tip = await _read_tip(names, fetcher)
    reached, archive_epoch = own.archived_seq, tip.signed.archive_epoch if tip else _NO_EPOCH
    logs = await _list_logs(store, names, own, reached + 1)
    if logs and logs[0].log.start > reached + 1:
        # A merged object may begin below our watermark and hold what seems to be missing.
        logs = await _list_logs(store, names, own, 0)
    if not logs and reached < own.genesis_seq:
        await _require_room(store, names, own)
    for item in logs:
        log = item.log
        if log.end <= reached:
            continue
        facts = make_log_facts(
            open_log(await fetcher.get(item.name), item.name, log, names), item.name, log
        )
        archive_epoch = max(archive_epoch, facts.signed.archive_epoch)
        for seq, digest in (await own.hashes(log.start, log.end)).items():
            if facts.hash(seq) != digest:
                raise TwoHistories(
                    f"two final histories: object {item.name} holds another frame {seq} than this "
                    "node made final with its peers; keep both, stop this cluster and run "
                    "`basenet verify` on the archive"
                )
        if log.start <= reached + 1:
            reached = log.end
    return Reached(
        archived_seq=reached,
        archive_epoch=archive_epoch,
        has_tip=tip is not None and tip.lineage == own.lineage,
    )


async def _read_tip(names: ShardNames, fetcher: Fetcher) -> TipFacts | None:
    try:
        return open_tip(await fetcher.get(names.tip), names)
    except StoreNotFound:
        return None
    except CorruptionError:
        return None  # it is written anew


async def _list_logs(store: Store, names: ShardNames, own: Own, start: int) -> list[LogItem]:
    """Return the log objects that begin at ``start`` or above, ascending.

    What a merged one covers is left out.
    """
    folder = f"{names.lineage(own.lineage)}log/"
    after = f"{folder}{start // LOG_FOLDER_SEQS:016d}/{start:020d}"
    found = []
    async for entry in store.list(folder, start_after=after):
        parsed = names.parse(entry.name)
        if isinstance(parsed, LogName):
            found.append(LogItem(name=entry.name, size=entry.size, log=parsed))
    return list_visible(found)


async def _require_room(store: Store, names: ShardNames, own: Own) -> None:
    """Raise `ConflictError` if the archive holds a history that ours does not continue."""
    others = [one for one in list_lineages(await read_catalog(store, names)) if one != own.lineage]
    if others and own.parent not in others:
        raise ConflictError(
            f"{store.url} holds lineage {others[0].hex()} of shard {names.shard}, which the "
            f"cluster's lineage {own.lineage.hex()} does not continue: give this cluster another "
            "BASE_SERVICE or archive"
        )
