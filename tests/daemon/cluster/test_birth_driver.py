"""The birth of a shard on real nodes over TLS, and what its driver does in which order."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from basenet.archive.fetch import Fetcher
from basenet.archive.place import Place
from basenet.daemon.cluster.birth import MESSAGES_MAX, BirthDriver, make_newborn
from basenet.daemon.cluster.surveying import Surveyor, survey_archive
from basenet.daemon.journalist import Journalist
from basenet.engine.birth_events import ArchiveSurveyed, Born, KeepOrphans
from basenet.engine.birth_record import FileFate
from basenet.engine.consent import root_of
from basenet.engine.cradle import Newborn
from basenet.engine.genesis import check_complete, read_genesis
from basenet.engine.placement import Membership, Peer
from basenet.errors import UnavailableError
from basenet.journal.journal import Journal
from basenet.testing.simulator.birth import database
from basenet.units import JournalId, PublicKeyBytes, ShardId
from basenet.wire.birth import (
    BirthAnswer,
    BirthMessage,
    FileFacts,
    LineageKnown,
    MemberRole,
    Standing,
)
from basenet.wire.hello import Hello
from basenet.wire.message import Message
from basenet.wire.payload import FaultModel
from basenet.wire.signature import Signer, is_signed
from tests.archive.builder import Archive, History
from tests.daemon.cluster.nodes import (
    NAMES,
    SHARD,
    Bell,
    Directory,
    MemoryJournal,
    MemoryJournalist,
    Port,
    Running,
    eventually,
    hello_of,
    make_config,
    running,
)
from tests.transport.nodes import make_authority


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_authority(tmp_path / "ca", *NAMES)


@dataclass
class Host:
    """A shard's file and archive in memory, and what the birth said to do."""

    file: FileFacts | None = None
    bell: Bell = field(default_factory=Bell)
    hold: trio.Event | None = None
    failures: list[Exception] = field(default_factory=list)
    births: list[Born] = field(default_factory=list)
    orphans: list[KeepOrphans] = field(default_factory=list)
    new_journals: list[str] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    scans: int = 0

    async def fence_and_scan(self) -> FileFacts | None:
        self.scans += 1
        if self.hold is not None:
            await self.hold.wait()
        await trio.lowlevel.checkpoint()
        if self.failures:
            raise self.failures.pop()
        return self.file

    async def survey(self) -> ArchiveSurveyed:
        return await survey_archive(None, self.file)

    async def keep_orphans(self, orphans: KeepOrphans) -> None:
        await trio.lowlevel.checkpoint()
        self.orphans.append(orphans)
        self.bell.ring()

    def born(self, born: Born) -> None:
        self.births.append(born)
        self.bell.ring()

    def new_journal_needed(self, why: str) -> None:
        self.new_journals.append(why)
        self.bell.ring()

    def report(self, what: str, peer: PublicKeyBytes | None) -> None:
        del peer
        self.reports.append(what)
        self.bell.ring()


@dataclass
class Nursling(Port):
    """A port whose birth is driven."""

    driver: BirthDriver | None = None
    host: Host = field(default_factory=Host)

    def of(self) -> BirthDriver:
        assert self.driver is not None
        return self.driver

    def on_birth(self, peer: Hello, message: BirthMessage) -> None:
        self.of().on_birth(peer, message)

    def on_connected(self, peer: Hello) -> None:
        self.of().on_connected(peer)

    def on_lost(self, peer: Hello) -> None:
        self.of().on_lost(peer)

    def on_members(self, members: Membership | str) -> None:
        self.of().on_members(members)

    def on_other_lineage(self, peer: Hello) -> None:
        self.of().on_other_lineage(peer)

    def on_message(self, peer: Hello, message: Message) -> None:
        raise AssertionError(f"{peer.node_id} speaks of {message} before the birth")


@asynccontextmanager
async def shard(
    folder: Path,
    name: str,
    directory: Directory,
    *,
    file: FileFacts | None = None,
    journal: MemoryJournal | None = None,
    journalist: Journalist | None = None,
) -> AsyncIterator[tuple[Running, Nursling]]:
    """A node with one shard to be born."""
    async with running(folder, name, directory, journal=journal, journalist=journalist) as node:
        port = Nursling(lineage=None, host=Host(file=file))
        newborn = make_newborn(
            SHARD,
            make_config(folder, name, expect=3, names=NAMES),
            me=node.node.me,
            journal_id=node.journal.journal_id,
            signer=node.node.signer,
        )
        port.driver = BirthDriver(
            newborn, peers=node.node, journalist=node.journalist, host=port.host
        )
        node.node.register(port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(port.driver.run)
            yield node, port
            nursery.cancel_scope.cancel()


async def test_three_nodes_give_birth_to_one_lineage(folder: Path) -> None:
    """The file with rows is its content; all three sign, know it, and know it after a restart."""
    directory, rows = Directory(), database(b"rows")
    journals = {name: MemoryJournal(JournalId(name.encode() * 16)) for name in NAMES}
    for _ in range(2):
        async with (
            shard(folder, "a", directory, journal=journals["a"]) as a,
            shard(folder, "b", directory, journal=journals["b"], file=rows) as b,
            shard(folder, "c", directory, journal=journals["c"]) as c,
        ):
            for _, port in (a, b, c):
                await port.host.bell.until(lambda port=port: bool(port.host.births))
            born = {node.name: port.host.births[0] for node, port in (a, b, c)}
            # Settled: a quorum knows, and that is durable, so nobody asks any more.
            for node, port in (a, b, c):
                await node.journalist.bell.until(lambda port=port: _is_settled(port))
        assert len({each.genesis.hash for each in born.values()}) == 1
        genesis, certificate = born["a"].genesis, born["a"].certificate
        check_complete(genesis, certificate, is_signed)
        assert genesis.config.voters[0].node_id == "b"
        assert {voter.journal_id for voter in genesis.config.voters} == {
            journal.journal_id for journal in journals.values()
        }
        assert (genesis.head.state_root, genesis.config.page_size) == root_of(rows)
        assert {name: (each.file, each.is_author) for name, each in born.items()} == {
            "a": (FileFate.NONE, False),
            "b": (FileFate.ADOPTED, True),
            "c": (FileFate.NONE, False),
        }
        directory = Directory()
    known = {journals[name].births[SHARD].known.genesis for name in NAMES}  # type: ignore[union-attr]
    assert known == {genesis.record}


def _is_settled(port: Nursling) -> bool:
    known = port.of().record.known
    return known is not None and known.is_settled


async def test_a_journal_on_disk_keeps_births_and_counts(folder: Path, tmp_path: Path) -> None:
    """What the others hold in memory here, this node finds in its file again."""
    directory = Directory()
    with closing(Journal(tmp_path / "data")) as journal:
        journalist = Journalist(journal)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.run)
            async with (
                shard(folder, "a", directory, journalist=journalist) as a,
                shard(folder, "b", directory) as b,
                shard(folder, "c", directory) as c,
            ):
                await a[1].host.bell.until(lambda: bool(a[1].host.births))
                others = {(node.key, node.journal.journal_id) for node, _ in (b, c)}
                await eventually(lambda: set(journal.peers()) == others)
                genesis = a[1].host.births[0].genesis
            nursery.cancel_scope.cancel()
    with closing(Journal(tmp_path / "data")) as journal:
        known = journal.load_birth(SHARD).known
        assert known is not None
        assert known.genesis == genesis.record
        assert all(journal.peers()[member] > 0 for member in others)
        assert journal.jcount > 1


async def test_different_files_with_rows_need_a_human(folder: Path) -> None:
    """Every node reports them, and `members init` on one decides (B15, B16)."""
    directory = Directory()
    async with (
        shard(folder, "a", directory, file=database(b"one")) as a,
        shard(folder, "b", directory, file=database(b"other")) as b,
        shard(folder, "c", directory) as c,
    ):
        for _, port in (a, b, c):
            await port.host.bell.until(lambda port=port: bool(port.host.reports))
            assert port.of().problem == port.host.reports[-1]
        b[1].of().decided()
        for _, port in (a, b, c):
            await port.host.bell.until(lambda port=port: bool(port.host.births))
        assert b[1].host.births[0].is_author
        # The operator decided against these rows: they are kept aside.
        assert a[1].host.births[0].file is FileFate.KEPT_ASIDE


# One driver alone, whose peers exist only in what the test says.


class Peers:
    """Notes what is sent, and when: what was durable at that moment."""

    def __init__(self, journal: MemoryJournal) -> None:
        self.sent: list[tuple[tuple[PublicKeyBytes, ...], BirthMessage]] = []
        self.kept: list[object] = []
        self.bell = Bell()
        self._journal = journal

    def send_birth(self, to: object, shard: ShardId, message: BirthMessage) -> None:
        assert shard == SHARD
        self.kept.append(self._journal.births.get(SHARD))
        self.sent.append((tuple(to), message))  # type: ignore[call-overload]
        self.bell.ring()


@dataclass
class Alone:
    """A driver, and everything around it."""

    driver: BirthDriver
    host: Host
    peers: Peers
    journalist: MemoryJournalist
    members: Membership
    others: list[Hello]


@asynccontextmanager
async def alone(
    file: FileFacts | None = None, *, count: int = 2, host: Host | None = None
) -> AsyncIterator[Alone]:
    signer = Signer(bytes(32))
    journal = MemoryJournal(JournalId(b"m" * 16))
    others = [hello_of(f"peer-{number}", key=number) for number in range(1, count)]
    me = Peer("me", signer.public)
    members = Membership(
        peers=tuple(sorted([me, *(Peer(hello.node_id, hello.key) for hello in others)]))
    )
    newborn = Newborn(
        shard=SHARD,
        me=me,
        journal_id=journal.journal_id,
        role=MemberRole.VALIDATOR,
        replication=3,
        writer=None,
        fault_model=FaultModel.CRASH,
        signer=signer,
        verify=is_signed,
    )
    found = host or Host(file=file)
    peers, journalist = Peers(journal), MemoryJournalist(journal)
    driver = BirthDriver(newborn, peers=peers, journalist=journalist, host=found)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run)
        yield Alone(driver, found, peers, journalist, members, others)
        nursery.cancel_scope.cancel()


def standing(members: Membership, file: FileFacts | None = None) -> Standing:
    return Standing(
        members_hash=members.hash,
        role=MemberRole.VALIDATOR,
        file=file,
        writer=None,
        is_decided=False,
        promised=None,
    )


async def test_a_node_alone_is_its_own_quorum() -> None:
    """One member: fenced, read, born, in that order, and kept before it is told."""
    async with alone(database(b"rows"), count=1) as found:
        found.driver.on_members(found.members)
        await found.host.bell.until(lambda: bool(found.host.births))
        (born,) = found.host.births
        assert (born.is_author, born.certificate is None) == (True, False)
        known = found.journalist.journal.births[SHARD].known
        assert known is not None
        assert found.driver.record.known == known
        assert read_genesis(known.genesis, SHARD, is_signed).hash == born.genesis.hash
        assert found.driver.status == f"lineage {born.genesis.lineage.hex()}"


async def test_nothing_is_said_before_it_is_durable() -> None:
    """B26, B27: the journal has the genesis when it is offered, however slow it is."""
    async with alone(database(b"rows")) as found:
        (other,) = found.others
        found.driver.on_members(found.members)
        found.driver.on_connected(other)
        await found.peers.bell.until(lambda: bool(found.peers.sent))
        found.journalist.hold = trio.Event()
        said = len(found.peers.sent)
        found.driver.on_birth(other, BirthAnswer(standing=standing(found.members)))
        await trio.testing.wait_all_tasks_blocked()
        assert len(found.peers.sent) == said
        assert found.driver.record.promise is None
        found.journalist.hold.set()
        await found.peers.bell.until(lambda: len(found.peers.sent) > said)
        (to, offer), kept = found.peers.sent[said], found.peers.kept[said]
        assert to == (other.key,)
        assert kept.promise.genesis == offer.genesis  # type: ignore[union-attr,attr-defined]


async def test_a_flood_is_dropped_and_facts_are_not() -> None:
    """While the journal hangs, messages beyond the bound go; connections and commands stay."""
    async with alone(database(b"rows")) as found:
        (other,) = found.others
        found.driver.on_members(found.members)
        found.driver.on_connected(other)
        await found.peers.bell.until(lambda: bool(found.peers.sent))
        found.journalist.hold = trio.Event()
        answer = BirthAnswer(standing=standing(found.members))
        found.driver.on_birth(other, answer)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(MESSAGES_MAX + 10):
            found.driver.on_birth(other, answer)
        assert found.driver.dropped == 10
        found.driver.decided()
        found.journalist.hold.set()
        births = found.journalist.journal.births
        await found.journalist.bell.until(lambda: SHARD in births and births[SHARD].is_decided)


async def test_a_peer_in_another_lineage_is_told_ours_when_it_may_know() -> None:
    """Nothing before it is known; a voter then, others when it is settled (B36, B37)."""
    async with alone(database(b"rows"), count=1) as found:
        stranger = hello_of("stranger", key=9)
        found.driver.on_other_lineage(stranger)
        found.driver.on_members(found.members)
        await found.host.bell.until(lambda: bool(found.host.births))
        assert found.peers.sent == []
        found.driver.on_other_lineage(stranger)
        ((to, message),) = found.peers.sent
        assert to == (stranger.key,)
        assert isinstance(message, LineageKnown)
        assert message.genesis == found.host.births[0].genesis.record


async def test_a_file_that_cannot_be_fenced_is_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The operator is told why; meanwhile peers and the membership are taken in."""
    assert autojump_clock.autojump_threshold == 0
    host = Host(failures=[UnavailableError("somebody has it open")])
    async with alone(count=1, host=host) as found:
        found.driver.on_members(found.members)
        await host.bell.until(lambda: bool(host.births))
        assert host.reports == ["somebody has it open"]
        assert host.scans == 2


# The archive first.


async def survey(
    archive: Archive,
    history: History,
    out: Path,
    *,
    file: FileFacts | None = None,
    may_restore: bool = False,
    scanned: FileFacts | None = None,
) -> ArchiveSurveyed:
    async def scan() -> FileFacts | None:
        await trio.lowlevel.checkpoint()
        return scanned

    surveyor = Surveyor(
        store=archive.store,
        names=archive.names(history),
        fetcher=Fetcher(archive.store),
        key=history.signer.public,
        trusted=frozenset(),
        place=Place(out),
        may_restore=may_restore,
        scan=scan,
    )
    return await survey_archive(surveyor, file)


@pytest.fixture
def archived() -> tuple[Archive, History]:
    archive, history = Archive(), History()
    for _ in range(5):
        history.random_commit(grow=1)
    archive.put_logs(history)
    return archive, history


async def test_no_archive_and_an_empty_one_give_no_parent(tmp_path: Path) -> None:
    """The birth of a first lineage, each time with chance of its own."""
    first, second = [await survey_archive(None, None) for _ in range(2)]
    assert (first.parent, first.problem, first.file) == (None, None, None)
    assert first.lineage != second.lineage
    empty = await survey(Archive(), History(), tmp_path / "app.db", file=database(b"rows"))
    assert (empty.parent, empty.problem) == (None, None)
    assert empty.file == database(b"rows")


async def test_a_file_with_rows_begins_a_child(
    archived: tuple[Archive, History], tmp_path: Path
) -> None:
    """B22, B23: of the archive's leaf, with the state that is proven there."""
    archive, history = archived
    found = await survey(archive, history, tmp_path / "app.db", file=database(b"rows"))
    tip = history.tip.head
    assert found.problem is None
    assert found.parent is not None
    assert (found.parent.lineage, found.parent.seq) == (history.lineage, tip.seq)
    assert (found.parent.hash, found.parent.state_root) == (tip.hash, tip.state_root)
    assert (found.parent.page_size, found.parent.timestamp_ns) == (512, tip.timestamp_ns)
    assert not found.parent.is_forced


@pytest.mark.parametrize("is_there", [False, True])
async def test_an_archived_shard_is_not_begun_from_nothing(
    archived: tuple[Archive, History], tmp_path: Path, *, is_there: bool
) -> None:
    """B24: without rows the file would delete what is archived; without a file, only by leave."""
    archive, history = archived
    file = database(b"schema", has_rows=False) if is_there else None
    found = await survey(archive, history, tmp_path / "app.db", file=file)
    assert found.parent is None
    assert found.problem is not None
    assert ("move that file away" if is_there else "BASE_RESTORE_IF_MISSING") in found.problem


async def test_a_missing_file_is_restored_where_that_is_allowed(
    archived: tuple[Archive, History], tmp_path: Path
) -> None:
    """To exactly the parent's state; another one after the restore is no birth."""
    archive, history = archived
    tip = history.tip.head
    right = FileFacts(tip.state_root, 512, 10, True)
    out = tmp_path / "app.db"
    found = await survey(archive, history, out, may_restore=True, scanned=right)
    assert (found.problem, found.file) == (None, right)
    assert found.parent is not None
    assert out.read_bytes() == history.contents()
    other = tmp_path / "other.db"
    found = await survey(archive, history, other, may_restore=True, scanned=database(b"other"))
    assert found.parent is None
    assert "is another database now" in (found.problem or "")


async def test_an_archive_that_cannot_be_believed_is_no_birth(tmp_path: Path) -> None:
    """B24: a key that is not trusted, said as a sentence."""
    archive, history = Archive(), History(key=2)
    history.random_commit(grow=1)
    archive.put_logs(history)
    stranger = History()
    found = await survey(archive, stranger, tmp_path / "app.db", file=database(b"rows"))
    assert found.parent is None
    assert found.problem is not None
