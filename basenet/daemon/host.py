"""What the tasks around a shard (archiver, upkeep, snapshots) may ask of it."""

from typing import Protocol

from basenet.daemon.chain import Parent
from basenet.daemon.progress import Progress
from basenet.daemon.session import Session
from basenet.units import ShardId


class Host(Protocol):
    """A shard, seen by its own tasks; `Shard` satisfies it."""

    shard: ShardId
    progress: Progress
    session: Session | None
    db_pages: int
    """The size of the database when the last session ended."""

    def want_attached(self) -> None:
        """Come back to a file that was let go; it is let go again as ever."""
        ...

    async def capture_now(self) -> int:
        """Capture what is committed at this moment; return the seq that holds it."""
        ...

    def become_child_of(self, parent: Parent) -> None:
        """Give birth to a child lineage: the archive's history is not this journal's."""
        ...
