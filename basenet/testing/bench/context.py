"""What every row is given: where to work, how much to do, and where to say what happens."""

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from basenet.testing.bench.contenders import Contender
from basenet.testing.bench.loads import ONE_ROW
from basenet.testing.bench.sidecars import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """``root``: everything is below it. ``is_quick``: small numbers, to see that it works.

    ``pairs``: how many rounds a ratio is the median of. ``only``: the labels of the contenders to
    run, empty for all. ``trials``, ``join_mb``: how often, and how large, in rows of a cluster.
    """

    root: Path
    is_quick: bool = False
    pairs: int = 5
    only: frozenset[str] = frozenset()
    trials: int = 20
    join_mb: int = 1_000

    def wants(self, contender: Contender) -> bool:
        """Return whether ``contender`` takes part."""
        return not self.only or contender.label in self.only

    def choose(self, *contenders: Contender) -> list[Contender]:
        """Return those of ``contenders`` that take part."""
        return [contender for contender in contenders if self.wants(contender)]

    def few(self, count: int, quick: int) -> int:
        """Return ``count``, or ``quick`` in a quick run."""
        return quick if self.is_quick else count

    @contextmanager
    def scene(
        self,
        *,
        is_empty: bool = False,
        archive_url: str | None = None,
        environment: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Iterator[Scene]:
        """Give a fresh scene, with a database of one row unless ``is_empty``; remove it after."""
        root = Path(tempfile.mkdtemp(dir=self.root))
        scene = Scene(
            root=root,
            archive_url=archive_url,
            environment=environment or {},
            settings=settings or {},
        )
        try:
            scene.directory.mkdir()
            if not is_empty:
                ONE_ROW.run(scene.database)
            yield scene
        finally:
            shutil.rmtree(root, ignore_errors=True)

    def say(self, text: str) -> None:
        """Tell whoever waits what was just measured."""
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        sys.stderr.flush()
