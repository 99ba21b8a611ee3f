"""States instead of frames: what a node offers when it has pruned, and how it takes an offer over.

This is the driver's part that `engine.adoption` describes, in its order, and cut by a crash between
any two steps. An offer carries what proves it (the CONFIGs from the genesis, the certificate) and,
since databases are toys here, the whole content, which must give the certified root. Nobody is
believed: a liar's offer may have another content.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from basenet.engine.adoption import adopt, is_news, kept_heads, place_of, undecided
from basenet.engine.ballot import FIRST_EPOCH
from basenet.engine.events import Applied
from basenet.errors import CertificateInvalid, ChainBroken
from basenet.testing.simulator.clock import MILLISECOND
from basenet.testing.simulator.network import BULK, ORDINARY
from basenet.testing.simulator.state import EMPTY_ROOT, root_after
from basenet.units import PublicKeyBytes, Seq
from basenet.wire.certificate import Certificate
from basenet.wire.finality import Electors, Succession, verify_final, verify_line
from basenet.wire.frame import Frame, Kind
from basenet.wire.message import SyncRequest
from basenet.wire.payload import decode_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from basenet.testing.simulator.node import Node

_FETCH_MAX: Final = 400 * MILLISECOND
_MEND_MAX: Final = 600 * MILLISECOND
_FALSE_SHARE: Final = 0.3
_IN_PLACE_SHARE: Final = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class StateOffered:
    """A final state, instead of the frames above ``above`` that somebody asked for.

    ``line``: the CONFIGs after the genesis, each with its certificate; ``frame`` with its own.
    """

    above: Seq
    line: tuple[tuple[Frame, Certificate | None], ...]
    frame: Frame
    certificate: Certificate | None
    commits: tuple[int, ...]


class Adopting:
    """One node's side of states: serving them, and being made anew from one."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._fetching_in = 0

    # Who has pruned.

    def offer(self, to: PublicKeyBytes, above: Seq) -> None:
        """Offer the newest final state that the database can give the pages of."""
        node = self._node
        frame = self._newest()
        if frame is None or frame.head.seq <= above:
            return
        disk = node.disk
        configs = [
            (disk.frames[digest], disk.certificates.get(height))
            for height, digest in sorted(disk.history.items())
            if height <= frame.head.seq and disk.frames[digest].head.kind == Kind.CONFIG
        ]
        known = {one.head.hash for one, _ in disk.line} | {node.world.genesis.head.hash}
        commits = disk.commits_at(frame.head)
        if node.liar is not None and node.chance.random() < _FALSE_SHARE:
            commits = (*commits, node.world.new_commit())
        offered = StateOffered(
            above=above,
            line=(*disk.line, *(one for one in configs if one[0].head.hash not in known)),
            frame=frame,
            certificate=disk.certificates.get(frame.head.seq),
            commits=commits,
        )
        node.post((to,), BULK, offered)

    def _newest(self) -> Frame | None:
        """Return the highest final frame that is proven here and that the database has reached."""
        node, disk = self._node, self._node.disk
        top = min(disk.ballot.final.height, disk.place[0], node.world.truth.top)
        for height in range(top, 0, -1):
            digest = disk.history.get(Seq(height))
            if digest is None:
                return None
            frame = disk.frames[digest]
            is_alone = len(node.world.truth.configs[frame.head.epoch].voters) == 1
            if not frame.head.is_partial and (is_alone or height in disk.certificates):
                return frame
        return None

    # Who lags.

    def offered(self, sender: PublicKeyBytes, offered: StateOffered) -> None:
        """Take an offer that is news and proven; ask again if it answers for less than is held."""
        node = self._node
        ballot = node.disk.ballot
        electors = self._judge(offered)
        if electors is None or node.run == self._fetching_in:
            return
        if not is_news(ballot, electors, place_of(electors, offered.frame.head, None)):
            return
        if offered.above < ballot.final.height:
            request = SyncRequest(epoch=ballot.epoch, above_height=ballot.final.height)
            node.post((sender,), ORDINARY, request)
            return
        self._fetching_in = node.run
        node.later(node.chance.randrange(_FETCH_MAX), self._take, (electors, offered))

    def _judge(self, offered: StateOffered) -> Electors | None:
        """Return who decided about the state, None when anything about it is not proven."""
        world, head = self._node.world, offered.frame.head
        genesis = Electors(
            scope=world.scope, epoch=FIRST_EPOCH, config=world.config, head=world.genesis.head
        )
        line = [
            Succession(head=frame.head, config=decode_config(frame.payload), certificate=votes)
            for frame, votes in offered.line
        ]
        try:
            electors = verify_line(genesis, line, verify=world.notary.verify)
            if head.hash != electors.head.hash:
                verify_final(electors, [head], offered.certificate, verify=world.notary.verify)
        except (CertificateInvalid, ChainBroken) as error:
            if self._node.world.transcript is not None:
                world.note(self._node, "gets a state that is not proven", str(error))
            return None
        if root_after(EMPTY_ROOT, offered.commits) != head.state_root:
            return None
        return electors

    def _take(self, what: tuple[Electors, StateOffered]) -> None:
        """Take the state over, step by step, and die between two of them if a crash is armed."""
        self._fetching_in = 0
        electors, offered = what
        node = self._node
        final = place_of(electors, offered.frame.head, offered.certificate)
        if not is_news(node.disk.ballot, electors, final):
            return
        if node.world.transcript is not None:
            node.world.note(node, f"adopts a state at {final.height}", offered.certificate)
        steps: list[Callable[[], None]] = [
            self._keep_undecided,
            lambda: self._jump(electors, offered),
            self._begin_anew,
        ]
        crash = node.crash
        done = len(steps) if crash is None else int(crash.cut * len(steps))
        for step in steps[:done]:
            step()
        if crash is not None:
            node.die(crash.down, is_machine=crash.is_machine)

    def _keep_undecided(self) -> None:
        disk = self._node.disk
        self._node.application.slip()
        disk.capture()
        if disk.mending is None:
            frames = disk.frames
            heads = undecided(disk.ballot, disk.place, lambda digest: frames[digest].head)
            disk.leave_undecided(heads)

    def _jump(self, electors: Electors, offered: StateOffered) -> None:
        node, disk, head = self._node, self._node.disk, offered.frame.head
        ballot = adopt(
            disk.ballot,
            me=(node.key, disk.journal_id),
            electors=electors,
            head=head,
            certificate=offered.certificate,
        )
        kept = kept_heads(ballot, head, [frame.head for frame in disk.frames.values()])
        line = [one for one in offered.line if one[0].head.hash != head.hash]
        if node.is_honest:
            node.record.on_adopt(ballot, offered.frame, offered.certificate)
        disk.adopt(ballot, (offered.frame, offered.certificate), line, kept, offered.commits)
        node.world.adoptions += 1

    def _begin_anew(self) -> None:
        """Make the replica anew, beside the same lane of heartbeats or in another process."""
        node = self._node
        if node.chance.random() < _IN_PLACE_SHARE:
            node.begin(node.pulse)
        else:
            node.die(MILLISECOND, is_machine=False)

    # The database.

    def mend_later(self) -> None:
        """Bring the database to the state that was adopted; half of it first, as pages come."""
        node, mending = self._node, self._node.disk.mending
        assert mending is not None, "nothing to mend"
        node.disk.commits = list(mending.commits[: len(mending.commits) // 2])
        node.later(node.chance.randrange(_MEND_MAX), self._mend, None)

    def _mend(self, _: object) -> None:
        node, disk = self._node, self._node.disk
        mending = disk.mending
        assert mending is not None, "nothing to mend"
        disk.commits = list(mending.commits)
        disk.place = (mending.head.seq, mending.head.hash)
        disk.place_commits = len(disk.commits)
        disk.mending = None
        node.application.forget()
        node.step(Applied(seq=mending.head.seq))
        node.apply(None)
