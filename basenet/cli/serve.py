"""``basenet serve``: capture databases and archive what they commit.

In a cluster this process becomes the guardian, which starts ``basenet serve`` again as the daemon.
The rest of it is in `serving`, imported only when a SIGTERM already counts.
"""

import os
import signal
from types import FrameType
from typing import NoReturn

import click

from basenet.guardian import become


@click.command("serve")
@click.argument("db", required=False)
@click.argument("archive", required=False)
@click.option(
    "--exec",
    "command",
    metavar="CMD",
    help="Start the application as a child, pass signals on to it and end with its exit code.",
)
def command(db: str | None, archive: str | None, command: str | None) -> int:
    """Watch DB (or BASE_SHARDS) and archive every commit to ARCHIVE (or BASE_ARCHIVE).

    DB is a database file, a directory, a pattern or id=path, or several with commas between them;
    it need not exist yet. ARCHIVE is a directory, s3://bucket/prefix or gs://bucket/prefix. All
    other settings are BASE_* variables; docs/configuration.md lists them.

    SIGTERM stops capturing at a commit boundary, flushes to the archive and exits with 0; a second
    one exits at once, and what was not flushed waits in the journal.
    """
    if become.is_wanted(os.environ):
        words = [word for word in (db, archive) if word is not None]
        become.become_guardian(words, command)
    signal.signal(signal.SIGTERM, _leave)
    from basenet.cli import serving  # noqa: PLC0415  (its imports take half a second)

    return serving.serve(db, archive, command)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """End at once: until the daemon listens to signals itself there is nothing to flush.

    An exception would do so only where nobody swallows it; in a callback of the interpreter's
    (a destructor, a weak reference) it would be lost, and the signal with it.
    """
    del number, frame
    os._exit(0)
