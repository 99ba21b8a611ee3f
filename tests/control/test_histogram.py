import pytest

from basenet.control.histogram import LOCK_HELD_BOUNDS_S, Histogram


def test_an_observation_falls_into_the_first_bucket_that_holds_it() -> None:
    """A value at a bound is within it; one beyond the last has a bucket of its own."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.1):
        histogram.observe(value)
    sample = histogram.get_sample()
    assert sample.counts == (2, 2, 1)
    assert sample.total == pytest.approx(6.6)


def test_a_sample_does_not_change_when_more_is_observed() -> None:
    """It is a fact of its moment."""
    histogram = Histogram()
    before = histogram.get_sample()
    histogram.observe(0.2)
    assert sum(before.counts) == 0
    assert before.bounds == LOCK_HELD_BOUNDS_S
    assert sum(histogram.get_sample().counts) == 1


def test_bounds_that_do_not_ascend_are_our_bug() -> None:
    """Buckets that overlap would count twice."""
    with pytest.raises(AssertionError):
        Histogram((1.0, 1.0))
