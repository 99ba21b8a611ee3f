"""A state moves from who has it to who lacks it, past loss, delay, death and lies.

Docstrings cite the sentences of docs/protocol/transfer.md.
"""
# ruff: noqa: ARG001  (autojump_clock is asked for so that trio's time jumps)

import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from basenet.daemon.cluster import asking, gathering, serving
from basenet.daemon.cluster.offer import FinalState
from basenet.daemon.cluster.transfer import FetchedState, ServingBudget
from basenet.errors import UnavailableError
from basenet.units import MIB, Lineage, Seq
from basenet.wire.frame import encode_frame, encode_head
from basenet.wire.leafparts import PART_PAGES
from basenet.wire.merkle import StateTree, leaf_hash
from basenet.wire.transfer import (
    CONFIGS_MAX,
    Leaves,
    LeavesAsk,
    Pages,
    PagesAsk,
    StateAsk,
    StateOffer,
    StateRefused,
    TransferMessage,
    Why,
)
from tests.daemon.cluster.transfer_world import (
    Application,
    Chain,
    Node,
    World,
    synthetic,
    unlike,
    wants_of,
)
from tests.wire.cluster import config_of

Clock = trio.testing.MockClock
PAGE = Path(__file__).resolve().parents[3] / "docs" / "protocol" / "transfer.md"
NONE = Seq(0)
GENESIS = Seq(1)


async def _run_here(act: Callable[..., Any], *args: Any, **_: Any) -> Any:
    """Do in this thread what belongs into another: trio's clock jumps while tasks wait for one."""
    await trio.lowlevel.checkpoint()
    return act(*args)


@pytest.fixture
def autojump_clock(monkeypatch: pytest.MonkeyPatch) -> trio.testing.MockClock:
    """Return a clock that jumps to the next deadline as soon as nothing else is to do."""
    monkeypatch.setattr(trio.to_thread, "run_sync", _run_here)
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.fixture
async def world(autojump_clock: Clock) -> AsyncIterator[World]:
    assert trio.lowlevel.current_clock() is autojump_clock
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        yield world
        nursery.cancel_scope.cancel()
        for node in world.nodes.values():
            node.transfer.close()
            assert node.budget.transfers == 0


@pytest.fixture
def chain() -> Chain:
    return Chain(config_of(3))


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Application]:
    with contextlib.closing(Application(tmp_path / "app.db")) as application:
        yield application


async def fetch(node: Node, chain: Chain, above: int = GENESIS) -> FetchedState:
    """Return the state that ``node`` fetches, believing the genesis of ``chain``."""
    return await node.transfer.client.fetch_state(genesis_of(chain), above_seq=Seq(above))


def genesis_of(chain: Chain) -> Any:
    """Return who decides after the genesis, whatever came later."""
    first = Chain(config_of(3))
    assert first.genesis.head == chain.genesis.head
    return first.electors()


async def nobody_has_it(node: Node, chain: Chain, seconds: float = 50) -> None:
    """Fail if ``node`` gets a state within ``seconds``."""
    with trio.move_on_after(seconds):
        found = await fetch(node, chain)
        pytest.fail(f"fetched {found.head.seq}")


def asked(node: Node, kind: type[Any]) -> list[tuple[float, Any]]:
    """Return when ``node`` received messages of ``kind``, and which."""
    return [(at, body) for at, _, body in node.received if isinstance(body, kind)]


# The whole way.


async def test_a_node_without_anything_gets_a_database(
    autojump_clock: Clock, world: World, chain: Chain, application: Application
) -> None:
    """A megabyte: state, leaves and pages, all of it verified; the content is the file's."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    state = chain.commit(application.tree())
    server.has(state, chain, application)
    told: list[tuple[int, int]] = []
    found = await fetch(joiner, chain)
    pages = await joiner.transfer.client.fetch_pages(
        wants_of(found.tree),
        page_size=4096,
        on_progress=lambda pages, size: told.append((pages, size)),
    )
    assert found.head == state.head
    assert found.record == encode_head(state.head)
    assert found.certificate == state.certificate
    assert found.tree.leaves == state.tree.leaves
    assert (found.electors.epoch, found.electors.head) == (1, chain.genesis.head)
    assert pages == application.pages()
    assert told[-1] == (len(pages), len(pages) * 4096)
    assert told == sorted(told)
    assert joiner.faults == []


async def test_a_database_without_pages_is_a_state(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Before the first page nothing has to be sent but the proof."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    server.has(chain.commit(StateTree(0)), chain, None)
    found = await fetch(joiner, chain)
    assert (found.tree.db_pages, found.head.seq) == (0, 2)
    assert server.budget.transfers == 0


async def test_the_genesis_itself_is_a_state(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Who knows the genesis and has no file yet needs no other proof of it."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    first = FinalState(
        head=chain.genesis.head,
        certificate=unlike(chain.consent(0, 1, 2), hash=chain.genesis.head.hash),
        tree=StateTree(0),
    )
    server.has(first, chain, None)
    found = await fetch(joiner, chain, above=NONE)
    assert found.head == chain.genesis.head
    assert found.certificate is None


# Who is served.


async def test_whoever_is_connected_is_served(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T1: a learner is no voter and is served; a stranger is not answered."""
    server, learner, stranger = world.node(1), world.node(2), world.node(3)
    world.connect(learner, server)
    server.has(chain.commit(synthetic(20)), chain, None)
    assert learner.key not in {voter.key for voter in chain.config.voters}
    assert (await fetch(learner, chain)).tree.db_pages == 20
    server.transfer.on_message(
        stranger.key,
        StateAsk(number=1, above_seq=NONE, epoch=chain.epoch),
    )
    await trio.sleep(1)
    assert server.budget.transfers == 0
    await trio.sleep(60)
    assert stranger.received == []
    assert server.budget.transfers == 0


async def test_who_asks_before_it_is_dialled_is_answered_then(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """A node that has just begun asks by its own connection, and would wait in vain for long."""
    server, newcomer = world.node(1), world.node(2)
    server.has(chain.commit(synthetic(20)), chain, None)
    ask = StateAsk(number=1, above_seq=NONE, epoch=chain.epoch)
    server.transfer.on_message(newcomer.key, ask)
    await trio.sleep(2)
    assert newcomer.received == []
    world.connect(newcomer, server)
    await trio.sleep(0.2)
    ((_, offer),) = asked(newcomer, StateOffer)
    assert offer.number == 1


async def test_asks_of_a_peer_wait_in_a_bounded_line(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T2: one is answered at a time, eight wait, the rest is refused at once."""
    server, peer = world.node(1), world.node(2)
    world.connect(peer, server)
    running = [0, 0]
    server.has(chain.commit(synthetic(20)), chain, None)

    async def slow(_: Any) -> dict[int, bytes]:
        running[0] += 1
        running[1] = max(running)
        await trio.sleep(1)
        running[0] -= 1
        return {}

    server.frames = slow
    for number in range(20):
        server.transfer.on_message(peer.key, PagesAsk(number=number, pages=((1, bytes(32)),)))
    await trio.sleep(0.5)
    busy = [body.number for _, body in asked(peer, StateRefused) if body.why == Why.BUSY]
    assert len(busy) == 20 - serving.ASKS_WAITING_MAX
    await trio.sleep(30)
    assert len(asked(peer, Pages)) == serving.ASKS_WAITING_MAX
    assert running[1] == 1


async def test_two_peers_fetch_leaves_at_a_time(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T3: the third is told to come again, and gets its turn."""
    server, *peers = (world.node(number) for number in range(1, 6))
    world.connect(server, *peers)
    server.has(chain.commit(synthetic(3 * PART_PAGES)), chain, None)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, server.budget.transfers)
            await trio.sleep(0.0005)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as fetching:
                for peer in peers:
                    fetching.start_soon(fetch, peer, chain)
            nursery.cancel_scope.cancel()
    assert most == serving.TRANSFERS_MAX
    refused = [body for peer in peers for _, body in asked(peer, StateRefused)]
    assert {body.why for body in refused} == {Why.BUSY}
    assert server.budget.frozen_bytes == 0


def test_frozen_leaves_are_bounded_in_memory() -> None:
    """Sentence T3: beyond the bound only one at a time, and each peer once."""
    budget = ServingBudget()
    one, two, three = (world_key(number) for number in (1, 2, 3))
    assert budget.admit(one, serving.FROZEN_BYTES_MAX + 1)
    assert not budget.admit(two, 1)
    budget.release(one)
    assert budget.admit(two, serving.FROZEN_BYTES_MAX)
    assert not budget.admit(two, 0)
    assert not budget.admit(three, 1)
    assert budget.admit(three, 0)
    assert not budget.admit(one, 0)


def world_key(number: int) -> Any:
    return number.to_bytes(32, "big")


@pytest.mark.parametrize("how", ["silent", "lost", "asks for pages", "asks again"])
async def test_a_transfer_is_given_up(
    autojump_clock: Clock, world: World, chain: Chain, how: str
) -> None:
    """Sentence T4: after 30 s of silence, with the connection, or when something else is asked."""
    server, peer = world.node(1), world.node(2)
    world.connect(peer, server)
    server.has(chain.commit(synthetic(2 * PART_PAGES)), chain, None)
    ask = StateAsk(number=1, above_seq=GENESIS, epoch=chain.epoch)
    server.transfer.on_message(peer.key, ask)
    await trio.sleep(serving.SILENCE_S - 1)
    assert server.budget.transfers == 1
    leaves = LeavesAsk(number=2, seq=Seq(2), hash=chain.heads[-1].hash, first_page=1)
    server.transfer.on_message(peer.key, leaves)
    await trio.sleep(serving.SILENCE_S - 1)
    assert server.budget.transfers == 1
    if how == "silent":
        await trio.sleep(2)
    elif how == "lost":
        world.lose(peer, server)
    elif how == "asks for pages":
        server.transfer.on_message(peer.key, PagesAsk(number=3, pages=((1, bytes(32)),)))
        await trio.sleep(0.1)
    else:
        server.state = None
        server.transfer.on_message(peer.key, ask)
        await trio.sleep(0.1)
    assert server.budget.transfers == 0
    if how != "lost":
        server.transfer.on_message(peer.key, leaves)
        await trio.sleep(0.1)
        assert asked(peer, StateRefused)[-1][1].why == Why.GONE


async def test_what_is_sent_is_bounded_in_rate(
    autojump_clock: Clock, world: World, chain: Chain, application: Application
) -> None:
    """Sentence T5: so many bytes a second for the whole node, whoever asks, after a short burst."""
    budget = ServingBudget(bytes_per_second=100_000)
    server, *peers = world.node(1, budget), world.node(2), world.node(3)
    world.connect(server, *peers)
    server.has(chain.commit(application.tree()), chain, application)
    budget._free_at = trio.current_time()  # the burst is spent
    began = trio.current_time()
    wants = wants_of(application.tree())[:100]
    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(
                lambda node: node.transfer.client.fetch_pages(wants, page_size=4096), peer
            )
    seconds = trio.current_time() - began
    assert budget.bytes_sent == 2 * 100 * 4096
    assert 8 < seconds < 10


async def test_a_peer_without_room_costs_nobody_else(
    autojump_clock: Clock, world: World, chain: Chain, application: Application
) -> None:
    """What cannot be sent waits for room, at most 30 s, and then is dropped."""
    server, peer = world.node(1), world.node(2)
    world.connect(peer, server)
    server.has(chain.commit(application.tree()), chain, application)
    server.has_room = False
    server.transfer.on_message(peer.key, PagesAsk(number=1, pages=((1, bytes(32)),)))
    server.transfer.on_message(peer.key, PagesAsk(number=2, pages=((2, bytes(32)),)))
    await trio.sleep(serving.SILENCE_S + 5)
    server.has_room = True
    await trio.sleep(1)
    assert [body.number for _, body in asked(peer, Pages)] == [2]


@pytest.mark.parametrize(
    "changes",
    [{"seq": 3}, {"hash": bytes(32)}, {"first_page": 2 * PART_PAGES + 1}],
)
async def test_leaves_of_nothing_are_gone(
    autojump_clock: Clock, world: World, chain: Chain, changes: dict[str, Any]
) -> None:
    """Sentence T6: of another state than the one that stands still, or beyond its end."""
    server, peer = world.node(1), world.node(2)
    world.connect(peer, server)
    server.has(chain.commit(synthetic(2 * PART_PAGES)), chain, None)
    server.transfer.on_message(peer.key, StateAsk(number=1, above_seq=GENESIS, epoch=chain.epoch))
    place: dict[str, Any] = {"seq": 2, "hash": chain.heads[-1].hash, "first_page": 1}
    server.transfer.on_message(peer.key, LeavesAsk(number=2, **{**place, **changes}))
    server.transfer.on_message(peer.key, LeavesAsk(number=3, **place))
    await trio.sleep(1)
    assert [(body.number, body.why) for _, body in asked(peer, StateRefused)] == [(2, Why.GONE)]
    assert [body.number for _, body in asked(peer, Leaves)] == [3]


async def test_a_config_that_another_peer_proved_is_a_state(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T8: the epoch that it begins is known already; its certificate is told as well."""
    ahead, behind, joiner = world.node(1), world.node(2), world.node(3)
    world.connect(joiner, ahead)
    tree = synthetic(2 * PART_PAGES)
    chain.commit(tree)
    config = chain.configure(config_of(5))
    behind.has(FinalState(head=config, certificate=chain.configs[-1][1], tree=tree), chain, None)
    ahead.has(chain.commit(synthetic(2 * PART_PAGES, salt=1)), chain, None)

    def die(message: TransferMessage) -> TransferMessage:
        if isinstance(message, Leaves):
            world.lose(joiner, ahead)
            world.connect(joiner, behind)
        return message

    ahead.tamper = die
    found = await fetch(joiner, chain)
    assert (found.head, found.certificate) == (config, chain.configs[-1][1])
    assert [each.head for each in found.configs] == [config]
    assert joiner.faults == []


async def test_a_state_stands_still_while_it_is_sent(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T6: the tree moves on between two parts, and what arrives is one state."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    tree = synthetic(3 * PART_PAGES)
    before = bytes(tree.leaves)
    state = chain.commit(tree)
    server.has(state, chain, None)

    def move_on(message: TransferMessage) -> TransferMessage:
        if isinstance(message, Leaves):
            pgno = 2 * PART_PAGES + 7
            tree.update([pgno], [bytes(32)], tree.db_pages)
            server.state = chain.commit(tree)
        return message

    server.tamper = move_on
    found = await fetch(joiner, chain)
    assert found.head == state.head
    assert found.tree.leaves == before != tree.leaves


async def test_wrong_leaves_are_not_offered(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T7: a node that finds its own leaves wrong (P19) has nothing to give."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    state = chain.commit(synthetic(40))
    state.tree.update([7], [bytes(32)], 40)
    server.has(state, chain, None)
    await nobody_has_it(joiner, chain)
    assert joiner.faults == []
    assert {body.why for _, body in asked(joiner, StateRefused)} == {Why.NO_STATE}
    assert server.budget.transfers == 0


async def test_a_certificate_of_another_frame_is_not_offered(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T7: what nobody could believe is not sent."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    state = chain.commit(synthetic(40))
    other = chain.commit(synthetic(40, salt=1))
    server.has(
        FinalState(head=other.head, certificate=state.certificate, tree=other.tree), chain, None
    )
    await nobody_has_it(joiner, chain)
    assert joiner.faults == []


# What is believed.


async def test_configs_lead_from_the_genesis_to_the_frame(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T8: through each change of voters, all of which the fetched state names."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    chain.commit(synthetic(3))
    changes = [chain.configure(config_of(count)) for count in (5, 1, 3)]
    state = chain.commit(synthetic(30))
    server.has(state, chain, None)
    found = await fetch(joiner, chain)
    assert [config.head for config in found.configs] == changes
    assert [len(config.config.voters) for config in found.configs] == [5, 1, 3]
    assert [config.record for config in found.configs] == [r for r, _ in chain.configs[1:]]
    assert (found.electors.epoch, found.electors.head) == (4, changes[-1])
    later = chain.commit(synthetic(31))
    server.has(later, chain, None)
    again = await joiner.transfer.client.fetch_state(found.electors, above_seq=found.head.seq)
    assert (again.head, again.configs) == (later.head, ())


async def test_a_state_may_stand_at_a_config(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T8: its own certificate proves it; what else is beside the offer is dropped."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    state = chain.commit(synthetic(30))
    head = chain.configure(config_of(5))
    forged = unlike(state.certificate, hash=head.hash, height=head.seq, votes=())
    server.has(FinalState(head=head, certificate=forged, tree=state.tree), chain, None)
    found = await fetch(joiner, chain)
    assert found.head == head
    assert found.certificate == chain.configs[-1][1]
    assert found.electors.epoch == 2


async def test_one_voter_needs_no_certificate(autojump_clock: Clock, world: World) -> None:
    """Sentence T8: the author's signature is the vote, also for the CONFIG that ends its epoch."""
    chain = Chain(config_of(1))
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    believed = chain.electors()
    state = chain.commit(synthetic(30))
    server.has(dataclasses.replace(state, certificate=None), chain, None)
    client = joiner.transfer.client
    found = await client.fetch_state(believed, above_seq=GENESIS)
    assert (found.head, found.certificate) == (state.head, None)
    chain.configure(config_of(3))
    record, _ = chain.configs.pop()
    chain.configs.append((record, None))
    state = chain.commit(synthetic(31))
    server.has(state, chain, None)
    found = await client.fetch_state(believed, above_seq=found.head.seq)
    assert (found.head, found.certificate) == (state.head, state.certificate)
    assert [config.certificate for config in found.configs] == [None]


async def test_a_peer_that_is_behind_is_no_liar(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T12: its state is of an epoch that the asker has left behind, so it offers none."""
    behind, ahead, joiner = world.node(1), world.node(2), world.node(3)
    world.connect(joiner, ahead)
    behind.has(chain.commit(synthetic(2 * PART_PAGES)), chain, None)
    chain.configure(config_of(5))
    state = chain.commit(synthetic(2 * PART_PAGES, salt=1))
    ahead.has(state, chain, None)

    def die(message: TransferMessage) -> TransferMessage:
        if isinstance(message, Leaves) and message.first_page > 1:
            world.lose(joiner, ahead)
            world.connect(joiner, behind)
        return message

    ahead.tamper = die
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch, joiner, chain)
        await trio.sleep(30)
        assert {body.why for _, body in asked(joiner, StateRefused)} == {Why.NO_STATE}
        behind.has(state, chain, None)
    assert joiner.faults == []


async def test_many_configs_are_asked_for_in_pieces(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T9: an offer holds 64; who is further behind believes them and asks again."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    count = 2 * CONFIGS_MAX + 5
    for number in range(count):
        chain.configure(config_of(1 + number % 3))
    state = chain.commit(synthetic(30))
    server.has(state, chain, None)
    found = await fetch(joiner, chain)
    assert len(found.configs) == count
    assert found.head == state.head
    sizes = [len(body.configs) for _, body in asked(joiner, StateOffer)]
    assert sizes == [CONFIGS_MAX, CONFIGS_MAX, 5]


def lie_lineage(_: Chain, tree: StateTree) -> tuple[FinalState, Chain]:
    other = Chain(dataclasses.replace(config_of(3), lineage=Lineage(b"x" * 16)))
    return other.commit(tree), other


def lie_few_votes(chain: Chain, tree: StateTree) -> tuple[FinalState, Chain]:
    return chain.commit(tree, 1), chain


def lie_strangers(chain: Chain, tree: StateTree) -> tuple[FinalState, Chain]:
    return chain.commit(tree, 2, 3, 4), chain


def lie_no_votes(chain: Chain, tree: StateTree) -> tuple[FinalState, Chain]:
    state = chain.commit(tree)
    return FinalState(head=state.head, certificate=None, tree=tree), chain


def lie_author(chain: Chain, tree: StateTree) -> tuple[FinalState, Chain]:
    chain.root = tree.root()
    head = chain.add(author=1)
    return FinalState(head=head, certificate=chain.certify(head, 0, 1, 2), tree=tree), chain


def lie_config(chain: Chain, tree: StateTree) -> tuple[FinalState, Chain]:
    """The next CONFIG was made by voters of no epoch before it."""
    chain.configure(config_of(5))
    record, certificate = chain.configs[-1]
    assert certificate is not None
    chain.configs[-1] = (record, unlike(certificate, votes=certificate.votes[:1]))
    return chain.commit(tree), chain


def lie_commit_as_config(chain: Chain, tree: StateTree) -> tuple[FinalState, Chain]:
    chain.commit(tree)
    chain.configs.append((encode_frame(chain.last), None))
    return chain.commit(tree), chain


def lie_config_left_out(chain: Chain, tree: StateTree) -> tuple[FinalState, Chain]:
    chain.configure(config_of(5))
    del chain.configs[-1]
    return chain.commit(tree), chain


LIES = [
    lie_lineage,
    lie_few_votes,
    lie_strangers,
    lie_no_votes,
    lie_author,
    lie_config,
    lie_commit_as_config,
    lie_config_left_out,
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
async def test_what_certificates_do_not_prove_is_refused(
    autojump_clock: Clock,
    world: World,
    chain: Chain,
    lie: Callable[[Chain, StateTree], tuple[FinalState, Chain]],
) -> None:
    """Sentence T10: another lineage's, too few votes or none, strangers', and broken CONFIGs."""
    liar, joiner = world.node(1), world.node(2)
    world.connect(joiner, liar)
    state, lied = lie(chain, synthetic(30))
    liar.has(state, lied, None)
    await nobody_has_it(joiner, Chain(config_of(3)))
    assert [key for key, _ in joiner.faults] == [liar.key]
    assert asked(liar, LeavesAsk) == []


def lie_in_offer(**changes: Any) -> Callable[[TransferMessage], TransferMessage]:
    def tamper(message: TransferMessage) -> TransferMessage:
        if isinstance(message, StateOffer):
            return msgspec.structs.replace(message, **changes)
        return message

    return tamper


@pytest.mark.parametrize(
    "changes",
    [
        {"page_size": 8192},
        {"db_pages": 31},
        {"parts": bytes(32)},
        {"db_pages": 2**30, "parts": bytes(2**30 // PART_PAGES * 32)},
        {"head": b"\x06"},
        {"head": b""},
        {"configs": ((b"\x02", None),)},
        {"configs": ((b"", None),)},
    ],
)
async def test_sizes_are_proven_before_a_leaf_is_asked_for(
    autojump_clock: Clock, world: World, chain: Chain, changes: dict[str, Any]
) -> None:
    """Sentence T11: nobody makes a node hold more than the state that is final."""
    liar, joiner = world.node(1), world.node(2)
    world.connect(joiner, liar)
    liar.has(chain.commit(synthetic(30)), chain, None)
    liar.tamper = lie_in_offer(**changes)
    await nobody_has_it(joiner, chain)
    assert [key for key, _ in joiner.faults] == [liar.key]
    assert asked(liar, LeavesAsk) == []


async def test_an_old_state_is_refused(autojump_clock: Clock, world: World, chain: Chain) -> None:
    """Sentence T12: it is not offered, and who offers it nevertheless lies."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    old = chain.commit(synthetic(30))
    server.has(old, chain, None)
    with trio.move_on_after(20):
        await fetch(joiner, chain, above=old.head.seq)
        pytest.fail("fetched what was not wanted")
    assert {body.why for _, body in asked(joiner, StateRefused)} == {Why.NO_STATE}
    assert joiner.faults == []

    def ask_lower(message: TransferMessage) -> TransferMessage:
        if isinstance(message, StateAsk):
            return msgspec.structs.replace(message, above_seq=NONE)
        return message

    joiner.tamper = ask_lower
    with trio.move_on_after(20):
        await fetch(joiner, chain, above=old.head.seq)
        pytest.fail("fetched what was not wanted")
    assert [key for key, _ in joiner.faults] == [server.key]


def wrong_leaf(message: TransferMessage) -> TransferMessage:
    if isinstance(message, Leaves) and message.first_page > 1:
        return msgspec.structs.replace(message, hashes=message.hashes[:-1] + b"\0")
    return message


def fewer_leaves(message: TransferMessage) -> TransferMessage:
    if isinstance(message, Leaves):
        return msgspec.structs.replace(message, hashes=message.hashes[:-32])
    return message


def other_part(message: TransferMessage) -> TransferMessage:
    if isinstance(message, Leaves):
        return msgspec.structs.replace(message, first_page=2 * PART_PAGES + 1)
    return message


def other_kind(message: TransferMessage) -> TransferMessage:
    if isinstance(message, Leaves):
        return Pages(number=message.number, pages=(), missing=(1,))
    return message


@pytest.mark.parametrize("lie", [wrong_leaf, fewer_leaves, other_part, other_kind])
async def test_lying_leaves_are_found_at_once(
    autojump_clock: Clock,
    world: World,
    chain: Chain,
    lie: Callable[[TransferMessage], TransferMessage],
) -> None:
    """Sentence T13: reported, asked nothing for a minute; what was right of it stays."""
    liar, honest, joiner = world.node(1), world.node(2), world.node(3)
    world.connect(joiner, liar)
    state = chain.commit(synthetic(3 * PART_PAGES))
    for node in (liar, honest):
        node.has(state, chain, None)
    liar.tamper = lie
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch, joiner, chain)
        await trio.sleep(asking.SHUN_S - 1)
        assert [key for key, _ in joiner.faults] == [liar.key]
        assert len(asked(liar, StateAsk)) == 1
        world.connect(joiner, honest)
    assert trio.current_time() < began + asking.SHUN_S
    assert len(asked(honest, LeavesAsk)) == (2 if lie is wrong_leaf else 3)


async def test_a_liar_is_asked_again_after_a_minute(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T13: it may have been a fault that was mended."""
    liar, joiner = world.node(1), world.node(2)
    world.connect(joiner, liar)
    liar.has(chain.commit(synthetic(30)), chain, None)
    liar.tamper = fewer_leaves
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch, joiner, chain)
        await trio.sleep(30)
        liar.tamper = lambda message: message
    first, second = (at for at, _ in asked(liar, StateAsk))
    assert asking.SHUN_S <= second - first < asking.SHUN_S + 15


def wrong_page(message: TransferMessage) -> TransferMessage:
    if isinstance(message, Pages) and message.pages:
        pgno, content = message.pages[-1]
        last = (pgno, content[:-1] + bytes([content[-1] ^ 1]))
        return msgspec.structs.replace(message, pages=(*message.pages[:-1], last))
    return message


def other_page(message: TransferMessage) -> TransferMessage:
    if isinstance(message, Pages) and message.pages:
        last = (9_999, message.pages[-1][1])
        return msgspec.structs.replace(message, pages=(*message.pages[:-1], last))
    return message


def longer_page(message: TransferMessage) -> TransferMessage:
    if isinstance(message, Pages) and message.pages:
        last = (message.pages[-1][0], bytes(8192))
        return msgspec.structs.replace(message, pages=(*message.pages[:-1], last))
    return message


def left_out(message: TransferMessage) -> TransferMessage:
    if isinstance(message, Pages) and message.pages:
        return msgspec.structs.replace(message, pages=message.pages[:-1])
    return message


def leaves_for_pages(message: TransferMessage) -> TransferMessage:
    if isinstance(message, Pages):
        place: dict[str, Any] = {"seq": 2, "hash": bytes(32), "first_page": 1}
        return Leaves(number=message.number, **place, hashes=bytes(32))
    return message


@pytest.mark.parametrize("lie", [wrong_page, other_page, longer_page, left_out, leaves_for_pages])
async def test_a_page_is_believed_for_its_hash(
    autojump_clock: Clock,
    world: World,
    chain: Chain,
    application: Application,
    lie: Callable[[TransferMessage], TransferMessage],
) -> None:
    """Sentence T14: a liar is reported and asked no more; the pages come from elsewhere."""
    liar, honest, joiner = world.node(1), world.node(2), world.node(3)
    world.connect(joiner, liar, honest)
    tree = application.tree()
    for node in (liar, honest):
        node.has(chain.commit(tree), chain, application)
    liar.tamper = lie
    pages = await joiner.transfer.client.fetch_pages(
        wants_of(tree), page_size=4096, voters=(liar.key, honest.key)
    )
    assert pages == application.pages()
    assert {key for key, _ in joiner.faults} == {liar.key}
    before = len(liar.received)
    await joiner.transfer.client.fetch_pages(wants_of(tree), page_size=4096)
    assert len(liar.received) == before


async def test_what_no_hash_covers_is_nobody_elses_word(
    autojump_clock: Clock, world: World, chain: Chain, application: Application
) -> None:
    """Sentence T15: bytes 18 and 19 of page 1 are set here; the lock page is asked of nobody."""
    liar, joiner = world.node(1), world.node(2)
    world.connect(joiner, liar)
    tree = application.tree()
    liar.has(chain.commit(tree), chain, application)

    def unreadable(message: TransferMessage) -> TransferMessage:
        if isinstance(message, Pages):
            pgno, content = message.pages[0]
            assert pgno == 1
            changed = content[:18] + b"\xff\xff" + content[20:]
            return msgspec.structs.replace(message, pages=((1, changed), *message.pages[1:]))
        return message

    liar.tamper = unreadable
    lock = 0x40000000 // 4096 + 1
    wants = [*wants_of(tree)[:5], (lock, leaf_hash(lock, bytes(4096)))]
    pages = await joiner.transfer.client.fetch_pages(wants, page_size=4096)
    assert pages[1] == application.pages()[1]
    assert pages[1][18:20] == b"\x02\x02"
    assert pages[lock] == bytes(4096)
    assert [pgno for _, ask in asked(liar, PagesAsk) for pgno, _ in ask.pages] == [1, 2, 3, 4, 5]


async def test_answers_that_were_not_asked_for_are_dropped(
    autojump_clock: Clock, world: World, chain: Chain, application: Application
) -> None:
    """Sentence T16: late ones, invented ones, and those of somebody else change nothing."""
    server, other, joiner = world.node(1), world.node(2), world.node(3)
    world.connect(joiner, server, other)
    tree = application.tree()
    server.has(chain.commit(tree), chain, application)

    async def say_late(message: TransferMessage) -> None:
        await trio.sleep(0.01)
        world.carry(server, joiner.key, message)

    def echo(message: TransferMessage) -> TransferMessage:
        """Let another node say it first and this one again later, with a wrong page."""
        if isinstance(message, Pages):
            joiner.transfer.on_message(other.key, wrong_page(message))
            world.nursery.start_soon(say_late, wrong_page(message))
        return message

    server.tamper = echo
    late = Pages(number=123, pages=((1, bytes(4096)),), missing=())
    joiner.transfer.on_message(server.key, late)
    wants = wants_of(tree)
    client = joiner.transfer.client
    pages = await client.fetch_pages(wants[:40], page_size=4096, voters=(server.key,))
    await trio.sleep(1)
    pages |= await client.fetch_pages(wants[40:], page_size=4096, voters=(server.key,))
    await trio.sleep(1)
    assert pages == application.pages()
    assert joiner.faults == []
    assert len(asked(joiner, Pages)) == 2 * len(asked(server, PagesAsk))


# What is fetched, from whom.


async def test_peers_are_asked_in_turn(autojump_clock: Clock, world: World, chain: Chain) -> None:
    """Sentence T17: voters first; one that does not answer is followed after 10 s by the next."""
    silent, empty, server, joiner = (world.node(number) for number in (1, 2, 3, 4))
    world.connect(joiner, empty, server, silent)
    silent.tamper = lambda _: None
    server.has(chain.commit(synthetic(30)), chain, None)
    began = trio.current_time()
    client = joiner.transfer.client
    voters = (silent.key, server.key)
    await client.fetch_state(genesis_of(chain), above_seq=GENESIS, voters=voters)
    assert 10 <= trio.current_time() - began < 11
    assert len(asked(silent, StateAsk)) == len(asked(server, StateAsk)) == 1
    assert empty.received == []


async def test_nobody_there_is_waited_for(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T17: at most every 10 s all are asked again, and a newcomer at once."""
    empty, server, joiner = world.node(1), world.node(2), world.node(3)
    world.connect(joiner, empty)
    server.has(chain.commit(synthetic(30)), chain, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch, joiner, chain)
        await trio.sleep(600)
        assert 58 <= len(asked(empty, StateAsk)) <= 70
        assert joiner.transfer.client.progress is None
        world.connect(joiner, server)
        began = trio.current_time()
    assert trio.current_time() - began < 1


async def test_verified_parts_stay_when_their_peer_dies(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T18: midway; the next peer has the same state and is asked for the rest alone."""
    dying, other, joiner = world.node(1), world.node(2), world.node(3)
    world.connect(joiner, dying)
    state = chain.commit(synthetic(5 * PART_PAGES + 9))
    for node in (dying, other):
        node.has(state, chain, None)

    def die(message: TransferMessage) -> TransferMessage:
        if isinstance(message, Leaves) and message.first_page > 2 * PART_PAGES:
            world.lose(joiner, dying)
            world.connect(joiner, other)
        return message

    dying.tamper = die
    began = trio.current_time()
    found = await fetch(joiner, chain)
    assert found.tree.leaves == state.tree.leaves
    firsts = [(ask.first_page - 1) // PART_PAGES for _, ask in asked(other, LeavesAsk)]
    assert firsts == [2, 3, 4, 5]
    assert trio.current_time() - began < 2


async def test_parts_serve_another_state_that_has_them(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """Sentence T18: nobody has the first state any more; only what differs is fetched anew."""
    first, second, joiner = world.node(1), world.node(2), world.node(3)
    world.connect(joiner, first)
    tree = synthetic(4 * PART_PAGES)
    first.has(chain.commit(StateTree(4096, tree.leaves)), chain, None)
    tree.update([PART_PAGES + 5], [bytes(32)], tree.db_pages + 0)
    second.has(chain.commit(tree), chain, None)

    def die(message: TransferMessage) -> TransferMessage:
        if isinstance(message, Leaves) and message.first_page > 3 * PART_PAGES:
            world.lose(joiner, first)
            world.connect(joiner, second)
        return message

    first.tamper = die
    found = await fetch(joiner, chain)
    assert found.tree.leaves == tree.leaves
    firsts = [(ask.first_page - 1) // PART_PAGES for _, ask in asked(second, LeavesAsk)]
    assert firsts == [1, 3]


async def test_progress_is_told(autojump_clock: Clock, world: World, chain: Chain) -> None:
    """How many parts of how many, and of which state; nothing when no fetch is under way."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    server.has(chain.commit(synthetic(3 * PART_PAGES)), chain, None)
    client = joiner.transfer.client
    told: list[tuple[int, int, int]] = []

    def look(message: TransferMessage) -> TransferMessage:
        if isinstance(message, Leaves):
            progress = client.progress
            assert progress is not None
            told.append((progress.seq, progress.parts, progress.parts_total))
        return message

    server.tamper = look
    await fetch(joiner, chain)
    assert told == [(2, 0, 3), (2, 1, 3), (2, 2, 3)]
    assert client.progress is None


async def test_the_database_moves_on_while_its_pages_are_fetched(
    autojump_clock: Clock, world: World, chain: Chain, application: Application
) -> None:
    """Sentence T19: a page that has changed is not sent; another peer has it, or nobody."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    tree, before = application.tree(), application.pages()
    server.has(chain.commit(tree), chain, application)
    application.run("update t set y = randomblob(500000) where x = 1")
    pages = await joiner.transfer.client.fetch_pages(wants_of(tree), page_size=4096)
    same = {pgno for pgno, page in application.pages().items() if before[pgno] == page}
    assert 0 < len(same) < len(before)
    assert pages == {pgno: before[pgno] for pgno in same}
    assert joiner.faults == []
    holder = world.node(3)
    holder.has(None, chain, None)
    holder.read = lambda pgnos: {pgno: before[pgno] for pgno in pgnos}
    world.connect(joiner, holder)
    pages = await joiner.transfer.client.fetch_pages(wants_of(tree), page_size=4096)
    assert pages == before


async def test_frames_are_looked_into_for_what_the_file_has_no_more(
    autojump_clock: Clock, world: World, chain: Chain, application: Application
) -> None:
    """Sentence T19: and what they give is verified as well."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    tree, before = application.tree(), application.pages()
    server.has(chain.commit(tree), chain, application)
    application.run("update t set y = randomblob(500000) where x = 1")
    lacking: set[int] = set()

    async def from_frames(wants: Any) -> dict[int, bytes]:
        await trio.lowlevel.checkpoint()
        lacking.update(pgno for pgno, _ in wants)
        return {pgno: before[pgno] if pgno % 2 else bytes(4096) for pgno, _ in wants}

    server.frames = from_frames
    pages = await joiner.transfer.client.fetch_pages(wants_of(tree), page_size=4096)
    changed = {pgno for pgno, page in application.pages().items() if before[pgno] != page}
    assert lacking == changed
    assert set(before) - set(pages) == {pgno for pgno in changed if not pgno % 2}
    assert all(before[pgno] == page for pgno, page in pages.items())


async def test_a_file_that_cannot_be_read_has_no_pages(
    autojump_clock: Clock, world: World, chain: Chain, application: Application
) -> None:
    """Sentence T19: its own shard finds and says why."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    server.has(chain.commit(application.tree()), chain, application)

    def fail(_: Any) -> dict[int, bytes]:
        raise UnavailableError("the disk is away")

    server.read = fail
    wants = wants_of(application.tree())
    assert await joiner.transfer.client.fetch_pages(wants, page_size=4096) == {}
    assert joiner.faults == []


async def test_asks_for_pages_are_spread(
    autojump_clock: Clock, world: World, chain: Chain, application: Application
) -> None:
    """Sentence T20: four of at most 256 pages at a time, at whoever has the least to do."""
    *servers, joiner = (world.node(number) for number in (1, 2, 3))
    world.connect(joiner, *servers)
    world.latency_s = 0.1
    application.run("insert into t(y) values(zeroblob(9000000))")
    tree = application.tree()
    for server in servers:
        server.has(chain.commit(tree), chain, application)
    most = 0

    def count(message: TransferMessage) -> TransferMessage:
        nonlocal most
        most = max(most, len(joiner.asker._waiting))
        return message

    joiner.tamper = count
    began = trio.current_time()
    pages = await joiner.transfer.client.fetch_pages(wants_of(tree), page_size=4096)
    assert len(pages) == tree.db_pages
    assert most == gathering.ASKS_MAX
    sizes = [[len(ask.pages) for _, ask in asked(server, PagesAsk)] for server in servers]
    assert max(map(max, sizes)) == 256
    assert abs(len(sizes[0]) - len(sizes[1])) <= 2
    assert trio.current_time() - began < 0.25 * len(sizes[0]) * 2


@pytest.mark.parametrize("why", [None, *Why])
async def test_pages_are_asked_for_again(
    autojump_clock: Clock,
    world: World,
    chain: Chain,
    application: Application,
    why: Why | None,
) -> None:
    """Sentence T21: of a busy peer after a pause, of a silent one 3 times, else not."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    server.has(chain.commit(application.tree()), chain, application)
    answers = 0

    def refuse(message: TransferMessage) -> TransferMessage | None:
        nonlocal answers
        answers += 1
        if answers > 2 or not isinstance(message, Pages):
            return message
        return None if why is None else StateRefused(number=message.number, why=why)

    server.tamper = refuse
    wants = wants_of(application.tree())[:10]
    began = trio.current_time()
    pages = await joiner.transfer.client.fetch_pages(wants, page_size=4096)
    if why in {None, Why.BUSY}:
        assert len(pages) == 10
        assert len(asked(server, PagesAsk)) == 3
        assert trio.current_time() - began >= (20 if why is None else 0.5)
    else:
        assert pages == {}
        assert len(asked(server, PagesAsk)) == 1
    assert joiner.faults == []


async def test_an_asker_without_room_comes_again(
    autojump_clock: Clock, world: World, chain: Chain, application: Application
) -> None:
    """Its own outbox is full: that is nobody's fault, and soon over."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    tree = application.tree()
    server.has(chain.commit(tree), chain, application)
    joiner.has_room = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch, joiner, chain)
        await trio.sleep(5)
        assert server.received == []
        joiner.has_room = True
    joiner.has_room = False
    client = joiner.transfer.client
    assert await client.fetch_pages(wants_of(tree), page_size=4096) == {}
    assert joiner.faults == []


@pytest.mark.parametrize("why", [None, Why.BUSY])
async def test_pages_are_not_asked_for_without_end(
    autojump_clock: Clock, world: World, chain: Chain, why: Why | None
) -> None:
    """Sentence T21: 3 times in vain, or 40 times busy, and the pages are left out."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)

    def refuse(message: TransferMessage) -> TransferMessage | None:
        return None if why is None else StateRefused(number=message.number, why=why)

    server.tamper = refuse
    wants = [(1, bytes(32))]
    assert await joiner.transfer.client.fetch_pages(wants, page_size=4096) == {}
    expected = gathering.SILENCES_MAX if why is None else gathering.BUSY_MAX
    assert len(asked(server, PagesAsk)) == expected


async def test_large_pages_are_asked_for_by_the_megabyte(
    autojump_clock: Clock, world: World, chain: Chain, tmp_path: Path
) -> None:
    """Sentence T20: an answer stays small, whatever the page size."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    path = tmp_path / "large.db"
    with contextlib.closing(Application(path, page_size=65536, size=4_000_000)) as application:
        tree = application.tree()
        server.has(chain.commit(tree), chain, application)
        pages = await joiner.transfer.client.fetch_pages(wants_of(tree), page_size=65536)
        assert pages == application.pages()
        assert max(len(ask.pages) for _, ask in asked(server, PagesAsk)) == 16
        everything = PagesAsk(number=1, pages=tuple(wants_of(tree)[:256]))
        application.run("insert into t(y) values(randomblob(5000000))")
        everything = PagesAsk(number=1, pages=tuple(wants_of(application.tree())))
        server.transfer.on_message(joiner.key, everything)
        await trio.sleep(1)
        last = asked(joiner, Pages)[-1][1]
        assert sum(len(page) for _, page in last.pages) == 4 * MIB
        assert len(last.pages) + len(last.missing) == len(everything.pages)


@pytest.mark.parametrize("seed", range(6))
async def test_a_lossy_slow_network_is_survived(
    autojump_clock: Clock, world: World, chain: Chain, application: Application, seed: int
) -> None:
    """A fifth of all messages lost, half a second each way, peers that come and go."""
    world.random.seed(seed)
    world.loss, world.latency_s = 0.2, 0.5
    *servers, joiner = (world.node(number) for number in (1, 2, 3))
    world.connect(joiner, *servers)
    state = chain.commit(application.tree())
    for server in servers:
        server.has(state, chain, application)

    async def come_and_go() -> None:
        while True:
            await trio.sleep(world.random.uniform(1, 20))
            server = world.random.choice(servers)
            if server.key in joiner.links:
                world.lose(joiner, server)
            else:
                world.connect(joiner, server)

    with trio.fail_after(3_600):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_and_go)
            found = await fetch(joiner, chain)
            pages: dict[int, bytes] = {}
            while len(pages) < found.tree.db_pages:
                wants = [each for each in wants_of(found.tree) if each[0] not in pages]
                client = joiner.transfer.client
                pages |= await client.fetch_pages(wants, page_size=4096)
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert pages == application.pages()
    assert joiner.faults == []


async def test_few_shards_of_a_node_fetch_at_a_time(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """The node's turns are held while one peer is asked, and given back between two."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    joiner.turns = trio.CapacityLimiter(1)
    joiner.start()
    server.has(chain.commit(synthetic(30)), chain, None)
    async with trio.open_nursery() as nursery, joiner.turns:
        nursery.start_soon(fetch, joiner, chain)
        await trio.sleep(5)
        assert server.received == []
    assert joiner.turns.borrowed_tokens == 0
    assert len(asked(server, StateAsk)) == 1


async def test_a_fetch_can_be_cancelled_at_any_time(
    autojump_clock: Clock, world: World, chain: Chain
) -> None:
    """And begun again; nothing of it is left."""
    server, joiner = world.node(1), world.node(2)
    world.connect(joiner, server)
    world.latency_s = 0.01
    state = chain.commit(synthetic(3 * PART_PAGES))
    server.has(state, chain, None)
    for step in range(1, 30):
        with trio.move_on_after(step * 0.004):
            await fetch(joiner, chain)
        assert joiner.asker._waiting == {}
    assert (await fetch(joiner, chain)).head == state.head


@pytest.mark.system
async def test_a_hundred_megabytes_past_a_death_and_a_liar(tmp_path: Path, chain: Chain) -> None:
    """In real time and threads: one peer dies midway, one lies, the database goes on."""
    path = tmp_path / "large.db"
    with contextlib.closing(Application(path, size=100_000_000)) as application:
        async with trio.open_nursery() as nursery:
            world = World(nursery)
            dying, liar, steady, joiner = (world.node(number) for number in (1, 2, 3, 4))
            world.connect(joiner, dying, liar, steady)
            tree = application.tree()
            state = chain.commit(tree)
            for node in (dying, liar, steady):
                node.has(state, chain, application)
            application.run("update t set y = randomblob(500000) where x % 20 = 0")
            liar.tamper = wrong_page
            answers = 0

            def die(message: TransferMessage) -> TransferMessage:
                nonlocal answers
                answers += isinstance(message, Pages)
                if answers == 20 and dying.key in joiner.links:
                    world.lose(joiner, dying)
                return message

            dying.tamper = die
            with trio.fail_after(120):
                found = await fetch(joiner, chain)
                assert found.tree.leaves == tree.leaves
                wants = wants_of(found.tree)
                pages: dict[int, bytes] = {}
                for start in range(0, len(wants), 16_384):
                    some = wants[start : start + 16_384]
                    client = joiner.transfer.client
                    pages |= await client.fetch_pages(some, page_size=4096)
            now = application.pages()
            same = {pgno for pgno, digest in wants if leaf_hash(pgno, now[pgno]) == digest}
            assert pages == {pgno: now[pgno] for pgno in same}
            assert 0.9 * len(wants) < len(same) < len(wants)
            assert {key for key, _ in joiner.faults} == {liar.key}
            nursery.cancel_scope.cancel()


def test_the_page_and_the_tests_say_the_same() -> None:
    """Each numbered sentence is cited by a test here, and no test cites another."""
    cited = set(re.findall(r"Sentence (T\d+)", Path(__file__).read_text()))
    numbers = re.findall(r"^\*\*(T\d+)\.\*\*", PAGE.read_text(), re.MULTILINE)
    assert numbers == [f"T{number}" for number in range(1, len(numbers) + 1)]
    assert cited == set(numbers)
