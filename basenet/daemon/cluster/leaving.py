"""A term ends on purpose: what is committed is sealed, the file marked, the lead handed over.

Every step is bounded, since whoever stops a node waits for it: what could not be done in time is
done by the next start, from the journal. Only a file that could not be marked stays as it is
meanwhile, which is said.
"""

from typing import Final, Protocol

import structlog
import trio

from basenet.daemon.cluster.heirs import find_candidates, find_heirs
from basenet.daemon.cluster.marking import Marked, Marking
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.framer import instant
from basenet.engine.events import SurveyWanted, TransferWanted
from basenet.wire.payload import Voter

log = structlog.get_logger()

_STEP_S: Final = 2.0


class Leaving(Marked, Protocol):
    """What ends; `term.Term` satisfies it."""

    peers: Peers
    marking: Marking

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
        await term.file.held()
        if term.writer is not None:
            await term.writer.follower.look()
            await term.writer.drained()
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
