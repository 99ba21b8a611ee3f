"""What tests of a shard in a cluster begin with: a guardian, a path, a database to copy from."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.daemon.cluster.guarding import guardian
from tests.sqlite.replica import Source


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[Path]:
    """The socket of a guardian that runs as a process of its own."""
    with guardian(tmp_path) as path:
        yield path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the shard's database lies, or will lie."""
    return tmp_path / "app.db"


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    """A database of an application elsewhere, whose commits are applied here."""
    with closing(Source(tmp_path / "source.db")) as source:
        yield source
