"""Named places at which a test makes something happen: BASE_FAILPOINTS, only with BASE_TEST.

============  ========================================================================
`SYNC`        before everything that the daemon makes durable: a transaction of the
              journal, the captured end of a log, what is applied to a database
============  ========================================================================

``NAME=sleep:MS`` waits so many milliseconds there; ``NAME=sleep:/PATH`` waits as many as the file
says at that moment, none while it does not exist, so that a disk can become slow and fast again
under a running process. Nothing is armed unless the daemon was told to.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from basenet.errors import UsageError

SYNC: Final = "sync"
_NAMES: Final = frozenset((SYNC,))
_SLEEP: Final = "sleep:"
_MS_MAX: Final = 60_000

_armed: dict[str, Callable[[], float]] = {}


def arm(points: Iterable[tuple[str, str]]) -> None:
    """Let (name, action) happen from now on; raises `UsageError` for what is not known."""
    for name, action in points:
        if name not in _NAMES or not action.startswith(_SLEEP):
            raise UsageError(
                f"BASE_FAILPOINTS: {name}={action} is not known; write sync=sleep:MS, or the path "
                "of a file with the milliseconds in place of MS"
            )
        _armed[name] = _seconds_of(action.removeprefix(_SLEEP))


def _seconds_of(text: str) -> Callable[[], float]:
    if text.startswith("/"):
        path = Path(text)
        return lambda: _read_ms(path) / 1_000
    if not text.isdecimal() or int(text) > _MS_MAX:
        raise UsageError(
            f"BASE_FAILPOINTS: {text!r} is neither a number of milliseconds up to {_MS_MAX} nor "
            "the path of a file with one"
        )
    seconds = int(text) / 1_000
    return lambda: seconds


def _read_ms(path: Path) -> int:
    try:
        return min(int(path.read_text() or 0), _MS_MAX)
    except (OSError, ValueError):
        return 0


def reach(name: str) -> None:
    """Do what was armed for ``name``; nothing otherwise. For threads: it may sleep."""
    if _armed and (seconds := _armed[name]()):
        time.sleep(seconds)
