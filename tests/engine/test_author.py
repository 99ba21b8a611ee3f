"""Who writes the genesis, and who signs it: one function of the answers."""

from typing import Any

import pytest

from basenet.engine.author import Answer, Blocked, Plan, Wait, choose_author, decide
from basenet.engine.placement import Peer
from basenet.testing.simulator.birth import database
from basenet.units import JournalId, PublicKeyBytes
from basenet.wire.birth import MemberRole, Standing

ORDER = tuple(Peer(name, PublicKeyBytes(name.encode() * 32)) for name in "dafbce")
ROWS, OTHER_ROWS = database(b"rows"), database(b"other", 20)
SCHEMA = database(b"schema", 2, has_rows=False)


def answers(**facts: dict[str, Any]) -> dict[PublicKeyBytes, Answer]:
    """What the nodes named answered; ``{}`` is an empty member."""
    defaults = {
        "members_hash": b"m" * 32,
        "role": MemberRole.VALIDATOR,
        "file": None,
        "writer": None,
        "is_decided": False,
        "promised": None,
    }
    return {
        PublicKeyBytes(name.encode() * 32): Answer(
            journal_id=JournalId(name.encode() * 16), standing=Standing(**(defaults | fact))
        )
        for name, fact in facts.items()
    }


def everybody(**facts: dict[str, Any]) -> dict[PublicKeyBytes, Answer]:
    return answers(**({name: {} for name in "abcdef"} | facts))


def names(peers: tuple[Peer, ...]) -> str:
    return "".join(peer.node_id for peer in peers)


def plan(found: dict[PublicKeyBytes, Answer], replication: int = 3) -> Plan:
    decision = decide(ORDER, replication, found, frozenset(found))
    assert isinstance(decision, Plan)
    return decision


def blocked(found: dict[PublicKeyBytes, Answer], replication: int = 3) -> str:
    decision = decide(ORDER, replication, found, frozenset(found))
    assert isinstance(decision, Blocked)
    return decision.why


def test_the_voters_are_the_first_of_the_order() -> None:
    """Sentence B6 of docs/protocol/birth.md.

    B6. The voters are the first min(`BASE_REPLICATION`, |M|) of the order, up or not.
    """
    assert names(plan(everybody()).voters) == "daf"
    assert names(plan(everybody(), 31).voters) == "dafbce"
    decision = decide(ORDER, 3, answers(d={}, f={}, b={}), frozenset())
    assert isinstance(decision, Wait)
    assert names(decision.missing) == "a"


@pytest.mark.parametrize("author", "dafbce")
@pytest.mark.parametrize("replication", [1, 2, 3, 4])
def test_two_nodes_sign_every_genesis(author: str, replication: int) -> None:
    """Sentence B7 of docs/protocol/birth.md.

    B7. The first two of the order sign every genesis over M, voters or not.
    """
    chosen = plan(everybody(**{author: {"file": ROWS}}), replication)
    assert {ORDER[0].key, ORDER[1].key} <= chosen.signers
    assert chosen.signers == {peer.key for peer in (*chosen.voters, *ORDER[:2])}
    assert len(chosen.voters) == replication


@pytest.mark.parametrize(("author", "voters"), [("d", "daf"), ("f", "fda"), ("a", "adf")])
def test_the_one_with_rows_is_the_author(author: str, voters: str) -> None:
    """Sentence B11 of docs/protocol/birth.md.

    B11. If exactly one file has rows, its node is the author, a voter, and first in the order of
    CONFIG.
    """
    found = everybody(**{author: {"file": ROWS}, "e": {"writer": "e"}})
    assert names(plan(found).voters) == voters


@pytest.mark.parametrize("author", "bce")
def test_an_author_from_outside_takes_the_last_place(author: str) -> None:
    """Sentence B12 of docs/protocol/birth.md.

    B12. An author from outside the first voters takes the last one's place.
    """
    assert names(plan(everybody(**{author: {"file": ROWS}})).voters) == f"{author}da"


def test_without_rows_the_writer_or_the_first_is_the_author() -> None:
    """Sentence B13 of docs/protocol/birth.md.

    B13. If no file has rows, `BASE_WRITER` is the author, else the first of the order that can
    hold a database.
    """
    assert names(plan(everybody(c={"writer": "c"})).voters) == "cda"
    assert names(plan(everybody(d={"role": MemberRole.WITNESS})).voters) == "adf"
    assert "names z, which is no member" in blocked(everybody(a={"writer": "z"}))
    two = everybody(a={"writer": "a"}, b={"writer": "b"})
    assert "BASE_WRITER names a, b on different nodes" in blocked(two)


def test_equal_files_make_the_first_of_them_the_author() -> None:
    """Sentence B14 of docs/protocol/birth.md.

    B14. If several files have rows and one content, the first of the order among them is the
    author.
    """
    assert names(plan(everybody(c={"file": ROWS}, f={"file": ROWS})).voters) == "fda"


def test_different_files_are_no_birth() -> None:
    """Sentence B15 of docs/protocol/birth.md.

    B15. If they differ there is no birth: every node reports ids, sizes and state roots.
    """
    why = blocked(everybody(c={"file": ROWS}, f={"file": OTHER_ROWS}))
    for node, file in (("c", ROWS), ("f", OTHER_ROWS)):
        size = file.page_size * file.db_pages
        assert f"{node} ({size} bytes, state root {file.state_root.hex()})" in why
    assert "`members init --from NODE`" in why


def test_the_operator_decides() -> None:
    """Rows, writers and order do not matter then; two decisions are none."""
    decided: dict[str, Any] = {"is_decided": True}
    found = {"f": {"file": ROWS}, "c": {"file": OTHER_ROWS} | decided, "a": {"writer": "a"}}
    assert names(plan(everybody(**found)).voters) == "cda"
    assert "decided for each of d, c" in blocked(everybody(**(found | {"d": decided})))


def test_a_file_without_rows_counts_as_empty() -> None:
    """A schema alone makes nobody the author."""
    assert names(plan(everybody(f={"file": SCHEMA})).voters) == "daf"
    assert names(plan(everybody(f={"file": SCHEMA}, a={"file": ROWS})).voters) == "adf"


def test_roles_are_respected() -> None:
    """Sentence B25 of docs/protocol/birth.md.

    B25. A witness never writes the genesis, an archive node never votes, and a quorum is never
    without a database.
    """
    witness: dict[str, Any] = {"role": MemberRole.WITNESS}
    archive: dict[str, Any] = {"role": MemberRole.ARCHIVE}
    assert "its role is witness" in blocked(everybody(a=witness | {"file": ROWS}))
    assert names(plan(everybody(a=archive)).voters) == "dfb"
    assert "its role is archive" in blocked(everybody(a=archive | {"is_decided": True}))
    assert names(plan(everybody(a=witness)).voters) == "daf"
    assert "2 of 3 voters would be witnesses" in blocked(everybody(a=witness, f=witness))
    assert names(plan(everybody(a=witness), 2).voters) == "da"
    nobody = answers(**dict.fromkeys("abcdef", witness))
    assert "no member can hold a database" in blocked(nobody)


def test_everybody_who_matters_must_have_answered() -> None:
    """The signers by the choice so far, and who is connected; the others need not be there."""
    some = answers(d={}, a={}, f={})
    assert isinstance(decide(ORDER, 3, some, frozenset()), Plan)
    decision = decide(ORDER, 3, some, frozenset({ORDER[4].key}))
    assert isinstance(decision, Wait)
    assert names(decision.missing) == "c"
    decision = decide(ORDER, 1, answers(d={}), frozenset())
    assert isinstance(decision, Wait)
    assert names(decision.missing) == "a"


def test_whoever_has_not_answered_has_no_rows_so_far() -> None:
    """The choice may still change; it is not acted upon before all have answered."""
    assert choose_author(ORDER, {}) == ORDER[0]
