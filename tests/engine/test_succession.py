"""How a standalone shard becomes one of a cluster."""

from dataclasses import replace

from basenet.engine.configuration import compute_succession, contradiction
from basenet.engine.placement import Peer
from basenet.units import JournalId, PublicKeyBytes
from basenet.wire.payload import compute_members_hash, decode_config, encode_config
from tests.engine.birth_story import Node

NODE = Node()
OLD = NODE.genesis(0, members_hash=b"o" * 32).config
HEIR = Peer("db-0.example", PublicKeyBytes(b"k" * 32))


def test_the_old_key_names_the_new_one() -> None:
    """Sentence B52 of docs/protocol/birth.md.

    B52. The first cluster start over a standalone lineage writes one CONFIG with the old key, whose
    only voter is the certificate's id and key with the present journal.
    """
    (old,) = OLD.voters
    new = compute_succession(OLD, old.key, HEIR, old.journal_id)
    assert new is not None
    assert [(v.node_id, v.key, v.journal_id) for v in new.voters] == [
        (HEIR.node_id, HEIR.key, old.journal_id)
    ]
    assert (new.lineage, new.parent, new.page_size) == (OLD.lineage, OLD.parent, OLD.page_size)
    assert new.members_hash == compute_members_hash([(HEIR.node_id, HEIR.key)])
    assert decode_config(encode_config(new)) == new
    assert contradiction(OLD, new, old.key) is None
    assert compute_succession(new, old.key, HEIR, old.journal_id) is None


def test_a_forced_lineage_has_heirs_that_are_not_forced() -> None:
    """FORCED is the genesis's alone."""
    (old,) = OLD.voters
    forced = NODE.genesis(0, parent=(OLD.lineage, 3, b"p" * 32), is_forced=True, lineage=b"f" * 16)
    new = compute_succession(forced.config, old.key, HEIR, old.journal_id)
    assert new is not None
    assert not new.is_forced
    assert new.parent == forced.config.parent


def test_nothing_is_written_for_others() -> None:
    """Not by another key or journal, and not where there are more voters."""
    (old,) = OLD.voters
    assert compute_succession(OLD, HEIR.key, HEIR, old.journal_id) is None
    assert compute_succession(OLD, old.key, HEIR, JournalId(b"?" * 16)) is None
    three = NODE.genesis(0, 1, 2).config
    assert compute_succession(three, old.key, HEIR, old.journal_id) is None
    same = replace(OLD, voters=(replace(old, node_id=HEIR.node_id, key=HEIR.key),))
    assert compute_succession(same, HEIR.key, HEIR, old.journal_id) is None
