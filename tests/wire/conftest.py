"""What the tests of the wire formats share: a key, ready-made frames, and damage."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from basenet.errors import CorruptionError
from basenet.units import (
    Epoch,
    FrameHash,
    JournalId,
    Lineage,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
    View,
)
from basenet.wire.frame import Flag, Frame, Kind, seal
from basenet.wire.payload import ConfigPayload, Voter
from basenet.wire.signature import Signer


class MakeFrame(Protocol):
    """Seals a frame; what is not given has a value that says little."""

    def __call__(self, *, payload: bytes = ..., **fields: Any) -> Frame: ...


class MakeConfig(Protocol):
    """Builds a configuration of ``voters`` voters."""

    def __call__(self, *, voters: int = ..., **fields: Any) -> ConfigPayload: ...


Mutations = Callable[[bytes], Iterator[bytes]]


class DecodesOrRefuses(Protocol):
    """Returns the decoded value, or None after a `CorruptionError`; lets all else through."""

    def __call__(self, decode: Callable[[bytes], Any], data: bytes) -> Any: ...


@pytest.fixture(scope="session")
def signer() -> Signer:
    return Signer(bytes(range(32)))


@pytest.fixture(scope="session")
def stranger() -> Signer:
    return Signer(bytes(range(1, 33)))


@pytest.fixture(scope="session")
def make_frame(signer: Signer) -> MakeFrame:
    def make(*, payload: bytes = b"payload", **fields: Any) -> Frame:
        facts: dict[str, Any] = {
            "shard": ShardId("orders"),
            "seq": Seq(7),
            "timestamp_ns": TimestampNs(1_700_000_000_000_000_000),
            "salt": bytes(range(16)),
            "kind": Kind.COMMIT,
            "flags": Flag.NONE,
            "epoch": Epoch(1),
            "view": View(0),
            "prev_hash": FrameHash(b"p" * 32),
            "state_root": StateRoot(b"r" * 32),
            "signer": signer,
        }
        return seal(payload=payload, **facts | fields)

    return make


@pytest.fixture(scope="session")
def make_config() -> MakeConfig:
    def make(*, voters: int = 1, **fields: Any) -> ConfigPayload:
        facts: dict[str, Any] = {
            "lineage": Lineage(b"l" * 16),
            "parent": None,
            "voters": tuple(
                Voter(
                    node_id=f"node-{number}",
                    key=Signer(bytes([number]) * 32).public,
                    journal_id=JournalId(bytes([number]) * 16),
                )
                for number in range(voters)
            ),
            "page_size": 4096,
            "members_hash": b"m" * 32,
        }
        return ConfigPayload(**facts | fields)

    return make


@pytest.fixture(scope="session")
def mutations() -> Mutations:
    """Every byte changed in two ways, every truncation, and extensions."""

    def mutate(valid: bytes) -> Iterator[bytes]:
        for index, byte in enumerate(valid):
            for mask in (0x01, 0xFF):
                yield valid[:index] + bytes([byte ^ mask]) + valid[index + 1 :]
        for length in range(len(valid)):
            yield valid[:length]
        yield valid + b"\0"
        yield valid + valid

    return mutate


@pytest.fixture(scope="session")
def decodes_or_refuses() -> DecodesOrRefuses:
    def attempt(decode: Callable[[bytes], Any], data: bytes) -> Any:
        try:
            return decode(data)
        except CorruptionError:
            return None

    return attempt
