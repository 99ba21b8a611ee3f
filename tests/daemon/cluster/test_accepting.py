"""What a node holds beyond a forced lineage is kept, once, before it follows that lineage."""

from dataclasses import replace
from pathlib import Path

import pytest

from basenet.daemon.cluster.accepting import Leaver, Left
from basenet.daemon.cluster.orphans import Bundle, Reason, list_bundles, read_bundle
from basenet.engine.birth_events import KeepOrphans
from basenet.units import Lineage
from basenet.wire.frame import Head
from tests.daemon.cluster.lines import Bench, a_line, at_bench
from tests.fakes.branching import SHARD


async def leave(bench: Bench, parent: Head, lineage: Lineage | None = None) -> Left | None:
    """Keep what is held beyond ``parent``."""

    async def no_file() -> None:
        return None

    leaver = Leaver(
        node=bench.node,
        signer=bench.line.chain.signer,
        shard=SHARD,
        open_file=no_file,
        report=lambda what, _: pytest.fail(what),
    )
    return await leaver.leave(
        KeepOrphans(
            lineage=lineage or bench.line.chain.lineage,
            parent_seq=parent.seq,
            parent_hash=parent.hash,
        )
    )


def bundles(bench: Bench) -> list[Bundle]:
    keys = frozenset({bench.line.chain.signer.public})
    folder = bench.node.config.data_dir / "orphans"
    return [read_bundle(path, keys) for path in list_bundles(folder)]


async def test_a_repeat_after_a_crash_finds_the_bundle_of_the_first_time(tmp_path: Path) -> None:
    """It is named by what it holds, not by the clock; the local numbers moved in between."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        parent = line.chain.frames[0].head
        rows = [*line.create(), *line.commit(), *line.commit()]
        end = rows[-1].head
        bench.journal.keep([replace(line.branching.step(rows), place=(end.seq, end.hash))])
        first = await leave(bench, parent)
        assert first is not None
        assert (first.commits, first.kept_seq) == (3, parent.seq)
        (bundle,) = bundles(bench)
        assert bundle.facts.reason is Reason.FORCED
        assert bundle.facts.name == f"{end.timestamp_ns}-{parent.seq}"
        before = bench.now().local_last
    async with at_bench(tmp_path, line) as bench:
        assert bench.now().local_last == before
        assert await leave(bench, parent) == first
        assert [one.path for one in bundles(bench)] == [bundle.path]
        (row,) = bench.journal.orphans(SHARD)
        assert row.id == bundle.id


async def test_what_is_held_of_another_lineage_is_nothing_of_this_one(tmp_path: Path) -> None:
    """Nothing is written; nor where only one frame is held, and the parent is another."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        rows = line.create()
        bench.journal.keep([line.branching.step(rows)])
        assert await leave(bench, line.chain.frames[0].head, Lineage(b"x" * 16)) is None
        assert await leave(bench, rows[-1].head) is None
        assert bundles(bench) == []
