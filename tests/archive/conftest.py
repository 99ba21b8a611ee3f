"""Virtual time for the archive's tests: it stands still while a thread works."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing


async def _run_here(act: Callable[..., Any], *args: Any, **_: Any) -> Any:
    """Do in this thread what belongs into another: trio's clock jumps while tasks wait for one."""
    await trio.lowlevel.checkpoint()
    return act(*args)


@pytest.fixture
def autojump_clock(monkeypatch: pytest.MonkeyPatch) -> trio.testing.MockClock:
    """Return a clock that jumps to the next deadline as soon as nothing else is to do."""
    monkeypatch.setattr(trio.to_thread, "run_sync", _run_here)
    return trio.testing.MockClock(autojump_threshold=0)
