"""A scene per test, taken down whatever happened in it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.harness import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        yield Scene(tmp_path, stack)
