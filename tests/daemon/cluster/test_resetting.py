"""A file that is set aside has a name at every moment; the rest: tests/system/test_reset.py."""

import sqlite3
from contextlib import closing
from pathlib import Path

from basenet.daemon.cluster.resetting import link_aside, remove_names


def test_a_database_is_set_aside_with_its_log(tmp_path: Path) -> None:
    """Also through a link: the folder lies beside the file itself. The link stays."""
    path, link = tmp_path / "app.db", tmp_path / "link.db"
    link.symlink_to(path)
    with closing(sqlite3.connect(path)) as open_yet:
        open_yet.execute("pragma journal_mode=wal")
        open_yet.execute("create table t (x)")
        open_yet.execute("insert into t values (1)")
        open_yet.commit()
        aside = link_aside(link)
        assert aside == tmp_path / "app.db.reset-1" / "app.db"
        assert path.exists()
        remove_names(link)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["app.db.reset-1", "link.db"]
    with closing(sqlite3.connect(aside)) as copy:
        assert copy.execute("select x from t").fetchall() == [(1,)]
    assert aside.parent.stat().st_mode & 0o777 == 0o700


def test_every_copy_has_its_own_folder(tmp_path: Path) -> None:
    """Nothing is overwritten; where there is no file there is nothing to set aside."""
    path = tmp_path / "app.db"
    assert link_aside(path) is None
    for number in (1, 2):
        path.write_bytes(bytes([number]))
        aside = link_aside(path)
        assert aside == tmp_path / f"app.db.reset-{number}" / "app.db"
        remove_names(path)
        remove_names(path)
    assert (tmp_path / "app.db.reset-1" / "app.db").read_bytes() == b"\x01"
