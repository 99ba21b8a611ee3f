"""The lead is given up on purpose: what is committed here is sealed before, so nothing is orphaned.

An application may commit all the time, also between the moment in which a transfer is wanted and
the one in which everything is final; and what is committed then is sealed by nobody. So first of
all it is locked out, in both cases:

*A term ends.* What is committed is sealed, the file marked, the lead handed over. Every step is
bounded, since whoever stops a node waits for it: what could not be done in time is done by the next
start, from the journal. Only a file that could not be marked stays as it is meanwhile, which is
said.

*A transfer.* What cannot be sealed soon, such as a transaction that goes on and on, refuses it, and
the application goes on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import structlog
import trio

from basenet.daemon.cluster.heirs import find_candidates, find_heirs
from basenet.daemon.cluster.marking import Marked, Marking
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.framer import instant
from basenet.engine.events import SurveyWanted, TransferWanted
from basenet.errors import UnavailableError
from basenet.wire.payload import Voter

log = structlog.get_logger()

_STEP_S: Final = 2.0
# Of a transfer, in which the application waits.
_SEAL_S: Final = 5.0
_ASK_AGAIN_S: Final = 0.1


class Leaving(Marked, Protocol):
    """What ends; `term.Term` satisfies it."""

    peers: Peers
    marking: Marking
    is_yielding: bool
    """Whether the fence is kept closed for a moment, so that others catch up."""

    def close_fence(self) -> None:
        """Lock the application out; returns at once."""
        ...

    async def stepped(self) -> None:
        """Return after the next step of the replica."""
        ...


async def leave(term: Leaving) -> None:
    """Capture and seal what is committed, let it become final, and hand over; bounded."""
    term.close_fence()
    with trio.move_on_after(_STEP_S):
        await _seal_all(term)
        await term.driver.performer.idle()
    with trio.move_on_after(_STEP_S) as scope:
        await term.marking.leave()
    if scope.cancelled_caught:
        log.warning("left_writable", shard=term.shard, path=str(term.file.path))
    with trio.move_on_after(_STEP_S):
        await hand_over(term)
    with trio.move_on_after(_STEP_S):
        await term.driver.performer.idle()
        await term.settler.drained()


@contextmanager
def locked_out(term: Leaving) -> Iterator[None]:
    """Keep the application from committing meanwhile; it may wait for that."""
    before, term.is_yielding = term.is_yielding, True
    try:
        term.close_fence()
        yield
    finally:
        term.is_yielding = before


async def yield_to(term: Leaving, target: Voter) -> None:
    """Lock the application out, have all sealed that it committed, then want ``target`` to lead.

    A target that is near catches up meanwhile.

    Raises `UnavailableError` where that takes too long; nothing is changed then.
    """
    with locked_out(term), trio.move_on_after(_SEAL_S):
        if await _seal_all(term) and await _caught_up(term, target):
            term.driver.step(TransferWanted(target=target.key))
            return
    raise UnavailableError(
        f"{target.node_id} could not have all that the application of this node committed to shard "
        f"{term.shard} within {_SEAL_S:.0f} s: it is in the middle of a transaction, or too few "
        "nodes answer. Nothing was changed; try again."
    )


async def _caught_up(term: Leaving, target: Voter) -> bool:
    """Return True once ``target`` is caught up, and False when this node does not lead any more."""
    replica = term.driver.replica
    while replica.is_leader and not replica.is_caught_up(target, instant()):
        term.driver.step(SurveyWanted())
        with trio.move_on_after(_ASK_AGAIN_S):
            await term.stepped()
    return replica.is_leader


async def try_to_yield(term: Leaving, target: Voter) -> None:
    """Do the same, and say so where it cannot be."""
    try:
        await yield_to(term, target)
    except UnavailableError as error:
        log.warning("writer_stays", shard=term.shard, reason=str(error))


async def _seal_all(term: Leaving) -> bool:
    """Return whether all that was committed here is sealed, once the fence is closed."""
    await term.file.held()
    writer = term.writer
    return writer is None or (await writer.follower.look() and await writer.drained())


async def hand_over(term: Leaving) -> None:
    """Let a voter lead that is caught up, so that nobody has to wait for an election."""
    replica = term.driver.replica
    heir = await _find_heir(term) if replica.is_leader else None
    if heir is None:
        return
    log.info("handing_over", shard=term.shard, to=heir.key.hex())
    term.driver.step(TransferWanted(target=heir.key))
    while replica.is_leader:
        await term.stepped()


async def _find_heir(term: Leaving) -> Voter | None:
    """Return who shall lead; None if nobody is here. Waits for candidates to say where they are."""
    replica, me = term.driver.replica, term.peers.signer.public
    is_asked = False
    while candidates := find_candidates(replica, me, term.peers.connected):
        if heirs := find_heirs(replica, candidates, instant()):
            return heirs[0]
        if not is_asked:
            is_asked = True
            term.driver.step(SurveyWanted())
        await term.stepped()
    return None
