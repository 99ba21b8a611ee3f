from typing import Any

import pytest

from basenet.control.members import MembersCommand, MembersVerb
from basenet.errors import UsageError

HEX = "00112233445566778899aabbccddeeff"


@pytest.mark.parametrize(
    "parts",
    [
        {"verb": MembersVerb.INIT, "nodes": ("a",)},
        {"verb": MembersVerb.ADD, "nodes": ("b", "c.example")},
        {"verb": MembersVerb.REMOVE, "nodes": ("b",)},
        {"verb": MembersVerb.TRANSFER, "nodes": ("b",)},
        {"verb": MembersVerb.FORCE, "nodes": ("a",), "is_loss_accepted": True},
        {"verb": MembersVerb.ACCEPT, "lineage": HEX},
    ],
)
def test_a_command_that_is_whole_can_be_made(parts: dict[str, Any]) -> None:
    """One of each."""
    assert MembersCommand(**parts).verb is parts["verb"]


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"verb": MembersVerb.ADD}, "at least one"),
        ({"verb": MembersVerb.INIT, "nodes": ("a", "b")}, "exactly one"),
        ({"verb": MembersVerb.TRANSFER}, "exactly one"),
        ({"verb": MembersVerb.ADD, "nodes": ("b", "b")}, "twice"),
        ({"verb": MembersVerb.ADD, "nodes": ("B",)}, "not a node id"),
        ({"verb": MembersVerb.ADD, "nodes": ("b\n",)}, "not a node id"),
        ({"verb": MembersVerb.ADD, "nodes": ("",)}, "not a node id"),
        ({"verb": MembersVerb.ADD, "nodes": ("b",), "lineage": HEX}, "no lineage"),
        ({"verb": MembersVerb.ADD, "nodes": ("b",), "is_loss_accepted": True}, "is lost"),
        ({"verb": MembersVerb.FORCE, "nodes": ("a",)}, "yes-final-commits-may-be-lost"),
        ({"verb": MembersVerb.ACCEPT}, "32 hex digits"),
        ({"verb": MembersVerb.ACCEPT, "lineage": HEX[:-1]}, "32 hex digits"),
        ({"verb": MembersVerb.ACCEPT, "lineage": HEX, "nodes": ("a",)}, "not a node"),
    ],
)
def test_a_command_that_is_half_said_cannot_be_made(parts: dict[str, Any], problem: str) -> None:
    """Neither too little nor more than its verb means."""
    with pytest.raises(UsageError, match=problem):
        MembersCommand(**parts)
