"""Which database files BASE_SHARDS means at this moment.

A file counts as a database when it has SQLite's header; -wal, -shm and -journal files, hidden
files and directories do not. A file that is being served is never opened here: closing it would
drop the locks of the connections that we have on it (POSIX).
"""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from basenet.config.shards import ShardSource, ShardSpec, get_shard_id
from basenet.errors import UsageError
from basenet.sqlite.attach import MAGIC
from basenet.sqlite.signals import SIDE_SUFFIXES
from basenet.units import ShardId

_HIDDEN: Final = "."


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The databases that are there, by shard id, and what could not be named, as sentences."""

    databases: dict[ShardId, Path]
    refused: tuple[str, ...]


def find_databases(specs: Sequence[ShardSpec], served: Collection[Path]) -> Listing:
    """Return the databases that ``specs`` mean now; a FILE counts whether it exists or not."""
    databases: dict[ShardId, Path] = {}
    refused: list[str] = []
    for spec in specs:
        if spec.shard is not None:
            databases[spec.shard] = spec.path.absolute()
    known = set(databases.values())
    for path in sorted({path.absolute() for spec in specs for path in _candidates(spec)}):
        if path in known or not (path in served or _is_database(path)):
            continue
        try:
            shard = get_shard_id(path)
        except UsageError as error:
            refused.append(f"{path}: {error}")
            continue
        if shard in databases:
            refused.append(
                f"{path} and {databases[shard]} would both be the shard {shard}: give one of them "
                "another id with id=path in BASE_SHARDS."
            )
            continue
        databases[shard] = path
    _refuse_second_names(databases, refused)
    return Listing(databases=databases, refused=tuple(refused))


def _refuse_second_names(databases: dict[ShardId, Path], refused: list[str]) -> None:
    """Keep one shard of each file: through a link it may have two names."""
    owners: dict[str, ShardId] = {}
    for shard, path in list(databases.items()):
        owner = owners.setdefault(os.path.realpath(path), shard)
        if owner != shard:
            del databases[shard]
            refused.append(
                f"{path} is the same file as {databases[owner]}, the shard {owner}: "
                "name it once in BASE_SHARDS."
            )


def watched_directories(specs: Sequence[ShardSpec]) -> set[Path]:
    """Return the directories in which databases may appear or vanish."""
    return {spec.directory.absolute() for spec in specs if spec.source is not ShardSource.FILE}


def _candidates(spec: ShardSpec) -> Iterator[Path]:
    if spec.source is ShardSource.DIRECTORY:
        if spec.path.is_dir():
            yield from spec.path.iterdir()
    elif spec.source is ShardSource.PATTERN:
        root = spec.directory
        pattern = str(spec.path.relative_to(root))
        yield from root.glob(pattern)


def _is_database(path: Path) -> bool:
    if path.name.startswith(_HIDDEN) or path.name.endswith(SIDE_SUFFIXES):
        return False
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
