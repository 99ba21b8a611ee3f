"""BASE_SHARDS: which databases to serve.

A comma list whose items are read like this, the first that fits::

    orders=/data/x.db     one database, whose shard id is given
    /data/                every database in this directory, also those that appear later
    /data/*.db            every database that matches, also those that appear later
    /data/app.db          one database; its shard id is its stem, here ``app``

Only a word that can be a shard id counts as one, so ``/data/a=b.db`` is a path; a path that looks
like ``id=path`` is written ``./id=path``. A path with a comma in it is matched by a pattern with
``?`` in its place. Nothing here looks at the file system.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePath

from basenet.config.values import check_path, split_list
from basenet.errors import UsageError
from basenet.units import ShardId, parse_shard_id, shard_id_of_stem

_NAMED = re.compile(r"([^/=]+)=(.*)\Z", re.DOTALL)
_MAGIC = re.compile(r"[*?\[]")


class ShardSource(StrEnum):
    """What a `ShardSpec` stands for."""

    FILE = "file"
    PATTERN = "pattern"
    DIRECTORY = "directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSpec:
    """One item of BASE_SHARDS.

    ``path`` is the database, the directory or the glob pattern. ``shard`` is the id of a FILE; the
    files of a PATTERN or DIRECTORY get theirs from their stems when they are found.
    """

    source: ShardSource
    path: Path
    shard: ShardId | None = None

    @property
    def directory(self) -> Path:
        """Return the directory where the first database of this item lies."""
        if self.source is ShardSource.DIRECTORY:
            return self.path
        if self.source is ShardSource.FILE:
            return self.path.parent
        plain = self.path.parent
        while _MAGIC.search(str(plain)):
            plain = plain.parent
        return plain


def parse_shards(text: str) -> tuple[ShardSpec, ...]:
    """Return the items of BASE_SHARDS; raise `UsageError` that names every bad one."""
    specs: list[ShardSpec] = []
    faults: list[str] = []
    for item in split_list(text):
        try:
            specs.append(_parse_item(item))
        except UsageError as error:
            faults.append(str(error))
    faults.extend(_find_collisions(specs))
    if faults:
        raise UsageError("; ".join(faults))
    return tuple(specs)


def get_shard_id(database: PurePath) -> ShardId:
    """Return the shard id of a database file that was given without one.

    Raises `UsageError` if its stem cannot be made into one.
    """
    return shard_id_of_stem(database.stem)


def _parse_item(item: str) -> ShardSpec:
    check_path(item)
    if named := _NAMED.match(item):
        shard, path = parse_shard_id(named[1].strip()), named[2].strip()
        check_path(path)
        if not path or path.endswith("/") or _MAGIC.search(path):
            raise UsageError(f"{item!r} names one shard: write the path of one database after =")
        return ShardSpec(source=ShardSource.FILE, path=Path(path), shard=shard)
    if _MAGIC.search(item):
        return ShardSpec(source=ShardSource.PATTERN, path=Path(item))
    if item.endswith("/"):
        return ShardSpec(source=ShardSource.DIRECTORY, path=Path(item))
    path_given = Path(item)
    return ShardSpec(source=ShardSource.FILE, path=path_given, shard=get_shard_id(path_given))


def _find_collisions(specs: list[ShardSpec]) -> list[str]:
    seen: dict[ShardId, Path] = {}
    faults: list[str] = []
    for spec in specs:
        if spec.shard is None:
            continue
        if spec.shard in seen:
            faults.append(
                f"{str(seen[spec.shard])!r} and {str(spec.path)!r} would both be the shard "
                f"{spec.shard}: give one of them another id with id=path"
            )
        seen.setdefault(spec.shard, spec.path)
    return faults
