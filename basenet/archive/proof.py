"""Proving an archive by doing what it is for: a random kept moment is restored and looked at.

Theory of operation
===================

What an archive holds is only known by restoring it: an object that was damaged, or deleted behind
our back, is found the day it is needed, unless somebody looks before. So now and then a moment is
drawn among all that can be restored, each commit as likely as the next one, and restored with the
proofs of any restore: signatures, the chain, the state root. Nothing is kept of it.

An archive is alive while it is read: retention deletes what lay in the plan a moment ago, and a
listing can be stale. So a proof that fails is made a second time, of the same moment, and only what
fails twice has failed. A moment that is not kept any more has not failed, another one is drawn.

Egress is bounded by the caller: a plan that would read more than ``bytes_max`` is not begun.
"""

import secrets
from collections.abc import Callable
from typing import Final

from basenet.archive.fetch import Fetcher
from basenet.archive.names import ShardNames
from basenet.archive.plan import Wish
from basenet.archive.port import Store, StoreRefused
from basenet.archive.ranges import Outlook, look_ahead
from basenet.archive.restore import RestoreReport, restore
from basenet.archive.scratch import Scratch
from basenet.errors import CorruptionError, NotFoundError, UnavailableError, UsageError
from basenet.units import MIB, PublicKeyBytes, Seq

DRAWS_MAX: Final = 16
_LOOKS: Final = 2


class ProofTooLarge(UnavailableError):  # noqa: N818  (states a fact; the kind is in the base)
    """The moment that was drawn needs more bytes of the archive than a proof may read."""


class ProofFailed(CorruptionError):  # noqa: N818
    """A kept moment cannot be restored. ``seq``: which one; None when none can be planned."""

    def __init__(self, sentence: str, seq: Seq | None) -> None:
        super().__init__(sentence)
        self.seq = seq


Choose = Callable[[int], int]
"""Return a number from 0 up to, and without, the one given."""


async def prove(
    store: Store,
    names: ShardNames,
    scratch: Scratch,
    *,
    trusted: frozenset[PublicKeyBytes],
    bytes_max: int,
    seq: Seq | None = None,
    fetcher: Fetcher | None = None,
    choose: Choose = secrets.randbelow,
) -> RestoreReport:
    """Restore a random kept moment of the shard ``names``, or ``seq`` if it is kept, to nowhere.

    Returns the report of the restore. Raises `ProofFailed` for what failed twice, `ProofTooLarge`,
    `NotFoundError` when the archive holds nothing of the shard, `UnavailableError` when the store
    or the disk does not answer, `UsageError` for an archive that cannot be read with our keys.
    """
    fetcher = fetcher or Fetcher(store)
    outlook = await _look(store, names, trusted, fetcher)
    failures: dict[Seq, int] = {}
    drawn = seq if seq is not None and _holds(outlook, seq) else _draw(outlook, choose)
    for _ in range(DRAWS_MAX):
        wish = Wish(to_seq=drawn, lineage=outlook.lineage)
        try:
            return await _restore(store, names, scratch, wish, trusted, bytes_max, fetcher)
        except StoreRefused:
            raise
        except UsageError as error:  # inside a transaction of several frames
            refusal: UsageError | NotFoundError = error
            drawn = _draw(outlook, choose)
        except NotFoundError as error:
            refusal = error
            outlook = await _look(store, names, trusted, fetcher)
            drawn = _draw(outlook, choose)
        except CorruptionError as error:
            failures[drawn] = failures.get(drawn, 0) + 1
            if failures[drawn] == _LOOKS:
                raise ProofFailed(f"seq {drawn} cannot be restored: {error}", drawn) from error
            outlook = await _look(store, names, trusted, fetcher)
            if not _holds(outlook, drawn):
                drawn = _draw(outlook, choose)
    raise UnavailableError(f"no moment of {names.prefix} could be chosen: {refusal}")


async def _restore(  # noqa: PLR0917  (all of `prove`'s)
    store: Store,
    names: ShardNames,
    scratch: Scratch,
    wish: Wish,
    trusted: frozenset[PublicKeyBytes],
    bytes_max: int,
    fetcher: Fetcher,
) -> RestoreReport:
    report = await restore(
        store, names, scratch, trusted=trusted, wish=wish, fetcher=fetcher, dry_run=True
    )
    if report.stored_bytes > bytes_max:
        raise ProofTooLarge(
            f"restoring seq {report.seq} of shard {names.shard} would read "
            f"{report.stored_bytes // MIB} MiB, and a proof may read {bytes_max // MIB} MiB: raise "
            "BASE_PROOF_BYTES_PER_DAY to have it proven"
        )
    return await restore(store, names, scratch, trusted=trusted, wish=wish, fetcher=fetcher)


async def _look(
    store: Store, names: ShardNames, trusted: frozenset[PublicKeyBytes], fetcher: Fetcher
) -> Outlook:
    """Return what can be restored; raise `ProofFailed` for what twice is promised and is not."""
    sentence = ""
    for _ in range(_LOOKS):
        try:
            outlook = await look_ahead(store, names, trusted=trusted, fetcher=fetcher)
        except CorruptionError as error:
            sentence = str(error)
            continue
        if not outlook.troubles:
            if outlook.ranges:
                return outlook
            raise NotFoundError(f"{names.prefix} holds no moment that can be restored")
        sentence = outlook.troubles[0]
    raise ProofFailed(sentence, None)


def _holds(outlook: Outlook, seq: int) -> bool:
    return any(one.first_seq <= seq <= one.last_seq for one in outlook.ranges)


def _draw(outlook: Outlook, choose: Choose) -> Seq:
    """Return one of the seqs that can be restored."""
    left = choose(sum(one.last_seq - one.first_seq + 1 for one in outlook.ranges))
    for one in outlook.ranges:
        count = one.last_seq - one.first_seq + 1
        if left < count:
            return Seq(one.first_seq + left)
        left -= count
    raise AssertionError("a number below the count of all moments")
