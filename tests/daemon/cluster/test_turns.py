"""A file whose application and whose replication write in turns, for long, against a model."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from basenet.daemon.cluster.file import Outcome, ReplicaFile, decode_intent, encode_intent
from basenet.sqlite.capture import Capture, CapturePolicy
from basenet.sqlite.captured import Captured
from basenet.units import Lineage
from basenet.wire.merkle import StateTree, leaf_hash
from basenet.wire.payload import CommitPayload
from tests.daemon.cluster.files import PLACE, State, StateSources, apply, opened, payload_of
from tests.daemon.cluster.guarding import guardian
from tests.sqlite.application import Application
from tests.sqlite.replica import Source

CHANGES = [
    "INSERT INTO t (v) VALUES (randomblob(abs(random()) % 3000))",
    "INSERT INTO t (v) VALUES (randomblob(200000))",
    "UPDATE t SET v = randomblob(100) WHERE id % 3 = 0",
    "DELETE FROM t WHERE id % 2 = 0",
    "CREATE TABLE IF NOT EXISTS u (x); INSERT INTO u VALUES (1)",
    "DROP TABLE IF EXISTS u",
    "VACUUM",
]
RARE = "INSERT INTO t (v) VALUES (randomblob(9000000))"


class Model:
    """The leaf hashes that the file must have."""

    def __init__(self, page_size: int, leaves: bytes) -> None:
        self.tree = StateTree(page_size, leaves)

    def take(self, pieces: Sequence[CommitPayload | Captured]) -> None:
        """Apply the pieces of one change."""
        numbers: list[int] = []
        hashes: list[bytes] = []
        size = self.tree.page_size
        for piece in pieces:
            for row, pgno in enumerate(piece.pgnos.tolist()):
                numbers.append(pgno)
                page = bytes(piece.pages[row * size : (row + 1) * size])
                hashes.append(leaf_hash(pgno, page))
        self.tree.update(numbers, hashes, pieces[-1].db_pages)


class Turns:
    """One file, its application and its capture."""

    def __init__(self, file: ReplicaFile, model: Model, capture: Capture, random: Random) -> None:
        self.file, self.model, self.capture, self.random = file, model, capture, random

    async def inject(self) -> None:
        """Changes of another node's application, applied or mended."""
        kept = await self.file.keep_aside(Lineage(self.random.randbytes(16)))
        other = Source.__new__(Source)
        other.path, other.page_size = kept, self.file.database.page_size
        other.connection = sqlite3.connect(kept, isolation_level=None)
        other._pages = other._read()
        with closing(other):
            before = State.of(other)
            for statement in self.random.choice(CHANGES).split(";"):
                other.run(statement)
            change = payload_of(other)
            if not len(change.pgnos):
                return
            if self.random.random() < 0.3:
                state = State.of(other)
                await self.file.mend(state.target(), StateSources(pages=state.pages()))
                self.model = Model(other.page_size, state.leaves)
            else:
                self.model.take([change])
                await apply(self.file, change)
            if self.random.random() < 0.2:
                await self.file.mend(before.target(), StateSources(pages=before.pages()))
                self.model = Model(other.page_size, before.leaves)
        for suffix in ("", "-wal", "-shm"):
            kept.with_name(kept.name + suffix).unlink(missing_ok=True)

    def follow(self) -> int:
        """Capture to the tip; return how many commits there were."""
        run: list[Captured] = []
        commits = 0
        for piece in self.capture.poll():
            run.append(piece)
            if piece.is_run_last:
                self.model.take(run)
                commits += piece.commits
                run = []
        return commits

    async def check(self) -> None:
        assert (await self.file.facts()).state_root == self.model.tree.root()


@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
async def test_application_and_replication_take_turns(tmp_path: Path, page_size: int) -> None:
    """Every commit of the application is captured, nothing injected is, and the pages agree."""
    random = Random(page_size)
    path = tmp_path / "app.db"
    with guardian(tmp_path) as socket:
        async with opened(path, socket, page_size=page_size) as here:
            file = here.file
            model = Model(page_size, bytes(await file.leaves()))
            turns = Turns(
                file, model, Capture(file.database, policy=CapturePolicy.ADAPTIVE), random
            )
            with (
                Application(path) as app,
                Application(path) as reader,
            ):
                app.sql(f"PRAGMA wal_autocheckpoint={random.choice([0, 30, 1000])}")
                turns.capture.restart_at(await file.cursor())
                turns.capture.pin()
                here.release()
                app.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
                for step in range(24):
                    await file.held()
                    turns.follow()
                    await turns.check()
                    turns.capture.rotation.pin.release()
                    if step % 7 == 2:
                        reader.sql("BEGIN", "SELECT count(*) FROM t")
                    if step % 7 == 5:
                        reader.sql("COMMIT")
                    intent = None
                    for _ in range(random.randint(0, 3)):
                        before = await file.position()
                        await turns.inject()
                        after = await file.position()
                        intent = decode_intent(encode_intent(before, after, PLACE))
                        if random.random() < 0.4:
                            await file.relieve()
                    if intent is not None:
                        standing = await file.inspect(None, intent)
                        assert standing.outcome is Outcome.APPLIED
                        assert standing.cursor is not None
                        assert standing.cursor.salts == (await file.cursor()).salts
                    await turns.check()
                    turns.capture.restart_at(await file.cursor())
                    turns.capture.pin()
                    here.release()
                    count = random.randint(0, 4)
                    for _ in range(count):
                        for statement in random.choice([*CHANGES, *CHANGES, RARE]).split(";"):
                            app.sql(statement)
                    if random.random() < 0.3:
                        app.sql(f"PRAGMA wal_checkpoint({random.choice(['PASSIVE', 'FULL'])})")
                    assert app.sql("PRAGMA integrity_check") == [["ok"]]
            turns.capture.rotation.pin.release()
