from pathlib import Path

import pytest

from basenet.daemon.cluster.orphans import Bundle, read_bundle
from basenet.daemon.cluster.revive import (
    check_base,
    is_born_empty,
    last_whole_seq,
    read_state,
    revive,
)
from basenet.errors import ConflictError, CorruptionError
from basenet.wire.frame import Flag
from tests.archive.builder import History
from tests.fakes.lost import NODE, PAGE_SIZE, LostHistory, contents_of, pages_of, run_sql

SHARED = ("create table note (id integer primary key, text)", "insert into note values (1, 'a')")
GROW = (
    "with recursive n(i) as (select 10 union all select i + 1 from n where i < 400) "
    "insert into note select i, hex(randomblob(300)) from n"
)


def read(path: Path) -> Bundle:
    return read_bundle(path, frozenset({NODE.public}))


@pytest.mark.parametrize(
    "lost",
    [
        ("insert into note values (2, 'b')",),
        ("insert into note values (2, 'b')", "update note set text = 'c' where id = 1"),
        (GROW, "delete from note", "pragma journal_mode=delete; vacuum; pragma journal_mode=wal"),
        ("create table other (x)", "drop table note"),
    ],
    ids=["a row", "two commits", "growth and shrink", "schema"],
)
def test_the_lost_state_comes_back_page_for_page(tmp_path: Path, lost: tuple[str, ...]) -> None:
    """On the state that both histories share the frames lead to the very database that was."""
    history = LostHistory(tmp_path, SHARED, lost)
    bundle = read(history.write())
    draft = tmp_path / "draft.db"
    draft.write_bytes(history.kept.read_bytes())
    tree = read_state(draft)
    check_base(bundle, tree, "kept.db")
    head = revive(bundle, draft, tree)
    assert head is not None
    assert head.seq == last_whole_seq(bundle) == history.chain.tip.head.seq
    assert pages_of(draft) == history.chain.pages
    assert contents_of(draft) == contents_of(history.lost)


def test_another_state_is_no_base(tmp_path: Path) -> None:
    """One commit more or less, and pages of two histories would be mixed."""
    history = LostHistory(tmp_path, SHARED, ("insert into note values (2, 'b')",))
    bundle = read(history.write())
    run_sql(history.kept, "insert into note values (3, 'of the other history')")
    with pytest.raises(ConflictError, match="archive's URL"):
        check_base(bundle, read_state(history.kept), "kept.db")


def test_an_unfinished_transaction_is_left_out(tmp_path: Path) -> None:
    """A PARTIAL frame without its end was no commit of anybody."""
    history = LostHistory(tmp_path, SHARED, ("insert into note values (2, 'b')",))
    whole = history.chain.tip.head.seq
    history.chain.commit({1: history.chain.pages[1], 2: history.chain.page()}, run=2)
    cut = history.chain.frames.pop()
    assert history.chain.tip.head.flags & Flag.PARTIAL
    assert cut.head.seq == whole + 2
    bundle = read(history.write())
    assert last_whole_seq(bundle) == whole
    head = revive(bundle, history.kept, read_state(history.kept))
    assert head is not None
    assert head.seq == whole
    assert contents_of(history.kept) == contents_of(history.lost)


def test_a_result_that_was_not_signed_is_no_result(tmp_path: Path) -> None:
    """If the pages do not make the signed state root, that is said."""
    history = LostHistory(tmp_path, SHARED, ("insert into note values (2, 'b')",))
    bundle = read(history.write())
    run_sql(history.kept, "create table more (x)", "insert into more values (1)")
    with pytest.raises(CorruptionError, match="nothing was made"):
        revive(bundle, history.kept, read_state(history.kept))


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    """A text, a cut file; an empty one is the state before there was a database."""
    path = tmp_path / "a.db"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(CorruptionError, match="no SQLite database"):
        read_state(path)
    path.write_bytes(b"")
    assert read_state(path).db_pages == 0


def test_what_was_born_in_the_lost_history_needs_no_base(tmp_path: Path) -> None:
    """Where there was no database at the kept place, the frames are all there is."""
    history = LostHistory(tmp_path, (), ("create table t (x); insert into t values (1)",))
    chain = History(page_size=PAGE_SIZE, pages={})
    chain.commit(history.chain.pages)
    history.chain, history.kept_head = chain, chain.frame(1).head
    bundle = read(history.write(page_size=0, db_pages=0))
    assert is_born_empty(bundle)
    draft = tmp_path / "draft.db"
    draft.touch()
    tree = read_state(draft)
    check_base(bundle, tree, "nothing")
    revive(bundle, draft, tree)
    assert contents_of(draft) == contents_of(history.lost)
