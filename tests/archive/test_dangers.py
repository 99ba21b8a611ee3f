"""What a careless restore or upload would destroy, case by case (docs/pitfalls.md)."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from basenet.archive.place import Place
from basenet.errors import ConflictError
from tests.sqlite.application import Application


def fill(place: Place, content: bytes = b"restored") -> list[Path]:
    """Put ``content`` in the place as a restore does."""
    with place.open_draft() as draft:
        draft.write(0, content)
        return place.accept(draft)


def test_a_rollback_database_in_use_is_not_replaced_either(tmp_path: Path) -> None:
    """It has no -shm that would tell of its readers: the lock on the file itself does (P8)."""
    out = tmp_path / "app.db"
    with Application(out) as application:
        application.sql("create table t(x)", "insert into t values(1)", "begin")
        application.sql("select * from t")
        assert [path.name for path in tmp_path.iterdir()] == ["app.db"]
        before = out.read_bytes()
        with pytest.raises(ConflictError, match=f"open in process {application.process.pid}"):
            fill(Place(out, force=True))
        assert out.read_bytes() == before
        application.sql("commit")


def test_no_moment_has_the_restored_file_beside_a_strangers_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log goes first: a crash between the two leaves a missing log, never a wrong one (P8)."""
    out = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(out)) as connection:
        connection.execute("create table t(x)")
    for suffix in ("-wal", "-shm", "-journal"):
        Path(f"{out}{suffix}").write_bytes(b"stale")
    seen: list[list[str]] = []
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if target == out:
            seen.append(
                sorted(
                    Path(f"{out}{suffix}").name
                    for suffix in ("-wal", "-shm", "-journal")
                    if Path(f"{out}{suffix}").exists()
                )
            )
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    moved = fill(Place(out, force=True))
    assert seen == [[]]
    assert [path.read_bytes() for path in moved] == [b"stale", b"stale"]
    assert out.read_bytes() == b"restored"
