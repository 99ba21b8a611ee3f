"""How long one request to the archive may take.

Stores have time limits of their own, and may still hang: a directory on a dead mount has none. A
request that is cut off is undecided if it was a write; writing the same bytes again is right.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from basenet.errors import UnavailableError
from basenet.units import KIB

# Enough for a segment over a slow line, short enough to notice a dead one.
_SECONDS: Final = 30.0
_BYTES_PER_SECOND: Final = 64 * KIB
# A lease is first waited for: for the TTL of a holder that is gone.
LEASE_SECONDS: Final = 90.0

_Result = TypeVar("_Result")


def seconds_for(size: int) -> float:
    """Return how long a request that moves ``size`` bytes may take."""
    return _SECONDS + size / _BYTES_PER_SECOND


async def in_time(call: Callable[[], Awaitable[_Result]], *, seconds: float, url: str) -> _Result:
    """Await ``call``; raise `UnavailableError` that names ``url`` when it takes too long."""
    try:
        with trio.fail_after(seconds):
            return await call()
    except trio.TooSlowError as error:
        raise UnavailableError(
            f"the archive {url} did not answer within {seconds:.0f} s: check its endpoint and the "
            "network"
        ) from error
