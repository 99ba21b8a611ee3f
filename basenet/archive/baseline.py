"""What a shard's snapshots and log are worth at a start: the facts for `basenet.archive.schedule`.

While a daemon runs it counts what it ships. At its start it asks the archive once: with which page
set would a restore of the newest state begin, and how much log would it read? If there is no answer
(no base, a gap, a damaged manifest) the state cannot be restored, and a new snapshot is what mends
that.
"""

from dataclasses import dataclass

from basenet.archive.catalog import read_catalog
from basenet.archive.fetch import Fetcher
from basenet.archive.names import ShardNames
from basenet.archive.plan import Wish
from basenet.archive.port import Store, StoreNotFound, StoreRefused
from basenet.archive.survey import Survey
from basenet.errors import BasenetError, UnavailableError
from basenet.units import Lineage, PublicKeyBytes, Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Where a restore of the newest state of a lineage begins.

    ``seq`` and ``timestamp_ns``: of the page set's frame, or of the genesis of a database that was
    born empty. ``name``: of the page set's manifest, None for a genesis. ``stored_bytes``: of the
    page set, shared parts included; 0 for a genesis.
    ``log_bytes``: of the log objects that are read after it. ``problem``: the sentence that says
    why there is no base; the numbers are 0 then.
    """

    has_base: bool
    seq: Seq
    timestamp_ns: int
    stored_bytes: int
    log_bytes: int
    problem: str | None = None
    name: str | None = None


async def read_baseline(
    store: Store,
    names: ShardNames,
    lineage: Lineage,
    trusted: frozenset[PublicKeyBytes],
    *,
    fetcher: Fetcher | None = None,
) -> Baseline:
    """Return the baseline of ``lineage``, to which its ancestors' page sets count, too.

    Raises `UnavailableError` and `StoreRefused` when the archive cannot be read now.
    """
    fetcher = fetcher or Fetcher(store)
    try:
        survey = Survey(fetcher, await read_catalog(store, names))
        plan = await survey.make_plan(Wish(lineage=lineage), trusted)
    except (UnavailableError, StoreRefused):
        raise
    except StoreNotFound as error:
        raise UnavailableError(f"the archive changed while it was read: {error}") from error
    except BasenetError as error:
        return Baseline(
            has_base=False,
            seq=Seq(0),
            timestamp_ns=0,
            stored_bytes=0,
            log_bytes=0,
            problem=str(error),
        )
    log_bytes = sum(span.item.size for span in plan.spans)
    if plan.base is not None:
        head = plan.base.facts.head
        return Baseline(
            has_base=True,
            seq=head.seq,
            timestamp_ns=head.timestamp_ns,
            stored_bytes=plan.stored_bytes - log_bytes,
            log_bytes=log_bytes,
            name=plan.base.item.name,
        )
    genesis = plan.line[0].genesis
    assert genesis is not None, "without a page set a plan begins with a genesis"
    return Baseline(
        has_base=True,
        seq=genesis.head.seq,
        timestamp_ns=genesis.head.timestamp_ns,
        stored_bytes=0,
        log_bytes=log_bytes,
    )
