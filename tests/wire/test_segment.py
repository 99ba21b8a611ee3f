"""LBN2 objects."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.errors import SegmentCorrupt, SegmentUnsigned, UntrustedKey
from basenet.units import MIB, FrameHash, Lineage, PublicKeyBytes, Seq, ShardId
from basenet.wire import segment as lbn2
from basenet.wire.certificate import Certificate, encode_certificate
from basenet.wire.frame import Flag, Frame, FrameV1, Head, decode_frame, encode_frame, encode_head
from basenet.wire.segment import (
    EpochRecord,
    PageSetRecord,
    Role,
    TreeRecord,
    check_identity,
    decode_epoch,
    decode_segment,
    decode_tree,
    encode_epoch,
    encode_segment,
    encode_tree,
    pack_frames,
    service_hash,
)
from basenet.wire.signature import Signer

MakeFrame = Callable[..., Frame]
SHARD, LINEAGE = ShardId("orders"), Lineage(b"l" * 16)
PAGESET = b"\5 its body is decoded by wire.pageset"


def epoch_of(role: Role = Role.LOG, **fields: Any) -> bytes:
    facts: dict[str, Any] = {
        "archive_epoch": 4,
        "lineage": LINEAGE,
        "writer": PublicKeyBytes(b"w" * 32),
        "service_hash": service_hash("shop"),
    }
    return encode_epoch(EpochRecord(role=role, **facts | fields))


def certificate_of(head: Head, **fields: Any) -> bytes:
    facts: dict[str, Any] = {"height": head.seq, "hash": head.hash}
    votes = ((PublicKeyBytes(b"k" * 32), b"s" * 64),)
    facts |= {"phase": 1, "epoch": 1, "view": 0, "votes": votes}
    return encode_certificate(Certificate(**facts | fields))


def old_frame(seq: int) -> bytes:
    """Return a version 1 frame, written from the layout alone."""
    place, payload = seq.to_bytes(8, "big") + (seq - 1).to_bytes(8, "big"), b"rows"
    cksm = sha256(b"orders" + place + b"s" * 16 + payload).digest()
    return b"\1\0\6orders" + place + bytes(8) + b"s" * 16 + b"\0\0\0\4" + payload + cksm


class Objects:
    """Builds objects of the shard "orders" around frame 7, signed by one trusted key."""

    def __init__(self, signer: Signer, make_frame: MakeFrame) -> None:
        self.signer = signer
        self.trusted = {signer.public}
        first = make_frame()
        later_ns = first.head.timestamp_ns + 1
        second = make_frame(seq=8, prev_hash=first.head.hash, timestamp_ns=later_ns)
        self.frames = [first, second]
        self.head = first.head
        self.encoded = [encode_frame(frame) for frame in self.frames]

    def seal(self, *records: bytes, count: int = 0, start: int = 7, shard: str = "orders") -> bytes:
        return encode_segment(
            shard=ShardId(shard),
            start_seq=Seq(start),
            count=count,
            records=records,
            signer=self.signer,
        )

    def log(self) -> bytes:
        return self.seal(epoch_of(), *self.encoded, count=2)

    def packed(self) -> bytes:
        return self.seal(epoch_of(), *pack_frames(self.encoded), count=2)

    def page_set(self) -> bytes:
        return self.seal(epoch_of(Role.PAGE_SET), encode_head(self.head), PAGESET)

    def tip(self) -> bytes:
        return self.seal(epoch_of(Role.TIP), encode_head(self.head))

    def decode(self, data: bytes) -> lbn2.Segment:
        return decode_segment(data, trusted=self.trusted, what="object x.lbn")

    def sign_again(self, body: bytes) -> bytes:
        """Return ``body`` (up to the crc) as an object that is rightly signed."""
        body += crc32(body).to_bytes(4, "big") + self.signer.public
        return body + self.signer.sign(body)


@pytest.fixture(scope="session")
def objects(signer: Signer, make_frame: MakeFrame) -> Objects:
    return Objects(signer, make_frame)


def test_the_layout_is_that_of_the_format(objects: Objects) -> None:
    """Every byte of a TIP, written from the words of the format."""
    epoch, head = epoch_of(Role.TIP), encode_head(objects.head)
    body = b"LBN2\0\6orders" + (7).to_bytes(8, "big") + bytes(4)
    body += len(epoch).to_bytes(4, "big") + epoch + len(head).to_bytes(4, "big") + head
    assert objects.tip() == objects.sign_again(body)
    expected = b"\4" + (4).to_bytes(8, "big") + LINEAGE + b"w" * 32 + b"\3"
    assert epoch == expected + sha256(b"shop").digest()


def test_a_log_object_comes_back(objects: Objects) -> None:
    """Frames, certificates and the tree record, in their order."""
    certificate = certificate_of(objects.frames[1].head)
    tree = encode_tree(TreeRecord(groups=((0, b"g" * 32), (9, b"h" * 32))))
    data = objects.seal(epoch_of(), *objects.encoded, certificate, tree, count=2)
    segment = objects.decode(data)
    assert (segment.shard, segment.start_seq, segment.end_seq) == (SHARD, 7, 8)
    assert segment.frames == objects.frames
    assert segment.public == objects.signer.public
    assert segment.epoch == EpochRecord(
        archive_epoch=4,
        lineage=LINEAGE,
        writer=PublicKeyBytes(b"w" * 32),
        role=Role.LOG,
        service_hash=sha256(b"shop").digest(),
    )
    assert segment.certificates == [segment.records[3]]
    assert isinstance(segment.records[3], Certificate)
    assert segment.records[4] == TreeRecord(groups=((0, b"g" * 32), (9, b"h" * 32)))


def test_a_page_set_and_a_tip_come_back(objects: Objects) -> None:
    """They count no frames and start at their HEAD (Q21)."""
    manifest, tip = objects.decode(objects.page_set()), objects.decode(objects.tip())
    assert manifest.records[1:] == (objects.head, PageSetRecord(data=PAGESET[1:]))
    assert tip.records[1:] == (objects.head,)
    assert (tip.start_seq, tip.count, tip.end_seq, tip.frames) == (7, 0, 7, [])
    voted = certificate_of(objects.head)
    head = encode_head(objects.head)
    objects.decode(objects.seal(epoch_of(Role.TIP), head, voted))
    objects.decode(objects.seal(epoch_of(Role.PAGE_SET), head, voted, PAGESET))


def test_an_object_of_version_1_frames_comes_back_without_epoch(objects: Objects) -> None:
    """What the followed system wrote stays readable, once its key is trusted."""
    segment = objects.decode(objects.seal(old_frame(7), old_frame(8), count=2))
    assert segment.records == (decode_frame(old_frame(7)), decode_frame(old_frame(8)))
    assert all(isinstance(record, FrameV1) for record in segment.records)
    assert (segment.epoch, segment.frames, segment.end_seq) == (None, [], 8)
    with pytest.raises(SegmentCorrupt, match="has no EPOCH"):
        check_identity(
            segment, service="shop", shard=SHARD, lineage=LINEAGE, role=Role.LOG, what="object y"
        )


def test_nothing_is_written_unsigned_or_read_without_trust(objects: Objects) -> None:
    """Fail closed, both ways."""
    with pytest.raises(SegmentUnsigned, match="never written unsigned"):
        encode_segment(shard=SHARD, start_seq=Seq(7), count=0, records=[], signer=None)
    with pytest.raises(SegmentUnsigned, match="no trusted keys"):
        decode_segment(objects.tip(), trusted=None)
    with pytest.raises(
        UntrustedKey, match=r"object x\.lbn is signed by the key SHA256:[A-Za-z0-9+/]{43}, which"
    ):
        decode_segment(objects.tip(), trusted=set(), what="object x.lbn")


def test_a_strangers_object_is_untrusted(objects: Objects, stranger: Signer) -> None:
    """Also one that carries a trusted key beside a signature of another."""
    body = objects.tip()[:-96]
    own = body + stranger.public
    with pytest.raises(UntrustedKey):
        objects.decode(own + stranger.sign(own))
    borrowed = body + objects.signer.public
    with pytest.raises(SegmentCorrupt, match="signature is wrong"):
        objects.decode(borrowed + stranger.sign(borrowed))


@pytest.mark.parametrize("kind", ["log", "packed", "page_set", "tip"])
def test_one_changed_byte_anywhere_is_refused(
    objects: Objects, mutations: Callable[[bytes], Iterator[bytes]], kind: str
) -> None:
    """Every byte, every truncation, every extension; the error is typed and names the object."""
    for damaged in mutations(getattr(objects, kind)()):
        with pytest.raises((SegmentCorrupt, UntrustedKey), match=r"object x\.lbn"):
            objects.decode(damaged)


@pytest.mark.parametrize("kind", ["log", "packed", "page_set", "tip"])
def test_one_changed_byte_that_is_signed_again_raises_nothing_else(
    objects: Objects, mutations: Callable[[bytes], Iterator[bytes]], kind: str
) -> None:
    """What is behind crc and signature withstands a trusted writer that is broken or hostile."""
    body: bytes = getattr(objects, kind)()[:-100]
    accepted, problems = 0, set[str]()
    for damaged in mutations(body):
        try:
            objects.decode(objects.sign_again(damaged))
        except SegmentCorrupt as error:
            problems.add(str(error).partition(" ")[2])
        else:
            accepted += 1
    assert all(problem.startswith("x.lbn") for problem in problems)
    assert accepted, "the fields of EPOCH and of the trailers are free"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_many_changes_that_are_signed_again_raise_nothing_else(
    objects: Objects, data: st.DataObject
) -> None:
    """Slices moved, doubled and dropped in a rightly signed object."""
    body = data.draw(st.sampled_from([objects.log(), objects.packed()]))[:-100]
    for _ in range(data.draw(st.integers(1, 4))):
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(body))] * 2)))
        piece = data.draw(st.sampled_from([b"", body[start:end] * 2, b"\xff" * 4, b"\0" * 8]))
        body = body[:start] + piece + body[end:]
    with suppress(SegmentCorrupt):
        objects.decode(objects.sign_again(body))


@given(st.binary(max_size=400))
def test_garbage_is_no_object(objects: Objects, garbage: bytes) -> None:
    """Only `SegmentCorrupt`, with the right magic, and also when it is rightly signed."""
    for data in (garbage, b"LBN2" + garbage, objects.sign_again(b"LBN2" + garbage)):
        with pytest.raises(SegmentCorrupt):
            objects.decode(data)


@pytest.mark.parametrize("magic", [b"LBN1", b"LBN3", b"lbn2", bytes(4)])
def test_another_magic_is_refused(objects: Objects, magic: bytes) -> None:
    """LBN1 was unsigned; whatever comes later needs another reader."""
    with pytest.raises(SegmentCorrupt, match="does not start with LBN2"):
        objects.decode(objects.sign_again(magic + objects.tip()[4:-100]))


def test_lengths_are_bounded_before_they_are_believed(objects: Objects) -> None:
    """A record of 4 GiB in an object of 200 bytes; an object above 64 MiB; one below 104 bytes."""
    start = objects.tip()[:24]
    tracemalloc.start()
    for length in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1"):
        with pytest.raises(SegmentCorrupt, match="expected, 0 left"):
            objects.decode(objects.sign_again(start + length))
    with pytest.raises(SegmentCorrupt, match="2 left"):
        objects.decode(objects.sign_again(start + b"\0\0"))
    with pytest.raises(SegmentCorrupt, match="version 0 is unknown"):
        objects.decode(objects.sign_again(start + bytes(4)))
    with pytest.raises(SegmentCorrupt, match="103 bytes are too few"):
        objects.decode(bytes(103))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
    with pytest.raises(SegmentCorrupt, match="too few or too many"):
        objects.decode(bytes(64 * MIB + 1))
    with pytest.raises(AssertionError):
        objects.seal(bytes(64 * MIB))


@pytest.mark.parametrize("version", [0, 9, 10, 255])
def test_an_unknown_record_is_refused(objects: Objects, version: int) -> None:
    """Nothing in a signed object is skipped."""
    head = encode_head(objects.head)
    data = objects.seal(epoch_of(Role.TIP), head, bytes([version]) + b"later")
    with pytest.raises(SegmentCorrupt, match=f"record version {version} is unknown"):
        objects.decode(data)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (epoch_of()[:-1], "31 left"),
        (epoch_of() + b"x", "1 bytes too many"),
        (epoch_of()[:57] + b"\0" + epoch_of()[58:], "role 0 is unknown"),
        (epoch_of()[:57] + b"\4" + epoch_of()[58:], "role 4 is unknown"),
        (b"\7" + bytes(35), "32 bytes expected, 31 left"),
        (b"\7" + bytes(37), "4 bytes expected, 1 left"),
        (b"\7" + bytes(72), "ascend strictly"),
        (b"\7\0\0\0\5" + bytes(32) + b"\0\0\0\4" + bytes(32), "ascend strictly"),
        (b"\3", "a CERT record is damaged"),
        (b"\2", "a frame record is damaged"),
        (b"\6", "a HEAD record is damaged"),
    ],
)
def test_a_malformed_record_is_refused(objects: Objects, record: bytes, problem: str) -> None:
    """The message names the record and the object."""
    with pytest.raises(SegmentCorrupt, match=rf"object x\.lbn .*{problem}"):
        objects.decode(objects.seal(record))


def test_a_record_is_decoded_only_as_what_it_is() -> None:
    """The first byte tells, also to who holds a record alone."""
    tree = TreeRecord(groups=((1, b"g" * 32),))
    assert decode_tree(encode_tree(tree)) == tree
    assert decode_epoch(epoch_of()).role == Role.LOG
    with pytest.raises(SegmentCorrupt, match="not an EPOCH record"):
        decode_epoch(encode_tree(tree))
    with pytest.raises(SegmentCorrupt, match="not a TREE record"):
        decode_tree(epoch_of())


def test_the_first_record_is_epoch_and_no_other_is(objects: Objects) -> None:
    """Without it a signed object could be served in any role (Q21)."""
    first, second = objects.encoded
    head = encode_head(objects.head)
    for data in (
        objects.seal(),
        objects.seal(first, second, count=2),
        objects.seal(first, epoch_of(), second, count=2),
        objects.seal(head, epoch_of(Role.TIP)),
    ):
        with pytest.raises(SegmentCorrupt, match="first record must be EPOCH"):
            objects.decode(data)
    for data in (
        objects.seal(epoch_of(), first, epoch_of(), second, count=2),
        objects.seal(epoch_of(), epoch_of(), first, second, count=2),
    ):
        with pytest.raises(SegmentCorrupt, match="a log object holds one EPOCH"):
            objects.decode(data)


def test_a_log_object_holds_what_a_log_holds(objects: Objects) -> None:
    """Frames of version 2, CERTs, and at the end TREE; nothing else, and not nothing."""
    first, second = objects.encoded
    tree, head = encode_tree(TreeRecord(groups=())), encode_head(objects.head)
    with pytest.raises(SegmentCorrupt, match="without frames"):
        objects.decode(objects.seal(epoch_of()))
    with pytest.raises(SegmentCorrupt, match="without frames"):
        objects.decode(objects.seal(epoch_of(), tree))
    for records in (
        (first, tree, second),
        (first, second, tree, tree),
        (first, second, head),
        (first, second, PAGESET),
        (old_frame(7), second),
        (old_frame(7), old_frame(8)),
    ):
        with pytest.raises(SegmentCorrupt, match="a log object holds"):
            objects.decode(objects.seal(epoch_of(), *records, count=2))


@pytest.mark.parametrize("role", [Role.TIP, Role.PAGE_SET])
def test_a_page_set_and_a_tip_hold_one_head_at_their_start(objects: Objects, role: Role) -> None:
    """And a page set one PAGESET; a frame has no business there."""
    head, end = encode_head(objects.head), [PAGESET] if role == Role.PAGE_SET else []
    epoch, voted = epoch_of(role), certificate_of(objects.head)
    for records in (
        [],
        end,
        [head, head, *end],
        [*end, head] if end else [head, PAGESET],
        [head, *end, PAGESET],
        [head, encode_tree(TreeRecord(groups=())), *end],
        [voted, head, *end],
    ):
        with pytest.raises(SegmentCorrupt, match=f"a {role.name} object holds"):
            objects.decode(objects.seal(epoch, *records))
    with pytest.raises(SegmentCorrupt, match="object holds"):
        objects.decode(objects.seal(epoch, head, objects.encoded[0], *end, count=1))
    with pytest.raises(SegmentCorrupt, match="HEAD is frame 7 of 'orders', not its start"):
        objects.decode(objects.seal(epoch, head, *end, start=8))
    with pytest.raises(SegmentCorrupt, match="HEAD is frame 7 of 'orders', not its start"):
        objects.decode(objects.seal(epoch, head, *end, shard="others"))
    with pytest.raises(SegmentCorrupt, match="it holds 0 frames and announces 1"):
        objects.decode(objects.seal(epoch, head, *end, count=1))


def test_no_page_set_and_no_tip_stands_inside_a_run(
    objects: Objects, make_frame: MakeFrame
) -> None:
    """There is no state there: a PARTIAL run is one transaction."""
    head = make_frame(flags=Flag.PARTIAL, state_root=bytes(32)).head
    with pytest.raises(SegmentCorrupt, match="inside a PARTIAL run"):
        objects.decode(objects.seal(epoch_of(Role.TIP), encode_head(head)))


def test_frames_stand_where_the_object_says(objects: Objects) -> None:
    """As many as announced, of its shard, from its start on without a gap."""
    first, second = objects.encoded
    epoch = epoch_of()
    for count in (0, 1, 3, (1 << 32) - 1):
        with pytest.raises(SegmentCorrupt, match=f"holds 2 frames and announces {count}"):
            objects.decode(objects.seal(epoch, first, second, count=count))
    for data in (
        objects.seal(epoch, second, first, count=2),
        objects.seal(epoch, first, first, count=2),
        objects.seal(epoch, first, second, count=2, start=6),
        objects.seal(epoch, first, second, count=2, shard="others"),
        objects.seal(old_frame(7), old_frame(9), count=2),
        objects.seal(old_frame(7), count=1, shard="others"),
    ):
        with pytest.raises(SegmentCorrupt, match="does not belong at"):
            objects.decode(data)


def test_a_certificate_speaks_of_a_frame_of_its_object(objects: Objects) -> None:
    """Its height lies in the object, and its hash is that frame's (Q21)."""
    first, second = objects.frames
    for wrong in (
        certificate_of(first.head, height=Seq(8)),
        certificate_of(first.head, height=Seq(6)),
        certificate_of(first.head, height=Seq(9)),
        certificate_of(second.head, hash=FrameHash(bytes(32))),
    ):
        with pytest.raises(SegmentCorrupt, match="speaks of another frame"):
            objects.decode(objects.seal(epoch_of(), *objects.encoded, wrong, count=2))
        with pytest.raises(SegmentCorrupt, match="speaks of another frame"):
            objects.decode(objects.seal(epoch_of(Role.TIP), encode_head(first.head), wrong))
    for right in (certificate_of(first.head), certificate_of(second.head)):
        objects.decode(objects.seal(epoch_of(), *objects.encoded, right, count=2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("service", "bank"),
        ("shard", ShardId("others")),
        ("lineage", Lineage(b"m" * 16)),
        ("role", Role.LOG),
    ],
)
def test_a_signed_object_under_another_name_is_refused(
    objects: Objects, field: str, value: Any
) -> None:
    """Another service, shard, lineage or role: the signature holds, the place does not (Q21)."""
    segment = objects.decode(objects.tip())
    facts: dict[str, Any] = {
        "service": "shop",
        "shard": SHARD,
        "lineage": LINEAGE,
        "role": Role.TIP,
    }
    assert check_identity(segment, **facts, what="object x") == segment.epoch
    with pytest.raises(SegmentCorrupt, match=f"object x was signed for another {field} "):
        check_identity(segment, **facts | {field: value}, what="object x")
