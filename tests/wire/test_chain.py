"""The rules between frames."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from basenet.errors import ChainBroken
from basenet.units import ZERO_HASH
from basenet.wire.chain import CommitRules, check_genesis
from basenet.wire.frame import Flag, Frame, Head, Kind, genesis_prev_hash
from basenet.wire.payload import CommitPayload, ConfigPayload, encode_config

MakeFrame = Callable[..., Frame]
MakeConfig = Callable[..., ConfigPayload]
PARTIAL, RECOVERED, REGRESSED = Flag.PARTIAL, Flag.RECOVERED, Flag.REGRESSED


class Chain:
    """Feeds frames of a few pages to the rules."""

    def __init__(self, make_frame: MakeFrame, page_size: int, db_pages: int = 9) -> None:
        self.rules = CommitRules(page_size, db_pages)
        self.make_frame = make_frame

    def commit(self, *pgnos: int, flags: Flag = Flag.NONE, **fields: Any) -> None:
        root = ZERO_HASH if flags & PARTIAL else b"r" * 32
        head = self.make_frame(flags=flags, state_root=root).head
        facts: dict[str, Any] = {"page_size": 512, "db_pages": 9, "commits": 1}
        numbers = np.array(pgnos, dtype=np.uint32)
        payload = CommitPayload(pgnos=numbers, pages=b"", **facts | fields)
        self.rules.accept_commit(head, payload)

    def config(self) -> None:
        self.rules.accept_config(self.make_frame(kind=Kind.CONFIG).head)


@pytest.fixture
def chain(make_frame: MakeFrame) -> Chain:
    return Chain(make_frame, 512)


def test_a_run_is_one_transaction_in_several_frames(chain: Chain) -> None:
    """All but the last are PARTIAL; pages ascend over the whole run, and the next starts anew."""
    chain.config()
    chain.commit(5)
    assert not chain.rules.is_run_open
    chain.commit(1, 3, flags=PARTIAL, commits=0)
    chain.commit(flags=PARTIAL, commits=0)
    chain.commit(4, flags=PARTIAL, commits=0)
    assert chain.rules.is_run_open
    chain.commit(7, 9)
    assert not chain.rules.is_run_open
    chain.commit(1)
    chain.config()


@pytest.mark.parametrize("pgnos", [(3,), (2,), (1, 9)])
def test_a_page_appears_once_in_a_run(chain: Chain, pgnos: tuple[int, ...]) -> None:
    """Strictly ascending over a whole PARTIAL run (Q21); a refused frame changes nothing."""
    chain.commit(1, 3, flags=PARTIAL, commits=0)
    with pytest.raises(ChainBroken, match="repeats page"):
        chain.commit(*pgnos)
    chain.commit(4)


@pytest.mark.parametrize(
    "fields", [{"db_pages": 8}, {"page_size": 1024}, {"flags": RECOVERED}, {"flags": REGRESSED}]
)
def test_the_frames_of_a_run_agree(chain: Chain, fields: dict[str, Any]) -> None:
    """db_pages is the value after the run, the same in each of its frames (Q21)."""
    chain.commit(1, 3, flags=PARTIAL, commits=0)
    with pytest.raises(ChainBroken, match="than the PARTIAL run"):
        chain.commit(4, **fields)
    chain.commit(4)


def test_no_config_stands_inside_a_run(chain: Chain) -> None:
    """It would end an epoch in the middle of a transaction."""
    chain.commit(1, flags=PARTIAL, commits=0)
    with pytest.raises(ChainBroken, match="CONFIG inside a PARTIAL run"):
        chain.config()


@pytest.mark.parametrize("flags", [PARTIAL, RECOVERED, REGRESSED, RECOVERED | PARTIAL])
def test_only_a_flag_allows_a_frame_without_commits(chain: Chain, flags: Flag) -> None:
    """Commits = 0 only with RECOVERED, REGRESSED or PARTIAL (Q21)."""
    with pytest.raises(ChainBroken, match="holds no commit"):
        chain.commit(1, commits=0)
    chain.commit(1, flags=flags, commits=0)


def test_the_page_size_changes_only_with_all_pages_in_a_recovered_frame(chain: Chain) -> None:
    """A VACUUM into another page size while nobody looked (Q21)."""
    with pytest.raises(ChainBroken, match="only a RECOVERED frame may"):
        chain.commit(*range(1, 10), page_size=1024)
    with pytest.raises(ChainBroken, match="carries 8 of 9 pages"):
        chain.commit(*range(2, 10), page_size=1024, flags=RECOVERED)
    assert chain.rules.page_size == 512
    chain.commit(*range(1, 10), page_size=1024, flags=RECOVERED)
    assert chain.rules.page_size == 1024
    with pytest.raises(ChainBroken, match="only a RECOVERED frame may"):
        chain.commit(1, page_size=512, flags=REGRESSED)


def test_the_page_size_changes_also_by_a_recovered_run(chain: Chain) -> None:
    """Its frames carry all pages together; the size is in force at its end."""
    partial: Any = {"page_size": 1024, "flags": RECOVERED | PARTIAL, "commits": 0}
    last: Any = {"page_size": 1024, "flags": RECOVERED}
    chain.commit(1, 2, **partial)
    assert chain.rules.page_size == 512
    with pytest.raises(ChainBroken, match="carries 3 of 9 pages"):
        chain.commit(9, **last)
    chain.commit(3, 4, 5, 6, **partial)
    chain.commit(7, 8, 9, **last)
    assert chain.rules.page_size == 1024


def test_all_pages_are_all_but_the_lock_page(chain: Chain) -> None:
    """At 64 KiB it is page 16,385."""
    pages = [pgno for pgno in range(1, 16_390) if pgno != 16_385]
    wide: Any = {"page_size": 65536, "flags": RECOVERED}
    with pytest.raises(ChainBroken, match="carries 16387 of 16388"):
        chain.commit(*pages[:-1], db_pages=16_389, **wide)
    chain.commit(*pages, db_pages=16_389, **wide)


def test_the_first_frame_of_a_lineage_without_a_file_gives_the_page_size(
    make_frame: MakeFrame,
) -> None:
    """0 in CONFIG says that there was no file yet; a file without pages has no size to keep."""
    for before in (0, 4096):
        chain = Chain(make_frame, before, 0)
        with pytest.raises(ChainBroken, match="carries 1 of the 2 new ones"):
            chain.commit(1, page_size=8192, db_pages=2)
        chain.commit(1, page_size=8192, db_pages=1)
        assert chain.rules.page_size == 8192


def test_a_database_grows_only_by_pages_that_come_with_it(chain: Chain) -> None:
    """A missing page <= db_pages is impossible (Q21); it may shrink by a frame without pages."""
    with pytest.raises(ChainBroken, match="makes 12 of 9 pages but carries 2 of the 3 new ones"):
        chain.commit(1, 2, 3, 10, 12, db_pages=12)
    with pytest.raises(ChainBroken, match="carries 0 of the 4294967285 new ones"):
        chain.commit(db_pages=(1 << 32) - 1)
    chain.commit(1, 10, 11, 12, db_pages=12)
    chain.commit(db_pages=3)
    chain.commit(4, 5, flags=PARTIAL, commits=0, db_pages=6)
    with pytest.raises(ChainBroken, match="carries 2 of the 3 new ones"):
        chain.commit(db_pages=6)
    chain.commit(6, db_pages=6)
    chain.commit(db_pages=0)
    assert chain.rules.db_pages == 0


@pytest.mark.parametrize("before", [16_383, 16_384, 16_385])
def test_a_database_grows_over_the_lock_page_without_it(make_frame: MakeFrame, before: int) -> None:
    """At 64 KiB it is page 16,385, and SQLite never writes it."""
    chain = Chain(make_frame, 65536, before)
    new = [pgno for pgno in range(before + 1, 16_388) if pgno != 16_385]
    wide: Any = {"page_size": 65536, "db_pages": 16_387}
    with pytest.raises(ChainBroken, match=f"carries {len(new) - 1} of the {len(new)} new ones"):
        chain.commit(*new[1:], **wide)
    chain.commit(*new, **wide)


def genesis_of(make_frame: MakeFrame, config: ConfigPayload, **fields: Any) -> Head:
    payload = encode_config(config)
    facts: dict[str, Any] = {"seq": 1, "prev_hash": genesis_prev_hash(payload)}
    return make_frame(kind=Kind.CONFIG, payload=payload, **facts | fields).head


def test_a_genesis_names_itself(make_frame: MakeFrame, make_config: MakeConfig) -> None:
    """Seq 1, a CONFIG, and the prev_hash of its own payload."""
    config = make_config()
    check_genesis(genesis_of(make_frame, config), config, None)
    for wrong, problem in (
        ({"seq": 2}, "should stand at 1"),
        ({"prev_hash": b"x" * 32}, "no genesis"),
    ):
        with pytest.raises(ChainBroken, match=problem):
            check_genesis(genesis_of(make_frame, config, **wrong), config, None)
    commit = make_frame(seq=1, prev_hash=genesis_prev_hash(encode_config(config))).head
    with pytest.raises(ChainBroken, match="no genesis"):
        check_genesis(commit, config, None)
    with pytest.raises(ChainBroken, match="no genesis"):
        check_genesis(genesis_of(make_frame, config), make_config(page_size=512), None)


def test_a_child_lineage_continues_its_parents_frame(
    make_frame: MakeFrame, make_config: MakeConfig
) -> None:
    """Seq + 1, the parent's hash in its CONFIG, and the parent's state (Q4)."""
    parent = make_frame(seq=41).head
    config = make_config(parent=(b"q" * 16, 41, parent.hash))
    child = genesis_of(make_frame, config, seq=42)
    check_genesis(child, config, parent)
    check_genesis(child, config, None)
    with pytest.raises(ChainBroken, match="should stand at 42"):
        check_genesis(genesis_of(make_frame, config, seq=43), config, parent)
    for other in (
        make_frame(seq=41, salt=b"x" * 16).head,
        make_frame(seq=40).head,
        make_frame(seq=41, shard="others").head,
    ):
        with pytest.raises(ChainBroken, match="two histories are mixed"):
            check_genesis(child, config, other)
    with pytest.raises(ChainBroken, match="another state"):
        check_genesis(genesis_of(make_frame, config, seq=42, state_root=b"x" * 32), config, parent)


def test_a_genesis_without_parent_has_none(make_frame: MakeFrame, make_config: MakeConfig) -> None:
    """A caller that hands one in has mixed up its lineages."""
    config = make_config()
    with pytest.raises(ChainBroken, match="continues nothing at 0"):
        check_genesis(genesis_of(make_frame, config), config, make_frame(seq=1).head)
