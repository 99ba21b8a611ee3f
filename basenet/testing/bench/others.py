"""How much of the machine others took meanwhile: a round beside a busy neighbour proves little."""

import os
import time
from pathlib import Path
from typing import Final

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_IDLE_FIELDS: Final = (3, 4)  # idle and waiting for the disk


class Others:
    """Measures from its making on."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy_s = _read_busy_s()

    def cores(self, own_seconds: float) -> float:
        """Return how many cores were busy with others; ``own_seconds`` of CPU were ours."""
        seconds = time.monotonic() - self._began
        busy_s = _read_busy_s() - self._busy_s - own_seconds
        return round(max(0.0, busy_s) / max(seconds, 0.01), 2)


def _read_busy_s() -> float:
    """Return the seconds that all cores were busy since the machine began."""
    first = Path("/proc/stat").read_text().partition("\n")[0]
    ticks = [int(word) for word in first.split()[1:9]]
    idle = sum(ticks[field] for field in _IDLE_FIELDS)
    return (sum(ticks) - idle) / _TICKS_PER_SECOND
