"""What waits for one peer: order, bounds, and what is known to be on its way."""

import trio
import trio.testing

from basenet.transport.outbox import Outbox


async def test_what_is_large_is_on_its_way_until_it_must_have_arrived(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001  (virtual time)
) -> None:
    """While it waits, however long, and for two seconds after it was written."""
    outbox = Outbox(10_000)
    assert not outbox.is_coming("one")
    assert outbox.put(b"1" * 1_000, ["one", "two"])
    assert outbox.put(b"2" * 1_000, ["three"])
    await trio.sleep(60)
    assert outbox.is_coming("one")
    assert outbox.is_coming("three")
    await outbox.take()
    await trio.sleep(1.9)
    assert outbox.is_coming("two")
    await trio.sleep(0.2)
    assert not outbox.is_coming("two")
    assert not outbox.is_coming("three")


async def test_what_still_waits_is_on_its_way_though_others_were_taken(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001  (virtual time)
) -> None:
    """A slow peer takes one large message after the other."""
    outbox = Outbox(10_000_000)
    for tag in ("one", "two"):
        assert outbox.put(b"x" * 1_000_000, [tag])
    await outbox.take()
    await trio.sleep(10)
    assert not outbox.is_coming("one")
    assert outbox.is_coming("two")
    assert outbox.put(b"x", ["one"])
    assert outbox.is_coming("one")


async def test_what_was_dropped_or_meant_for_an_ended_connection_is_not_on_its_way() -> None:
    """Then it must be sent again, and at once."""
    outbox = Outbox(1_500)
    assert outbox.put(b"1" * 1_000, ["one"])
    assert not outbox.put(b"2" * 1_000, ["two"])
    assert outbox.is_coming("one")
    assert not outbox.is_coming("two")
    outbox.clear()
    assert not outbox.is_coming("one")
