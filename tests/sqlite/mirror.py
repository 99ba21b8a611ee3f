"""The oracle: a copy of the database made of nothing but what capture handed over."""

import shutil
import sqlite3
import subprocess
from collections.abc import Iterable
from pathlib import Path

from basenet.sqlite.capture import Capture, Captured, CaptureFlag
from basenet.units import PARTIAL_RAW_BYTES_MAX, lock_page
from basenet.wire.merkle import StateTree, leaf_hash


class Mirror:
    """Pages and leaf hashes as the captured changes imply them; checks each change's form."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.pages: dict[int, bytes] = {}
        self.commits = 0
        self.changes = 0
        self.gaps: list[str] = []
        self.runs = 0
        self.recovered = 0
        self.states: list[dict[int, bytes]] = []
        self.keeps_states = False
        self._run: list[Captured] = []
        self.tree = StateTree(capture.database.page_size)
        scan = capture.adopt()
        self.page_size = scan.page_size
        self.restart(capture.recover(b""))
        assert self.tree.leaves == scan.leaves
        self.recovered = 0

    def restart(self, pieces: Iterable[Captured]) -> None:
        for piece in pieces:
            self.take(piece)
        self.recovered += 1

    def take(self, piece: Captured) -> None:
        """Check the form of ``piece`` and apply it once its run is whole."""
        pgnos = piece.pgnos.tolist()
        assert pgnos == sorted(set(pgnos))
        assert len(piece.pages) == len(pgnos) * piece.page_size <= PARTIAL_RAW_BYTES_MAX
        assert lock_page(piece.page_size) not in pgnos
        assert all(1 <= pgno <= piece.db_pages for pgno in pgnos)
        if self._run and pgnos:
            assert pgnos[0] > self._run[-1].pgnos[-1]
            assert piece.db_pages == self._run[0].db_pages
        self._run.append(piece)
        if piece.flags & CaptureFlag.PARTIAL:
            assert piece.commits == 0
            assert not piece.is_run_last
            return
        if not piece.flags & CaptureFlag.RECOVERED:
            assert piece.commits > 0
        self._apply()

    def _apply(self) -> None:
        run, self._run = self._run, []
        last = run[-1]
        self.runs += len(run) > 1
        numbers: list[int] = []
        hashes: list[bytes] = []
        size = last.page_size
        for piece in run:
            for row, pgno in enumerate(piece.pgnos.tolist()):
                page = bytes(piece.pages[row * size : (row + 1) * size])
                self.pages[pgno] = page
                numbers.append(pgno)
                hashes.append(leaf_hash(pgno, page))
        for pgno in [number for number in self.pages if number > last.db_pages]:
            del self.pages[pgno]
        self.tree.update(numbers, hashes, last.db_pages)
        self.commits += last.commits
        self.changes += 1
        if self.keeps_states:
            self.states.append(dict(self.pages))

    def poll(self) -> None:
        """Take everything up to the tip; a run that was cut is dropped, a gap is raised."""
        self._run = []
        for piece in self.capture.poll():
            self.take(piece)

    def sink(self, pieces: list[Captured]) -> bool:
        for piece in pieces:
            self.take(piece)
        return True

    def recover(self, gap: object) -> None:
        """Bridge a gap as the daemon does."""
        self.gaps.append(str(gap))
        self._run = []
        self.restart(self.capture.recover(self.tree.leaves))

    def image(self) -> bytes:
        """The database file that the changes amount to."""
        lock = lock_page(self.page_size)
        zero = bytes(self.page_size)
        return b"".join(
            zero if pgno == lock else self.pages[pgno] for pgno in range(1, self.tree.db_pages + 1)
        )


def checkpointed_image(path: Path, scratch: Path) -> bytes:
    """The application's database as a TRUNCATE-checkpointed copy.

    Copied by another process: to open and close the file here would drop our locks on it.
    """
    scratch.mkdir(exist_ok=True)
    copy = scratch / "copy.db"
    for suffix in ("", "-wal"):
        (scratch / f"copy.db{suffix}").unlink(missing_ok=True)
        if Path(f"{path}{suffix}").exists():
            subprocess.run(
                ["cp", "--sparse=always", f"{path}{suffix}", f"{copy}{suffix}"], check=True
            )
    connection = sqlite3.connect(copy)
    assert connection.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
    image = copy.read_bytes()
    shutil.rmtree(scratch)
    return image
