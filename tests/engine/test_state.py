"""What a shard's replica knows between two events."""

from basenet.engine.state import ShardState
from basenet.units import TimestampNs
from basenet.wire.frame import Flag
from tests.engine.story import BEGIN_NS, SHARD, captured, new_replica, piece


def test_before_the_genesis_there_is_no_seq_and_no_run() -> None:
    """And nothing is stored, final or numbered."""
    state = ShardState(shard=SHARD)
    assert state.tip is None
    assert (state.tip_seq, state.final_seq, state.local_last) == (0, 0, 0)
    assert not state.is_run_open
    assert not state.unfinal


def test_two_shards_share_no_state() -> None:
    """The defaults of one are not those of another."""
    one, other = ShardState(shard=SHARD), ShardState(shard=SHARD)
    assert one.unfinal is not other.unfinal
    assert one.stored is not other.stored


def test_the_first_timestamp_is_taken_as_it_is() -> None:
    """There is nothing before it."""
    assert ShardState(shard=SHARD).clamp(TimestampNs(5)) == 5


def test_a_timestamp_is_later_than_the_one_before() -> None:
    """P33: a clock that steps back is clamped to one nanosecond behind the tip."""
    state = new_replica().state
    assert state.clamp(TimestampNs(BEGIN_NS - 1)) == BEGIN_NS + 1
    assert state.clamp(TimestampNs(BEGIN_NS)) == BEGIN_NS + 1
    assert state.clamp(TimestampNs(BEGIN_NS + 1)) == BEGIN_NS + 1
    assert state.clamp(TimestampNs(BEGIN_NS + 9)) == BEGIN_NS + 9


def test_a_run_is_open_from_its_first_piece_to_its_last_frame() -> None:
    """The tip's flag says it, so that nothing else can contradict it."""
    replica = new_replica()
    assert not replica.state.is_run_open
    replica.step(piece(1, Flag.RECOVERED))
    assert replica.state.is_run_open
    replica.step(piece(1, Flag.RECOVERED))
    assert replica.state.is_run_open
    replica.step(captured(1, flags=Flag.RECOVERED))
    assert not replica.state.is_run_open
