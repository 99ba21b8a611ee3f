"""The invariants, seen from outside: what no run may ever show, checked as it happens.

The checkers know everything: true time, every disk, every commit. They use none of the engine's
code but the layout of what is signed, so that a fault of the engine cannot hide itself: a
certificate is verified from the CONFIG frames alone, as a third party would.

=============  ===================================================================================
agreement      one hash for each (lineage, height), whoever calls it final
chain          every final frame links to the one before; its root is what its commits give
certificates   final means: a quorum of exactly that epoch's voters signed, or its only voter did
durability     what a node called final stays on its disk, in its ballot and in its database
fencing        at no instant of true time two nodes may write
local commits  each is in exactly one of waiting, un-final, final, orphaned; orphans never come back
order          a database takes frames one by one, none left out
reads          what was final before a read was asked for is below what the read waits for
=============  ===================================================================================
"""

from collections import Counter
from typing import Final

from basenet.engine.ballot import Ballot
from basenet.engine.effects import Persist
from basenet.testing.simulator.disk import Disk
from basenet.testing.simulator.signatures import Notary
from basenet.testing.simulator.state import commits_of, expected_root
from basenet.units import Epoch, FrameHash, LocalNumber, Seq
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Frame, Head, Kind
from basenet.wire.payload import ConfigPayload, FaultModel, decode_config
from basenet.wire.tuples import Scope

COMMIT_PHASE: Final = 2


class Violation(Exception):  # noqa: N818  (what it is, not what to do with it)
    """A run showed what no run may show; the text says what, where and when."""


def quorum_of(config: ConfigPayload) -> int:
    """Return how many voters make a frame final (protocol.md 2.2), worked out a second time."""
    count = len(config.voters)
    if config.fault_model == FaultModel.CRASH:
        return count // 2 + 1
    return (count + (count - 1) // 3) // 2 + 1


class Truth:
    """What is final in one lineage, whoever knows it.

    ``heads`` by height, ``configs`` by epoch, ``commits``: the height of each final commit.
    """

    def __init__(self, genesis: Frame, scope: Scope, notary: Notary) -> None:
        head = genesis.head
        self.heads: dict[int, Head] = {head.seq: head}
        self.configs: dict[int, ConfigPayload] = {head.epoch: decode_config(genesis.payload)}
        self.commits: dict[int, int] = {}
        self.top = head.seq
        self._first = head.seq
        self._root = head.state_root
        self._scope = scope
        self._notary = notary
        self._known: set[tuple[int, int, int, bytes]] = set()

    def accept(self, frame: Frame, who: str) -> None:
        """Take in that ``who`` calls ``frame`` final; raise `Violation` if it cannot be."""
        head = frame.head
        known = self.heads.get(head.seq)
        if known is not None:
            if known.hash != head.hash:
                raise Violation(
                    f"agreement: {who} calls {head.hash.hex()[:8]} final at {head.seq}, where "
                    f"{known.hash.hex()[:8]} is final"
                )
            return
        before = self.heads.get(head.seq - 1)
        if before is None or before.hash != head.prev_hash:
            raise Violation(f"chain: {who} calls frame {head.seq} final, which follows nothing")
        if before.kind == Kind.CONFIG and before.seq != self._first and head.epoch == before.epoch:
            raise Violation(
                f"chain: {who} calls {head.seq} final in the epoch that {before.seq} ended"
            )
        self._extend(frame, who)

    def commits_up_to(self, height: Seq) -> list[int]:
        """Return the final commits up to a height, in order."""
        return [commit for commit, at in self.commits.items() if at <= height]

    def _extend(self, frame: Frame, who: str) -> None:
        head = frame.head
        root = expected_root(self._root, frame)
        if head.state_root != root:
            raise Violation(f"roots: {who} calls frame {head.seq} final, whose root is wrong")
        if not head.is_partial:
            self._root = head.state_root
        for commit in commits_of(frame):
            if commit in self.commits:
                raise Violation(
                    f"local commits: {commit} is final at {self.commits[commit]} and {head.seq}"
                )
            self.commits[commit] = head.seq
        if head.kind == Kind.CONFIG:
            self.configs[head.epoch + 1] = decode_config(frame.payload)
        self.heads[head.seq] = head
        self.top = head.seq

    def certify(self, certificate: Certificate | None, last: Head, who: str) -> None:
        """Raise `Violation` unless ``certificate`` makes ``last`` final for a third party."""
        config = self.configs.get(last.epoch)
        if config is None:
            raise Violation(f"certificates: {who} calls {last.seq} final in an unknown epoch")
        if certificate is None:
            if len(config.voters) > 1:
                raise Violation(f"certificates: {who} calls {last.seq} final without one")
            return
        name = (certificate.epoch, certificate.view, certificate.height, certificate.hash)
        if name in self._known:
            return
        if (certificate.height, certificate.hash) != (last.seq, last.hash):
            raise Violation(f"certificates: {who} shows one for another frame than {last.seq}")
        self._verify(certificate, self.configs.get(certificate.epoch), who)
        self._known.add(name)

    def _verify(self, certificate: Certificate, config: ConfigPayload | None, who: str) -> None:
        if config is None or certificate.phase != COMMIT_PHASE:
            raise Violation(f"certificates: {who} shows one of a wrong epoch or phase")
        voters = {voter.key for voter in config.voters}
        keys = [key for key, _ in certificate.votes]
        message = self._scope.vote(
            certificate.epoch,
            certificate.view,
            certificate.phase,
            certificate.height,
            certificate.hash,
        )
        right = [
            key
            for key, signature in certificate.votes
            if key in voters and self._notary.verify(key, signature, message)
        ]
        if keys != sorted(set(keys)) or right != keys or len(right) < quorum_of(config):
            raise Violation(
                f"certificates: {who} shows one for {certificate.height} that does not hold: "
                f"{len(right)} good votes of {len(keys)} where {quorum_of(config)} are needed"
            )


class NodeRecord:
    """What one disk's node has said and done so far, to hold it to it.

    ``final``: the highest frame that it called final; ``applied``: that its database holds.
    """

    def __init__(self, name: str, truth: Truth, start: Seq) -> None:
        self.name = name
        self._truth = truth
        self.final = start
        self._ballot_final = start
        self._term = (Epoch(0), -1)

    def on_persist(self, effect: Persist) -> None:
        """Refuse a ballot that goes back in its view or in what is final."""
        ballot = effect.ballot
        if ballot is None:
            return
        if ballot.final.height < self._ballot_final:
            raise Violation(
                f"durability: {self.name} persists final {ballot.final.height} after "
                f"{self._ballot_final}"
            )
        term = (ballot.epoch, ballot.view)
        if term < self._term:
            raise Violation(f"durability: {self.name} persists {term} after {self._term}")
        self._ballot_final, self._term = ballot.final.height, term

    def on_final(
        self, heads: tuple[Head, ...], certificate: Certificate | None, disk: Disk
    ) -> None:
        """Refuse final frames that are not the next, held, agreed upon, and certified."""
        if heads[0].seq > self.final + 1:
            raise Violation(
                f"order: {self.name} calls {heads[0].seq} final, but {self.final} was its last"
            )
        for head in heads:
            frame = disk.frames.get(head.hash)
            if frame is None:
                raise Violation(f"durability: {self.name} calls {head.seq} final, not held")
            self._truth.accept(frame, self.name)
        last = heads[-1]
        if last.is_partial:
            raise Violation(f"order: {self.name} calls the inside of a run final, {last.seq}")
        self._truth.certify(certificate, last, self.name)
        self.final = max(self.final, last.seq)

    def on_adopt(self, ballot: Ballot, frame: Frame, certificate: Certificate | None) -> None:
        """Refuse a state that is not final, or not proven, or that takes a ballot back."""
        self.on_persist(Persist(ballot=ballot))
        self._truth.accept(frame, self.name)
        self._truth.certify(certificate, frame.head, self.name)
        self.final = max(self.final, frame.head.seq)

    def on_apply(self, frame: Frame, place: tuple[Seq, FrameHash]) -> None:
        """Refuse a frame that does not follow what the database holds, or is not final."""
        head = frame.head
        if (head.seq, head.prev_hash) != (place[0] + 1, place[1]):
            raise Violation(f"order: {self.name} applies {head.seq} on {place[0]}")
        known = self._truth.heads.get(head.seq)
        if known is None or known.hash != head.hash:
            raise Violation(f"order: {self.name} applies {head.seq}, which is not final")

    def on_orphans(self, kept: dict[LocalNumber, int], kept_height: Seq, orphans: set[int]) -> None:
        """Refuse to undo what is final."""
        if kept_height < self.final:
            raise Violation(
                f"durability: {self.name} rolls back to {kept_height}, but {self.final} is final"
            )
        for commit in kept.values():
            if commit in self._truth.commits:
                raise Violation(
                    f"local commits: {self.name} orphans {commit}, final at "
                    f"{self._truth.commits[commit]}"
                )
        orphans.update(kept.values())

    def audit(self, disk: Disk) -> Counter[str]:
        """Count where the local commits are; raise `Violation` if one is in none or in two."""
        found: Counter[LocalNumber] = Counter(row.number for row in disk.waiting)
        places: Counter[str] = Counter(waiting=len(disk.waiting))
        for digest, (first, _) in disk.ranges.items():
            head, known = disk.frames[digest].head, self._truth.heads
            is_final = head.seq in known and known[head.seq].hash == digest
            for index, _ in enumerate(commits_of(disk.frames[digest])):
                number = LocalNumber(first + index)
                found[number] += 1
                is_orphan = number in disk.orphans
                if is_final and is_orphan:
                    raise Violation(f"local commits: {self.name}'s {number} is final and orphaned")
                places["final" if is_final else "orphaned" if is_orphan else "un-final"] += 1
        for kept, name in ((disk.settled, "final"), (disk.undecided, "undecided")):
            found.update(kept.keys())
            places[name] += len(kept)
        for number in disk.orphans:
            if number not in found:
                found[number] += 1
                places["orphaned"] += 1
        for captured in range(1, disk.local_captured + 1):
            if (count := found[LocalNumber(captured)]) != 1:
                raise Violation(f"local commits: {self.name}'s {captured} is in {count} places")
        self._check_database(disk)
        return places

    def _check_database(self, disk: Disk) -> None:
        """Refuse a database that is not the chain up to its place, and then what waits."""
        if disk.mending is not None:
            return
        expected: list[int] = []
        height, digest = disk.place
        while digest in disk.frames:
            frame = disk.frames[digest]
            expected[:0] = commits_of(frame)
            height, digest = Seq(height - 1), frame.head.prev_hash
        # What was pruned is final.
        expected[:0] = self._truth.commits_up_to(height)
        expected += [row.commit for row in disk.waiting]
        if disk.commits[: len(expected)] != expected:
            raise Violation(f"order: the database of {self.name} is not what its place says")
