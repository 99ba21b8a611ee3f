"""Frames at hand: what the journal does not have yet is never let go."""

from pathlib import Path

import pytest

from basenet.daemon.cluster import frames as module
from basenet.daemon.cluster.frames import Frames, Payloads
from basenet.daemon.journalist import Journalist
from basenet.errors import CorruptionError
from basenet.journal.journal import Journal
from basenet.wire.frame import Frame, encode_frame
from basenet.wire.payload import decode_commit
from tests.fakes.branching import SHARD, Branching


async def test_what_is_not_durable_is_held_however_much_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question about it is answered from memory; once it is durable the journal has it."""
    monkeypatch.setattr(module, "_HELD_BYTES_MAX", 1)
    monkeypatch.setattr(module, "_DECODED_MAX", 1)
    story, journal = Branching(), Journal(tmp_path)
    journal.begin_replica(**story.birth())
    chain = story.chain
    one, two, three = (chain.random_commit() for _ in range(3))
    frames = Frames(SHARD, Journalist(journal))
    for frame in (one, two, three):
        frames.hold(frame)
    heads = [one.head, two.head]
    assert frames.holds(heads)
    assert await frames.records(heads) == [encode_frame(one), encode_frame(two)]
    get = frames.getter(journal)
    assert get(one.head.hash) == one
    frames.release(one.head.hash)
    assert not frames.holds(heads)
    with pytest.raises(CorruptionError, match="lacks a frame"):
        get(one.head.hash)
    journal.close()


def test_a_small_frame_is_decoded_once(tmp_path: Path) -> None:
    """Who judges it and who applies it get the same; a large one is decoded each time."""
    journal = Journal(tmp_path)
    chain = Branching().chain
    small = chain.random_commit()
    frames = Frames(SHARD, Journalist(journal))
    frames.hold(small)
    assert frames.getter(journal, [small.head])(small.head.hash) is small
    assert frames.decode(small.head, encode_frame(small)) is small
    other = chain.random_commit()
    found = frames.decode(other.head, encode_frame(other))
    assert isinstance(found, Frame)
    assert found == other
    journal.close()


def test_a_small_payload_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered is bounded, by count and by size."""
    chain = Branching().chain
    one, two = chain.random_commit(), chain.random_commit()
    payloads = Payloads()
    first = payloads(one)
    assert first.pages == decode_commit(one.payload).pages
    assert payloads(one) is first
    assert payloads(two).pages == decode_commit(two.payload).pages
    assert payloads(one) is first
    monkeypatch.setattr(module, "_DECODED_MAX", 2)
    three = chain.random_commit()
    assert payloads(three) is payloads(three)
    assert payloads(one) is not first
    monkeypatch.setattr(module, "_PAGES_BYTES_MAX", 0)
    four = chain.random_commit()
    assert payloads(four) is not payloads(four)
