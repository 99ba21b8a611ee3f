import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from basenet.daemon.cluster import orphans
from basenet.daemon.cluster.orphans import (
    BundleCorrupt,
    BundleFacts,
    Reason,
    find_bundle,
    list_bundles,
    read_bundle,
    write_bundle,
)
from basenet.errors import ConflictError, NotFoundError, UnavailableError, UntrustedKey
from basenet.units import Epoch, FrameHash, LocalNumber, Seq, ShardId, TimestampNs, View
from basenet.wire.certificate import COMMIT, Certificate
from basenet.wire.frame import encode_frame
from basenet.wire.payload import CommitPayload
from tests.fakes.chain import Chain, signer

NODE = signer(9)
TRUSTED = frozenset({NODE.public})
CREATED_NS = TimestampNs(1_795_000_000_000_000_000)


def make_chain() -> Chain:
    chain = Chain(pages={1: b"\x01" * 512, 2: b"\x02" * 512})
    for _ in range(6):
        chain.random_commit(grow=1)
    chain.commit({2: chain.page(), 3: chain.page(), 4: chain.page()}, run=2)
    return chain


def facts_of(chain: Chain, kept_seq: int = 4, **changes: Any) -> BundleFacts:
    kept = chain.frame(kept_seq).head
    facts = BundleFacts(
        shard=chain.shard,
        lineage=chain.lineage,
        kept_seq=kept.seq,
        kept_hash=kept.hash,
        kept_root=kept.state_root,
        page_size=512,
        db_pages=len(chain.image(kept_seq)),
        reason=Reason.DEPOSED,
        created_ns=CREATED_NS,
        first_local=LocalNumber(4),
        last_local=LocalNumber(7),
        detail="node-b became the writer in view 3",
    )
    return replace(facts, **changes)


def frames_of(chain: Chain, kept_seq: int = 4) -> list[bytes]:
    return chain.encoded(kept_seq + 1, chain.tip.head.seq)


def killer(height: int = 5) -> Certificate:
    voters = sorted(signer(number).public for number in (2, 3))
    return Certificate(
        phase=COMMIT,
        epoch=Epoch(1),
        view=View(3),
        height=Seq(height),
        hash=FrameHash(b"k" * 32),
        votes=tuple((key, b"s" * 64) for key in voters),
    )


def later_view_of(chain: Chain, seq: int, *, view: int) -> Certificate:
    """Return a certificate that makes a frame of the chain itself final, in ``view``."""
    kept = chain.frame(seq).head
    return Certificate(
        phase=COMMIT,
        epoch=kept.epoch,
        view=View(view),
        height=kept.seq,
        hash=kept.hash,
        votes=killer().votes,
    )


def before_of(chain: Chain, kept_seq: int = 4) -> CommitPayload:
    image = chain.image(kept_seq)
    pgnos = sorted(image)[:3]
    return CommitPayload(
        page_size=512,
        db_pages=len(image),
        commits=0,
        pgnos=np.array(pgnos, dtype=np.uint32),
        pages=b"".join(image[pgno] for pgno in pgnos),
    )


def write(directory: Path, chain: Chain, **changes: Any) -> Path:
    return write_bundle(
        directory,
        facts_of(chain, **changes),
        frames_of(chain),
        certificate=killer(),
        signer=NODE,
        before=[before_of(chain)],
    )


def test_a_bundle_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Facts, frames in order, the certificate and the pages before: all of it, byte for byte."""
    chain = make_chain()
    path = write(tmp_path / "orphans", chain)
    assert path == tmp_path / "orphans" / "app" / f"{CREATED_NS}-4.orphan"
    bundle = read_bundle(path, TRUSTED)
    assert bundle.facts == facts_of(chain)
    assert [encode_frame(frame) for frame in bundle.frames()] == frames_of(chain)
    assert bundle.heads == tuple(frame.head for frame in chain.frames[4:])
    assert bundle.certificate == killer()
    (before,) = bundle.before_images()
    assert bytes(before.pages) == bytes(before_of(chain).pages)
    assert (bundle.commits, bundle.before_pages, bundle.public) == (4, 3, NODE.public)
    assert bundle.id == f"app/{CREATED_NS}-4"


def test_a_bundle_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Frames carry rows: 0600 in folders of 0700, and nothing half written is left."""
    path = write(tmp_path / "orphans", make_chain())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    """Wherever a bit is turned, the bundle is refused with an error that names it."""
    chain = Chain(pages={1: b"\x01" * 512})
    chain.random_commit()
    path = write_bundle(
        tmp_path,
        facts_of(chain, kept_seq=1),
        frames_of(chain, kept_seq=1),
        certificate=killer(2),
        signer=NODE,
        before=[before_of(chain, kept_seq=1)],
    )
    data = bytearray(path.read_bytes())
    assert len(data) < 3000
    for index in range(len(data)):
        data[index] ^= 0x10
        path.write_bytes(data)
        with pytest.raises((BundleCorrupt, UntrustedKey)) as caught:
            read_bundle(path, TRUSTED)
        assert str(path) in str(caught.value)
        data[index] ^= 0x10
    path.write_bytes(data)
    read_bundle(path, TRUSTED)


def test_a_bundle_that_is_cut_or_longer_is_found(tmp_path: Path) -> None:
    """Every length but the right one is refused."""
    path = write(tmp_path, make_chain())
    data = path.read_bytes()
    for length in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises((BundleCorrupt, UntrustedKey)):
            read_bundle(path, TRUSTED)
    path.write_bytes(data + b"\0")
    with pytest.raises((BundleCorrupt, UntrustedKey)):
        read_bundle(path, TRUSTED)


def test_only_a_trusted_signer_is_believed(tmp_path: Path) -> None:
    """A bundle that somebody else signed proves nothing, and one that is not there is said so."""
    path = write(tmp_path, make_chain())
    with pytest.raises(UntrustedKey, match="--trusted-keys"):
        read_bundle(path, frozenset({signer(8).public}))
    with pytest.raises(NotFoundError):
        read_bundle(tmp_path / "app" / "1-1.orphan", TRUSTED)


def test_a_signed_contradiction_is_refused(tmp_path: Path) -> None:
    """The signature says who wrote it; that it fits together is looked at all the same."""
    chain = make_chain()
    frames = frames_of(chain)
    contradictions: list[tuple[dict[str, Any], list[bytes], Certificate | None, str]] = [
        ({"shard": ShardId("other")}, frames, None, "of shard"),
        ({"kept_hash": FrameHash(bytes(32))}, frames, None, "does not follow"),
        ({}, frames[1:], None, "does not follow"),
        ({}, [frames[0], frames[2]], None, "does not follow"),
        ({}, [], None, "no frame"),
        ({"unproposed_seq": Seq(40)}, frames, None, "has no frame 40"),
        ({}, frames, killer(3), "does not contradict"),
        ({}, frames, killer(4), "not of a later view"),
        ({}, frames, later_view_of(chain, 4, view=0), "not of a later view"),
        (
            {},
            frames,
            later_view_of(chain, 6, view=3),
            "its own frame 6",
        ),
    ]
    for changes, records, certificate, problem in contradictions:
        with pytest.raises(BundleCorrupt, match=problem):
            write_bundle(
                tmp_path, facts_of(chain, **changes), records, certificate=certificate, signer=NODE
            )
    assert list_bundles(tmp_path) == []


def test_a_later_view_that_ends_at_the_kept_frame_kills_too(tmp_path: Path) -> None:
    """It made the kept frame final and nothing of an earlier view above it can follow."""
    chain = make_chain()
    certificate = later_view_of(chain, 4, view=3)
    path = write_bundle(
        tmp_path, facts_of(chain), frames_of(chain), certificate=certificate, signer=NODE
    )
    assert read_bundle(path, TRUSTED).certificate == certificate


def test_a_frame_that_its_author_did_not_sign_is_refused(tmp_path: Path) -> None:
    """The node vouches for the bundle, the author for the frame."""
    chain = make_chain()
    frame = chain.tip
    forged = replace(frame, head=replace(frame.head, signature=b"x" * 64))
    records = [*frames_of(chain)[:-1], encode_frame(forged)]
    with pytest.raises(BundleCorrupt, match="author's signature"):
        write_bundle(tmp_path, facts_of(chain), records, certificate=None, signer=NODE)


def test_a_repeat_after_a_crash_gives_the_first_bundle(tmp_path: Path) -> None:
    """The roll-back that comes after may be repeated with it; another bundle is never replaced."""
    chain = make_chain()
    path = write(tmp_path, chain)
    written = path.read_bytes()
    (path.parent / ".left.partial").write_bytes(b"half of one")
    assert write(tmp_path, chain) == path
    assert path.read_bytes() == written
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ConflictError, match="nothing was overwritten"):
        write(tmp_path, chain, detail="another story")
    assert path.read_bytes() == written


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """When the source of the frames or the disk fails, there is no bundle and no half of one."""
    chain = make_chain()

    def failing() -> Iterator[bytes]:
        yield frames_of(chain)[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(UnavailableError, match="there is no room"):
        write_bundle(tmp_path, facts_of(chain), failing(), certificate=None, signer=NODE)
    assert list((tmp_path / "app").iterdir()) == []


def test_the_bundle_is_durable_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, then name, then folder: each is synced in this order."""
    steps: list[str] = []
    fsync, link = os.fsync, Path.hardlink_to

    def note_fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append(f"sync {kind}")
        fsync(descriptor)

    def note_link(self: Path, target: Path) -> None:
        steps.append("name")
        link(self, target)

    monkeypatch.setattr(orphans.os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "hardlink_to", note_link)
    (tmp_path / "app").mkdir()
    write(tmp_path, make_chain())
    assert steps == ["sync file", "name", "sync folder"]


def test_bundles_are_listed_and_found_by_their_names(tmp_path: Path) -> None:
    """Oldest first; a short name does while it is not that of two shards."""
    chain = make_chain()
    late = write(tmp_path, chain, created_ns=TimestampNs(CREATED_NS + 5))
    early = write(tmp_path, chain, created_ns=TimestampNs(7))
    assert list_bundles(tmp_path) == [early, late]
    assert list_bundles(tmp_path, "other") == []
    assert list_bundles(tmp_path / "missing") == []
    assert find_bundle(tmp_path, "7-4") == find_bundle(tmp_path, "app/7-4") == early
    assert find_bundle(tmp_path, "app/7-4.orphan") == early
    with pytest.raises(NotFoundError, match="basenet orphans list"):
        find_bundle(tmp_path, "8-4")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / early.name).write_bytes(early.read_bytes())
    with pytest.raises(ConflictError, match="app/7-4"):
        find_bundle(tmp_path, "7-4")


def test_a_bundle_that_changes_while_it_is_read_is_found(tmp_path: Path) -> None:
    """Frames are read again when they are asked for, and are what was proven or are refused."""
    chain = make_chain()
    bundle = read_bundle(write(tmp_path, chain), TRUSTED)
    data = bytearray(bundle.path.read_bytes())
    place = data.find(frames_of(chain)[0])
    data[place + 60] ^= 1
    bundle.path.write_bytes(data)
    with pytest.raises(BundleCorrupt):
        list(bundle.frames())
