"""Everything at once, drawn by lot: whatever happened, what was archived comes back.

A seed is a story of steps: applications come, commit in every way, go and die; the daemon is
stopped, killed and started; the archive goes away; files and data directories are replaced. Now and
then all is brought to rest, and the newest state and every state that was once archived must be
restorable, page for page and row for row.
"""

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from basenet.keys.signing import SIGNING_KEY_NAME, load_or_create
from tests.sqlite.application import Application, ApplicationError
from tests.system.harness import Daemon, Scene

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

STEPS = 60
PATIENCE_S = 60.0
DIGEST = "SELECT count(*), total(x), total(length(y)) FROM t"


class Story:
    """One seed's steps over one scene."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.chance = random.Random(seed)
        self.daemon: Daemon | None = None
        self.applications: list[Application] = []
        self.key = scene.folder / "signing.key"
        self.away = scene.folder / "away"
        self.old_data = scene.folder / "old-data"
        self.told: list[str] = []
        self.archived: list[tuple[int, list[tuple[object, ...]]]] = []
        scene.archive.mkdir()
        load_or_create(scene.data_dir, None, comment="story")
        shutil.move(scene.data_dir / SIGNING_KEY_NAME, self.key)
        self.start_application()
        self.start_daemon()

    # The application's side

    def start_application(self) -> None:
        if len(self.applications) < 3:
            self.applications.append(self.scene.start_wal_application())

    def close_application(self) -> None:
        if self.applications:
            self.applications.pop(self.chance.randrange(len(self.applications))).close()

    def kill_application(self) -> None:
        if self.applications:
            self.applications.pop().kill()

    def close_all(self) -> None:
        while self.applications:
            self.applications.pop().close()

    def commit(self) -> None:
        """One of many ways to commit."""
        if not self.applications:
            self.start_application()
        number, size = self.chance.randrange(1_000), self.chance.choice([5, 50, 3_000, 40_000])
        insert = f"INSERT INTO t VALUES ({number}, randomblob({size}))"
        ways = [
            [insert],
            [insert] * self.chance.randrange(1, 60),
            [insert] * 10 + [f"PRAGMA wal_checkpoint({self.chance.choice(MODES)})"],
            [f"DELETE FROM t WHERE x % 7 = {number % 7}"],
            [f"UPDATE t SET y = randomblob({size}) WHERE x % 5 = {number % 5}"],
            ["VACUUM"],
            ["BEGIN", insert, "ROLLBACK", insert],
            [f"CREATE TABLE IF NOT EXISTS extra{number % 5}(a)"],
            [f"DROP TABLE IF EXISTS extra{number % 5}"],
            ["INSERT INTO t VALUES (7, randomblob(9000000))", "DELETE FROM t WHERE x = 7"],
            [f"PRAGMA wal_autocheckpoint={self.chance.choice([0, 5, 1000])}", insert, insert],
            [f"PRAGMA journal_size_limit={self.chance.choice([-1, 0, 40_000])}", insert],
        ]
        with contextlib.suppress(ApplicationError):  # locked by one of the others
            self.chance.choice(self.applications).sql(*self.chance.choice(ways))

    def commit_in_passing(self) -> None:
        """An application that opens, commits and closes at once."""
        with contextlib.closing(sqlite3.connect(self.scene.database, timeout=20)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS t(x, y)")
            connection.execute("INSERT INTO t VALUES (1, 'in passing')")
            connection.commit()

    def replace_file(self) -> None:
        """Stop all applications, move another file in."""
        self.close_all()
        other = self.scene.folder / "other.db"
        with contextlib.closing(sqlite3.connect(other)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t(x, y)")
            connection.execute("INSERT INTO t VALUES (2, randomblob(9000))")
            connection.commit()
        if Path(f"{self.scene.database}-wal").exists():
            return  # somebody still has it open; who moves a file in then gets what he asks for
        other.rename(self.scene.database)

    def make_anew(self) -> None:
        """Stop all applications, remove the database, begin with a new one."""
        self.close_all()
        for path in self.scene.folder.glob("app.db*"):
            path.unlink()
        self.start_application()

    # Our side

    def start_daemon(self) -> None:
        if self.daemon is None:
            self.daemon = self.scene.serve(
                BASE_CAPTURE=self.chance.choice(["adaptive", "strict"]),
                BASE_SIGNING_KEY=str(self.key),
            )
            self.daemon.wait_answering()

    def stop_daemon(self) -> None:
        if self.daemon is not None:
            self.bring_archive_back()
            assert self.daemon.stop(PATIENCE_S) == 0, self.daemon.read_log()
            self.daemon = None

    def kill_daemon(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon = None

    def take_archive_away(self) -> None:
        if not self.away.exists():
            self.scene.archive.rename(self.away)
            self.scene.archive.write_text("a file is in the way")

    def bring_archive_back(self) -> None:
        if self.away.exists():
            self.scene.archive.unlink()
            self.away.rename(self.scene.archive)

    def lose_data_directory(self) -> None:
        self.kill_daemon()
        shutil.rmtree(self.scene.data_dir, ignore_errors=True)

    def keep_data_directory(self) -> None:
        self.kill_daemon()
        shutil.rmtree(self.old_data, ignore_errors=True)
        if self.scene.data_dir.exists():
            shutil.copytree(self.scene.data_dir, self.old_data, ignore=_no_socket)

    def put_old_data_directory_back(self) -> None:
        if self.old_data.exists():
            self.lose_data_directory()
            self.old_data.rename(self.scene.data_dir)

    # The truth

    def check(self) -> None:
        """Bring all to rest; what is committed now and what was archived before comes back."""
        self.bring_archive_back()
        self.start_daemon()
        assert self.daemon is not None
        if not self.scene.database.exists():
            self.start_application()
        seq = self.daemon.wait_archived(patience_s=PATIENCE_S).seq
        restored = self.scene.check_restore()
        self.archived.append((seq, restored.query(DIGEST)))
        restored.path.unlink()
        for past, digest in self.chance.sample(self.archived, min(3, len(self.archived))):
            earlier = self.scene.restore(to_seq=past)
            assert earlier.query(DIGEST) == digest, past
            earlier.path.unlink()

    def step(self) -> None:
        acts: list[tuple[int, Callable[[], None]]] = [
            (40, self.commit),
            (4, self.commit_in_passing),
            (4, self.start_application),
            (3, self.close_application),
            (2, self.kill_application),
            (1, self.close_all),
            (1, self.replace_file),
            (1, self.make_anew),
            (6, self.start_daemon),
            (2, self.stop_daemon),
            (3, self.kill_daemon),
            (1, self.take_archive_away),
            (2, self.bring_archive_back),
            (1, self.lose_data_directory),
            (1, self.keep_data_directory),
            (1, self.put_old_data_directory_back),
            (5, self.check),
        ]
        weights = [weight for weight, _ in acts]
        ((_, act),) = self.chance.choices(acts, weights)
        self.told.append(act.__name__)
        act()


MODES = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")


def _no_socket(folder: str, names: list[str]) -> list[str]:
    del folder
    return [name for name in names if name.endswith(".sock")]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happened_what_was_archived_comes_back(scene: Scene, seed: int) -> None:
    """No step of a random story loses, mixes or bricks anything."""
    story = Story(scene, seed)
    try:
        for _ in range(STEPS):
            story.step()
        story.check()
    except BaseException as error:
        error.add_note(f"seed {seed}: {' '.join(story.told)}")
        raise
