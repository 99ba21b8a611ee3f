"""Three nodes on loopback with real TLS: who hears what, who is refused, who waits for whom."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import dns.resolver
import pytest
import trio

from basenet.config.values import Endpoint
from basenet.daemon.cluster.greeting import Greeter
from basenet.daemon.cluster.members import MemberBook
from basenet.daemon.cluster.routing import WAITING_BYTES_MAX
from basenet.daemon.cluster.tally import Tally
from basenet.daemon.framer import instant
from basenet.engine.placement import Membership, Peer
from basenet.errors import PeerError
from basenet.transport import handshake
from basenet.transport.addresses import LookupFailed, Resolver
from basenet.transport.link import Unwelcome
from basenet.transport.tls import Credentials
from basenet.units import Epoch, FrameHash, JournalId, Lineage, Seq, ShardId, View
from basenet.wire.envelope import AboutShard, encode_envelope
from basenet.wire.hello import Lane
from basenet.wire.message import SyncRequest
from basenet.wire.transfer import StateAsk
from tests.daemon.cluster.nodes import (
    LINEAGE,
    NAMES,
    SHARD,
    Directory,
    MemoryJournal,
    MemoryJournalist,
    Port,
    eventually,
    hello_of,
    running,
)
from tests.transport import nodes as transport
from tests.transport.nodes import make_authority, make_self, now_s, tls_files

ASK = SyncRequest(epoch=Epoch(1), above_height=Seq(4))
ASKED = encode_envelope(AboutShard(shard=SHARD, lineage=LINEAGE, body=ASK))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_authority(tmp_path / "ca", *NAMES)


def named(records: Iterable[bytes]) -> dict[FrameHash, bytes]:
    return {FrameHash(number.to_bytes(32, "big")): one for number, one in enumerate(records)}


async def test_everything_that_is_sent_arrives_at_the_shard(folder: Path) -> None:
    """Messages, frames small and large, final history, state: under the name of who sent them."""
    directory, ports = Directory(), {name: Port() for name in NAMES}
    async with (
        running(folder, "a", directory, ports["a"]) as a,
        running(folder, "b", directory, ports["b"]) as b,
        running(folder, "c", directory, ports["c"]) as c,
    ):
        for name, port in ports.items():
            others = set(NAMES) - {name}
            await port.bell.until(lambda port=port, others=others: set(port.connected) == others)
        a.node.send([b.key, c.key], SHARD, LINEAGE, ASK)
        for name in "bc":
            await ports[name].bell.until(lambda name=name: ports[name].heard == [("a", ASK)])
        small, large = (b"x" * 1_000, b"y"), (bytes(5_000_000),) * 2
        b.node.send_frames([c.key], SHARD, LINEAGE, named(small))
        await ports["c"].bell.until(lambda: ("b", small) in ports["c"].heard)
        # The bulk lane is dialled beside the other.
        await eventually(
            lambda: c.node.send_final(a.key, SHARD, LINEAGE, (b"one", b"two"), None, name="short")
        )
        assert not c.node.is_coming(a.key, "short")
        await ports["a"].bell.until(lambda: ("c", ((b"one", b"two"), None)) in ports["a"].heard)
        c.node.send_frames([a.key], SHARD, LINEAGE, named(large))
        assert all(c.node.is_coming(a.key, digest) for digest in named(large))
        assert not any(c.node.is_coming(b.key, digest) for digest in named(large))
        assert not any(b.node.is_coming(c.key, digest) for digest in named(small))
        await ports["a"].bell.until(lambda: ports["a"].heard.count(("c", large[:1])) == 2)
        ask = StateAsk(number=1, above_seq=Seq(0), epoch=Epoch(1))
        assert c.node.send_transfer(a.key, SHARD, LINEAGE, ask)
        await ports["a"].bell.until(lambda: ("c", ask) in ports["a"].heard)
        assert b.node.tally.frames == 0
        assert a.node.tally.frames == 4
        facts = a.node.status()
        assert facts.members == 3
        assert {peer.peer.node_id: peer.state for peer in facts.peers if peer.peer} == {
            "a": "itself",
            "b": "connected",
            "c": "connected",
        }


async def test_a_shard_that_comes_later_hears_who_is_there(folder: Path) -> None:
    """Membership and connections are told at registration; after its end it hears nothing."""
    directory, early, late = Directory(), Port(), Port()
    async with (
        running(folder, "a", directory, early, expect=2) as a,
        running(folder, "b", directory, Port(), expect=2) as b,
    ):
        directory.tell("c.test")
        await early.bell.until(lambda: early.connected == ["b"])
        a.node.unregister(early)
        a.node.register(late)
        assert late.connected == ["b"]
        assert late.members == [a.node.members]
        assert isinstance(a.node.members, Membership)
        await eventually(lambda: a.key in b.node.connected)
        b.node.send([a.key], SHARD, LINEAGE, ASK)
        await late.bell.until(lambda: late.heard == [("b", ASK)])
        assert early.heard == []


async def test_a_leader_is_granted_its_lease_and_missed_when_its_journal_hangs(
    folder: Path,
) -> None:
    """Heartbeats go out by themselves; a node whose journal does not answer sends none."""
    directory, ports = Directory(), {name: Port() for name in NAMES}
    async with (
        running(folder, "a", directory, ports["a"]) as a,
        running(folder, "b", directory, ports["b"]) as b,
        running(folder, "c", directory, ports["c"]) as c,
    ):
        for port in ports.values():
            await port.bell.until(lambda port=port: len(port.connected) == 2)
        members = {node.name: (node.key, node.journal.journal_id) for node in (a, b, c)}
        # Until a LEASE is over they count as having promised everything to somebody (H22).
        await eventually(lambda: b.node.liveness.promised_until(LINEAGE) < instant())
        for node in (b, c):
            node.node.liveness.follow(LINEAGE, Epoch(1), View(0), members["a"], instant())
        followers = (members["b"], members["c"])
        a.node.liveness.lead(LINEAGE, Epoch(1), View(0), followers, 2, instant())
        a.node.settle()
        await eventually(lambda: a.node.liveness.lease_until(LINEAGE, instant()) > instant())
        assert b.node.liveness.leader_heard_at(LINEAGE) is not None
        before = ports["b"].roused
        a.alive["journal"] = False
        await ports["b"].bell.until(lambda: ports["b"].roused > before)
        assert a.node.is_silent
        assert a.node.liveness.lease_until(LINEAGE, instant()) < instant()


async def test_a_journal_from_a_backup_is_refused_and_told(folder: Path) -> None:
    """Fewer transactions than are remembered: not connected, not heard, and asked to begin anew."""
    directory, port = Directory(), Port()
    restored = MemoryJournal(JournalId(b"b" * 16))
    restored.jcount = 5
    async with running(folder, "b", directory, Port(), expect=2, journal=restored) as b:
        remembering = MemoryJournal(JournalId(b"a" * 16))
        remembering.remembered[b.key, restored.journal_id] = 9
        directory.tell("c.test")
        async with running(folder, "a", directory, port, expect=2, journal=remembering) as a:
            await b.bell.until(lambda: len(b.rolled_back) == 1)
            assert "remember 9 transactions" in b.rolled_back[0]
            assert a.node.tally.rollbacks > 0
            assert port.connected == []
            assert b.key not in a.node.connected
            # That it exists is known: it is a member, whose journal needs a new id.
            assert isinstance(a.node.members, Membership)


async def test_who_compared_a_hello_says_so_when_that_is_durable(folder: Path) -> None:
    """B50: before the other's journal remembers our count nobody counts on it; then all do."""
    directory, ports = Directory(), {name: Port() for name in "ab"}
    async with (
        running(folder, "a", directory, ports["a"], expect=2) as a,
        running(folder, "b", directory, ports["b"], expect=2) as b,
    ):
        b.journalist.hold = trio.Event()
        directory.tell("c.test")
        await ports["b"].bell.until(lambda: ports["b"].connected == ["a"])
        await eventually(lambda: b.journalist.is_held)
        b.node.send([a.key], SHARD, LINEAGE, ASK)
        await ports["a"].bell.until(lambda: ports["a"].heard == [("b", ASK)])
        assert ports["a"].roused == 0
        b.journalist.hold.set()
        await ports["a"].bell.until(lambda: ports["a"].roused == 1)
        assert b.journal.remembered[a.key, a.journal.journal_id] >= 1
        # What its journal does afterwards is told without another HELLO.
        a.journal.jcount = 500
        roster, member = b.node._greeter._roster, (a.key, a.journal.journal_id)
        await eventually(lambda: roster.remembered(member) >= 500)


async def test_another_lineage_is_answered_and_never_processed(folder: Path) -> None:
    """At most once a second, and counted; so are messages about unknown shards."""
    directory, ports = Directory(), {name: Port() for name in "ab"}
    async with (
        running(folder, "a", directory, ports["a"], expect=2) as a,
        running(folder, "b", directory, ports["b"], expect=2) as b,
    ):
        directory.tell("c.test")
        await ports["a"].bell.until(lambda: ports["a"].connected == ["b"])
        for _ in range(5):
            a.node.send([b.key], SHARD, Lineage(b"o" * 16), ASK)
        a.node.send_frames([b.key], SHARD, Lineage(b"o" * 16), named([b"frame"]))
        a.node.send([b.key], ShardId("elsewhere"), LINEAGE, ASK)
        a.node.send([b.key], SHARD, LINEAGE, ASK)
        await ports["b"].bell.until(lambda: ports["b"].heard == [("a", ASK)])
        assert ports["b"].corrected == ["a"]
        tally = b.node.tally.by_reason()
        assert (tally["lineage_mismatch"], tally["shard_mismatch"]) == (6, 1)


async def test_a_shard_that_is_busy_holds_up_nobody_else(folder: Path) -> None:
    """Other shards of the peer are heard meanwhile; its own messages wait in order, bounded."""
    directory, slow, quick = Directory(), Port(), Port(shard=ShardId("quick"))
    slow.hold = trio.Event()
    async with (
        running(folder, "a", directory, Port(), expect=2) as a,
        running(folder, "b", directory, slow, quick, expect=2) as b,
    ):
        directory.tell("c.test")
        await slow.bell.until(lambda: slow.connected == ["a"])
        await eventually(lambda: b.key in a.node.connected)
        record = bytes(200_000)
        for _ in range(20):
            a.node.send_frames([b.key], SHARD, LINEAGE, named([record]))
            a.node.send([b.key], SHARD, LINEAGE, ASK)
        a.node.send([b.key], quick.shard, LINEAGE, ASK)
        await quick.bell.until(lambda: quick.heard == [("a", ASK)])
        assert slow.heard == []
        rounds = 0
        while not b.node.tally.overrun:
            rounds += 1
            a.node.send_frames([b.key], SHARD, LINEAGE, named([record]))
            a.node.send([b.key], quick.shard, LINEAGE, ASK)
            await quick.bell.until(lambda: len(quick.heard) > rounds)  # noqa: B023  (now)
        assert rounds * len(record) < WAITING_BYTES_MAX
        slow.hold.set()
        await slow.bell.until(lambda: len(slow.heard) == 40 + rounds - 1)
        assert [what for _, what in slow.heard[:40]] == [(record,), ASK] * 20


async def test_garbage_ends_one_connection_and_no_other(folder: Path) -> None:
    """It is counted by its reason; the others are still heard, and the peer may come back."""
    directory, ports = Directory(), {name: Port() for name in "ab"}
    async with (
        running(folder, "a", directory, ports["a"], expect=2) as a,
        running(folder, "b", directory, ports["b"], expect=2) as b,
        transport.running(folder, "c", NAMES) as c,
    ):
        directory.tell("c.test", c.address)
        await ports["b"].bell.until(lambda: ports["b"].connected[:1] == ["a"])
        c.mesh.set_addresses([a.address])
        await c.told.until(lambda: c.told.connected == ["a"])
        for number, garbage in enumerate((b"\xc1 no envelope", b"")):
            assert c.mesh.send(a.key, garbage)
            await c.told.until(lambda number=number: len(c.told.lost) > number)
            await c.told.until(lambda number=number: len(c.told.connected) == number + 2)
            assert a.node.tally.unreadable == number + 1
        b.node.send([a.key], SHARD, LINEAGE, ASK)
        await ports["a"].bell.until(lambda: ports["a"].heard == [("b", ASK)])
        assert "b" not in ports["a"].lost


async def test_who_may_not_connect_is_refused_and_counted(folder: Path, tmp_path: Path) -> None:
    """Plain text, another authority's certificate, a length beyond the bound: by reason."""
    directory, port = Directory(), Port()
    other = make_authority(tmp_path / "other", "b")
    async with running(folder, "a", directory, port, expect=2) as a:
        for name in "bc":
            directory.tell(f"{name}.test")
        plain = await trio.open_tcp_stream(a.address.host, a.address.port)
        async with plain:
            await plain.send_all(b"GET / HTTP/1.1\r\n\r\n" * 10)
            await eventually(lambda: a.node.tally.refused == 1)
        async with transport.running(other, "b", NAMES) as stranger:
            stranger.mesh.set_addresses([a.address])
            await stranger.told.until(lambda: bool(stranger.told.refused))
            await eventually(lambda: a.node.tally.refused >= 2)
        credentials = Credentials(tls_files(folder, "b"), on_problem=lambda _: None)
        raw = await trio.open_tcp_stream(a.address.host, a.address.port)
        session = await handshake.connect(
            make_self(folder, "b", NAMES), raw, credentials.contexts(), Lane.ORDINARY, now_s()
        )
        await session.stream.send_all(b"\xff\xff\xff\xff")
        with suppress(trio.BrokenResourceError):
            assert await session.stream.receive_some(1) == b""
        await trio.aclose_forcefully(raw)
        assert a.node.tally.oversized == 1
        assert port.connected == []


async def test_what_a_shard_finds_wrong_ends_the_peers_connections(folder: Path) -> None:
    """Also where the message had left its connection; the peer comes back by itself."""
    directory, ports = Directory(), {name: Port() for name in "ab"}
    ports["a"].error = PeerError("a frame with a wrong signature")
    async with (
        running(folder, "a", directory, ports["a"], expect=2) as a,
        running(folder, "b", directory, ports["b"], expect=2) as b,
    ):
        directory.tell("c.test")
        await ports["b"].bell.until(lambda: ports["b"].connected == ["a"])
        b.node.send_frames([a.key], SHARD, LINEAGE, named([b"wrong"]))
        await ports["b"].bell.until(lambda: ports["b"].connected == ["a", "a"])
        assert ports["b"].lost == ["a"]
        assert ports["a"].lost == []
        assert ports["a"].heard == []


async def test_a_node_that_moves_is_found_by_its_name(folder: Path) -> None:
    """Its old address is gone from DNS, the new one is dialled; its end was told."""
    directory, port = Directory(), Port()
    async with running(folder, "a", directory, port, expect=2) as a:
        directory.tell("c.test")
        async with running(folder, "b", directory, Port(), expect=2) as b:
            await port.bell.until(lambda: port.connected == ["b"])
            old = b.address
        await port.bell.until(lambda: port.lost == ["b"] and port.unreachable == ["b"])
        async with running(folder, "b", directory, Port(), expect=2) as b:
            assert b.address != old
            await port.bell.until(lambda: port.connected == ["b", "b"])
            assert {peer.address for peer in a.node.status().peers} == {a.address, b.address}


async def test_a_second_process_with_our_key_is_refused(folder: Path) -> None:
    """Two processes that sign with one key could vote twice."""
    directory, port = Directory(), Port()
    async with (
        running(folder, "a", directory, port, expect=2) as a,
        transport.running(folder, "a", NAMES) as clone,
    ):
        clone.mesh.set_addresses([a.address])
        directory.tell("b.test")
        directory.tell("c.test", clone.address)
        await eventually(lambda: a.node.tally.refused > 0)
        assert port.connected == []


async def test_a_connection_of_an_older_run_is_not_heard(folder: Path) -> None:
    """B38: a newer run of the peer was admitted, so what the old one left is from before."""
    directory, port = Directory(), Port()
    async with (
        running(folder, "a", directory, port, expect=2) as a,
        transport.running(folder, "b", NAMES) as old,
        transport.running(folder, "b", NAMES, boot_nonce=b"newerrun") as new,
    ):
        directory.tell("b.test", new.address)
        directory.tell("c.test")
        old.mesh.set_addresses([a.address])
        await old.told.until(lambda: old.told.connected == ["a"])
        await port.bell.until(lambda: port.connected == ["b"])
        new.mesh.set_addresses([a.address])
        await new.told.until(lambda: new.told.connected == ["a"])
        assert old.mesh.send(a.key, ASKED)
        await old.told.until(lambda: old.told.lost == ["a"])
        assert new.mesh.send(a.key, ASKED)
        await port.bell.until(lambda: port.heard == [("b", ASK)])


async def test_a_machine_without_dns_uses_literal_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name then says why it has no answer, and nothing ends."""

    def refuse(*_: object) -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.resolver.BaseResolver, "read_resolv_conf", refuse)
    resolver, literal = Resolver(), Endpoint(host="127.0.0.1", port=9)
    assert (await resolver.resolve(literal)).endpoints == (literal,)
    with pytest.raises(LookupFailed, match=r"nobody\.test"):
        await resolver.resolve(Endpoint(host="nobody.test", port=9))


def test_static_members_are_those_who_answered_at_each_address() -> None:
    """Whoever dialled in is not one of them, and who answered once stays one (B1, B2)."""
    one, two = (Endpoint(host="127.0.0.1", port=port) for port in (1, 2))
    me, b, c = hello_of("a", key=1), hello_of("b", key=2), hello_of("c", key=3)
    book = MemberBook(Peer("a", me.key), [one, two], None)
    assert book.members == "no node has said HELLO yet at 127.0.0.1:1, 127.0.0.1:2 of BASE_PEERS"
    book.on_greeted(c)
    assert book.on_answered(one, me)
    assert book.members == "no node has said HELLO yet at 127.0.0.1:2 of BASE_PEERS"
    assert book.on_answered(two, b)
    assert not book.on_answered(two, b)
    assert book.members == Membership(peers=(Peer("a", me.key), Peer("b", b.key)))
    assert book.on_answered(two, hello_of("b", key=4))
    assert isinstance(book.members, Membership)


def test_named_members_are_the_expected_number_that_said_hello() -> None:
    """In whatever direction; a node of its own, without peers, is a membership of one (B3)."""
    me, entry = hello_of("a", key=1), Endpoint(host="nodes.test", port=1)
    book = MemberBook(Peer("a", me.key), [entry], 2)
    assert book.members == "1 of BASE_BOOTSTRAP_EXPECT=2 nodes have said HELLO"
    assert book.on_greeted(hello_of("b", key=2))
    assert isinstance(book.members, Membership)
    assert isinstance(MemberBook(Peer("a", me.key), [], None).members, Membership)


def test_within_a_run_an_older_hello_is_late_and_no_roll_back() -> None:
    """HELLOs of two lanes overtake each other; only another run is compared (B47)."""
    journal, tally = MemoryJournal(JournalId(b"m" * 16)), Tally()
    greeter = Greeter(
        me=(hello_of("a", key=1).key, journal.journal_id),
        journalist=MemoryJournalist(journal),
        doubters_needed=1,
        tally=tally,
        clock=instant,
        send=lambda _, __: None,
        on_compared=lambda: None,
        on_rolled_back=lambda _: None,
    )
    greeter.admit(hello_of("b", key=2, count=8))
    greeter.admit(hello_of("b", key=2, count=7))
    greeter.admit(hello_of("b", key=2, run=1, count=8))
    with pytest.raises(Unwelcome, match="came back from a backup"):
        greeter.admit(hello_of("b", key=2, run=2, count=7))
    assert tally.rollbacks == 1
