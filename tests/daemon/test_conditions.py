"""A shard never writes to a store that does not keep conditions (docs/pitfalls.md, Q18)."""

from dataclasses import replace
from pathlib import Path

import trio

from basenet.archive.directory import DirectoryStore
from basenet.archive.port import Token
from basenet.daemon.shard import Shard
from basenet.units import ShardId
from tests.daemon.node import running_node
from tests.sqlite.application import Application

WAIT_S = 20


class OverwritesAnything(DirectoryStore):
    """Takes a condition and overwrites all the same, as several S3-compatible servers do."""

    async def put_if_absent(self, name: str, data: bytes) -> Token:
        return await self.put_unconditional(name, data)


async def test_a_store_that_keeps_no_conditions_gets_nothing_and_capture_goes_on(
    tmp_path: Path,
) -> None:
    """Refused before the first object, with the sentence; what is captured waits in the journal."""
    with Application(tmp_path / "app.db") as application:
        application.sql("pragma journal_mode=wal", "create table t(x)")
        async with (
            running_node(tmp_path, shards=str(application.path)) as found,
            trio.open_nursery() as nursery,
        ):
            store = OverwritesAnything(tmp_path / "archive")
            node = replace(found, store=store)
            shard = Shard(node=node, shard=ShardId("app"), path=application.path)
            nursery.start_soon(shard.run)
            with trio.fail_after(WAIT_S):
                while shard.archiver.error is None:  # noqa: ASYNC110  (nobody tells of it)
                    await trio.sleep(0.005)
                application.sql("insert into t values(1)")
                await shard.progress.wait_until(lambda: shard.progress.final_seq == 2)
            assert "overwrites an object that exists" in str(shard.archiver.error)
            assert [entry.name async for entry in store.list("")] == []
            assert shard.progress.archived_seq == 0
            # What waits is in the journal alone, however long this lasts.
            assert shard.archiver._collected is None
            shard.stop()
            with trio.fail_after(WAIT_S):
                await shard.ended.wait()
            await store.aclose()
