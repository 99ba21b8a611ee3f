"""The tree of states: judged, settled and taken in any order, its roots are a plain model's."""

import copy
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.daemon.cluster.branch import Branch, BranchLost
from basenet.errors import CorruptionError
from basenet.sqlite.captured import Captured, CaptureFlag, Cursor
from basenet.units import FrameHash, Seq, StateRoot
from basenet.wire.frame import Flag, Frame, Head, Kind
from basenet.wire.merkle import StateTree, leaf_hash
from basenet.wire.payload import decode_commit
from tests.fakes.branching import Branching
from tests.fakes.chain import Chain

CURSOR = Cursor(
    device=1, inode=1, page_size=512, salts=bytes(8), frame=0, checksum=(0, 0), change=0
)


def root_of(chain: Chain, seq: int) -> StateRoot:
    image = chain.image(seq)
    return StateTree(
        chain.page_size, b"".join(leaf_hash(pgno, image[pgno]) for pgno in sorted(image))
    ).root()


def branch_of(chain: Chain) -> Branch:
    """The branch that begins at the chain's genesis."""
    image = chain.images[0]
    leaves = b"".join(leaf_hash(pgno, image[pgno]) for pgno in sorted(image))
    head = chain.frames[0].head
    return Branch(StateTree(chain.page_size, leaves), (head.seq, head.hash))


def small() -> Chain:
    return Chain(pages={pgno: bytes([pgno]) * 512 for pgno in range(1, 21)})


def getter(*chains: Chain) -> Callable[[FrameHash], Frame]:
    """Return what holds all frames of ``chains``."""
    frames = {frame.head.hash: frame for chain in chains for frame in chain.frames}

    def get(digest: FrameHash) -> Frame:
        if digest not in frames:
            raise CorruptionError("not held")
        return frames[digest]

    return get


def heads_of(chain: Chain, first: int, last: int) -> list[Head]:
    return [chain.frame(seq).head for seq in range(first, last + 1)]


def captured(chain: Chain, frame: Frame) -> Captured:
    """What capture would have handed over for ``frame``."""
    payload = decode_commit(frame.payload)
    return Captured(
        page_size=chain.page_size,
        db_pages=payload.db_pages,
        commits=payload.commits,
        pgnos=payload.pgnos,
        pages=bytes(payload.pages),
        flags=CaptureFlag(int(frame.head.flags)),
        cursor=CURSOR,
        captured_ns=frame.head.timestamp_ns,
    )


class Forest:
    """Two branches above one trunk, of commits, runs, growth, and smaller databases."""

    def __init__(self, seed: int) -> None:
        chance = Random(seed)
        self.trunk = small()
        self.trunk.rng.seed(seed)
        self._grow(self.trunk, chance, chance.randint(0, 4))
        self.fork = self.trunk.tip.head.seq
        self.left = copy.deepcopy(self.trunk, {id(self.trunk.signer): self.trunk.signer})
        self.right = copy.deepcopy(self.trunk, {id(self.trunk.signer): self.trunk.signer})
        self.right.rng.seed(seed + 1)
        self._grow(self.left, chance, chance.randint(1, 5))
        self._grow(self.right, chance, chance.randint(1, 5))
        self.get = getter(self.left, self.right)

    @staticmethod
    def _grow(chain: Chain, chance: Random, count: int) -> None:
        for _ in range(count):
            if chance.random() < 0.3:
                changes = {pgno: chain.page() for pgno in range(1, chain.db_pages + 1)}
                chain.commit(changes, run=chance.randint(2, 3))
            else:
                chain.random_commit(grow=chance.randint(-3, 3))


def whole(chain: Chain, last: int) -> int:
    """The last frame at or below ``last`` that ends a transaction."""
    while chain.frame(last).head.is_partial:
        last -= 1
    return last


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), acts=st.lists(st.integers(0, 10**6), max_size=12))
def test_any_order_of_acts_gives_the_models_roots(seed: int, acts: list[int]) -> None:
    """Judge either branch, settle parts of one, ask for states: every root is the model's."""
    forest = Forest(seed)
    branch = branch_of(forest.trunk)
    final, winner = forest.trunk.start, None
    for act in acts:
        chain = winner or (forest.left, forest.right)[act % 2]
        last = chain.tip.head.seq
        if last == final:
            break
        seq = final + 1 + act // 7 % (last - final)
        match act // 2 % 3:
            case 0:
                assert branch.judge(heads_of(chain, final + 1, seq), forest.get) is None
                if not chain.frame(seq).head.is_partial:
                    assert branch.tip.root() == root_of(chain, seq)
            case 1 if whole(chain, seq) > final:
                seq = whole(chain, seq)
                branch.settle(heads_of(chain, final + 1, seq), forest.get)
                assert branch.final.root() == root_of(chain, seq)
                final = seq
                if seq > forest.fork:
                    winner = chain
            case _:
                seq = whole(chain, seq)
                if seq >= final:
                    state = branch.state_at(chain.frame(seq).head, forest.get)
                    assert state.root() == root_of(chain, seq)
    assert branch.final.root() == root_of(winner or forest.trunk, final) or final <= forest.fork


def test_settled_groups_are_those_that_changed() -> None:
    """Applied to the leaf hashes before, they give the tree after; also of a shrunken database."""
    chain = small()
    for grow in (5, -9, 20, 0):
        chain.random_commit(grow=grow)
    branch = branch_of(chain)
    leaves = bytearray(branch.final.leaves)
    groups = branch.settle(heads_of(chain, 2, 5), getter(chain))
    pages = branch.final.db_pages
    leaves = (leaves + bytes(32 * pages))[: 32 * pages]
    for group, hashes in groups.items():
        leaves[group * 512 : group * 512 + len(hashes)] = hashes
    assert StateTree(512, leaves).root() == root_of(chain, 5)


def test_what_is_little_work_is_told() -> None:
    """A few pages right behind the tip; and to settle, what was judged or sealed here."""
    chain = small()
    for _ in range(12):
        chain.random_commit()
    branch, get = branch_of(chain), getter(chain)
    assert branch.is_at(chain.frame(1).head.hash, 0)
    assert branch.is_next(heads_of(chain, 2, 3))
    assert not branch.is_next(heads_of(chain, 3, 4))
    assert not branch.is_next(heads_of(chain, 2, 12))
    assert not branch.is_remembered(heads_of(chain, 2, 3))
    assert branch.judge(heads_of(chain, 2, 4), get) is None
    assert branch.is_at(chain.frame(4).head.hash, 0)
    assert branch.is_remembered(heads_of(chain, 2, 4))
    assert not branch.is_remembered(heads_of(chain, 2, 5))
    branch.take(captured(chain, chain.frame(5)))
    assert branch.is_at(chain.frame(4).head.hash, 1)
    assert not branch.is_next(heads_of(chain, 5, 6))


def test_a_wrong_root_is_the_first_that_is_wrong() -> None:
    """What comes before it was right, and can be judged on."""
    chain, other = small(), small()
    chain.random_commit()
    other.commit({1: b"x" * 512})
    other.tree.update([2], [bytes(32)], 20)  # the author's tree is wrong from here on
    bad = other.random_commit()
    wrong = other.frames[-2:]
    branch = branch_of(other)
    assert branch.judge([frame.head for frame in wrong], getter(other)) == bad.head.hash
    assert branch.judge([other.frame(2).head], getter(other)) is None


def test_a_payload_that_decodes_to_nonsense_is_wrong() -> None:
    """Pages beyond the end, for instance: nobody else fails by them."""
    chain = small()
    frame = chain.random_commit()
    branch = branch_of(chain)

    def get(digest: FrameHash) -> Frame:
        assert digest == frame.head.hash
        return Frame(head=frame.head, payload=b"no payload")

    assert branch.judge([frame.head], get) == frame.head.hash
    assert branch.judge([frame.head], getter(chain)) is None


def test_when_the_final_state_is_wrong_nobody_is_blamed() -> None:
    """A refusal is a promise, so it must not come from our own damage (Q8)."""
    chain = small()
    frame = chain.random_commit()
    branch = branch_of(chain)
    branch.final.update([3], [bytes(32)], 20)
    branch.reset()
    with pytest.raises(CorruptionError, match="state root of the final frame"):
        branch.judge([frame.head], getter(chain))


def test_a_final_frame_with_another_root_is_never_kept() -> None:
    """What was caught up with was judged by nobody here before it is settled."""
    chain = small()
    chain.tree.update([2], [bytes(32)], 20)
    frame = chain.random_commit()
    with pytest.raises(CorruptionError, match="state root of the final frame 2"):
        branch_of(chain).settle([frame.head], getter(chain))


def test_frames_of_a_branch_that_lost_meanwhile_are_not_judged() -> None:
    """Their frames may be gone; what is final already is not judged again."""
    forest = Forest(3)
    forest.left.random_commit()
    forest.right.random_commit()
    branch = branch_of(forest.trunk)
    left, right, fork = forest.left, forest.right, forest.fork
    end = left.tip.head.seq
    right_heads = heads_of(right, fork + 1, right.tip.head.seq)
    branch.settle(heads_of(left, 2, end), getter(left))
    assert branch.judge(heads_of(left, fork + 1, end), getter()) is None
    above = [head for head in right_heads if head.seq > end]
    if not above:
        while right.tip.head.seq <= end:
            right.random_commit()
        above = [right.tip.head]
    with pytest.raises(BranchLost):
        branch.judge(above, getter(left, right))


def test_own_commits_are_taken_and_taken_again_behind_a_rival() -> None:
    """Judging another branch moves the tip; `come_to` brings it back."""
    chain, rival = small(), small()
    rival.rng.seed(99)
    rival.random_commit()
    frames = [chain.random_commit(grow=1) for _ in range(3)]
    branch = branch_of(chain)
    get = getter(chain, rival)
    genesis = chain.frames[0].head.hash
    changes = []
    for frame in frames[:2]:
        branch.come_to(genesis, changes, get)
        assert branch.take(captured(chain, frame)) == frame.head.state_root
        changes.append(branch.last_change())
        assert branch.judge([rival.tip.head], get) is None
    branch.come_to(genesis, changes, get)
    branch.sealed([frame.head for frame in frames[:2]], changes)
    assert branch.judge([frames[2].head], get) is None
    branch.settle([frame.head for frame in frames], get)
    assert branch.final.root() == frames[2].head.state_root


def test_an_open_run_tells_its_pages_until_it_ends() -> None:
    """So that one that a crash cut off can go on."""
    chain = small()
    pieces = chain.commit({pgno: chain.page() for pgno in range(1, 21)}, run=3)
    branch = branch_of(chain)
    get = getter(chain)
    branch.come_to(pieces[1].head.hash, (), get)
    pgnos, hashes = branch.open_run
    assert list(pgnos) == list(range(1, 14))
    assert [leaf_hash(pgno, chain.pages[pgno]) for pgno in pgnos] == list(hashes)
    assert branch.take(captured(chain, pieces[2])) == pieces[2].head.state_root
    assert branch.open_run == ((), ())


def test_another_page_size_begins_a_tree_anew() -> None:
    """Only a change of all pages can, and the groups are all of them."""
    chain = small()
    before = branch_of(chain)
    chain.page_size, chain.pages, chain.tree = 1024, {}, StateTree(1024)
    image = {pgno: bytes([pgno]) * 1024 for pgno in range(1, 4)}
    (frame,) = chain.commit(image, flags=Flag.RECOVERED)
    groups = before.settle([frame.head], getter(chain))
    assert (before.final.page_size, before.final.db_pages) == (1024, 3)
    assert set(groups) == {0}


def test_a_config_changes_no_page() -> None:
    """It stands in a branch like any frame."""
    chain = small()
    branching = Branching(chain)
    chain.random_commit()
    branching.new_config()
    chain.random_commit()
    branch = branch_of(chain)
    heads = heads_of(chain, 2, 4)
    assert heads[1].kind is Kind.CONFIG
    assert branch.judge(heads, getter(chain)) is None
    branch.settle(heads[:2], getter(chain))
    assert branch.final_place == (Seq(3), heads[1].hash)
    assert np.frombuffer(bytes(branch.final.leaves), np.uint8).size == 32 * branch.final.db_pages


def test_a_run_that_is_framed_in_part_goes_on_behind_a_rival() -> None:
    """Its pieces wait to be sealed while another branch is judged."""
    chain, rival = small(), small()
    rival.rng.seed(99)
    rival.random_commit()
    pieces = chain.commit({pgno: chain.page() for pgno in range(1, 25)}, run=3)
    branch = branch_of(chain)
    get = getter(chain, rival)
    changes = []
    for piece in pieces:
        branch.come_to(chain.frames[0].head.hash, changes, get)
        root = branch.take(captured(chain, piece))
        changes.append(branch.last_change())
        assert branch.judge([rival.tip.head], get) is None
    assert root == pieces[-1].head.state_root
