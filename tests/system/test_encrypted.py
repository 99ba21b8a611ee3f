"""An encrypted archive, from `basenet serve` to `basenet restore`, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

from basenet.wire.encryption import is_encrypted
from tests.system.harness import Scene, compare


def make_key(scene: Scene, name: str) -> tuple[str, str]:
    """Make an identity file; return its path and its recipient."""
    path = scene.folder / name
    code, out, _ = scene.run("keys", "age", str(path))
    assert code == 0
    return str(path), out.strip()


def run_with(scene: Scene, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run a command; return exit code and everything that it said."""
    inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
    done = subprocess.run(
        [sys.executable, "-m", "basenet", *arguments],
        env=inherited | {"BASE_DATA_DIR": str(scene.data_dir)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def objects_of(scene: Scene) -> dict[str, Path]:
    return {
        str(path.relative_to(scene.archive)): path
        for path in sorted(scene.archive.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_an_encrypted_archive_over_a_life(scene: Scene) -> None:
    """Served, restarted, rotated, verified and restored; nothing of it lies there in clear."""
    path, recipient = make_key(scene, "one.key")
    keys = {"BASE_ARCHIVE_RECIPIENTS": recipient, "BASE_ARCHIVE_IDENTITY": path}
    application = scene.start_wal_application()
    daemon = scene.serve(BASE_SNAPSHOT_INTERVAL="300ms", **keys)
    application.sql(
        "INSERT INTO t VALUES (1, 'a sentence that nobody shall read')",
        "INSERT INTO t VALUES (2, randomblob(3000000))",  # a page set of parts
    )
    daemon.wait_archived()
    daemon.wait_snapshot()
    assert daemon.stop() == 0
    secret = Path(path).read_text().split()[-1]
    assert secret not in daemon.read_log()

    # Restarted it knows its own archive: the same lineage goes on. A recipient has joined.
    other, second = make_key(scene, "two.key")
    both = {"BASE_ARCHIVE_RECIPIENTS": f"{recipient},{second}", "BASE_ARCHIVE_IDENTITY": path}
    daemon = scene.serve(BASE_SNAPSHOT_INTERVAL="300ms", **both)
    before = daemon.wait_capturing().last_snapshot_seq or 0
    application.sql("INSERT INTO t VALUES (3, 'after the restart')")
    daemon.wait_archived()
    daemon.wait_snapshot(above=before)
    assert daemon.stop() == 0
    found = objects_of(scene)
    assert len({name.split("/")[2] for name in found if name.count("/") > 2}) == 1
    assert any("/part/" in name for name in found)
    for name, file in found.items():
        data = file.read_bytes()
        assert is_encrypted(data) == (not name.endswith("/LEASE")), name
        assert b"nobody shall read" not in data
        assert len(file.stem) == 32 or "/part/" not in name  # at random, and no hash

    archive, out = str(scene.archive), scene.folder / "out.db"
    code, said = run_with(scene, "verify", archive, BASE_ARCHIVE_IDENTITY=path)
    assert code == 0, said
    code, said = run_with(scene, "restore", archive, str(out), BASE_ARCHIVE_IDENTITY=path)
    assert code == 0, said
    compare(scene.database, out, scene.folder / "scratch")

    question = ("query", archive, "SELECT y FROM t WHERE x = 1", "--format", "csv")
    code, said = run_with(scene, *question, BASE_ARCHIVE_IDENTITY=path)
    assert code == 0, said
    assert "a sentence that nobody shall read" in said

    for command in (
        question,
        ("verify", archive),
        ("restore", archive, str(scene.folder / "no.db")),
    ):
        code, said = run_with(scene, *command)
        assert code == 2
        assert "is encrypted" in said
        assert "BASE_ARCHIVE_IDENTITY" in said
        code, said = run_with(scene, *command, BASE_ARCHIVE_IDENTITY=other)
        assert code == 2
        assert "no identity in BASE_ARCHIVE_IDENTITY" in said
        assert said.count("\n") <= 2
    assert not (scene.folder / "no.db").exists()


def test_a_lost_variable_never_writes_in_clear(scene: Scene) -> None:
    """Without the keys the daemon says so and writes nothing; with them it catches up."""
    path, recipient = make_key(scene, "one.key")
    keys = {"BASE_ARCHIVE_RECIPIENTS": recipient, "BASE_ARCHIVE_IDENTITY": path}
    application = scene.start_wal_application()
    daemon = scene.serve(**keys)
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon.wait_archived()
    daemon.kill()
    before = {name: file.read_bytes() for name, file in objects_of(scene).items()}

    daemon = scene.serve()
    application.sql("INSERT INTO t VALUES (3, 4)")
    daemon.wait_status(lambda status: "BASE_ARCHIVE_IDENTITY" in status.archive, "the sentence")
    daemon.kill()
    assert {name: file.read_bytes() for name, file in objects_of(scene).items()} == before

    daemon = scene.serve(**keys)
    daemon.wait_archived()
    assert daemon.stop() == 0
    code, said = run_with(scene, "verify", str(scene.archive), BASE_ARCHIVE_IDENTITY=path)
    assert code == 0, said


def test_encryption_begins_with_a_child_lineage(scene: Scene) -> None:
    """An archive in clear is not continued encrypted; with the journal moved away a child is."""
    application = scene.start_wal_application()
    daemon = scene.serve()
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon.wait_archived()
    assert daemon.stop() == 0
    path, recipient = make_key(scene, "one.key")
    keys = {"BASE_ARCHIVE_RECIPIENTS": recipient, "BASE_ARCHIVE_IDENTITY": path}

    daemon = scene.serve(**keys)
    application.sql("INSERT INTO t VALUES (3, 4)")
    daemon.wait_status(lambda status: "is written in clear" in status.archive, "the sentence")
    assert daemon.stop() == 0
    before = set(objects_of(scene))
    for file in scene.data_dir.glob("journal*"):
        file.rename(scene.folder / f"old-{file.name}")

    daemon = scene.serve(**keys)
    application.sql("INSERT INTO t VALUES (5, 6)")
    daemon.wait_archived()
    assert daemon.stop() == 0
    new = {name: file for name, file in objects_of(scene).items() if name not in before}
    assert new
    assert all(is_encrypted(file.read_bytes()) for file in new.values())
    out = scene.folder / "out.db"
    code, said = run_with(
        scene, "restore", str(scene.archive), str(out), BASE_ARCHIVE_IDENTITY=path
    )
    assert code == 0, said
    compare(scene.database, out, scene.folder / "scratch")
