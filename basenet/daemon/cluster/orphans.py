r"""Orphan bundles: what a node's history lost, kept whole in one signed file.

Theory of operation
===================

Commits can lose: a deposed writer's that were not final, a stranger's in a fenced file, final ones
when an operator forced a lineage. Nothing of it is discarded: before the file is rolled back, the
frames lie durable in a *bundle*, ``orphans/<shard>/<created ns>-<kept seq>.orphan`` in the data
directory. The *kept place* is the last frame that the surviving history has in common with them.

The layout (docs/formats/orphans.md) is a header, records and a signature::

    "BNOB" | version u16 | header | (len u32, record) * | 0 u32 | pubkey[32] | sig[64]

    record   2 frame, one or more, each linked to the one before | 3 CERT, at most one
             | 128 BEFORE, any number
    sig      Ed25519(pubkey, "basenet/orphan/1\0" || SHA256(everything before sig))

Frames and CERT are those of `wire`. BEFORE holds, as a COMMIT payload, pages as they were at the
kept place. A branch can be larger than memory, so a bundle is written from a stream and read in two
passes: the first proves the signature, and only then is anything of it decoded.

A bundle is written under another name, synced, read back as a stranger would read it, and only then
given its name; the directory is synced last. Whoever sees a bundle sees all of it, and the caller
that rolls back afterwards knows that it can be read.
"""

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from basenet.errors import (
    BasenetError,
    ConflictError,
    CorruptionError,
    NotFoundError,
    UnavailableError,
    UntrustedKey,
)
from basenet.units import (
    HASH_BYTES,
    KEY_BYTES,
    LINEAGE_BYTES,
    MIB,
    SIGNATURE_BYTES,
    FrameHash,
    Lineage,
    LocalNumber,
    PublicKeyBytes,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
)
from basenet.wire.certificate import (
    CERT_RECORD_VERSION,
    Certificate,
    decode_certificate,
    encode_certificate,
)
from basenet.wire.codec import Reader, i64, u8, u16, u32, u64
from basenet.wire.codec import shard_id as encode_shard_id
from basenet.wire.frame import FRAME_VERSION, Frame, Head, Kind, check_link, decode_frame
from basenet.wire.payload import (
    CommitPayload,
    decode_commit,
    decode_commit_summary,
    encode_commit,
)
from basenet.wire.signature import AnySigner, get_fingerprint, is_signed

FOLDER: Final = "orphans"
SUFFIX: Final = ".orphan"
MAGIC: Final = b"BNOB"
VERSION: Final = 1
BEFORE_RECORD_VERSION: Final = 128
DETAIL_BYTES_MAX: Final = 4096
# A frame or a COMMIT payload is at most 8 MiB; a certificate far less.
RECORD_BYTES_MAX: Final = 9 * MIB
_DOMAIN: Final = b"basenet/orphan/1\0"
_HEADER_BYTES_MAX: Final = 8192
_BLOCK_BYTES: Final = MIB
_LENGTH_BYTES: Final = 4
_TAIL_BYTES: Final = _LENGTH_BYTES + KEY_BYTES + SIGNATURE_BYTES
_FIRST_LOCAL: Final = LocalNumber(1)
_NO_LOCAL: Final = LocalNumber(0)
_NO_SEQ: Final = Seq(0)


class BundleCorrupt(CorruptionError):  # noqa: N818  (the field's word; the kind is in the base)
    """A bundle is not, byte for byte, what its signer wrote, or contradicts itself."""


class Reason(IntEnum):
    """Why the frames lost."""

    DEPOSED = 1
    """Another node became the writer, and the voters agreed on another frame."""

    FOREIGN = 2
    """Somebody wrote into a file that was fenced, or it was changed while no fence was held."""

    FORCED = 3
    """They were final, and the operator accepted a forced lineage that does not have them."""

    REPLACED = 4
    """The database file was replaced by another, and the operator kept the chain's."""

    @property
    def words(self) -> str:
        """What people are told."""
        return {
            Reason.DEPOSED: "deposed",
            Reason.FOREIGN: "foreign commit",
            Reason.FORCED: "was final",
            Reason.REPLACED: "file replaced",
        }[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFacts:
    """What a bundle says of its frames.

    ``kept_*`` is the place before the first of them: its seq, hash and state root. ``page_size``
    and ``db_pages`` are those of the database there, 0 and 0 when there was none or nobody knows.
    ``first_local`` to ``last_local`` are this node's commits in it (last = first - 1: none). Frames
    from ``unproposed_seq`` on were never proposed to anybody (0: all were). ``detail`` is one
    sentence for people.
    """

    shard: ShardId
    lineage: Lineage
    kept_seq: Seq
    kept_hash: FrameHash
    kept_root: StateRoot
    page_size: int
    db_pages: int
    reason: Reason
    created_ns: TimestampNs
    first_local: LocalNumber = _FIRST_LOCAL
    last_local: LocalNumber = _NO_LOCAL
    unproposed_seq: Seq = _NO_SEQ
    detail: str = ""

    @property
    def name(self) -> str:
        """The bundle's name within its shard, and the end of its id."""
        return f"{self.created_ns}-{self.kept_seq}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was read and proven. Frames and pages are read from its file when asked for.

    ``heads`` are those of the frames, in order; ``pages`` counts the images in all of them.
    """

    path: Path
    facts: BundleFacts
    heads: tuple[Head, ...]
    commits: int
    pages: int
    certificate: Certificate | None
    before_pages: int
    size_bytes: int
    public: PublicKeyBytes
    _frame_places: tuple[tuple[int, int], ...]
    _before_places: tuple[tuple[int, int], ...]

    @property
    def id(self) -> str:
        """What `basenet orphans` calls it."""
        return f"{self.facts.shard}/{self.facts.name}"

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in order; raise `BundleCorrupt` if the file is another by now."""
        with _translating(self.path), self.path.open("rb") as file:
            for head, place in zip(self.heads, self._frame_places, strict=True):
                frame = _decode_frame(_read_at(file, place, self.path), self.path)
                if frame.head.hash != head.hash:
                    raise BundleCorrupt(f"{self.path} changed while it was read.")
                yield frame

    def before_images(self) -> Iterator[CommitPayload]:
        """Yield the pages at the kept place, as far as the bundle has them, ascending."""
        with _translating(self.path), self.path.open("rb") as file:
            for place in self._before_places:
                yield _decode_before(_read_at(file, place, self.path), self.path)


# -- writing -------------------------------------------------------------------------------------


def write_bundle(
    directory: Path,
    facts: BundleFacts,
    frames: Iterable[bytes],
    *,
    certificate: Certificate | None,
    signer: AnySigner,
    before: Iterable[CommitPayload] = (),
) -> Path:
    """Write the bundle of the encoded ``frames`` below ``directory``; durable when it returns.

    ``directory``: the folder `FOLDER` of the data directory, made if needed. ``certificate``: the
    one that killed them, None when there is none. ``before``: pages at the kept place, ascending
    over all pieces of at most 4 MiB, each with the database's size there.

    Returns the path. The same bundle again (a repeat after a crash) gives the path of the first.
    Raises `UnavailableError` when the disk refuses, `ConflictError` when another has the name.
    """
    assert len(facts.detail.encode()) <= DETAIL_BYTES_MAX, "a detail is a sentence"
    folder = directory / facts.shard
    path = folder / f"{facts.name}{SUFFIX}"
    with _translating(path):
        _make_folder(folder)
        for left in folder.glob(".*.partial"):
            left.unlink()  # of a process that was killed: a data directory has one daemon
        partial = folder / f".{facts.name}.{secrets.token_hex(8)}.partial"
        try:
            _write(partial, _encode(facts, frames, certificate, before), signer)
            # What cannot be read back is no reason to roll anything back.
            written = read_bundle(partial, frozenset({signer.public}))
            assert written.facts == facts, "a bundle that says what it was not told"
            _give_name(partial, path, written)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(folder)
    return path


def _make_folder(folder: Path) -> None:
    """Make the folder of a shard and the one above it, durable, for their owner alone."""
    for each in (folder.parent, folder):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(each.parent)


def _write(path: Path, pieces: Iterable[bytes], signer: AnySigner) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        digest = sha256()
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
        digest.update(signer.public)
        file.write(signer.public)
        file.write(signer.sign(_DOMAIN + digest.digest()))
        file.flush()
        os.fsync(file.fileno())


def _encode(
    facts: BundleFacts,
    frames: Iterable[bytes],
    certificate: Certificate | None,
    before: Iterable[CommitPayload],
) -> Iterator[bytes]:
    """Yield everything before the signer's key."""
    detail = facts.detail.encode()
    yield b"".join(
        (
            MAGIC,
            u16(VERSION),
            u8(facts.reason),
            i64(facts.created_ns),
            facts.lineage,
            u64(facts.kept_seq),
            facts.kept_hash,
            facts.kept_root,
            u32(facts.page_size),
            u32(facts.db_pages),
            u64(facts.first_local),
            u64(facts.last_local),
            u64(facts.unproposed_seq),
            encode_shard_id(facts.shard),
            u16(len(detail)),
            detail,
        )
    )
    for record in frames:
        yield u32(len(record))
        yield record
    if certificate is not None:
        record = encode_certificate(certificate)
        yield u32(len(record)) + record
    for images in before:
        record = u8(BEFORE_RECORD_VERSION) + encode_commit(images)
        yield u32(len(record)) + record
    yield u32(0)


def _give_name(partial: Path, path: Path, written: Bundle) -> None:
    """Give the bundle its name, unless that of an equal one stands there already."""
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        there = read_bundle(path, frozenset({written.public}))
        hashes = [head.hash for head in there.heads]
        if there.facts != written.facts or hashes != [head.hash for head in written.heads]:
            raise ConflictError(
                f"{path} is another bundle of the same moment and place; nothing was overwritten."
            ) from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- finding -------------------------------------------------------------------------------------


def list_bundles(directory: Path, shard: str | None = None) -> list[Path]:
    """Return the bundles below ``directory``, of one shard or of all, oldest first of each shard.

    What is being written, or was left half written, is no bundle.
    """
    found = [
        path
        for path in directory.glob(f"*/*{SUFFIX}")
        if not path.name.startswith(".") and shard in (None, path.parent.name)
    ]
    return sorted(found, key=lambda path: (path.parent.name, _created_ns(path), path.name))


def find_bundle(directory: Path, identity: str) -> Path:
    """Return the bundle that ``identity`` names, ``shard/name`` or an unambiguous ``name``.

    Raises `NotFoundError` if there is none, `ConflictError` if there are several.
    """
    shard, _, name = identity.rpartition("/")
    name = name.removesuffix(SUFFIX)
    found = [path for path in list_bundles(directory, shard or None) if path.stem == name]
    if not found:
        raise NotFoundError(
            f"there is no orphan bundle {identity!r} in {directory}: `basenet orphans list` shows "
            "what is there."
        )
    if len(found) > 1:
        raise ConflictError(
            f"several shards have a bundle {identity!r}: write it with its shard, such as "
            f"{found[0].parent.name}/{name}."
        )
    return found[0]


def _created_ns(path: Path) -> int:
    digits = path.stem.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


# -- reading -------------------------------------------------------------------------------------


def read_bundle(path: Path, trusted: AbstractSet[bytes]) -> Bundle:
    """Read and prove the bundle at ``path``, signed by one of the ``trusted`` keys.

    Raises `NotFoundError`, `UntrustedKey`, and `BundleCorrupt` for everything that is not, byte for
    byte, as its signer wrote it.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no orphan bundle {path}.") from error
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read: {error.strerror}.") from error
    with _translating(path), file:
        size, public = _verify(file, path, trusted)
        file.seek(0)
        return _decode(file, path, size, public)


def _verify(file: BinaryIO, path: Path, trusted: AbstractSet[bytes]) -> tuple[int, PublicKeyBytes]:
    """Return the size and the signer's key once the signature over all of it holds."""
    size = os.fstat(file.fileno()).st_size
    if size < len(MAGIC) + _TAIL_BYTES or file.read(len(MAGIC)) != MAGIC:
        raise BundleCorrupt(f"{path} is no orphan bundle: it does not start with BNOB.")
    digest = sha256(MAGIC)
    left = size - SIGNATURE_BYTES - len(MAGIC)
    last = b""
    while left:
        block = file.read(min(left, _BLOCK_BYTES))
        if not block:
            raise BundleCorrupt(f"{path} was cut while it was read.")
        digest.update(block)
        left -= len(block)
        last = (last + block)[-KEY_BYTES:]
    signature = file.read()
    if last not in trusted:
        raise UntrustedKey(
            f"{path} is signed by the key {get_fingerprint(last)}, which is not trusted: give its "
            "public key with --trusted-keys FILE or BASE_TRUSTED_KEYS."
        )
    if not is_signed(last, signature, _DOMAIN + digest.digest()):
        raise BundleCorrupt(f"{path} is damaged: its signature does not fit its bytes.")
    return size, PublicKeyBytes(last)


class _Records:
    """What the records of a bundle turn out to be, judged one by one in their order."""

    def __init__(self, path: Path, facts: BundleFacts) -> None:
        self._path = path
        self._facts = facts
        self.heads: list[Head] = []
        self.frame_places: list[tuple[int, int]] = []
        self.before_places: list[tuple[int, int]] = []
        self.certificate: Certificate | None = None
        self.commits = self.pages = self.before_pages = 0
        self._before_pgno = 0

    def take(self, record: bytes, place: tuple[int, int]) -> None:
        """Take the next record, which lies at ``place``: its offset and length."""
        version = record[0]
        if version == FRAME_VERSION and self.certificate is None and not self.before_places:
            self._take_frame(_decode_frame(record, self._path))
            self.frame_places.append(place)
        elif version == CERT_RECORD_VERSION and self.certificate is None:
            self._take_certificate(record)
        elif version == BEFORE_RECORD_VERSION:
            self._take_before(_decode_before(record, self._path))
            self.before_places.append(place)
        else:
            self._refuse(f"a record of version {version} where none may stand; upgrade basenet")

    def finish(self) -> None:
        """Judge the whole."""
        if not self.heads:
            self._refuse("it has no frame")
        unproposed = self._facts.unproposed_seq
        if unproposed and not self.heads[0].seq <= unproposed <= self.heads[-1].seq:
            self._refuse(f"it has no frame {unproposed}, the first that was never proposed")

    def _take_frame(self, frame: Frame) -> None:
        head, facts = frame.head, self._facts
        if head.shard != facts.shard:
            self._refuse(f"frame {head.seq} is of shard {head.shard!r}")
        if self.heads:
            check_link(self.heads[-1], head)
        elif (head.seq, head.prev_hash) != (facts.kept_seq + 1, facts.kept_hash):
            self._refuse(f"frame {head.seq} does not follow the kept frame {facts.kept_seq}")
        if not head.is_signed_by_author():
            self._refuse(f"the author's signature of frame {head.seq} is wrong")
        if head.kind == Kind.COMMIT:
            summary = decode_commit_summary(frame.payload)
            self.commits += summary.commits
            self.pages += len(summary.pgnos)
        self.heads.append(head)

    def _take_certificate(self, record: bytes) -> None:
        self.certificate = decode_certificate(record)
        height, facts = self.certificate.height, self._facts
        if height < facts.kept_seq:
            self._refuse(f"its CERT is of frame {height}, which it does not contradict")
        if height == facts.kept_seq:
            # A later view made the kept frame final: nothing of an earlier one can follow it.
            is_later = (self.certificate.epoch, self.certificate.view) > self._turn
            if self.certificate.hash != facts.kept_hash or not is_later:
                self._refuse(f"its CERT is of the kept frame {height}, and not of a later view")
        index = height - facts.kept_seq - 1
        if index < len(self.heads) and self.heads[index].hash == self.certificate.hash:
            self._refuse(f"its CERT makes its own frame {height} final")

    @property
    def _turn(self) -> tuple[int, int]:
        """The epoch and view of the first lost frame."""
        return (self.heads[0].epoch, self.heads[0].view) if self.heads else (0, 0)

    def _take_before(self, images: CommitPayload) -> None:
        facts = self._facts
        if (images.page_size, images.db_pages) != (facts.page_size, facts.db_pages):
            self._refuse("pages of another database size than at the kept place")
        if not len(images.pgnos) or images.pgnos[0] <= self._before_pgno:
            self._refuse("pages of the kept place that do not ascend")
        self._before_pgno = int(images.pgnos[-1])
        self.before_pages += len(images.pgnos)

    def _refuse(self, problem: str) -> NoReturn:
        raise BundleCorrupt(f"{self._path} contradicts itself: {problem}.")


def _decode(file: BinaryIO, path: Path, size: int, public: PublicKeyBytes) -> Bundle:
    """Decode a bundle whose signature holds."""
    reader = Reader(file.read(_HEADER_BYTES_MAX), error=BundleCorrupt, what=str(path))
    facts = _decode_header(reader)
    offset, end = reader.offset, size - KEY_BYTES - SIGNATURE_BYTES
    records = _Records(path, facts)
    while True:
        place = (offset + _LENGTH_BYTES, _read_length(file, offset, end, path))
        if not place[1]:
            break
        try:
            records.take(_read_at(file, place, path), place)
        except BundleCorrupt:
            raise
        except CorruptionError as error:
            raise BundleCorrupt(f"{path} is damaged: {error}") from error
        offset = sum(place)
    if place[0] != end:
        raise BundleCorrupt(f"{path} has {end - place[0]} bytes behind its last record.")
    records.finish()
    return Bundle(
        path=path,
        facts=facts,
        heads=tuple(records.heads),
        commits=records.commits,
        pages=records.pages,
        certificate=records.certificate,
        before_pages=records.before_pages,
        size_bytes=size,
        public=public,
        _frame_places=tuple(records.frame_places),
        _before_places=tuple(records.before_places),
    )


def _decode_header(reader: Reader) -> BundleFacts:
    reader.take(len(MAGIC))
    version = reader.u16()
    if version != VERSION:
        raise reader.fail(f"version {version} is unknown; upgrade basenet")
    reason = reader.u8()
    if reason not in tuple(Reason):
        raise reader.fail(f"reason {reason} is unknown; upgrade basenet")
    fields: dict[str, Any] = {
        "reason": Reason(reason),
        "created_ns": TimestampNs(reader.i64()),
        "lineage": Lineage(reader.take(LINEAGE_BYTES)),
        "kept_seq": Seq(reader.u64()),
        "kept_hash": FrameHash(reader.take(HASH_BYTES)),
        "kept_root": StateRoot(reader.take(HASH_BYTES)),
        "page_size": reader.u32(),
        "db_pages": reader.u32(),
        "first_local": LocalNumber(reader.u64()),
        "last_local": LocalNumber(reader.u64()),
        "unproposed_seq": Seq(reader.u64()),
        "shard": reader.shard_id(),
    }
    detail = reader.take(reader.u16())
    if len(detail) > DETAIL_BYTES_MAX:
        raise reader.fail("its detail is too long")
    return BundleFacts(**fields, detail=detail.decode(errors="replace"))


def _read_length(file: BinaryIO, offset: int, end: int, path: Path) -> int:
    """Return the length of the record at ``offset``, 0 behind the last one."""
    reader = Reader(
        _read_at(file, (offset, _LENGTH_BYTES), path), error=BundleCorrupt, what=str(path)
    )
    length = reader.u32()
    if offset + _LENGTH_BYTES + length > end or length > RECORD_BYTES_MAX:
        raise BundleCorrupt(f"{path} is damaged: a record at byte {offset} goes beyond its end.")
    return length


def _read_at(file: BinaryIO, place: tuple[int, int], path: Path) -> bytes:
    offset, length = place
    data = os.pread(file.fileno(), length, offset)
    if len(data) != length:
        raise BundleCorrupt(f"{path} ends within a record at byte {offset}.")
    return data


def _decode_frame(record: bytes, path: Path) -> Frame:
    try:
        frame = decode_frame(record)
    except CorruptionError as error:
        raise BundleCorrupt(f"{path} is damaged: {error}") from error
    if not isinstance(frame, Frame):
        raise BundleCorrupt(f"{path} holds a frame of version 1, which no chain has.")
    return frame


def _decode_before(record: bytes, path: Path) -> CommitPayload:
    try:
        return decode_commit(memoryview(record)[1:])
    except CorruptionError as error:
        raise BundleCorrupt(f"{path} is damaged: {error}") from error


@contextmanager
def _translating(path: Path) -> Iterator[None]:
    try:
        yield
    except BasenetError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UnavailableError(
                f"there is no room for the orphan bundle {path} ({error.strerror}): make some; "
                "nothing is rolled back before it is kept."
            ) from error
        raise UnavailableError(f"{path} cannot be used: {error.strerror}.") from error
