"""Decisions about the pin, with a clock that is a number."""

import pytest

from basenet.sqlite.policy import (
    CALM_S_MAX,
    LAG_FRAMES_MAX,
    LATE_S,
    LONG_FRAMES,
    PENALTY_S,
    QUIET_S,
    RELEASE_FRAMES,
    ROTATE_FRAMES,
    SETTLE_FRAMES,
    SETTLE_S,
    UNCHECKED_FRAMES,
    UNCHECKED_S,
    WATCH_S,
    Action,
    CapturePolicy,
    LogFacts,
    PinPolicy,
)


class Log:
    """A log under load and the policy that watches it, one poll per millisecond."""

    def __init__(self, policy: CapturePolicy = CapturePolicy.ADAPTIVE) -> None:
        self.now = 100.0
        self.policy = PinPolicy(policy, self.now)
        self.facts = LogFacts(
            is_pinned=False, mark=None, mark_frame=None, salts=b"1", frame_max=0, is_backfilled=True
        )

    def poll(self, frames: int, after_s: float = 0.001) -> Action:
        """Let ``frames`` come, poll after ``after_s``, and do what is decided."""
        self.now += after_s
        self.facts.frame_max += frames
        if frames:
            self.facts.is_backfilled = False
        self.policy.on_poll(self.now, frames)
        action = self.policy.decide(self.now, self.facts)
        if action is Action.ENGAGE:
            self.facts.is_pinned, self.facts.mark = True, 1
            self.policy.on_pinned()
        elif action is Action.RELEASE:
            self.facts.is_pinned, self.facts.mark = False, None
        return action

    def rotated(self, *, complete: bool = True) -> None:
        """A rotation or settling came to its end."""
        self.facts.is_pinned = True
        self.facts.mark = 0 if complete else 1
        self.facts.is_backfilled = complete
        self.policy.on_rotated(self.now, self.facts)

    def reset(self) -> None:
        """The application starts the log anew."""
        self.facts.salts += b"+"
        self.facts.frame_max = 0


def test_an_idle_log_is_pinned_at_once() -> None:
    """The first decision of any policy is to pin."""
    for policy in CapturePolicy:
        assert Log(policy).poll(0) is Action.ENGAGE


def test_adaptive_lets_go_under_load_and_comes_back_in_the_first_quiet_moment() -> None:
    """No pin while the polls keep up, so that the application checkpoints by itself."""
    log = Log()
    log.poll(0)
    actions = [log.poll(60) for _ in range(20)]
    assert actions.count(Action.RELEASE) == 1
    assert actions.index(Action.RELEASE) * 60 <= RELEASE_FRAMES
    assert set(actions[actions.index(Action.RELEASE) + 1 :]) == {Action.NOTHING}
    assert log.poll(0, QUIET_S + 0.001) is Action.ENGAGE


def test_strict_never_lets_go() -> None:
    """Pinned for ever; at the threshold it rotates, once until the log is reset."""
    log = Log(CapturePolicy.STRICT)
    log.poll(0)
    while log.facts.frame_max < ROTATE_FRAMES - 60:
        assert log.poll(60) is Action.NOTHING
    assert log.poll(60) is Action.ROTATE
    log.rotated()
    assert log.poll(60) is Action.NOTHING
    log.reset()
    assert log.poll(60) is Action.NOTHING


def test_a_log_that_is_not_reset_after_a_rotation_is_rotated_again() -> None:
    """Another reader kept it from the reset: the log must not grow for ever (P12)."""
    log = Log(CapturePolicy.STRICT)
    log.poll(0)
    log.poll(ROTATE_FRAMES)
    log.rotated()
    actions = [log.poll(100) for _ in range(ROTATE_FRAMES // 100)]
    assert actions[-1] is Action.ROTATE
    assert set(actions[:-1]) == {Action.NOTHING}


def test_an_incomplete_rotation_is_tried_again_later_and_later() -> None:
    """A long reader: backing off, never a busy loop, and quick again after a success."""
    log = Log(CapturePolicy.STRICT)
    log.poll(0)
    log.poll(ROTATE_FRAMES)
    pauses = []
    for _ in range(9):
        log.rotated(complete=False)
        began = log.now
        while log.poll(1) is not Action.ROTATE:
            pass
        pauses.append(log.now - began)
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.06
    assert pauses[-1] > 0.9
    log.rotated()
    log.reset()
    assert log.poll(ROTATE_FRAMES) is Action.ROTATE
    log.rotated(complete=False)
    began = log.now
    while log.poll(1) is not Action.ROTATE:
        pass
    assert log.now - began < 0.06


def test_a_refused_lock_is_tried_again_at_once() -> None:
    """Somebody was quicker: a few milliseconds, without growing."""
    log = Log(CapturePolicy.STRICT)
    log.poll(0)
    log.poll(ROTATE_FRAMES)
    for _ in range(5):
        log.policy.on_rotated(log.now, None)
        assert log.poll(1) is Action.NOTHING
        assert log.poll(1, 0.005) is Action.ROTATE


@pytest.mark.parametrize(("frames", "after_s"), [(LAG_FRAMES_MAX + 1, 0.001), (10, LATE_S + 0.001)])
def test_falling_behind_brings_the_pin_back(frames: int, after_s: float) -> None:
    """Half a generation at once, or a late poll: the next one might be lapped."""
    log = Log()
    log.poll(0)
    while log.poll(60) is not Action.RELEASE:
        pass
    assert log.poll(60) is Action.NOTHING
    assert log.poll(frames, after_s) is Action.ENGAGE


def test_the_pin_stays_longer_each_time_it_was_needed_again() -> None:
    """One late poll costs a few milliseconds of pin, repeated ones cost more, up to a bound."""
    log = Log()
    log.poll(0)
    lasted = []
    for _ in range(9):
        while log.poll(60) is not Action.RELEASE:
            log.facts.frame_max = 0
        assert log.poll(LAG_FRAMES_MAX + 1) is Action.ENGAGE
        began = log.now
        while log.poll(60) is not Action.RELEASE:
            log.facts.frame_max = 0
        lasted.append(log.now - began)
        assert log.poll(LAG_FRAMES_MAX + 1) is Action.ENGAGE
    assert lasted == sorted(lasted)
    assert lasted[-1] <= CALM_S_MAX + 0.01


def test_a_lap_makes_adaptive_strict_for_minutes_and_longer_each_time() -> None:
    """A lap costs a scan of the whole database (P15)."""
    log = Log()
    log.poll(0)
    log.policy.on_lap(log.now)
    assert log.policy.is_strict(log.now + PENALTY_S - 1)
    assert not log.policy.is_strict(log.now + PENALTY_S + 1)
    log.now += PENALTY_S + 1
    log.policy.on_lap(log.now)
    assert log.policy.is_strict(log.now + 2 * PENALTY_S - 1)
    assert all(log.poll(60) is not Action.RELEASE for _ in range(12))


def test_a_log_at_rest_is_settled_once() -> None:
    """After a second: one checkpoint and mark 0; then no timer at all (an idle shard is free)."""
    log = Log()
    log.poll(0)
    log.poll(5)
    assert log.poll(0, 0.1) is Action.NOTHING
    calls = 0
    while (wait_s := log.policy.next_call_s(log.now, log.facts)) is not None:
        calls += 1
        assert 0 < wait_s <= WATCH_S
        if log.poll(0, wait_s) is Action.SETTLE:
            break
    assert calls <= SETTLE_S / WATCH_S + 1
    log.rotated()
    assert log.poll(0, 50) is Action.NOTHING
    assert log.policy.next_call_s(log.now, log.facts) is None


def test_a_long_log_is_settled_in_the_first_quiet_moment() -> None:
    """The application's next commit then starts the log anew instead of trying in vain."""
    log = Log()
    log.poll(0)
    log.poll(RELEASE_FRAMES - 10)
    log.facts.frame_max = SETTLE_FRAMES
    assert log.poll(0, QUIET_S + 0.001) is Action.SETTLE
    log.rotated(complete=False)
    assert log.poll(0) is Action.NOTHING
    assert log.poll(0, 0.05) is Action.SETTLE


def test_a_very_long_log_is_rotated_even_in_a_quiet_moment() -> None:
    """Its writer may only be kept from the processor: without a lock it would outgrow us."""
    log = Log()
    log.poll(0)
    log.poll(RELEASE_FRAMES - 10)
    log.facts.frame_max = LONG_FRAMES
    assert log.poll(0, QUIET_S + 0.001) is Action.ROTATE
    log.rotated(complete=False)
    assert log.poll(0, SETTLE_S) is Action.SETTLE
    log.rotated()
    assert log.poll(0, 0.05) is Action.NOTHING


def test_a_log_that_nobody_resets_is_rotated_by_us() -> None:
    """wal_autocheckpoint=0 (P36): wait a moment for the application, then do it."""
    log = Log()
    log.poll(0)
    while log.poll(60) is not Action.RELEASE:
        pass
    actions = [log.poll(60) for _ in range(200)]
    assert Action.ROTATE in actions
    first = actions.index(Action.ROTATE)
    assert first * 60 < UNCHECKED_FRAMES + 60 * 1000 * UNCHECKED_S + 120
    assert set(actions[:first]) == {Action.NOTHING}
