"""No commit is called final because another one has its place: `cluster.generation`."""

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from basenet.control.surface import Orphaned
from basenet.daemon.cluster.generation import Generations
from basenet.daemon.cluster.term import Term
from basenet.daemon.progress import Progress
from basenet.engine.effects import Orphan
from basenet.errors import ConflictError, UnavailableError
from basenet.units import Lineage, Seq
from tests.daemon.cluster.alone import Alone, alone
from tests.daemon.cluster.nodes import eventually
from tests.daemon.cluster.test_writing import in_thread
from tests.fakes.branching import SHARD
from tests.sqlite.application import Application


class Written:
    """The shard of a term that runs alone."""

    def __init__(self, here: Alone) -> None:
        self.shard = SHARD
        self.progress = Progress()
        self.term: Term | None = here.term
        self.lineage: Lineage | None = here.record().lineage
        self.is_stopping = False
        self._here = here

    @property
    def orphaned(self) -> int:
        return [name for name, _ in self._here.told].count("orphaned")

    @orphaned.setter
    def orphaned(self, _count: int) -> None:
        raise AssertionError("it is counted")


def generations_of(here: Alone) -> tuple[Generations, Written]:
    written = Written(here)
    journalist = here.node.journalist
    return Generations(written, journalist, journalist.journal.journal_id), written


async def lose(here: Alone, app: Application, number: int, kept: int) -> None:
    """Commit something and have it orphaned."""
    writer = here.term.writer
    assert writer is not None
    writer._is_finishing = True  # nothing is sealed any more
    await in_thread(app, f"INSERT INTO t VALUES ({number})")
    assert await writer.follower.look()
    await here.term.orphan(Orphan(heads=(), kept_height=Seq(kept), certificate=None))
    await here.writable()


async def test_a_generation_ends_when_something_is_undone_and_with_nothing_else(
    tmp_path: Path, socket: Path
) -> None:
    """Its wait names the bundle; who reads it afterwards is answered. A restart ends none."""
    async with alone(tmp_path, socket) as here:
        generations, _ = generations_of(here)
        assert generations.present is None
        async with trio.open_nursery() as nursery:
            generations.begin(nursery)
            await eventually(lambda: generations.present is not None)
            first = generations.present
            assert first is not None
            assert first.endswith(".0")
            await here.writable()
            with Application(tmp_path / "app.db") as app:
                await in_thread(app, "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
                kept = await generations.capture_now(first)
                assert await here.captured() == kept
                await lose(here, app, 2, kept)
                with pytest.raises(Orphaned, match="basenet orphans show") as caught:
                    await generations.capture_now(first)
                (row,) = here.node.journalist.journal.orphans(SHARD)
                assert caught.value.bundles == (row.id,)
                second = generations.present
                assert second != first
            nursery.cancel_scope.cancel()
    async with alone(tmp_path, socket) as here:
        generations, _ = generations_of(here)
        await here.writable()
        with Application(tmp_path / "app.db") as app:
            # The seq that the lost commit would have had goes to another one.
            await in_thread(app, "INSERT INTO t VALUES (3)")
            assert await generations.capture_now(second) == kept + 1
            assert generations.present == second
            with pytest.raises(Orphaned):
                await generations.capture_now(first)


async def test_what_was_undone_is_told_before_anybody_asks(tmp_path: Path, socket: Path) -> None:
    """A generation that is read after the loss is the new one."""
    async with alone(tmp_path, socket) as here:
        generations, _ = generations_of(here)
        async with trio.open_nursery() as nursery:
            generations.begin(nursery)
            await here.writable()
            with Application(tmp_path / "app.db") as app:
                await in_thread(app, "CREATE TABLE t (x)")
                kept = await here.captured()
                await eventually(lambda: (generations.present or "").endswith(".0"))
                await lose(here, app, 1, kept)
                generations.look()
                await eventually(lambda: (generations.present or "").endswith(".1"))
            generations.end()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("strange", ["0011.0022.0", "x", "", ".", "0011", "a" * 300, "1.2.-3"])
async def test_a_generation_of_another_journal_or_history_is_never_confirmed(
    tmp_path: Path, socket: Path, strange: str
) -> None:
    """Nor is what was never one; the sentence shows not more of it than a line takes."""
    async with alone(tmp_path, socket) as here:
        generations, _ = generations_of(here)
        with pytest.raises(Orphaned) as caught:
            await generations.require(strange)
        assert len(str(caught.value)) < 400


async def test_a_leader_whose_capture_has_not_begun_lets_the_question_wait(
    tmp_path: Path, socket: Path
) -> None:
    """Around a CONFIG the leader has no writer for a moment: that is no conflict."""
    async with alone(tmp_path, socket) as here:
        generations, written = generations_of(here)
        await here.writable()
        writer, here.term.writer = here.term.writer, None
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await generations.capture_now(None))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert answers == []
            here.term.writer = writer
            while not answers:
                written.progress.wake()
                await trio.sleep(0.005)


async def test_who_does_not_write_knows_only_what_is_asked_with_a_generation(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was undone since: what was committed here is on the chain, up to the file's place."""
    async with alone(tmp_path, socket) as here:
        generations, written = generations_of(here)
        await here.writable()
        with Application(tmp_path / "app.db") as app:
            await in_thread(app, "CREATE TABLE t (x)")
            seq = await here.captured()
        with pytest.raises(Orphaned):
            await generations.require("-")
        present = generations.present
        writer, here.term.writer = here.term.writer, None
        monkeypatch.setattr(Term, "leads", False)
        with pytest.raises(ConflictError, match="not the writer"):
            await generations.capture_now(None)
        assert await generations.capture_now(present) == seq
        written.is_stopping = True
        with pytest.raises(UnavailableError, match="shutting down"):
            await generations.capture_now(present)
        here.term.writer = writer
