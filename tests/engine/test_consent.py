"""The consent to a genesis, with which every ballot begins, is nobody's vote.

Found by 200 births under load: 69 accusations of honest voters, each of whom had said the truth.
"""

import pytest

from basenet.engine.adoption import adopt
from basenet.engine.genesis import certify, check_complete, read_genesis
from basenet.wire.finality import found
from basenet.wire.frame import encode_frame
from tests.engine.cluster import SCOPE, SHARD, Cluster, IdealSigner, is_signed_ideally, key_of
from tests.engine.test_corners import genesis_mark, new_view


@pytest.mark.parametrize("byzantine", [False, True])
def test_consent_to_a_genesis_is_no_vote(byzantine: bool) -> None:  # noqa: FBT001
    """Every ballot begins with it, as `adopt` writes it; nothing was final before view 1."""
    cluster = Cluster(4 if byzantine else 3, byzantine=byzantine, boots=False)
    genesis = read_genesis(encode_frame(cluster.genesis), shard=SHARD, verify=is_signed_ideally)
    data = SCOPE.genesis(cluster.genesis.head.hash)
    voters = range(len(cluster.nodes))
    consent = certify(genesis, {key_of(n): IdealSigner(n).sign(data) for n in voters})
    check_complete(genesis, consent, is_signed_ideally)
    electors = found(cluster.genesis.head, cluster.config, consent, verify=is_signed_ideally)
    for node in cluster.nodes:
        node.ballot = adopt(
            None,
            me=(node.key, node.journal_id),
            electors=electors,
            head=cluster.genesis.head,
            certificate=consent,
        )
    cluster.boot(cluster.nodes[1])
    low = genesis_mark(cluster)
    for sender in [n for n in voters if n != 1][:2]:
        cluster.tell(1, sender, new_view(sender, 1, low))
    assert cluster.nodes[1].whats() == []
