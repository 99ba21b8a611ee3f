"""Where the HTTP surfaces are: what is told, to whom, and what is made of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from basenet.config.loader import load
from basenet.config.model import ClusterConfig
from basenet.config.values import Endpoint, parse_endpoint
from basenet.daemon.cluster import node as cluster_node
from basenet.daemon.cluster.reaching import HttpBook, choose_http
from basenet.errors import PeerError
from basenet.units import PublicKeyBytes
from basenet.wire.envelope import BetweenNodes, decode_envelope, encode_envelope
from basenet.wire.hello import Hello
from basenet.wire.reachable import READS_FACTS, Reachable
from tests.daemon.cluster.nodes import Directory, Port, eventually, hello_of, running
from tests.transport.nodes import make_authority

ME = PublicKeyBytes(b"m" * 32)
EVERYWHERE = "0.0.0.0:9999"


def config_of(p2p: str, advertised: str | None = None) -> ClusterConfig:
    cluster = load({"BASE_SHARDS": "app.db", "BASE_ARCHIVE": "off"}).cluster
    return replace(cluster, listen_p2p=parse_endpoint(p2p), advertise_http=advertised)


@pytest.mark.parametrize(
    ("listens_at", "p2p", "told"),
    [
        ("10.0.0.1:8090", EVERYWHERE, "10.0.0.1:8090"),
        ("db1.example.org:80", EVERYWHERE, "db1.example.org:80"),
        ("[2001:db8::1]:8090", EVERYWHERE, "[2001:db8::1]:8090"),
        (":8090", EVERYWHERE, ":8090"),
        ("0.0.0.0:8090", EVERYWHERE, ":8090"),
        ("[::]:8090", EVERYWHERE, ":8090"),
        ("127.0.0.1:8090", EVERYWHERE, None),
        ("localhost:8090", EVERYWHERE, None),
        ("127.0.0.1:8090", "127.0.0.1:9999", "127.0.0.1:8090"),
        ("[::1]:8090", "localhost:9999", "[::1]:8090"),
        ("[fe80::1%eth0]:8090", EVERYWHERE, None),
    ],
)
def test_what_is_told_follows_from_where_it_listens(
    listens_at: str, p2p: str, told: str | None
) -> None:
    """What a client of another host could use, and nothing else."""
    assert choose_http(config_of(p2p), parse_endpoint(listens_at)) == told


def test_what_the_operator_says_counts() -> None:
    config = config_of(EVERYWHERE, "https://base.example.org")
    assert choose_http(config, parse_endpoint("127.0.0.1:8090")) == "https://base.example.org"


@pytest.mark.parametrize(
    "http",
    ["10.0.0.1:8090", "[2001:db8::1]:80", "https://a.example", "http://a.example:1", ":8090"],
)
def test_every_address_that_is_told_is_read(http: str) -> None:
    body = BetweenNodes(body=Reachable(http=http))
    assert decode_envelope(encode_envelope(body)) == body


@pytest.mark.parametrize(
    "http",
    [
        "",
        "a.example:80/path",
        "a.example:80\r\nSet-Cookie: x=1",
        "ftp://a.example",
        "http://user@a.example",
        "a example",
        "a" * 300,
        "//a.example",
        ":",
    ],
)
def test_what_must_not_stand_in_a_location_is_refused(http: str) -> None:
    """It comes from a peer and goes to a client."""
    with pytest.raises(PeerError, match="cannot be read"):
        decode_envelope(encode_envelope(BetweenNodes(body=Reachable(http=http))))


def test_a_port_alone_is_at_the_host_that_is_dialled() -> None:
    book, peer = HttpBook(ME, ":8090"), hello_of("b", key=2)
    at = [(Endpoint(host="10.0.0.2", port=9999), peer)]
    assert book.find(peer.key, at) is None
    book.on_told(peer, Reachable(http=":81"))
    assert book.find(peer.key, at) == "10.0.0.2:81"
    assert book.find(peer.key, []) is None
    book.on_told(peer, Reachable(http="db2.example:82"))
    assert book.find(peer.key, at) == "db2.example:82"
    # Who listens on every interface does not know by which name clients know it.
    assert book.find(ME, at) is None
    assert HttpBook(ME, "10.0.0.1:80").find(ME, []) == "10.0.0.1:80"


def test_an_older_peer_is_told_nothing() -> None:
    peer = hello_of("b", key=2)
    book = HttpBook(ME, "10.0.0.1:80")
    assert not book.is_told(peer)
    assert book.is_told(replace(peer, features=READS_FACTS | 1))
    assert not HttpBook(ME, None).is_told(replace(peer, features=READS_FACTS))


@pytest.mark.parametrize("is_older", [False, True])
async def test_nodes_tell_each_other_where_they_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_older: bool
) -> None:
    """A node that does not read it stays connected, and its own address is not known."""
    folder = make_authority(tmp_path / "ca", "a", "b")
    directory, ports = Directory(), {"a": Port(), "b": Port()}
    original = cluster_node.ClusterNode._describe

    def describe(self: cluster_node.ClusterNode) -> Hello:
        hello = original(self)
        return replace(hello, features=0) if is_older and hello.node_id == "b" else hello

    monkeypatch.setattr(cluster_node.ClusterNode, "_describe", describe)
    async with (
        running(folder, "a", directory, ports["a"], expect=2, names=("a", "b"), http=":80") as a,
        running(
            folder,
            "b",
            directory,
            ports["b"],
            expect=2,
            names=("a", "b"),
            http=None if is_older else "10.0.0.2:90",
        ) as b,
    ):
        for one in (a, b):
            await eventually(lambda one=one: len(one.node.connected) == 1)  # type: ignore[misc]
        if is_older:
            # Whatever was sent before these has arrived.
            for _ in range(20):
                a.node._greeter._tell({b.key})
            await eventually(lambda: b.node.tally.messages >= 20)
            assert a.node.find_http(b.key) is None
            assert b.node.find_http(a.key) is None
            assert b.node.tally.unreadable == 0
            return
        await eventually(lambda: a.node.find_http(b.key) == "10.0.0.2:90")
        await eventually(lambda: b.node.find_http(a.key) == "127.0.0.1:80")
