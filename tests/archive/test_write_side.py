"""The archive's write side as a whole, on a real directory, with threads and the real clock."""

from pathlib import Path

import pytest
import trio

from basenet.archive.backlog import Backlog
from basenet.archive.clock import SECOND_NS, Clock
from basenet.archive.continuation import Resume, decide_continuation
from basenet.archive.directory import DirectoryStore
from basenet.archive.encrypted import EncryptedStore
from basenet.archive.keyring import Keyring
from basenet.archive.lease import Holder, Lease
from basenet.archive.names import ShardNames
from basenet.archive.place import Place
from basenet.archive.prune import Pruner
from basenet.archive.publish import Publisher
from basenet.archive.restore import restore
from basenet.archive.seal import Seal
from basenet.archive.snapshot import Snapshots
from basenet.archive.tip import TipWriter
from basenet.archive.uploader import Uploader, UploadSettings
from basenet.units import PublicKeyBytes, Seq
from basenet.wire.frame import encode_frame
from tests.fakes.chain import JOURNAL_ID, Chain, ChainSource
from tests.fakes.journal import journal_of
from tests.fakes.keyrings import make_keyring
from tests.fakes.live_database import LiveDatabase


@pytest.mark.parametrize("keyring", [Keyring(), make_keyring()], ids=["clear", "encrypted"])
async def test_log_snapshots_retention_and_restart_on_a_directory(
    tmp_path: Path, keyring: Keyring
) -> None:
    """Ship, snapshot under commits, stop, start again, prune: every step leaves a whole archive."""
    chain = Chain(page_size=4096)
    names = ShardNames(service="default", shard=chain.shard)
    seal = Seal(names=names, lineage=chain.lineage, signer=chain.signer)
    trusted = frozenset({PublicKeyBytes(chain.signer.public)})
    store = EncryptedStore(DirectoryStore(tmp_path / "archive"), keyring)
    handed = 0

    def lease() -> Lease:
        holder = Holder(
            node="a", key=chain.signer.public, journal_id=JOURNAL_ID, lineage=chain.lineage
        )
        return Lease(store=store, names=names, holder=holder)

    async def run_daemon(archived: int) -> None:
        """One life of a daemon: it ships, takes a snapshot while it commits, and stops cleanly."""
        nonlocal handed
        mine = lease()
        done = trio.Event()

        async def on_archived(seq: Seq, _now_ns: int) -> None:
            await trio.lowlevel.checkpoint()
            if seq >= wanted:
                done.set()

        uploader = Uploader(
            store=store,
            seal=seal,
            lease=mine,
            tip=TipWriter(store=store, seal=seal, lease=mine, trusted=trusted),
            backlog=Backlog(archived_seq=Seq(archived), bytes_max=300_000),
            source=ChainSource(chain),
            on_archived=on_archived,
            trusted=trusted,
            settings=UploadSettings(flush_interval_seconds=0.01),
        )

        def hand_over() -> None:
            nonlocal handed
            for seq in range(handed + 1, chain.tip.head.seq + 1):
                frame = chain.frame(seq)
                uploader.append(frame.head, encode_frame(frame))
            handed = chain.tip.head.seq

        async def before_manifest(seq: Seq) -> None:
            nonlocal wanted
            wanted = seq
            hand_over()
            if uploader.facts().archived_seq < seq:
                await done.wait()

        wanted = chain.tip.head.seq
        publisher = Publisher(store=store, seal=seal, lease=mine, trusted=trusted)
        snapshots = Snapshots(publisher=publisher, folder=tmp_path, duty=1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(uploader.run)
            hand_over()
            for _ in range(10):
                chain.commit({pgno: chain.page() for pgno in range(1, 300)})
            hand_over()
            await snapshots.take(LiveDatabase(chain, commits=2), before_manifest=before_manifest)
            hand_over()
            assert await uploader.close(20)
            nursery.cancel_scope.cancel()

    await run_daemon(0)
    decision = await decide_continuation(
        store,
        names,
        journal=journal_of(chain, archived=handed),
        key=PublicKeyBytes(chain.signer.public),
        trusted=trusted,
    )
    assert decision == Resume(
        archived_seq=Seq(handed), needs_snapshot=False, archive_epoch=1, has_tip=True
    )
    await run_daemon(handed)
    later_ns = chain.now_ns + 100 * 24 * 3600 * SECOND_NS
    pruner = Pruner(
        store=store,
        names=names,
        lease=lease(),
        lineage=chain.lineage,
        trusted=trusted,
        retention_seconds=3600,
        clock=Clock(wall_ns=lambda: later_ns),
        is_by_clock=True,
    )
    assert (await pruner.run()).deleted > 1
    out = tmp_path / "out.db"
    report = await restore(store, names, Place(out), trusted=trusted)
    assert report.seq == chain.tip.head.seq
    expected = b"".join(chain.pages[pgno] for pgno in sorted(chain.pages))
    data = await trio.Path(out).read_bytes()
    assert data == expected[:18] + b"\x02\x02" + expected[20:]
    await store.aclose()
