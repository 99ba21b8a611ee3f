"""A progress bar on standard error, for people at a terminal.

Import this only where a bar is drawn: loading rich takes longer than a small restore.
"""

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Bar:
    """Bytes done of bytes in all, how fast, and how long it still takes."""

    def __init__(self, what: str, total: int) -> None:
        """Begin to show ``what`` of ``total`` bytes; `close` ends it."""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(what, total=total)
        self._progress.start()

    def show(self, done: int) -> None:
        """Show that ``done`` bytes are through."""
        self._progress.update(self._task, completed=done)

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()
