"""Which CONFIG `members add` and `members remove` ask for, and when they are refused."""

from dataclasses import replace
from typing import Any

import pytest

from basenet.config.model import NodeRole
from basenet.daemon.cluster.changing import Present, Scene, plan_addition, plan_removal
from basenet.engine.configuration import contradiction
from basenet.errors import BasenetError, ConflictError, NotFoundError, UnavailableError
from basenet.units import JournalId, Lineage, PublicKeyBytes
from basenet.wire.payload import (
    ConfigPayload,
    FaultModel,
    Voter,
    VoterRole,
    compute_members_hash,
    decode_config,
    encode_config,
)


def key(name: str) -> PublicKeyBytes:
    return PublicKeyBytes(name.encode() * 16)


def journal_of(name: str, letter: str = "j") -> JournalId:
    return JournalId((name + letter + "-").encode() * 4)


def voter(name: str) -> Voter:
    return Voter(node_id=name, key=key(name), journal_id=journal_of(name))


def present(
    *names: str, role: NodeRole = NodeRole.VALIDATOR, letter: str = "j"
) -> dict[str, Present]:
    return {
        name: Present(key=key(name), journal_id=journal_of(name, letter), role=role)
        for name in names
    }


def scene(*voters: str, there: str = "n0 n1 n2 n3 n4", author: str = "n0", **more: Any) -> Scene:
    config = ConfigPayload(
        lineage=Lineage(b"l" * 16),
        parent=None,
        voters=tuple(map(voter, voters)),
        page_size=4096,
        members_hash=b"m" * 32,
    )
    made = Scene(config=config, author=key(author), present=present(*there.split()))
    return replace(made, **more)


def names(config: ConfigPayload) -> list[str]:
    assert decode_config(encode_config(config)) == config
    return [one.node_id for one in config.voters]


def test_one_voter_becomes_three_in_one_config() -> None:
    """The author first, newcomers last; the journal id is that of the connection."""
    stage = scene("n0")
    config = plan_addition(stage, ("n2", "n1"))
    assert names(config) == ["n0", "n2", "n1"]
    assert contradiction(stage.config, config, stage.author) is None
    assert config.members_hash == compute_members_hash(
        [(one.node_id, one.key) for one in config.voters]
    )


def test_the_author_comes_first_and_the_others_keep_their_order() -> None:
    """Q5: whoever writes the CONFIG goes on writing."""
    assert names(plan_addition(scene("n0", "n1", "n2", author="n2"), ("n3",))) == [
        "n2",
        "n0",
        "n1",
        "n3",
    ]
    assert names(plan_removal(scene("n0", "n1", "n2", author="n2"), ("n0",))) == ["n2", "n1"]


def test_a_node_with_another_journal_takes_its_own_place_again() -> None:
    """Its old entry goes, so no key votes twice."""
    there = present("n0", "n1") | present("n2", letter="k")
    config = plan_addition(scene("n0", "n1", "n2", present=there), ("n2",))
    assert names(config) == ["n0", "n1", "n2"]
    assert config.voters[2].journal_id == journal_of("n2", "k")


def test_a_witness_votes_as_one() -> None:
    there = present("n0", "n1") | present("n2", role=NodeRole.WITNESS)
    config = plan_addition(scene("n0", "n1", present=there), ("n2",))
    assert [one.role for one in config.voters] == [
        VoterRole.VALIDATOR,
        VoterRole.VALIDATOR,
        VoterRole.WITNESS,
    ]


@pytest.mark.parametrize(
    ("voters", "node", "there", "error", "words"),
    [
        ("n0", "n9", present("n0"), UnavailableError, "n9 is not connected"),
        ("n0", "n0", present("n0"), ConflictError, "n0 is a voter already"),
        (
            "n0",
            "n1",
            present("n0") | present("n1", role=NodeRole.ARCHIVE),
            ConflictError,
            "archive",
        ),
        ("n0", "n1", present("n0") | present("n1", role=NodeRole.WITNESS), None, ""),
        (
            "n0",
            "n1 n2",
            present("n0") | present("n1", "n2", role=NodeRole.WITNESS),
            ConflictError,
            "too few voters with data",
        ),
        ("n0 n1 n2", "n3", present("n0", "n3"), UnavailableError, "n1, n2 of the 4 new voters"),
    ],
)
def test_an_addition_is_refused_with_a_sentence(
    voters: str, node: str, there: dict[str, Present], error: type[BasenetError] | None, words: str
) -> None:
    stage = scene(*voters.split(), present=there)
    if error is None:
        plan_addition(stage, node.split())
        return
    with pytest.raises(error, match=words):
        plan_addition(stage, node.split())


def test_two_keys_never_have_one_id() -> None:
    """A node that was made anew with another certificate is another node."""
    there = present("n0", "n1")
    there["n2"] = Present(key=key("xx"), journal_id=journal_of("xx"), role=NodeRole.VALIDATOR)
    with pytest.raises(ConflictError, match="remove n2 first"):
        plan_addition(scene("n0", "n1", "n2", present=there), ("n2",))


def test_two_voters_never_share_a_journal() -> None:
    """Whose data directory was copied is told so, and CONFIG never names it."""
    there = present("n0")
    there["n1"] = Present(key=key("n1"), journal_id=journal_of("n0"), role=NodeRole.VALIDATOR)
    with pytest.raises(ConflictError, match="n0 and n1 have the same journal"):
        plan_addition(scene("n0", present=there), ("n1",))


def test_a_removal_is_refused_with_a_sentence() -> None:
    with pytest.raises(NotFoundError, match="n4 is no voter of this shard: they are n0, n1, n2"):
        plan_removal(scene("n0", "n1", "n2"), ("n4",))
    with pytest.raises(ConflictError, match="at least one"):
        plan_removal(scene("n0", "n1"), ("n0", "n1"))
    with pytest.raises(UnavailableError, match="n1 of the 2 new voters cannot be reached"):
        plan_removal(scene("n0", "n1", "n2", there="n0 n2"), ("n2",))
    assert names(plan_removal(scene("n0", "n1", "n2", there="n0 n2"), ("n1",))) == ["n0", "n2"]


def test_a_voter_with_another_journal_is_absent() -> None:
    """Connected is who votes, and that is a key with a journal (P23)."""
    there = present("n0") | present("n1", letter="k")
    with pytest.raises(UnavailableError, match="n1 of the 2"):
        plan_removal(scene("n0", "n1", "n2", present=there), ("n2",))


def test_byzantine_is_switched_off_below_four_and_on_again_at_four() -> None:
    """Q5: in the same frame."""
    four = scene("n0", "n1", "n2", "n3")
    four = replace(four, config=replace(four.config, fault_model=FaultModel.BYZANTINE))
    assert plan_removal(four, ("n3",)).fault_model == FaultModel.CRASH
    assert plan_addition(four, ("n4",)).fault_model == FaultModel.BYZANTINE
    three = scene("n0", "n1", "n2", wants_byzantine=True)
    assert plan_addition(three, ("n3",)).fault_model == FaultModel.BYZANTINE
    assert plan_addition(scene("n0", "n1", "n2"), ("n3",)).fault_model == FaultModel.CRASH
