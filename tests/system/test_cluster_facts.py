"""What three real nodes say of the cluster: who writes, where, and how much came from whom."""

import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import pytest

from basenet.control.metrics import SHARD_FAMILIES
from basenet.control.surface import ShardMetrics
from basenet.testing.cluster import SHARD, Cluster, ClusterNode
from tests.sqlite.application import Application

pytestmark = pytest.mark.system

WRITER_PATH: Final = "/v1/shards/app/writer"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        cluster.start()
        yield cluster
        cluster.stop()


def address_of(node: ClusterNode) -> str:
    """Where the newest run of the node serves HTTP."""
    return re.findall(r"^BASE_LISTEN_ADDR=(\S+)$", node.read_log(), re.MULTILINE)[-1]


def ask(address: str, path: str) -> tuple[int, str | None, bytes]:
    """Status, Location and body; redirects are not followed."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("location"), answer.read()
    finally:
        connection.close()


def ask_json(node: ClusterNode, path: str) -> Any:
    return msgspec.json.decode(ask(address_of(node), path)[2])


def metrics_of(node: ClusterNode) -> dict[str, float]:
    """Every sample of a scrape, labels left out."""
    lines = ask(address_of(node), "/metrics")[2].decode().splitlines()
    samples = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name.partition("{")[0]: float(value) for name, _, value in samples}


def sent_to(node: ClusterNode) -> str | None:
    """Where a client is sent that asks this node for the writer."""
    status, location, _ = ask(address_of(node), WRITER_PATH)
    return location if status == 307 else None


def heights_of(node: ClusterNode) -> dict[str, int | None]:
    """How far each member is, as this node knows."""
    members = ask_json(node, "/v1/shards/app")["members"]
    return {one["node_id"]: one["final_seq"] for one in members}


def test_a_client_of_any_node_finds_the_writer(cluster: Cluster) -> None:
    """And the next one when that is dead, after being told that nobody is known or the new one."""
    writer = cluster.wait_writer()
    for node in cluster.others(writer):
        place = cluster.until(lambda node=node: sent_to(node), "the writer's address is known")  # type: ignore[misc]
        assert place == f"http://{address_of(writer)}{WRITER_PATH}"
        url = urlsplit(place)
        status, _, body = ask(url.netloc, url.path)
        assert status == 200
        assert msgspec.json.decode(body)["writer"] == writer.name
        facts = ask_json(node, "/v1/shards/app")
        assert facts["writer_endpoint"] == address_of(writer)
        members = ask_json(node, "/-/base/members")
        assert members["endpoints"] == {one.name: address_of(one) for one in cluster}
    writer.kill()
    heir = cluster.wait_writer(but=writer)
    (other,) = cluster.others(writer, heir)
    cluster.until(
        lambda: sent_to(other) == f"http://{address_of(heir)}{WRITER_PATH}",
        "the other one knows the new writer",
    )
    # One that leads nothing and hears nobody knows no writer.
    heir.kill()
    cluster.until(
        lambda: ask(address_of(other), WRITER_PATH)[0] in {307, 503}, "it answers all the same"
    )
    writer.start()
    heir.start()
    cluster.wait_settled()


def test_what_peers_send_is_counted(cluster: Cluster) -> None:
    """Submitted by the writer, ingested by the others, final everywhere."""
    writer = cluster.wait_writer()
    with Application(writer.database()) as application:
        application.sql("PRAGMA busy_timeout=20000", "CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        for number in range(20):
            application.sql(f"INSERT INTO t (v) VALUES ({number})")
        writer.wait_final()
    seq = cluster.wait_settled()
    own = metrics_of(writer)
    assert own["base_network_frames_submitted_total"] >= seq - 2
    assert own["base_network_frames_finalized_total"] >= seq - 2
    assert own["base_network_membership_size"] == 3
    assert own["base_fence_wait_seconds_count"] >= 1
    for node in cluster.others(writer):
        theirs = metrics_of(node)
        assert theirs["base_network_frames_submitted_total"] == 0
        assert theirs["base_network_frames_ingested_total"] >= seq - 2
        assert theirs["base_network_frames_finalized_total"] >= seq - 2
        assert theirs["base_network_frames_invalid_total"] == 0
        assert theirs["base_network_frames_rejected_shard_mismatch_total"] == 0
    for node in cluster:
        cluster.until(
            lambda node=node: set(heights_of(node).values()) == {seq},  # type: ignore[misc]
            "each node knows how far the others are",
        )
        assert set(heights_of(node)) == set(cluster.names)
    assert own["base_loop_stall_seconds_count"] > 0
    for node in cluster:
        status, scraped = node.client.get_shard_status(SHARD), metrics_of(node)
        for family in SHARD_FAMILIES:
            # What is not of the status is counted apart, and 0 here.
            if value := family.read(ShardMetrics(status=status)):
                assert scraped[family.name] == value, family.name
        assert scraped["base_captured_commits_total"] > 0 or node is not writer


def test_a_writer_that_loses_its_quorum_says_so(tmp_path: Path) -> None:
    """Its lease runs out, which is counted; it sends nobody to itself."""
    with Cluster(tmp_path) as cluster:
        cluster.start()
        writer = cluster.wait_writer()
        assert metrics_of(writer)["base_write_leases_lost_total"] == 0
        for node in cluster.others(writer):
            node.kill()
        cluster.until(
            lambda: metrics_of(writer)["base_write_leases_lost_total"] == 1, "the lease ran out"
        )
        status, _, body = ask(address_of(writer), WRITER_PATH)
        assert status == 503
        assert "this node leads shard app" in msgspec.json.decode(body)["error"]
