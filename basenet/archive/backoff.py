"""How long to wait before trying again: longer each time, and never in step with others.

A hundred shards that lost the archive at one moment must not all return at one moment. So each
pause is drawn from the upper half of a span that doubles up to a cap.
"""

import random
from collections.abc import Callable
from typing import Final

PAUSE_SECONDS_FIRST: Final = 0.25
PAUSE_SECONDS_MAX: Final = 30.0


class Backoff:
    """The pauses between the attempts at one thing."""

    def __init__(
        self,
        *,
        first_seconds: float = PAUSE_SECONDS_FIRST,
        max_seconds: float = PAUSE_SECONDS_MAX,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``chance`` returns numbers in [0, 1)."""
        self._first_seconds = first_seconds
        self._max_seconds = max_seconds
        self._span_seconds = first_seconds
        self._chance = chance

    def next_seconds(self) -> float:
        """Return how long to wait now; the next pause is longer."""
        span = self._span_seconds
        self._span_seconds = min(span * 2, self._max_seconds)
        return span * (0.5 + self._chance() / 2)

    def reset(self) -> None:
        """Begin anew, because an attempt succeeded."""
        self._span_seconds = self._first_seconds
