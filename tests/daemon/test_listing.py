"""Which files BASE_SHARDS means."""

from pathlib import Path

import pytest

from basenet.config.shards import parse_shards
from basenet.daemon.listing import find_databases, watched_directories
from basenet.sqlite.attach import MAGIC


def make(path: Path, content: bytes = MAGIC + bytes(84)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_named_file_counts_before_it_exists(tmp_path: Path) -> None:
    """The application may create it later; its id is the given one, or its stem."""
    listing = find_databases(parse_shards(f"orders={tmp_path}/x.db,{tmp_path}/app.db"), served=())
    assert listing.databases == {"orders": tmp_path / "x.db", "app": tmp_path / "app.db"}
    assert listing.refused == ()


def test_a_directory_means_the_files_with_a_header_of_sqlite(tmp_path: Path) -> None:
    """Not side files, hidden files, folders, empty files, other files or dangling links."""
    wanted = [make(tmp_path / "a.db"), make(tmp_path / "b.sqlite")]
    for name in ("a.db-wal", "a.db-shm", "a.db-journal", ".c.db"):
        make(tmp_path / name)
    make(tmp_path / "empty.db", b"")
    make(tmp_path / "notes.db", b"SQLite format 2, as it were")
    make(tmp_path / "folder.db" / "inner.db")
    (tmp_path / "dangling.db").symlink_to(tmp_path / "nowhere.db")
    listing = find_databases(parse_shards(f"{tmp_path}/"), served=())
    assert listing.databases == {"a": wanted[0], "b": wanted[1]}


def test_a_pattern_means_what_matches_in_every_folder(tmp_path: Path) -> None:
    """The magic may be in a folder's name; a file that does not match is not taken."""
    first, second = make(tmp_path / "one" / "x.db"), make(tmp_path / "two" / "y.db")
    make(tmp_path / "two" / "z.sqlite")
    listing = find_databases(parse_shards(f"{tmp_path}/*/*.db"), served=())
    assert listing.databases == {"x": first, "y": second}


def test_a_served_file_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing it would drop the locks of our connections (POSIX), so it counts unread."""
    served, other = make(tmp_path / "served.db"), make(tmp_path / "other.db")
    opened: list[str] = []
    really_open = Path.open

    def note_open(path: Path, mode: str = "r") -> object:
        opened.append(path.name)
        return really_open(path, mode)

    monkeypatch.setattr(Path, "open", note_open)
    listing = find_databases(parse_shards(f"{tmp_path}/"), served=[served])
    assert set(listing.databases.values()) == {served, other}
    assert opened == ["other.db"]


def test_a_served_file_that_is_gone_is_not_listed(tmp_path: Path) -> None:
    """So the supervisor sees that it went."""
    listing = find_databases(parse_shards(f"{tmp_path}/"), served=[tmp_path / "gone.db"])
    assert listing.databases == {}


def test_two_files_of_one_id_are_refused_by_name(tmp_path: Path) -> None:
    """The first is served, and the sentence names both and the way out."""
    first, second = make(tmp_path / "a" / "app.db"), make(tmp_path / "b" / "app.db")
    listing = find_databases(parse_shards(f"{tmp_path}/*/*.db"), served=())
    assert listing.databases == {"app": first}
    (sentence,) = listing.refused
    assert str(first) in sentence
    assert str(second) in sentence
    assert "id=path" in sentence


def test_a_name_that_cannot_be_an_id_is_refused_alone(tmp_path: Path) -> None:
    """Its neighbours are served all the same."""
    good = make(tmp_path / "good.db")
    bad = make(tmp_path / ("x" * 65 + ".db"))
    listing = find_databases(parse_shards(f"{tmp_path}/"), served=())
    assert listing.databases == {"good": good}
    (sentence,) = listing.refused
    assert sentence.startswith(f"{bad}: ")


def test_a_file_named_twice_keeps_the_id_that_was_given(tmp_path: Path) -> None:
    """``id=path`` wins over the directory that holds the same file."""
    path = make(tmp_path / "x.db")
    listing = find_databases(parse_shards(f"{tmp_path}/,orders={path}"), served=())
    assert listing.databases == {"orders": path}
    assert listing.refused == ()


@pytest.mark.parametrize("order", ["app={0}/app.db,link={0}/link.db", "{0}/"])
def test_a_file_with_two_names_is_one_shard(tmp_path: Path, order: str) -> None:
    """A link is refused beside its target: two captures of one file would fight over it."""
    path = make(tmp_path / "app.db")
    (tmp_path / "link.db").symlink_to(path)
    listing = find_databases(parse_shards(order.format(tmp_path)), served=())
    assert listing.databases == {"app": path}
    (sentence,) = listing.refused
    assert sentence.startswith(f"{tmp_path}/link.db is the same file as {path}")


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    """It may be mounted later, so this is no error."""
    specs = parse_shards(f"{tmp_path}/later/,{tmp_path}/never/*.db")
    assert find_databases(specs, served=()).databases == {}


def test_only_directories_and_patterns_are_watched(tmp_path: Path) -> None:
    """A pattern is watched at the last folder before its magic."""
    specs = parse_shards(f"{tmp_path}/d/,{tmp_path}/p/*/x.db,{tmp_path}/f/one.db")
    assert watched_directories(specs) == {tmp_path / "d", tmp_path / "p"}
