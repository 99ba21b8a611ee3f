"""A learner votes for nothing, so it judges each state root where it would apply it (Q19)."""

from pathlib import Path

import pytest
import trio

from basenet.errors import CorruptionError
from tests.daemon.cluster.lines import a_line, at_bench
from tests.daemon.cluster.test_settling import settle


async def test_q19_a_learner_verifies_every_root_before_it_applies(tmp_path: Path) -> None:
    """Final by a valid certificate, and the root is not that of its pages: nothing is applied.

    Neither log nor file move, so it cannot report that it holds the frame: it is no candidate for
    a promotion at that seq. The right frames before it are held.
    """
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        good = [*line.create(), *line.commit("INSERT INTO u VALUES (randomblob(20000))")]
        await settle(bench, line.keep(bench.journal, good))
        held = await bench.file.leaves()
        # The author's tree is wrong from here on, and a quorum that lies has made it final.
        pages = line.chain.tree.db_pages
        line.chain.tree.update([pages], [bytes(32)], pages)
        wrong = line.commit("INSERT INTO u VALUES (1)")
        with pytest.raises(BaseExceptionGroup) as caught:
            with trio.fail_after(30):
                await settle(bench, line.keep(bench.journal, wrong))
        assert caught.group_contains(CorruptionError, match="do not give the state root")
        assert bench.now().tip == good[-1].head
        assert bench.applied[-1] == good[-1].head.seq
        assert await bench.file.leaves() == held
