"""One database, one application, one capture, and the oracle between them."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from basenet.sqlite.attach import attach
from basenet.sqlite.capture import Capture, CapturePolicy
from tests.sqlite.application import Application
from tests.sqlite.mirror import Mirror, checkpointed_image


class Scene:
    """A database with an application that has it open in WAL mode, and our capture beside it."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.path = folder / "app.db"
        self._stack = stack
        self.mirror: Mirror
        self.capture: Capture
        self.application: Application

    def open(
        self,
        *prepare: str,
        policy: CapturePolicy = CapturePolicy.ADAPTIVE,
        page_size: int = 4096,
        suffix: str = "",
    ) -> None:
        """Start the application, let it ``prepare``, attach and adopt."""
        self.application = self.start(suffix=suffix)
        self.application.sql(
            f"pragma page_size={page_size}", "pragma journal_mode=wal", "create table t(x, y)"
        )
        self.application.sql(*prepare)
        self.attach(policy)

    def attach(self, policy: CapturePolicy = CapturePolicy.ADAPTIVE) -> None:
        self.capture = Capture(attach(self.path), policy=policy)
        self._stack.callback(self.capture.close)
        self.mirror = Mirror(self.capture)

    def start(self, *, suffix: str = "", timeout_s: float = 20) -> Application:
        application = Application(self.path, suffix=suffix, timeout_s=timeout_s)
        self._stack.callback(application.close)
        return application

    def check(self, *, commits: int | None = None) -> None:
        """Everything is captured: same pages, same hashes, and so many commits if none lapped."""
        self.mirror.poll()
        assert self.mirror.image() == checkpointed_image(self.path, self.folder / "scratch")
        if commits is not None:
            assert self.mirror.gaps == []
            assert self.mirror.commits == commits


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        yield Scene(tmp_path, stack)


@pytest.fixture
def make_scene(tmp_path: Path) -> Iterator[Callable[[str], Scene]]:
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Scene:
            folder = tmp_path / name
            folder.mkdir()
            return Scene(folder, stack)

        yield make
