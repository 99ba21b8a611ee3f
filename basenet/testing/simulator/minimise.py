"""Makes a failing run short: takes faults away as long as it still fails (delta debugging, Zeller).

A run with fewer faults is another run, so it may fail in another way; it counts when the violation
is of the same sort (the word before its colon).
"""

from collections.abc import Callable

from basenet.testing.simulator.faults import Schedule


def sort_of(violation: str) -> str:
    """Return the sort of a violation: what stands before the first colon."""
    return violation.partition(":")[0]


def minimise(schedule: Schedule, violate: Callable[[Schedule], bool]) -> Schedule:
    """Return a part of ``schedule`` that still violates, and none of whose faults is needless."""
    parts = 2
    while len(schedule) > 1:
        size = -(-len(schedule) // parts)
        for start in range(0, len(schedule), size):
            rest = schedule[:start] + schedule[start + size :]
            if violate(rest):
                schedule = rest
                parts = max(parts - 1, 2)
                break
        else:
            if size == 1:
                return schedule
            parts = min(parts * 2, len(schedule))
    return () if violate(()) else schedule
