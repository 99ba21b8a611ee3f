"""SIGKILL of the writer and of the daemon, at any moment: nothing acknowledged is lost."""

import random
import shutil
import time
from pathlib import Path

import pytest

from tests.system.harness import Daemon, Restored, Scene, read_acknowledged

FLUSH_S = 1.0
# The half second of grace that is promised is measured by the bench (host-lost); a suite on a busy
# machine must not depend on it.
GRACE_S = 5.0
SECONDS_MAX = 2.5


def play_round(
    scene: Scene,
    seed: int,
    victims: tuple[str, ...],
    *,
    seconds_max: float = SECONDS_MAX,
    policy: str = "adaptive",
) -> None:
    """Write under load, kill, lose the host on paper, come back, compare."""
    chance = random.Random(seed)

    def serve() -> Daemon:
        return scene.serve(BASE_FLUSH_INTERVAL=f"{FLUSH_S * 1000:.0f}ms", BASE_CAPTURE=policy)

    daemon = serve()
    writer = scene.start_writer(seed=seed)
    writer.wait_for(writer.last() + 1)
    daemon.wait_archived()
    time.sleep(chance.uniform(0.0, seconds_max))  # the moment of the kill, drawn by lot
    for victim in victims:
        if victim == "writer":
            writer.kill()
            continue
        daemon.kill()
        check_without_host(scene, time.time_ns())
        time.sleep(chance.uniform(0.0, 0.3))  # the application, if it lives, goes on without us
    writer.kill()
    if "daemon" in victims:
        daemon = serve()
    daemon.wait_archived()
    restored = scene.check_restore()
    acknowledged = read_acknowledged(scene.acknowledged)
    assert count_rows(restored) >= acknowledged[-1].number
    restored.path.unlink()
    assert daemon.stop() == 0


def check_without_host(scene: Scene, killed_ns: int) -> None:
    """The archive alone holds each commit older than the flush interval and a little."""
    archive: Path = scene.folder / "archive-alone"
    shutil.copytree(scene.archive, archive)
    restored = scene.restore(archive=archive)
    rows = count_rows(restored)
    oldest_ns = killed_ns - int((FLUSH_S + GRACE_S) * 1e9)
    lost = [
        commit
        for commit in read_acknowledged(scene.acknowledged)
        if commit.number > rows and commit.at_ns < oldest_ns
    ]
    assert lost == [], f"{len(lost)} lost, the first {(killed_ns - lost[0].at_ns) / 1e9:.2f} s old"
    restored.path.unlink()
    shutil.rmtree(archive)


def count_rows(restored: Restored) -> int:
    """Return how many of the writer's rows came back, which must be the first ones, all of them."""
    if not restored.query("SELECT 1 FROM sqlite_schema WHERE name = 'note'"):
        return 0
    numbers = [row[0] for row in restored.query("SELECT id FROM note ORDER BY id")]
    assert numbers == list(range(1, len(numbers) + 1))
    return len(numbers)


def test_the_death_of_both_under_load_loses_nothing(scene: Scene) -> None:
    """After a restart and a flush a restore equals the source."""
    play_round(scene, 3, ("daemon", "writer"), seconds_max=1.0)


@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.parametrize("policy", ["adaptive", "strict"])
def test_twenty_deaths_under_load_lose_nothing(scene: Scene, policy: str) -> None:
    """The same over histories of ten deaths each, of one process or of both."""
    fates = [("writer",), ("daemon",), ("writer", "daemon"), ("daemon", "writer")]
    for seed in range(10):
        play_round(scene, seed, random.Random(100 + seed).choice(fates), policy=policy)
