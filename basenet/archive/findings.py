"""What a verification finds, while it goes through one shard, and how it reads objects."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from basenet.archive.fetch import Fetcher
from basenet.archive.names import ShardNames
from basenet.archive.port import StoreNotFound
from basenet.errors import EncryptionCorrupt
from basenet.units import PublicKeyBytes

OnProgress = Callable[[int, int], None]
"""Called with the bytes verified so far and the bytes of all objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An object that is damaged, missing (then perhaps with a star) or not what it should be."""

    object: str
    sentence: str


_AHEAD_NS: Final = 60_000_000_000


class Meter:
    """Counts bytes and tells who wants to know."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._total = total
        self._done = 0
        self._on_progress = on_progress

    def add(self, size: int) -> None:
        """Say that ``size`` more bytes are verified."""
        self._done += size
        if self._on_progress is not None:
            self._on_progress(min(self._done, self._total), self._total)


class Inspection:
    """One pass over one shard: what it works with, and what it has found so far.

    ``horizon_ns``: what retention may have deleted is older; ``present_ns``: now.
    ``has_lost_objects``: an object that was listed was gone when it was read.
    """

    def __init__(
        self,
        *,
        names: ShardNames,
        fetcher: Fetcher,
        trusted: frozenset[PublicKeyBytes],
        horizon_ns: int,
        present_ns: int,
        meter: Meter,
    ) -> None:
        self.names = names
        self.fetcher = fetcher
        self.trusted = trusted
        self._horizon_ns = horizon_ns
        self._present_ns = present_ns
        self.meter = meter
        self.notes: list[str] = []
        # By part; what several page sets share is verified once.
        self.verified_blocks: dict[str, frozenset[bytes]] = {}
        self.has_lost_objects = False
        self._problems: dict[Problem, None] = {}  # in order, each once

    def may_have_expired(self, timestamp_ns: int) -> bool:
        """Return whether retention may have deleted what lies below a page set of that time.

        It goes by the time that it watched: a timestamp of the future, by which a wall clock was
        once ahead, says nothing of how old something is.
        """
        return timestamp_ns <= self._horizon_ns or timestamp_ns > self._present_ns + _AHEAD_NS

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was reported, in order."""
        return tuple(self._problems)

    def report(self, name: str, sentence: str) -> None:
        """Take down a problem of the object ``name``, with which the sentence may begin."""
        sentence = sentence.removeprefix(f"{name}: ")
        if sentence.startswith(f"{name} "):
            sentence = f"it{sentence.removeprefix(name)}"
        self._problems.setdefault(Problem(object=name, sentence=sentence))

    def report_lost(self, name: str) -> None:
        """Take down that an object that was listed is gone."""
        self.has_lost_objects = True
        self.report(name, "it was listed and is gone")

    async def get(self, name: str) -> bytes | None:
        """Return an object, or None after reporting that it is gone, or cannot be decrypted."""
        try:
            return await self.fetcher.get(name)
        except StoreNotFound:
            self.report_lost(name)
        except EncryptionCorrupt as error:
            self.report(name, str(error))
        return None
