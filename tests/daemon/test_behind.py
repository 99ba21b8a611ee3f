"""A file that fell behind its own history is recognised, and gets its commits back."""

import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from basenet.daemon.behind import Behind, find_behind, give_back
from basenet.daemon.chain import Birth
from basenet.errors import ConflictError
from basenet.journal.journal import Journal
from basenet.sqlite.attach import attach
from basenet.sqlite.capture import Capture
from basenet.units import LocalNumber, Seq
from tests.daemon.model import SHARD, author_of, loaded


def execute(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    """Run ``statements`` as an application that comes and goes; return the last one's rows."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    finally:
        connection.close()
    return rows


@dataclass
class History:
    """A database and a journal that follows it; ``copies`` holds the file after each commit."""

    path: Path
    journal: Journal
    copies: list[Path]

    @classmethod
    def begin(cls, folder: Path) -> "History":
        path = folder / "app.db"
        execute(path, "pragma journal_mode=wal", "create table t(x)")
        journal = Journal(folder / "data")
        capture = Capture(attach(path))
        Birth(
            shard=SHARD,
            path=str(path),
            author=author_of(journal.journal_id),
            scan=capture.adopt(),
            local_last=LocalNumber(0),
        )(journal)
        capture.close()
        history = cls(path, journal, [])
        history.keep_copy()
        return history

    def keep_copy(self) -> None:
        execute(self.path, "pragma wal_checkpoint(truncate)")
        self.copies.append(self.path.with_name(f"copy{len(self.copies)}"))
        shutil.copyfile(self.path, self.copies[-1])

    def commit(self, statement: str) -> None:
        """Commit, and store what differs as one frame."""
        _, framer = loaded(self.journal)
        capture = Capture(attach(self.path))
        try:
            for piece in capture.recover(framer.tree.leaves):
                self.journal.store([framer.frame([piece])])
            execute(self.path, statement)
            pieces = list(capture.poll())
            assert pieces
            self.journal.store([framer.frame(pieces)])
        finally:
            capture.close()
        self.keep_copy()

    def fall_back(self, number: int) -> None:
        """Put the copy after the commit ``number`` in place of the file."""
        for suffix in ("-wal", "-shm"):
            self.path.with_name(f"app.db{suffix}").unlink(missing_ok=True)
        shutil.copyfile(self.copies[number], self.path)

    def find(self) -> Behind | None:
        database = attach(self.path)
        try:
            return find_behind(self.journal, SHARD, database, self.tip)
        finally:
            database.close()

    @property
    def tip(self) -> Seq:
        return loaded(self.journal)[0].tip.seq


@pytest.fixture
def history(tmp_path: Path) -> History:
    history = History.begin(tmp_path)
    for number in range(4):
        history.commit(f"insert into t values({number})")
    return history


@pytest.mark.parametrize("number", [0, 1, 3])
def test_an_older_state_of_the_chain_is_recognised(history: History, number: int) -> None:
    """By its root alone, whatever the frame; the genesis is a state like the others."""
    history.fall_back(number)
    found = history.find()
    assert found is not None
    assert (found.seq, found.tip_seq) == (history.tip - 4 + number, history.tip)
    history.journal.close()


def test_a_file_at_the_tip_is_not_behind(history: History) -> None:
    """Most attachments find it so."""
    assert history.find() is None
    history.journal.close()


def test_a_state_that_the_chain_never_had_is_not_behind(history: History) -> None:
    """Somebody committed while we were not there: that is to be captured and not undone."""
    history.fall_back(2)
    execute(history.path, "insert into t values(99)")
    assert history.find() is None
    history.journal.close()


def test_a_journal_that_dropped_the_state_does_not_know_it(history: History) -> None:
    """Without the frames in between nothing could be given back."""
    history.fall_back(0)
    history.journal.set_archived(SHARD, history.tip, keep_bytes=1)
    assert history.find() is None
    history.journal.close()


@pytest.mark.parametrize("number", [0, 2])
def test_the_lost_commits_come_back(history: History, number: int) -> None:
    """The next connection finds the file at the tip, and so does the next look."""
    history.fall_back(number)
    found = history.find()
    assert found is not None
    for suffix in ("-wal", "-shm"):
        history.path.with_name(f"app.db{suffix}").unlink(missing_ok=True)
    done = give_back(history.journal, SHARD, history.path, found)
    assert done.commits == 4 - number
    assert execute(history.path, "select x from t order by x") == [(n,) for n in range(4)]
    assert history.find() is None
    assert execute(history.path, "pragma integrity_check") == [("ok",)]
    history.journal.close()


def test_nothing_is_given_back_to_a_file_that_moved_on(history: History) -> None:
    """A commit between finding and giving would be overwritten: it is refused."""
    history.fall_back(1)
    found = history.find()
    assert found is not None
    execute(history.path, "insert into t values(77)")
    with pytest.raises(ConflictError):
        give_back(history.journal, SHARD, history.path, found)
    assert (77,) in execute(history.path, "select x from t")
    history.journal.close()
