"""Taking snapshots of one shard: drafting, publishing, and what `status` says of it."""

from dataclasses import dataclass
from pathlib import Path

from basenet.archive.pageset import DUTY, Progress, SnapshotRejected, SnapshotSource, draft_snapshot
from basenet.archive.publish import BeforeManifest, Published, Publisher
from basenet.errors import BasenetError


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFacts:
    """What a shard's snapshots are doing; the counters are since the start of the process.

    ``rejected``: drafts whose pages did not give the frame's state root. ``last``: the newest one
    that this process stored. ``last_error``: None after a success.
    """

    progress: Progress | None
    written: int
    rejected: int
    failures: int
    last: Published | None
    last_error: str | None


class Snapshots:
    """Takes the snapshots of one shard, one at a time."""

    def __init__(self, *, publisher: Publisher, folder: Path, duty: float = DUTY) -> None:
        """``folder`` takes what does not fit into memory; see `draft_snapshot` for ``duty``."""
        self._publisher = publisher
        self._folder = folder
        self._duty = duty
        self._progress: Progress | None = None
        self._written = 0
        self._rejected = 0
        self._failures = 0
        self._last: Published | None = None
        self._last_error: str | None = None

    def facts(self) -> SnapshotFacts:
        """Return what is going on."""
        return SnapshotFacts(
            progress=self._progress,
            written=self._written,
            rejected=self._rejected,
            failures=self._failures,
            last=self._last,
            last_error=self._last_error,
        )

    async def take(
        self,
        source: SnapshotSource,
        *,
        before_manifest: BeforeManifest | None = None,
        duty: float | None = None,
    ) -> Published:
        """Store a snapshot of what ``source`` gives; raises what drafting and publishing raise.

        Whatever is raised, nothing of the snapshot counts. The caller then lets go of ``source``.
        """
        assert self._progress is None, "a shard takes one snapshot at a time"
        self._progress = Progress()
        try:
            published = await self._take(source, before_manifest, duty or self._duty)
        except BasenetError as error:
            self._failures += 1
            self._rejected += isinstance(error, SnapshotRejected)
            self._last_error = str(error)
            raise
        finally:
            self._progress = None
        self._written += 1
        self._last, self._last_error = published, None
        return published

    async def _take(
        self, source: SnapshotSource, before_manifest: BeforeManifest | None, duty: float
    ) -> Published:
        assert self._progress is not None, "set by `take`"
        draft = await draft_snapshot(
            source, folder=self._folder, progress=self._progress, duty=duty
        )
        try:
            return await self._publisher.publish(
                draft, progress=self._progress, before_manifest=before_manifest
            )
        finally:
            draft.close()
