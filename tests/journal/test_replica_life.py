"""Everything at once: steps, settling, places, cuts and restarts in any order."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from basenet.journal.journal import Journal
from basenet.journal.records import BranchRow
from basenet.units import LocalNumber, Seq
from tests.fakes.branching import SHARD, Branching, certify, cursor_at
from tests.fakes.chain import Chain
from tests.journal.replicas import BIG, begin, check_replica


class LifeOfAReplica(RuleBasedStateMachine):
    """Against lists of what must be there.

    ``log``: the final frames; ``held``: the first of them that is still held; ``path``: the branch
    that is followed; ``beside``: what else is in the branch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self.story = Branching(Chain(pages={pgno: bytes(512) for pgno in range(1, 4)}))
        self.journal = begin(Path(self._folder.name), self.story)
        self.log: list[BranchRow] = []
        self.held = 1
        self.path: list[BranchRow] = []
        self.beside: list[BranchRow] = []
        self.proven: list[int] = []
        self.rivals = 0

    @property
    def tip(self) -> int:
        return 1 + len(self.log)

    def keep(self, rows: list[BranchRow]) -> None:
        self.journal.keep([self.story.step(rows)])
        self.path += rows

    @rule(count=st.integers(1, 3), pieces=st.integers(1, 3))
    def own(self, *, count: int, pieces: int) -> None:
        self.keep(self.story.own(count, pieces=pieces))

    @rule(count=st.integers(1, 3), pieces=st.integers(1, 3))
    def others(self, *, count: int, pieces: int) -> None:
        self.keep(self.story.others(count, pieces=pieces))

    @rule()
    def configure(self) -> None:
        self.keep(self.story.new_config())

    @rule(count=st.integers(1, 4))
    def rival(self, *, count: int) -> None:
        rival = self.story.fork()
        self.rivals += 1
        rival.chain.rng.seed(self.rivals)
        rows = rival.others(count)
        self.journal.keep([self.story.step(rows)])
        self.beside += rows

    @rule()
    def again(self) -> None:
        """What was kept before comes once more, final or not."""
        self.journal.keep([self.story.step(self.log + self.path + self.beside)])
        self.beside = [row for row in self.beside if row.head.seq > self.tip]

    @precondition(lambda self: self.path)
    @rule(part=st.floats(0, 1), is_certified=st.booleans(), is_placed=st.booleans())
    def settle(self, *, part: float, is_certified: bool, is_placed: bool) -> None:
        ends = [index for index, row in enumerate(self.path, 1) if not row.head.is_partial]
        cut = ends[int(part * (len(ends) - 1))]
        rows = self.path[:cut]
        # One certificate is of one epoch, and a CONFIG ends that.
        epochs = {row.head.epoch for row in rows}
        is_certified = is_certified and len(epochs) == 1
        head = rows[-1].head
        self.journal.settle(
            [
                self.story.settled(
                    rows,
                    is_certified=is_certified,
                    place=(head.seq, head.hash) if is_placed else None,
                    intent=b"inject",
                )
            ]
        )
        self.log += rows
        self.path = self.path[cut:]
        self.beside = [row for row in self.beside if row.head.seq > self.tip]
        if is_certified:
            self.proven.append(head.seq)

    @rule()
    def place(self) -> None:
        head = self.log[-1].head if self.log else self.story.chain.frames[0].head
        self.journal.set_place(
            SHARD,
            (Seq(head.seq), head.hash),
            cursor=cursor_at(head.seq),
            local_last=LocalNumber(0),
            intent=None,
        )

    @rule(back=st.integers(-1, 5))
    def archive(self, *, back: int) -> None:
        seq = max(self.tip - back, 0)
        self.journal.set_archived(SHARD, seq)
        self.held = max(self.held, min(seq, self.tip) + 1)

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = Journal(Path(self._folder.name))

    @invariant()
    def all_is_there(self) -> None:
        record = check_replica(self.journal)
        assert record.tip.seq == self.tip
        expected = {row.head.hash for row in self.path + self.beside}
        assert {head.hash for head in record.heads} == expected
        assert record.local_last == self.story.local_last
        rows = [(row.head.seq, row.record) for row in self.log if row.head.seq >= self.held]
        start = max(self.held, 2)
        assert self.journal.final_frames(SHARD, start, BIG, BIG) == rows

    @invariant()
    def proofs_are_the_lowest(self) -> None:
        frames = self.story.chain.frames
        configs = [row.head.seq for row in self.log if row.head.epoch < self._epoch_behind(row)]
        for seq in range(1, self.tip + 1):
            end = min([one for one in configs if one >= seq], default=BIG)
            heights = [height for height in self.proven if seq <= height <= end]
            expected = certify(frames[min(heights) - 1].head) if heights else None
            assert self.journal.certificate_for(SHARD, seq) == expected
        assert len(self.journal.config_chain(SHARD)) == 1 + len(configs)

    def _epoch_behind(self, row: BranchRow) -> int:
        frames = self.story.chain.frames
        seq = row.head.seq
        return frames[seq].head.epoch if seq < len(frames) else self.story.chain.epoch

    def teardown(self) -> None:
        self.journal.close()
        self._folder.cleanup()


TestLifeOfAReplica = LifeOfAReplica.TestCase
TestLifeOfAReplica.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
