"""What lost is kept whole, and kept once: a repeat after a crash finds the bundle of the first."""

from collections.abc import Callable
from pathlib import Path

import pytest

from basenet.daemon.cluster.branch import Branch
from basenet.daemon.cluster.orphaning import Bundler, Kept
from basenet.daemon.cluster.orphans import Bundle, Reason, list_bundles, read_bundle
from basenet.engine.effects import Orphan
from basenet.journal.records import BranchRow
from basenet.sqlite.captured import Captured
from basenet.units import LocalNumber
from basenet.wire.frame import Frame, Head, decode_frame
from basenet.wire.merkle import StateTree
from basenet.wire.payload import decode_commit
from tests.daemon.cluster.lines import Bench, a_line, at_bench
from tests.daemon.cluster.test_branch import captured
from tests.fakes.branching import SHARD, certify
from tests.fakes.chain import Chain


def item(bench: Bench, row: BranchRow) -> Captured:
    """What capture would hand over for a frame."""
    frame = decode_frame(row.record)
    assert isinstance(frame, Frame)
    return captured(bench.line.chain, frame)


def bundler(bench: Bench) -> Bundler:
    return Bundler(
        node=bench.node,
        signer=bench.line.chain.signer,
        shard=SHARD,
        lineage=bench.line.chain.lineage,
        branch=bench.branch,
        frames=bench.frames,
    )


async def keep(
    bench: Bench, lost: list[BranchRow], items: list[Captured], local_last: int = 7
) -> Kept:
    """Keep ``lost``, which follow the genesis, and ``items`` above them."""
    genesis = bench.line.chain.frames[0].head
    return await bundler(bench).keep(
        Orphan(
            heads=tuple(row.head for row in lost),
            kept_height=genesis.seq,
            certificate=certify(rival()),
        ),
        items,
        kept=genesis,
        local_last=LocalNumber(local_last),
        reason=Reason.DEPOSED,
    )


def rival() -> Head:
    """The frame that all of it lost against."""
    chain = Chain(number=2)
    for _ in range(3):
        chain.random_commit()
    return chain.tip.head


def bundles(bench: Bench) -> list[Bundle]:
    folder = bench.node.config.data_dir / "orphans"
    keys = frozenset({bench.line.chain.signer.public})
    return [read_bundle(path, keys) for path in list_bundles(folder)]


async def test_a_bundle_holds_the_frames_and_what_was_never_proposed(tmp_path: Path) -> None:
    """With their pages, numbers, the certificate; indexed, and accounted for in the journal."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        lost, waiting = line.create(), line.commit()
        bench.journal.keep([line.branching.step(lost)])
        kept = await keep(bench, lost, [item(bench, waiting[0])])
        (bundle,) = bundles(bench)
        assert bundle.path == kept.path
        assert [head.hash for head in bundle.heads][:1] == [lost[0].head.hash]
        assert bundle.heads[1].state_root == waiting[0].head.state_root
        facts = bundle.facts
        assert (facts.first_local, facts.last_local, facts.unproposed_seq) == (7, 8, 3)
        assert (kept.commits, kept.local_last) == (2, 8)
        assert bundle.certificate is not None
        pgnos = {
            int(pgno) for frame in bundle.frames() for pgno in decode_commit(frame.payload).pgnos
        }
        assert kept.pgnos == pgnos
        (row,) = bench.journal.orphans(SHARD)
        assert (row.path, row.commits, row.first_local, row.last_local) == (
            str(bundle.path),
            2,
            7,
            8,
        )
        assert bench.now().local_last == 8


async def test_a_repeat_writes_no_second_bundle(tmp_path: Path) -> None:
    """A crash came behind it; capture finds the same commits at another time."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        lost, waiting = line.create(), line.commit()
        bench.journal.keep([line.branching.step(lost)])
        first = await keep(bench, lost, [item(bench, waiting[0])])
    async with at_bench(tmp_path, line) as bench:
        again = await keep(
            bench, lost, [item(bench, waiting[0])], local_last=bench.now().local_last
        )
        assert again == first
        assert len(bundles(bench)) == len(bench.journal.orphans(SHARD)) == 1
        assert bench.now().local_last == 8


async def test_another_bundle_of_the_same_place_gets_another_name(tmp_path: Path) -> None:
    """Two strangers in turn wrote to a replica that stood at the same frame."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        rows = line.create()
        await keep(bench, [], [item(bench, rows[0])])
        bench.branch.reset()
        change = line.fresh()
        await keep(bench, [], [item(bench, change[0])], local_last=8)
        found = bundles(bench)
        assert len(found) == len(bench.journal.orphans(SHARD)) == 2
        assert found[0].facts.created_ns + 1 == found[1].facts.created_ns


@pytest.mark.parametrize("count", [1, 2])
async def test_a_run_that_comes_again_is_kept_once(tmp_path: Path, count: int) -> None:
    """Its first pieces were frames before the crash, and capture begins at its first page."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        rows = line.commit("INSERT INTO t (v) VALUES (zeroblob(30000))", pieces=3)
        bench.journal.keep([line.branching.step(rows[:count])])
        kept = await keep(bench, rows[:count], [item(bench, row) for row in rows])
        (bundle,) = bundles(bench)
        assert len(bundle.heads) == 3
        assert bundle.heads[-1].state_root == rows[-1].head.state_root
        assert kept.commits == 1


async def test_a_run_that_does_not_go_on_is_cut_off(tmp_path: Path) -> None:
    """What the file holds now is another transaction: the pieces are of no use to anybody."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        rows = line.commit("INSERT INTO t (v) VALUES (zeroblob(30000))", pieces=2)
        bench.journal.keep([line.branching.step(rows[:1])])
        other = line.fresh()
        kept = await keep(bench, rows[:1], [item(bench, other[0])])
        (bundle,) = bundles(bench)
        assert len(bundle.heads) == 1
        assert kept.commits == 1
        pieces = decode_frame(rows[0].record)
        assert isinstance(pieces, Frame)
        assert {int(pgno) for pgno in decode_commit(pieces.payload).pgnos} <= kept.pgnos


async def test_pieces_of_a_run_alone_are_no_loss(tmp_path: Path) -> None:
    """No commit is in them: nothing is written where nothing but a piece is left out."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        tree: Callable[[], StateTree] = bench.branch.final.copy
        before = tree().root()
        kept = await keep(bench, [], [])
        assert (kept.path, kept.commits, kept.local_last) == (None, 0, 7)
        assert bundles(bench) == []
        assert isinstance(bench.branch, Branch)
        assert bench.branch.final.root() == before
