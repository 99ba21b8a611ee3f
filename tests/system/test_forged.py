"""Everything that somebody could try at a node's port: refused, counted in /metrics, and harmless.

Two real nodes of three run and write. The third one's key, certificate and journal are in the hands
of the test, which speaks for it: so what gets past TLS is tried as well. Each test says what the
input is, what refuses it, and which counter tells; docs/threats.md has the table.
"""

import secrets
import shutil
import socket
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from basenet.control.listeners import SOCKET_NAME
from basenet.engine.limits import HEADS_MAX
from basenet.journal.journal import Journal
from basenet.keys import authority, signing
from basenet.testing.cluster import Cluster, ClusterNode
from basenet.testing.clusterchaos import find_bugs
from basenet.testing.clustercheck import check
from basenet.testing.history import Client, Outcome
from basenet.transport import handshake
from basenet.transport.framing import pack
from basenet.transport.handshake import Self, Session
from basenet.transport.tls import Credentials, TlsFiles
from basenet.units import (
    Epoch,
    FrameHash,
    JournalId,
    Lineage,
    PublicKeyBytes,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
    View,
)
from basenet.wire.certificate import COMMIT, Certificate
from basenet.wire.envelope import AboutShard, Envelope, FinalPack, FramePack, encode_envelope
from basenet.wire.frame import Flag, Frame, Head, Kind, decode_head, encode_frame, seal
from basenet.wire.hello import Hello, Lane
from basenet.wire.message import Certified, Vote
from basenet.wire.payload import CommitPayload, encode_commit
from basenet.wire.signature import Signer
from tests.transport.nodes import now_s

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

APP, OTHER, ELSEWHERE = ShardId("app"), ShardId("other"), ShardId("elsewhere")
PATIENCE_S = 60.0
SOON_S = 5.0
LISTEN_S = 1.0
FLOOD_S = 4.0
FLOOD_MEMORY_MAX = 96 * 1024 * 1024
GARBAGE = bytes(64)


@dataclass
class Siege:
    """Two nodes at work, and what the test knows of the third."""

    cluster: Cluster
    clients: list[Client]
    target: ClusterNode
    signer: Signer
    journal_id: JournalId
    journal_count: int
    lineage: Lineage
    tip: Head
    record: bytes
    epoch: Epoch
    view: View
    height: Seq
    leader: PublicKeyBytes

    @property
    def port(self) -> int:
        return int(self.target.environment["BASE_LISTEN_P2P"].rpartition(":")[2])

    @property
    def keys(self) -> Path:
        return self.cluster.folder / "ca"

    def counters(self) -> dict[str, float]:
        """What /metrics of the target says."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(PATIENCE_S)
            asked.connect(str(self.target.data_dir / SOCKET_NAME))
            asked.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: asked.recv(65536), b"")).decode()
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("base_")]
        return {name: float(value) for name, value in lines}

    def aim(self) -> None:
        """Take the present writer for the target: only who leads is told votes and frames."""
        self.target = self.cluster.wait_writer()
        status = self.target.find_status()
        if status is not None:
            self.epoch, self.view = Epoch(status.epoch), View(status.view)
            self.height = Seq(status.final_seq)
            self.leader = signing.load(self.keys / self.target.name / "node.key").public

    async def raised(self, name: str, attack: Callable[[], Any], *, by: int = 1) -> None:
        """Attack until the counter of the target is higher by ``by``; fail after a while."""
        with trio.fail_after(PATIENCE_S):
            while True:
                self.aim()
                before = self.counters()[name]
                await attack()
                with trio.move_on_after(SOON_S):
                    while True:
                        if self.counters()[name] >= before + by:
                            return
                        await trio.sleep(0.05)

    @asynccontextmanager
    async def session(
        self,
        *,
        keys: Path | None = None,
        name: str = "n2",
        lane: Lane = Lane.ORDINARY,
        signer: Signer | None = None,
        **lies: Any,
    ) -> AsyncIterator[Session]:
        """A connection that has said HELLO as ``name``; ``lies`` are in that."""
        home = (keys or self.keys) / name
        files = TlsFiles(
            authority=self.keys / "ca.crt",
            server_certificate=home / "node.crt",
            server_key=home / "node.key",
            client_certificate=home / "node.crt",
            client_key=home / "node.key",
        )
        credentials = Credentials(files, on_problem=pytest.fail)
        hello = Hello(
            lane=lane,
            software="basenet test",
            node_id=name,
            key=signing.load(home / "node.key").public,
            journal_id=self.journal_id,
            journal_count=self.journal_count,
            boot_nonce=secrets.token_bytes(8),
            features=0,
            members_hash=bytes(32),
            nonce=bytes(16),
        )
        me = Self(
            signer=signer or signing.load(home / "node.key").signer(),
            allowed_names=frozenset(self.cluster.names),
            describe=lambda: replace(hello, **lies),
        )
        raw = await trio.open_tcp_stream("127.0.0.1", self.port)
        try:
            yield await handshake.connect(me, raw, credentials.contexts(), lane, now_s())
        finally:
            await trio.aclose_forcefully(raw)

    async def knock(self, **options: Any) -> None:
        """Try to come in; whatever our own side says of it does not matter."""
        with trio.move_on_after(SOON_S), suppress(Exception):
            async with self.session(**options) as session:
                # With TLS 1.3 the refusal of a client's certificate comes after the handshake, and
                # who is welcome hears nothing.
                with trio.move_on_after(LISTEN_S):
                    await session.stream.receive_some(1)

    async def say(self, envelope: Envelope, *, lane: Lane = Lane.ORDINARY) -> None:
        """Send one message as n2."""
        async with self.session(lane=lane) as session:
            await session.stream.send_all(pack(encode_envelope(envelope)))
            with trio.move_on_after(LISTEN_S), suppress(trio.BrokenResourceError):
                await session.stream.receive_some(1)

    def seal(self, **changes: Any) -> Frame:
        """A frame that the writer may soon have sealed, but for ``changes``."""
        facts: dict[str, Any] = {
            "shard": APP,
            "seq": Seq(self.height + 500),
            "timestamp_ns": TimestampNs(time.time_ns()),
            "salt": bytes(16),
            "payload": commit_of(),
            "kind": Kind.COMMIT,
            "flags": Flag.NONE,
            "epoch": self.epoch,
            "view": self.view,
            "prev_hash": self.tip.hash,
            "state_root": StateRoot(bytes(32)),
            "signer": Forger(self.leader, self.signer),
        }
        return seal(**facts | changes)

    async def say_frame(self, frame: Frame) -> None:
        """Send a frame as n2."""
        record = encode_frame(frame)
        await self.say(FramePack(shard=APP, lineage=self.lineage, records=(record,)))

    def vote(self) -> Vote:
        """A vote that nobody signed."""
        return Vote(
            epoch=self.epoch,
            view=self.view,
            phase=COMMIT,
            height=Seq(self.height + 1000),
            hash=FrameHash(bytes(32)),
            signature=GARBAGE,
        )

    def certificate(self, height: int = 0, digest: bytes = bytes(32)) -> Certificate:
        """A certificate that nobody signed, in the name of everybody."""
        names = sorted(signing.load(self.keys / n / "node.key").public for n in self.cluster.names)
        return Certificate(
            phase=COMMIT,
            epoch=self.epoch,
            view=self.view,
            height=Seq(height or self.height + 1000),
            hash=FrameHash(digest),
            votes=tuple((name, GARBAGE) for name in names),
        )

    def find_tip(self) -> Head:
        """Return the last final frame that lies in the target's journal."""
        path = self.target.data_dir / "journal.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
            ((tip,),) = journal.execute("SELECT tip FROM shard WHERE shard = ?", (APP,)).fetchall()
        return decode_head(tip)


class Recorder:
    """Remembers the last signature that it made."""

    def __init__(self, signer: Signer) -> None:
        self.public = signer.public
        self.signature: bytes | None = None
        self._signer = signer

    def sign(self, message: bytes) -> bytes:
        self.signature = self._signer.sign(message)
        return self.signature


class Replayer:
    """Shows a signature that was made for something else."""

    def __init__(self, recorder: Recorder) -> None:
        assert recorder.signature is not None, "nothing was recorded"
        self.public = recorder.public
        self._signature = recorder.signature

    def sign(self, _: bytes) -> bytes:
        return self._signature


class Forger:
    """Signs in another's name, with the key that it has."""

    def __init__(self, public: PublicKeyBytes, own: Signer) -> None:
        self.public = public
        self._own = own

    def sign(self, message: bytes) -> bytes:
        return self._own.sign(message)


def commit_of(pages: int = 1) -> bytes:
    """A payload that can be read, of pages that nobody wrote."""
    return encode_commit(
        CommitPayload(
            page_size=4096,
            db_pages=pages,
            commits=1,
            pgnos=np.arange(1, pages + 1, dtype=np.uint32),
            pages=secrets.token_bytes(4096 * pages),
        )
    )


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    """Begin with three nodes; take one of them over; in the end everything must be as it should."""
    folder = tmp_path_factory.mktemp("siege")
    with Cluster(folder, 3, shards=(APP, OTHER)) as cluster:
        cluster.start()
        for shard in (APP, OTHER):
            cluster.wait_writer(shard)
        clients = [Client(cluster, "c", seed=1), Client(cluster, "o", seed=2, shard=OTHER)]
        taken = cluster["n2"]
        wait_for_more(cluster, clients)
        taken.kill()
        journal = Journal(taken.data_dir)
        try:
            record = journal.load_replica(APP)
            assert record is not None
            frames = journal.frames(APP, record.tip.seq, record.tip.seq, 1)
            siege = Siege(
                cluster=cluster,
                clients=clients,
                target=cluster["n0"],
                signer=signing.load(folder / "ca" / "n2" / "node.key").signer(),
                journal_id=journal.journal_id,
                journal_count=journal.jcount,
                lineage=record.lineage,
                tip=record.tip,
                record=frames[0][1],
                epoch=record.tip.epoch,
                view=record.tip.view,
                height=record.tip.seq,
                leader=record.tip.author,
            )
        finally:
            journal.close()
        yield siege
        operations = dict(zip((APP, OTHER), [client.stop() for client in clients], strict=True))
        taken.start()
        for shard in (APP, OTHER):
            cluster.wait_settled(shard)
        assert set(cluster.stop().values()) == {0}
        assert find_bugs(cluster) == []
        for shard, told in operations.items():
            verdict = check(cluster, told, shard=shard)
            assert not verdict.violations, str(verdict)


def wait_for_more(cluster: Cluster, clients: list[Client]) -> None:
    """Return once more of every client is final."""
    before = [client.count(Outcome.FINAL) for client in clients]
    cluster.until(
        lambda: all(
            client.count(Outcome.FINAL) > count + 5
            for client, count in zip(clients, before, strict=True)
        ),
        "more is final",
    )


def refused(reason: str) -> str:
    return f'base_network_dropped_total{{reason="{reason}"}}'


def counted(name: str) -> str:
    return f'base_network_{name}_total{{shard="{APP}"}}'


# -- who is there ----------------------------------------------------------------------------------


async def test_a_certificate_with_another_name(siege: Siege) -> None:
    """Of our own authority, but its name stands in nobody's BASE_TLS_ALLOWED_SANS."""
    if not (siege.keys / "evil").exists():
        authority.init(siege.keys, ["evil"], now=datetime.now(UTC))
    await siege.raised(refused("refused"), lambda: siege.knock(name="evil"))
    assert "certificate names evil" in siege.target.read_log()


async def test_an_expired_certificate(siege: Siege, tmp_path: Path) -> None:
    """The right name and authority, ten years ago."""
    for name in ("ca.crt", "ca.key"):
        shutil.copy(siege.keys / name, tmp_path / name)
    authority.init(tmp_path, ["n2"], now=datetime.now(UTC) - timedelta(days=3650))
    await siege.raised(refused("refused"), lambda: siege.knock(keys=tmp_path))


async def test_a_certificate_of_another_authority(siege: Siege, tmp_path: Path) -> None:
    """The right name, from somebody whom we do not know."""
    authority.init(tmp_path, ["n2"], now=datetime.now(UTC))
    await siege.raised(refused("refused"), lambda: siege.knock(keys=tmp_path))


@pytest.mark.parametrize("kind", ["no certificate", "tls 1.2", "plaintext"])
async def test_other_ways_to_talk(siege: Siege, kind: str) -> None:
    """TLS without a client's certificate, an older TLS, or none at all."""

    async def attack() -> None:
        raw = await trio.open_tcp_stream("127.0.0.1", siege.port)
        with suppress(Exception):
            if kind == "plaintext":
                await raw.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await raw.receive_some(100)
            else:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.load_verify_locations(siege.keys / "ca.crt")
                if kind == "tls 1.2":
                    context.maximum_version = ssl.TLSVersion.TLSv1_2
                    home = siege.keys / "n2"
                    context.load_cert_chain(home / "node.crt", home / "node.key")
                stream = trio.SSLStream(raw, context)
                await stream.do_handshake()
                await stream.send_all(pack(GARBAGE))
                await stream.receive_some(100)
        await trio.aclose_forcefully(raw)

    await siege.raised(refused("refused"), attack)


@pytest.mark.parametrize("lie", ["name", "key", "protocol"])
async def test_a_hello_that_is_not_of_its_certificate(siege: Siege, lie: str) -> None:
    """Another node's name, another key, a protocol that nobody speaks."""
    lies: dict[str, dict[str, Any]] = {
        "name": {"node_id": "n1"},
        "key": {"key": PublicKeyBytes(bytes(32))},
        "protocol": {"protocol_min": 99, "protocol_max": 99},
    }
    await siege.raised(refused("refused"), lambda: siege.knock(**lies[lie]))


async def test_a_proof_of_another_connection(siege: Siege) -> None:
    """HELLO2 as it was right for an earlier connection: the nonces are others."""
    recorder = Recorder(siege.signer)
    await siege.knock(signer=recorder)
    assert recorder.signature is not None
    await siege.raised(refused("refused"), lambda: siege.knock(signer=Replayer(recorder)))
    assert "did not prove that it holds" in siege.target.read_log()


async def test_a_journal_that_went_back(siege: Siege) -> None:
    """A HELLO with fewer transactions than the journal is known to have made."""
    await siege.knock()  # the true count is remembered
    await siege.raised("base_journal_rollbacks_total", lambda: siege.knock(journal_count=1))


# -- bytes -----------------------------------------------------------------------------------------


async def test_a_length_beyond_the_bound(siege: Siege) -> None:
    """4 GiB are announced; nothing is allocated."""

    async def attack() -> None:
        async with siege.session() as session:
            await session.stream.send_all(b"\xff\xff\xff\xff")
            with suppress(trio.BrokenResourceError):
                await session.stream.receive_some(1)

    await siege.raised(refused("oversized"), attack)


async def test_what_is_no_message(siege: Siege) -> None:
    """Random bytes of a node that is one of us."""

    async def attack() -> None:
        async with siege.session() as session:
            await session.stream.send_all(pack(secrets.token_bytes(200)))
            with suppress(trio.BrokenResourceError):
                await session.stream.receive_some(1)

    await siege.raised(refused("unreadable"), attack)


async def test_many_who_are_slow(siege: Siege) -> None:
    """Two hundred connections that send a byte now and then: given up; the cluster goes on."""

    async def drip(raw: trio.SocketStream) -> None:
        async with raw:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 4:
                    await raw.send_all(bytes([byte]))
                    await trio.sleep(0.3)

    async def attack() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(drip, await trio.open_tcp_stream("127.0.0.1", siege.port))
            await trio.to_thread.run_sync(wait_for_more, siege.cluster, siege.clients)

    await siege.raised(refused("refused"), attack, by=64)


# -- what a member may not say ---------------------------------------------------------------------


async def test_a_shard_that_is_not_here(siege: Siege) -> None:
    """A message about another shard is not processed."""
    message = siege.vote()
    about = AboutShard(shard=ELSEWHERE, lineage=siege.lineage, body=message)
    await siege.raised(refused("shard_mismatch"), lambda: siege.say(about))


async def test_another_lineage(siege: Siege) -> None:
    """A message about another history of the shard is not processed."""
    about = AboutShard(shard=APP, lineage=Lineage(bytes(16)), body=siege.vote())
    await siege.raised(refused("lineage_mismatch"), lambda: siege.say(about))


async def test_a_frame_of_another_shard(siege: Siege) -> None:
    """The envelope says one shard, the frame in it another."""
    await siege.raised(
        counted("frames_rejected_shard_mismatch"),
        lambda: siege.say_frame(siege.seal(shard=ELSEWHERE)),
    )


async def test_a_frame_of_the_far_future(siege: Siege) -> None:
    """Frames are kept within a window above what is final."""
    await siege.raised(
        counted("frames_rejected_seq_gap"),
        lambda: siege.say_frame(siege.seal(seq=Seq(siege.height + 100 * HEADS_MAX))),
    )


async def test_a_replayed_frame(siege: Siege) -> None:
    """A true frame that was final long ago, as a part of the branch and as history."""
    await siege.raised(
        counted("frames_duplicate"),
        lambda: siege.say(FramePack(shard=APP, lineage=siege.lineage, records=(siege.record,))),
    )
    final = FinalPack(
        shard=APP, lineage=siege.lineage, records=(siege.record,), certificate=siege.certificate()
    )
    await siege.raised(counted("frames_duplicate"), lambda: siege.say(final, lane=Lane.BULK))


async def test_a_frame_that_its_author_did_not_sign(siege: Siege) -> None:
    """In the writer's name, with our own signature."""
    await siege.raised(counted("frames_invalid"), lambda: siege.say_frame(siege.seal()))
    await siege.raised(counted("signatures_invalid"), lambda: siege.say_frame(siege.seal()))


async def test_bytes_that_are_no_frame(siege: Siege) -> None:
    """One bit in the middle of a true frame is another: its checksum tells; the connection ends."""
    spoilt = bytearray(siege.record)
    spoilt[len(spoilt) // 2] ^= 1
    bad = FramePack(shard=APP, lineage=siege.lineage, records=(bytes(spoilt),))
    await siege.raised(counted("frames_invalid"), lambda: siege.say(bad))
    await siege.raised(refused("wrong"), lambda: siege.say(bad))


async def test_a_forged_vote(siege: Siege) -> None:
    """A vote whose signature is another's: a node speaks for itself only."""
    await siege.raised(
        counted("signatures_invalid"),
        lambda: siege.say(AboutShard(shard=APP, lineage=siege.lineage, body=siege.vote())),
    )


async def test_a_forged_certificate(siege: Siege) -> None:
    """All voters' names and no signature of theirs, for a frame that nobody proposed."""
    await siege.raised(
        counted("signatures_invalid"),
        lambda: siege.say(
            AboutShard(
                shard=APP,
                lineage=siege.lineage,
                body=Certified(epoch=siege.epoch, certificate=siege.certificate()),
            )
        ),
    )


async def test_forged_history(siege: Siege) -> None:
    """A frame that nobody proposed, with a certificate that nobody signed."""

    async def attack() -> None:
        tip = siege.find_tip()
        frame = siege.seal(seq=Seq(tip.seq + 1), prev_hash=tip.hash)
        await siege.say(
            FinalPack(
                shard=APP,
                lineage=siege.lineage,
                records=(encode_frame(frame),),
                certificate=siege.certificate(height=frame.head.seq, digest=frame.head.hash),
            ),
            lane=Lane.BULK,
        )

    await siege.raised(counted("signatures_invalid"), attack)


async def test_a_flood(siege: Siege) -> None:
    """Forged frames as fast as they are taken: memory stays bounded, another shard goes on."""
    siege.aim()
    pid = siege.target.daemon_pid()
    before = resident_bytes(pid)
    peak = before
    other = siege.clients[1]
    finals = other.count(Outcome.FINAL)
    records = tuple(encode_frame(siege.seal(payload=commit_of(16))) for _ in range(16))
    flood = pack(encode_envelope(FramePack(shard=APP, lineage=siege.lineage, records=records)))
    sent = 0
    with trio.move_on_after(PATIENCE_S):
        for lane in Lane:
            with trio.move_on_after(FLOOD_S), suppress(trio.BrokenResourceError):
                async with siege.session(lane=lane) as session:
                    while True:
                        await session.stream.send_all(flood)
                        sent += len(flood)
                        peak = max(peak, resident_bytes(pid))
    await trio.to_thread.run_sync(wait_for_more, siege.cluster, siege.clients)
    assert sent > 10 * len(flood), "that was no flood"
    assert peak - before < FLOOD_MEMORY_MAX, f"{peak - before} bytes more after {sent} sent"
    assert other.count(Outcome.FINAL) > finals


def resident_bytes(pid: int | None) -> int:
    try:
        text = Path(f"/proc/{pid}/statm").read_text()
    except OSError:
        return 0
    return int(text.split()[1]) * 4096
