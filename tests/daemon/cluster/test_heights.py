"""How far the members are: told when it moved, to who can read it, and no oftener."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from basenet.daemon.cluster.heights import HeightBook, HeightTeller
from basenet.daemon.progress import Progress
from basenet.errors import PeerError
from basenet.units import Lineage, PublicKeyBytes, Seq, ShardId
from basenet.wire.envelope import BetweenNodes, decode_envelope, encode_envelope
from basenet.wire.heights import ENTRIES_MAX, Height, Heights
from basenet.wire.hello import Hello
from basenet.wire.reachable import READS_FACTS
from tests.daemon.cluster.nodes import LINEAGE, Directory, Port, eventually, hello_of, running
from tests.transport.nodes import make_authority

OTHER = Lineage(b"o" * 16)


@dataclass
class Shard:
    """A shard, as far as it is told."""

    shard: ShardId
    lineage: Lineage | None = LINEAGE
    progress: Progress = field(default_factory=Progress)

    def become_final(self, seq: int) -> None:
        self.progress.set_final(Seq(seq))


class World:
    """A node with shards and peers, and what it told."""

    def __init__(self, count: int = 2) -> None:
        self.shards = {
            ShardId(f"s{number}"): Shard(ShardId(f"s{number}")) for number in range(count)
        }
        self.connected: dict[PublicKeyBytes, Hello] = {}
        self.count = 0
        self.told: list[tuple[PublicKeyBytes, Heights]] = []
        self.teller = HeightTeller(
            cast("Any", self.shards),
            connected=lambda: self.connected,
            count=lambda: self.count,
            send=lambda key, message: self.told.append((key, message)),
        )

    def connect(self, number: int, features: int = READS_FACTS) -> PublicKeyBytes:
        hello = replace(hello_of(f"n{number}", key=number), features=features)
        self.connected[hello.key] = hello
        return hello.key

    def write(self, shard: str, seq: int) -> None:
        self.count += 1
        self.shards[ShardId(shard)].become_final(seq)

    def tell(self) -> list[tuple[PublicKeyBytes, dict[str, int]]]:
        """What one more look tells."""
        self.told.clear()
        self.teller.tell()
        return [(key, {one.shard: one.seq for one in sent.entries}) for key, sent in self.told]


def test_what_moved_is_told_once() -> None:
    world = World()
    peer = world.connect(1)
    assert world.tell() == []
    world.write("s0", 5)
    assert world.tell() == [(peer, {"s0": 5})]
    assert world.tell() == []
    world.write("s0", 6)
    world.write("s1", 2)
    assert world.tell() == [(peer, {"s0": 6, "s1": 2})]


def test_while_nothing_is_written_nobody_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.connect(1)
    world.write("s0", 5)
    world.tell()
    monkeypatch.setattr(world.teller, "_find_moved", lambda: pytest.fail("it looks"))
    world.tell()


def test_who_connects_is_told_everything_and_an_older_node_nothing() -> None:
    world = World()
    world.write("s0", 5)
    world.tell()
    world.connect(1, features=0)
    late = world.connect(2)
    assert world.tell() == [(late, {"s0": 5})]
    assert world.tell() == []
    world.connected[late] = replace(world.connected[late])  # it came back
    assert world.tell() == [(late, {"s0": 5})]


def test_a_lineage_that_begins_anew_is_told() -> None:
    world = World()
    peer = world.connect(1)
    world.write("s0", 5)
    world.tell()
    world.shards[ShardId("s0")].lineage = OTHER
    world.count += 1
    assert world.tell() == [(peer, {"s0": 5})]


def test_many_shards_are_told_in_messages_that_are_read() -> None:
    world = World(ENTRIES_MAX + 3)
    world.connect(1)
    for shard in world.shards:
        world.write(shard, 1)
    assert [len(told) for _, told in world.tell()] == [ENTRIES_MAX, 3]
    for _, message in world.told:
        body = BetweenNodes(body=message)
        assert decode_envelope(encode_envelope(body)) == body


def test_what_is_no_height_is_refused() -> None:
    height = Height(shard=ShardId("app"), lineage=LINEAGE, seq=Seq(1))
    for entries in ((), (height,) * (ENTRIES_MAX + 1), (replace_seq(height, -1),)):
        with pytest.raises(PeerError):
            decode_envelope(encode_envelope(BetweenNodes(body=Heights(entries=entries))))


def replace_seq(height: Height, seq: int) -> Height:
    return Height(shard=height.shard, lineage=height.lineage, seq=Seq(seq))


def test_the_newest_word_of_a_peer_counts_for_its_lineage() -> None:
    book, peer = HeightBook(), hello_of("b", key=2)
    shard = ShardId("app")
    for seq in (3, 9):
        book.on_told(peer, Heights(entries=(Height(shard=shard, lineage=LINEAGE, seq=Seq(seq)),)))
    assert book.find(shard, LINEAGE) == {peer.key: 9}
    assert book.find(shard, OTHER) == {}
    assert book.find(ShardId("other"), LINEAGE) == {}


async def test_nodes_hear_each_other(tmp_path: Path) -> None:
    """Over a connection."""
    folder = make_authority(tmp_path / "ca", "a", "b")
    directory = Directory()
    async with (
        running(folder, "a", directory, Port(), expect=2, names=("a", "b")) as a,
        running(folder, "b", directory, Port(), expect=2, names=("a", "b")) as b,
    ):
        await eventually(lambda: b.key in a.node.connected)
        entry = Height(shard=ShardId("app"), lineage=LINEAGE, seq=Seq(7))
        a.node.send_heights(b.key, Heights(entries=(entry,)))
        await eventually(lambda: b.node.heights.find(ShardId("app"), LINEAGE) == {a.key: 7})
