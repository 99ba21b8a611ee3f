"""Which blocks a snapshot stores anew: those that changed, within bounds on parts and bytes."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.archive.layout import MORE_PARTS, Layout, OldPart, make_extents, plan_layout
from basenet.wire.pageset import IndexRow, Part

STEP = 256
SIZE = 4096


def digest(text: str) -> bytes:
    return text.encode().ljust(32, b".")


class Database:
    """Groups with a content each, and the parts of its newest snapshot."""

    def __init__(self, groups: int) -> None:
        self.content = dict.fromkeys(range(groups), 0)
        self.old: list[OldPart] = []
        self.rows: list[IndexRow] = []

    def hashes(self) -> bytes:
        return b"".join(digest(f"{group}:{self.content[group]}") for group in self.content)

    def snapshot(self) -> Layout:
        layout = plan_layout(self.hashes(), SIZE, self.rows, self.old)
        new = []
        for cut in layout.cuts:
            sizes = tuple(100 + group % 7 for group in cut)
            part = Part(first_group=0, stored_len=sum(sizes), node_hash=b"")
            offsets = tuple(sum(sizes[:place]) for place in range(len(sizes)))
            new.append(OldPart(part=part, groups=tuple(cut), offsets=offsets, sizes=sizes))
        self.old = [*layout.kept, *new]
        self.rows = [
            IndexRow(stored_size=100 + group % 7, group_hash=digest(f"{group}:{content}"))
            for group, content in self.content.items()
        ]
        return layout


def test_a_first_snapshot_is_cut_into_subtrees() -> None:
    """As it always was: readers from before patched sets read it."""
    layout = Database(600).snapshot()
    assert layout == Layout(kept=(), cuts=(range(256), range(256, 512), range(512, 600)))


def test_what_changed_is_stored_and_nothing_else() -> None:
    """Wherever it lies."""
    database = Database(600)
    database.snapshot()
    database.content |= {3: 1, 300: 1, 600: 0}
    layout = database.snapshot()
    assert layout.cuts == ([3, 300, 600],)
    assert [len(part.groups) for part in layout.kept] == [255, 255, 88]
    assert [(one.first_group, one.groups, one.part) for one in make_extents(database.old)] == [
        (0, 3, 0), (3, 1, 3), (4, 252, 0), (256, 44, 1), (300, 1, 3), (301, 211, 1),
        (512, 88, 2), (600, 1, 3),
    ]  # fmt: skip


def test_a_part_of_which_less_than_half_is_of_use_is_stored_anew() -> None:
    """So a restore reads at most twice what it needs."""
    database = Database(512)
    database.snapshot()
    database.content |= dict.fromkeys(range(129), 1)
    layout = database.snapshot()
    assert [one.groups[0] for one in layout.kept] == [256]
    assert layout.cuts == (list(range(256)),)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), groups=st.integers(1, 1500), rounds=st.integers(1, 40))
def test_any_history_of_snapshots_stays_within_its_bounds(
    seed: int, groups: int, rounds: int
) -> None:
    """Every group has one place; parts are few, and half of each is of use."""
    chance = random.Random(seed)
    database = Database(groups)
    database.snapshot()
    for _ in range(rounds):
        count = len(database.content)
        for group in chance.sample(range(count), chance.randint(0, max(1, count // 10))):
            database.content[group] += 1
        if chance.random() < 0.2:
            count = chance.randint(1, count)
            database.content = {group: database.content[group] for group in range(count)}
        database.content |= dict.fromkeys(range(count, count + chance.randint(0, 60)), 0)
        changed = {
            group
            for group, content in database.content.items()
            if group >= len(database.rows)
            or database.rows[group].group_hash != digest(f"{group}:{content}")
        }
        layout = database.snapshot()
        placed = sorted(group for one in database.old for group in one.groups)
        assert placed == list(range(len(database.content)))
        assert changed <= {group for cut in layout.cuts for group in cut}
        ideal = -(-len(placed) // STEP)
        assert len(database.old) <= 2 * ideal + MORE_PARTS
        assert all(sum(one.sizes) * 2 >= one.part.stored_len for one in database.old)
        assert all(len(cut) <= STEP for cut in layout.cuts)
        extents = make_extents(database.old)
        assert [group for one in extents for group in one.span] == placed
        for one in extents:
            place = database.old[one.part].groups.index(one.first_group)
            assert database.old[one.part].offsets[place] == one.offset
