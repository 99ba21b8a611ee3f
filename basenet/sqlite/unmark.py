"""Taking the read-only mark from a file that no cluster serves any more.

A node of a cluster marks its file with BASE_FENCE=readonly, and takes the mark away before its own
application may write. A file that leaves the cluster keeps it. Whoever gives such a file to an
application again appends page 1 to its log, under SQLite's write lock, as a commit that changes
nothing else: readers go on, and a crash leaves the file marked or not.
"""

from pathlib import Path

from basenet.errors import UnavailableError
from basenet.sqlite import locks
from basenet.sqlite.apply import Applier
from basenet.sqlite.attach import attach
from basenet.sqlite.page1 import is_marked


def remove_mark(path: Path) -> bool:
    """Let applications write to the database at ``path``; return whether they could not before.

    Not while this process has it open. Raises what `attach` raises, `ConflictError` among it where
    a basenet serves the file, and `UnavailableError` where its write lock is held.
    """
    database = attach(path)
    applier: Applier | None = None
    try:
        if not is_marked(database):
            return False
        if not locks.try_lock(database.shm_fd, locks.WAL_WRITE_BYTE):
            raise UnavailableError(
                f"{path} cannot be made writable while another process holds its write lock; "
                "try again"
            )
        applier = Applier(database)
        applier.apply(applier.prepare_mark(is_read_only=False))
        return True
    finally:
        # In this order: to close a descriptor drops the locks of this process's connections.
        database.close_connections()
        if applier is not None:
            applier.close()
        database.close()
