"""Who belongs to a birth, and in which order."""

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from basenet.engine.placement import (
    Membership,
    Peer,
    compute_expected_membership,
    compute_static_membership,
)
from basenet.units import PublicKeyBytes, ShardId


def peer(name: str, key: int = 0) -> Peer:
    return Peer(name, PublicKeyBytes(bytes([key or ord(name[0])]) * 32))


A, B, C, D = (peer(name) for name in "abcd")


def test_static_membership_waits_for_a_first_hello_of_every_entry() -> None:
    """Sentence B2 of docs/protocol/birth.md.

    B2. With a static `BASE_PEERS`, M is complete when every entry has said HELLO once.
    """
    waiting = compute_static_membership(A, {"b:1": B, "c:1": None})
    assert waiting == "no node has said HELLO yet at c:1 of BASE_PEERS"
    assert compute_static_membership(A, {"b:1": B, "c:1": C}) == Membership(peers=(A, B, C))
    assert compute_static_membership(A, {"a:1": A, "b:1": B}) == Membership(peers=(A, B))


def test_expected_membership_is_exactly_so_many() -> None:
    """Sentence B3 of docs/protocol/birth.md.

    B3. With DNS names, M is exactly `BASE_BOOTSTRAP_EXPECT` nodes that said HELLO, and unset
    there is no birth.
    """
    assert compute_expected_membership(A, [B, C, B, A], 3) == Membership(peers=(A, B, C))
    fewer = compute_expected_membership(A, [B], 3)
    assert fewer == "2 of BASE_BOOTSTRAP_EXPECT=3 nodes have said HELLO"
    more = compute_expected_membership(A, [B, C, D], 3)
    assert isinstance(more, str)
    assert "4 nodes have said HELLO (a, b, c, d)" in more
    unset = compute_expected_membership(A, [B, C], None)
    assert isinstance(unset, str)
    assert "BASE_BOOTSTRAP_EXPECT is unset, so no shard is born" in unset


def test_two_nodes_with_one_name_are_no_membership() -> None:
    """Sentence B4 of docs/protocol/birth.md.

    B4. Two nodes with one id or one key make no membership.
    """
    same_id = compute_expected_membership(A, [peer("a", 9)], 2)
    assert isinstance(same_id, str)
    assert "two nodes have the same node id" in same_id
    same_key = compute_static_membership(A, {"x": peer("z", ord("a"))})
    assert isinstance(same_key, str)
    assert "two nodes have the same key" in same_key


def test_the_order_is_that_of_rendezvous_hashing() -> None:
    """Sentence B5 of docs/protocol/birth.md.

    B5. The order of M for a shard is that of the first 8 bytes of SHA-256(shard, 00, node id),
    lowest first.
    """
    members = Membership(peers=(A, B, C, D))
    for shard in ("app", "orders", "users"):
        scores = {
            node.node_id: sha256(f"{shard}\0{node.node_id}".encode()).digest()[:8]
            for node in members.peers
        }
        order = [node.node_id for node in members.order(ShardId(shard))]
        assert order == sorted(scores, key=scores.__getitem__)


@given(st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_whoever_leaves_moves_nobody_else(names: set[str]) -> None:
    """The order of those who stay is the same with and without the others."""
    shard = ShardId("app")
    everybody = Membership(peers=tuple(peer(name) for name in "abcdefgh")).order(shard)
    some = Membership(peers=tuple(peer(name) for name in sorted(names))).order(shard)
    assert some == tuple(node for node in everybody if node.node_id in names)


def test_shards_are_spread() -> None:
    """1,000 shards have each of 4 nodes first about as often."""
    members = Membership(peers=(A, B, C, D))
    firsts = [members.order(ShardId(f"s{number}"))[0].node_id for number in range(1_000)]
    assert all(150 < firsts.count(node.node_id) < 350 for node in members.peers)
