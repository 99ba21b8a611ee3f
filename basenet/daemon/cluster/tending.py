"""What nobody asks for and should happen: the writer comes home, and is where it can write.

Theory of operation
===================

One task looks at all shards, at each once in `_TURNS` seconds, and at those where something is
under way every second. Three things it may do, each by means that an operator has, too:

*Home.* `BASE_WRITER` names where the application is that should write (Q26). After a failover
another node leads; once the preferred one is a voter again, connected and caught up for `_HOME_S`
without a break, the leader hands over. A preferred node that cannot keep the lead must not stop the
writes again and again: each hand-over doubles the time until the next, up to `_HOME_S_MAX`, and a
minute of leading makes it short again. An operator's `members transfer` away from it stands: the
release of a view tells the new leader that it was meant, until somebody else leads.

*Able to write.* A leader whose file is being mended, and a witness, which has none, lead a shard
that nobody can write to. They hand over to a voter that is caught up.

*Followers of one voter.* A single voter makes no certificates, so it has nothing to push to
learners; while things become final they ask more often than the engine does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog
import trio

from basenet.config.model import ClusterConfig, NodeRole
from basenet.daemon.cluster.heirs import find_candidates, find_heirs, is_near
from basenet.daemon.cluster.node import ClusterNode
from basenet.daemon.cluster.settling import Settler
from basenet.daemon.cluster.term import Term
from basenet.daemon.framer import instant
from basenet.engine.events import SurveyWanted
from basenet.engine.replica import Replica
from basenet.units import Epoch, Seq, ShardId, View
from basenet.wire.message import SyncRequest
from basenet.wire.payload import Voter

log = structlog.get_logger()

_LOOK_S: Final = 1.0
_TURNS: Final = 5
_HOME_S: Final = 10.0
_HOME_S_MAX: Final = 600.0
_STABLE_S: Final = 60.0
_STUCK_S: Final = 5.0
_BUSY_S: Final = 30.0


@dataclass(slots=True)
class Watched:
    """What was seen of one shard; times by `trio.current_time`.

    ``since_s``: since when a hand-over would be right. ``moves``: those that did not last.
    ``home_s``: since when the preferred node leads.
    """

    since_s: float | None = None
    moves: int = 0
    moved_s: float = field(default=float("-inf"))
    home_s: float | None = None
    final_seq: Seq = field(default=Seq(0))
    final_s: float = field(default=float("-inf"))

    def is_due(self, now_s: float, hold_s: float, *, is_right: bool, candidates: int = 1) -> bool:
        """Return whether ``is_right`` has held for ``hold_s``.

        It is doubled each time that moves to all the ``candidates`` were in vain.
        """
        if not is_right:
            self.since_s = None
            return False
        if self.since_s is None:
            self.since_s = now_s
        hold_s = min(hold_s * float(2 ** (self.moves // candidates)), _HOME_S_MAX)
        return now_s - self.since_s >= hold_s

    def moved(self, now_s: float) -> None:
        """Take note of a hand-over."""
        self.since_s, self.moved_s = None, now_s
        self.moves += 1

    def see_leader(self, now_s: float, *, is_home: bool) -> None:
        """Take note of who leads: after a minute at home the next hand-over is a first one."""
        if not is_home:
            self.home_s = None
        elif self.home_s is None:
            self.home_s = now_s
        elif now_s - self.home_s >= _STABLE_S:
            self.moves = 0

    def was_meant(self, released_s: float | None) -> bool:
        """Return whether the view began by a release that did not answer a move of ours."""
        return released_s is not None and released_s - self.moved_s > _STABLE_S


class Tended(Protocol):
    """A shard, as far as it is tended."""

    @property
    def shard(self) -> ShardId:
        """Its id."""
        ...

    @property
    def term(self) -> Term | None:
        """The term at work."""
        ...

    def released_at(self, epoch: Epoch, view: View) -> float | None:
        """Return when the lead was given up for ``view``; None: it was not, that is known here."""
        ...


class Steward:
    """Tends all shards of a node."""

    def __init__(
        self,
        shards: Mapping[ShardId, Tended],
        *,
        cluster: ClusterNode,
        config: ClusterConfig,
    ) -> None:
        self._shards = shards
        self._cluster = cluster
        self._writer = config.writer
        self._is_witness = config.node_role is NodeRole.WITNESS
        self._watched: dict[ShardId, Watched] = {}
        self._eager: set[ShardId] = set()

    async def run(self) -> None:
        """Look for ever."""
        turn = 0
        while True:
            await trio.sleep(_LOOK_S)
            turn = (turn + 1) % _TURNS
            for number, (shard, tended) in enumerate(list(self._shards.items())):
                if number % _TURNS == turn or shard in self._eager or self._is_witness:
                    self._look_at(tended)

    def _look_at(self, shard: Tended) -> None:
        term = shard.term
        if term is None or not term.is_at_work:
            return
        watched = self._watched.get(shard.shard)
        if watched is None:
            watched = self._watched[shard.shard] = Watched()
        self._tend(shard, term, watched)
        if watched.since_s is not None or not term.driver.replica.is_voter:
            self._eager.add(shard.shard)
        else:
            self._eager.discard(shard.shard)

    def _tend(self, shard: Tended, term: Term, watched: Watched) -> None:
        replica, now_s = term.driver.replica, trio.current_time()
        if not replica.is_voter:
            self._ask(term, replica, watched, now_s)
            return
        if self._writer is not None:
            watched.see_leader(now_s, is_home=self._name_of_leader(replica) == self._writer)
        if not replica.is_leader:
            # Whoever has been mending for a while need not wait again when the lead comes to it.
            hold = not self._is_witness and not term.settler.is_file_ready
            watched.is_due(now_s, _STUCK_S, is_right=hold)
            return
        must_go = self._is_witness or is_stuck(term.settler)
        if not must_go and self._writer in (None, self._cluster.me.node_id):
            watched.since_s = None  # as mostly
            return
        if not replica.is_open(instant()):
            return
        if must_go:
            hold_s = 0.0 if self._is_witness else _STUCK_S
            others = max(1, len(replica.ballot.config.voters) - 1)
            if watched.is_due(now_s, hold_s, is_right=True, candidates=others):
                target = self._any_able(term, watched.moves)
                self._hand_over(term, watched, target, "cannot write here")
            return
        home = self._home(shard, term, watched)
        if watched.is_due(now_s, _HOME_S, is_right=home is not None):
            self._hand_over(term, watched, home, "BASE_WRITER")

    def _hand_over(self, term: Term, watched: Watched, target: Voter | None, why: str) -> None:
        if target is None:
            return
        watched.moved(trio.current_time())
        term.log.info("writer_moves", to=target.node_id, why=why)
        term.hand_over_soon(target)

    def _name_of_leader(self, replica: Replica) -> str | None:
        leader = replica.leader
        voters = replica.ballot.config.voters
        return next((one.node_id for one in voters if one.key == leader), None)

    def _home(self, shard: Tended, term: Term, watched: Watched) -> Voter | None:
        """Return the preferred writer if it could lead now and nobody moved the lead from it."""
        replica = term.driver.replica
        ballot = replica.ballot
        found = self._heirs(term, only=self._writer) or self._near(term)
        if not found:
            return None
        if watched.was_meant(shard.released_at(ballot.epoch, ballot.view)):
            return None
        return found[0]

    def _any_able(self, term: Term, moves: int) -> Voter | None:
        """Return the next voter of the order that could lead, another one after each of ``moves``.

        It may be as unable to write as this node is, which is known there only: two such nodes
        that always named each other would keep the lead from a third for ever.
        """
        heirs = self._heirs(term)
        heirs.sort(key=lambda one: one.node_id != self._writer)
        return heirs[moves % len(heirs)] if heirs else None

    def _heirs(self, term: Term, only: str | None = None) -> list[Voter]:
        """Return who could lead; ask about those of whom that is not known."""
        replica = term.driver.replica
        candidates = find_candidates(replica, self._cluster.me.key, self._cluster.connected)
        if only is not None:
            candidates = [one for one in candidates if one.node_id == only]
        heirs = find_heirs(replica, candidates, instant())
        if len(heirs) < len(candidates):
            term.driver.step(SurveyWanted())
        return heirs

    def _near(self, term: Term) -> list[Voter]:
        """Return the preferred writer, if it is a little behind an application that never rests."""
        replica = term.driver.replica
        told = self._cluster.heights.find(term.shard, replica.ballot.config.lineage)
        return [
            one
            for one in find_candidates(replica, self._cluster.me.key, self._cluster.connected)
            if one.node_id == self._writer and is_near(replica, one, told)
        ]

    def _ask(self, term: Term, replica: Replica, watched: Watched, now_s: float) -> None:
        """Ask the only voter for what is final, while there is something now and then."""
        height = replica.final.height
        if height != watched.final_seq:
            watched.final_seq, watched.final_s = height, now_s
        ballot = replica.ballot
        if len(ballot.config.voters) == 1 and now_s - watched.final_s < _BUSY_S:
            message = SyncRequest(epoch=ballot.epoch, above_height=height)
            (sole,) = ballot.config.voters
            self._cluster.send((sole.key,), term.shard, ballot.config.lineage, message)


def is_stuck(settler: Settler) -> bool:
    """Return whether the file is mended or behind; a writer's own frames are in it already."""
    return not settler.is_file_ready or settler.place[0] < settler.settled[0]
