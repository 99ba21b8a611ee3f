"""SIGKILL of the writer and of the daemon, at any moment: nothing acknowledged is lost."""

import random
import shutil
import time

import pytest

from tests.system.harness import Acknowledged, Scene, read_acknowledged

FLUSH_S = 1.0
GRACE_S = 0.5


def play_round(scene: Scene, seed: int) -> None:
    """Write under load, kill one or both, lose the host on paper, come back, compare."""
    chance = random.Random(seed)
    daemon = scene.serve(BASE_FLUSH_INTERVAL=f"{FLUSH_S * 1000:.0f}ms")
    writer = scene.start_writer(seed=seed)
    before = writer.last()
    writer.wait_for(before + 1)
    daemon.wait_archived()
    time.sleep(chance.uniform(0.0, 2.5))  # the moment of the kill, drawn by lot
    victims = chance.choice((("writer",), ("daemon",), ("writer", "daemon"), ("daemon", "writer")))
    if "daemon" in victims:
        if victims[0] == "writer":
            writer.kill()
        daemon.kill()
        killed_ns = time.time_ns()
        archive = scene.folder / f"archive-{seed}"
        shutil.copytree(scene.archive, archive)
        if chance.random() < 0.5:
            time.sleep(chance.uniform(0.0, 0.5))  # the application goes on without us
        writer.kill()
        check_without_host(scene, archive, killed_ns)
        shutil.rmtree(archive)
        daemon = scene.serve()
    writer.kill()
    daemon.wait_archived()
    restored = scene.check_restore()
    numbers = [row[0] for row in restored.query("SELECT id FROM note ORDER BY id")]
    acknowledged = read_acknowledged(scene.acknowledged)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= acknowledged[-1].number
    restored.path.unlink()
    assert daemon.stop() == 0


def check_without_host(scene: Scene, archive, killed_ns: int) -> None:  # type: ignore[no-untyped-def]
    """The archive alone holds each commit older than the flush interval and a little."""
    restored = scene.restore(archive=archive)
    tables = restored.query("SELECT 1 FROM sqlite_schema WHERE name = 'note'")
    numbers = [row[0] for row in restored.query("SELECT id FROM note ORDER BY id")] if tables else []
    assert numbers == list(range(1, len(numbers) + 1))
    lost: list[Acknowledged] = [
        commit
        for commit in read_acknowledged(scene.acknowledged)
        if commit.number > len(numbers)
        and killed_ns - commit.at_ns > (FLUSH_S + GRACE_S) * 1e9
    ]
    assert lost == [], f"{len(lost)} lost, the first {(killed_ns - lost[0].at_ns) / 1e9:.2f} s old"
    restored.path.unlink()


def test_two_kills_under_load_lose_nothing(scene: Scene) -> None:
    """After a restart and a flush a restore equals the source."""
    for seed in (2, 3):
        play_round(scene, seed)


@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.parametrize("base", [100, 200])
def test_twenty_kills_under_load_lose_nothing(scene: Scene, base: int) -> None:
    """The same over one history of twenty deaths."""
    for seed in range(base, base + 10):
        play_round(scene, seed)
