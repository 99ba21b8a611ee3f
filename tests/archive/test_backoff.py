"""Pauses between attempts."""

import itertools
import random

from basenet.archive.backoff import Backoff


def test_pauses_grow_to_a_cap_and_begin_anew_after_a_success() -> None:
    """250 ms, 500 ms ... 30 s at most; a success forgets it all."""
    backoff = Backoff(chance=lambda: 0.999999)
    spans = [round(backoff.next_seconds(), 2) for _ in range(10)]
    assert spans == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    backoff.reset()
    assert round(backoff.next_seconds(), 2) == 0.25


def test_many_who_failed_together_do_not_return_together() -> None:
    """Each pause is drawn from the upper half of its span, so a herd spreads out."""
    chance = random.Random(1).random
    herd = sorted(Backoff(first_seconds=10, chance=chance).next_seconds() for _ in range(100))
    assert 5 <= herd[0] < 5.5
    assert 9.5 < herd[-1] <= 10
    assert max(after - before for before, after in itertools.pairwise(herd)) < 0.5
