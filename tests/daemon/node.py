"""A node over real files, without an archive by default: what its shards live in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from basenet.archive.store import Store
from basenet.config.loader import load
from basenet.daemon.journalist import Journalist
from basenet.daemon.node import Node
from basenet.daemon.shard import Shard
from basenet.daemon.waker import Waker
from basenet.journal.journal import Journal
from basenet.sqlite.wake import open_wake
from basenet.units import GIB, ShardId
from tests.daemon.model import SIGNER, Model, author_of, give_birth, loaded


@asynccontextmanager
async def running_node(
    folder: Path, *, shards: str, journal_bytes_max: int = GIB, store: Store | None = None
) -> AsyncIterator[Node]:
    """Run a node's journalist and waker for the body, which runs the rest."""
    config = load(
        {"BASE_SHARDS": shards, "BASE_DATA_DIR": str(folder / "data"), "BASE_ARCHIVE": "off"}
    )
    journal = Journal(config.data_dir)
    wake = open_wake()
    node = Node(
        config=replace(config, journal_bytes_max=journal_bytes_max),
        author=author_of(journal.journal_id),
        journalist=Journalist(journal),
        waker=Waker(wake),
        store=store,
        trusted=frozenset({SIGNER.public}),
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.journalist.run)
            nursery.start_soon(node.waker.run)
            yield node
            nursery.cancel_scope.cancel()
    finally:
        wake.close()
        journal.close()


def make_shard(node: Node, name: str, *, commits: int, archived: int) -> Shard:
    """Return a shard that does not run, whose journal has ``commits`` frames of 2 KiB and more."""
    shard_id, journal = ShardId(name), node.journalist.journal
    model = Model(0, page_size=2048)
    give_birth(journal, model, shard=shard_id)
    _, framer = loaded(journal, shard_id)
    for _ in range(commits):
        model.pages[1] = model.chance.randbytes(2048)
        (piece,) = model.run({1: model.pages[1]})
        journal.store([framer.frame([piece])])
    if archived:
        journal.set_archived(shard_id, archived, keep_bytes=GIB)
    shard = Shard(node=node, shard=shard_id, path=Path(f"/data/{name}.db"))
    record, _ = loaded(journal, shard_id)
    shard._adopt(record)
    return shard
