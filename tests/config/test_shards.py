"""BASE_SHARDS."""

from pathlib import Path

import pytest

from basenet.config.shards import ShardSource, ShardSpec, get_shard_id, parse_shards
from basenet.errors import UsageError


def spec(source: ShardSource, path: str, shard: str | None = None) -> tuple[object, ...]:
    return source, Path(path), shard


def facts(item: ShardSpec) -> tuple[object, ...]:
    return item.source, item.path, item.shard


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/app.db", spec(ShardSource.FILE, "/data/app.db", "app")),
        ("My App.sqlite3", spec(ShardSource.FILE, "My App.sqlite3", "my-app")),
        ("orders=/data/x.db", spec(ShardSource.FILE, "/data/x.db", "orders")),
        ("/data/a=b.db", spec(ShardSource.FILE, "/data/a=b.db", "a-b")),
        ("./id=path", spec(ShardSource.FILE, "id=path", "id-path")),
        ("/data/", spec(ShardSource.DIRECTORY, "/data")),
        ("/data/*.db", spec(ShardSource.PATTERN, "/data/*.db")),
        ("/data/[ab]?.db", spec(ShardSource.PATTERN, "/data/[ab]?.db")),
    ],
)
def test_an_item_is_read_by_its_form(text: str, expected: tuple[object, ...]) -> None:
    """A given id, a directory, a pattern, a file: the first that fits."""
    (item,) = parse_shards(text)
    assert facts(item) == expected


def test_a_list_keeps_its_order_and_drops_nothing() -> None:
    """Blanks and a comma at the end do no harm."""
    items = parse_shards(" /a.db , b=/x/a.db ,/c/, ")
    assert [str(item.path) for item in items] == ["/a.db", "/x/a.db", "/c"]
    assert parse_shards("") == ()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("/data/-.db", "id=path"),
        ("/data/.db/x/---", "id=path"),
        ("Orders=/x.db", "shard id 'Orders'"),
        ("orders=", "one database"),
        ("orders=/data/", "one database"),
        ("orders=/data/*.db", "one database"),
        ("/a\0b", "NUL"),
        ("~/app.db", "'~/app.db' begins with ~, which only a shell expands"),
        ("orders=~/app.db", "only a shell expands"),
        ("file:app.db?mode=rwc", "leave out 'file:' and what follows a question mark"),
        ("sqlite:////srv/app.db", "leave out 'sqlite:///' and"),
    ],
)
def test_an_item_that_gives_no_usable_id_is_refused(text: str, hint: str) -> None:
    """The sentence says how to name the shard."""
    with pytest.raises(UsageError, match=hint):
        parse_shards(text)


def test_two_databases_cannot_be_one_shard() -> None:
    """The same stem in two directories needs an id for one of them; it names both."""
    with pytest.raises(UsageError) as caught:
        parse_shards("/a/app.db,/b/app.db")
    for part in ("/a/app.db", "/b/app.db", "shard app", "id=path"):
        assert part in str(caught.value)
    assert len(parse_shards("/a/app.db,other=/b/app.db")) == 2


def test_every_bad_item_is_named_at_once() -> None:
    """One restart mends the whole list."""
    with pytest.raises(UsageError) as caught:
        parse_shards("X=/x,y=,/a/app.db,/b/app.db")
    assert str(caught.value).count(";") >= 2


@pytest.mark.parametrize(
    ("text", "directory"),
    [("/data/app.db", "/data"), ("app.db", "."), ("/data/", "/data"), ("/d/*/x.db", "/d")],
)
def test_the_directory_of_an_item_is_where_its_first_database_lies(
    text: str, directory: str
) -> None:
    """Of a pattern it is the part before the first wildcard."""
    (item,) = parse_shards(text)
    assert item.directory == Path(directory)


def test_a_found_database_gets_its_id_from_its_stem() -> None:
    assert get_shard_id(Path("/data/Shop 1.db")) == "shop-1"
