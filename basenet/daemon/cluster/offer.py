"""A state on offer: what is sent of it, and what the receiver believes of that.

Theory of operation
===================

A node that lacks a state believes one thing: who decides in some epoch of the lineage (`Electors`),
since it knows the genesis or holds a final CONFIG. Everything else is proven from there::

    Electors --CONFIG, certificate--> Electors --...--> of the offered frame's epoch
                                                                    │ certificate
                                                        final frame, its state root
                                                                    │ SHA256
                              page size, number of pages, part hashes (`wire.leafparts`)
                                                                    │ SHA256
                                                               leaf hashes ── pages

So it does not matter who sends any of it, and every wrong piece is known when it arrives. An offer
holds a bounded number of CONFIGs; when they do not reach the frame's epoch, they are believed
nevertheless, and the next ask begins at the last of them.

Nothing that an offer says and `prove` did not verify leaves this file: the certificate beside a
frame that a believed CONFIG proves already is dropped.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from basenet.errors import CorruptionError, PeerError
from basenet.units import HASH_BYTES, Epoch, FrameHash, Seq
from basenet.wire.certificate import Certificate, Verify
from basenet.wire.finality import Electors, Succession, succeed, verify_final
from basenet.wire.frame import (
    Frame,
    Head,
    Kind,
    decode_frame,
    decode_head,
    encode_head,
    genesis_prev_hash,
)
from basenet.wire.leafparts import PART_BYTES, PART_PAGES, parts_of_groups, root_of_parts
from basenet.wire.merkle import StateTree
from basenet.wire.payload import ConfigPayload, decode_config
from basenet.wire.signature import is_signed
from basenet.wire.transfer import CONFIGS_MAX, STATE_PAGES_MAX, StateOffer

ConfigPiece = tuple[bytes, Certificate | None]
"""The record of a CONFIG frame, and the certificate of that frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalState:
    """What a node has: the last whole final frame, its certificate, the leaves after it.

    ``tree`` is live: it is read at once, and never changed by who asked for it.
    """

    head: Head
    certificate: Certificate | None
    tree: StateTree


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenState:
    """A state that stands still while it is sent. ``leaves``, ``groups``: hashes end to end."""

    head: Head
    certificate: Certificate | None
    page_size: int
    leaves: bytes
    groups: bytes

    @property
    def db_pages(self) -> int:
        """How many pages the database has."""
        return len(self.leaves) // HASH_BYTES

    def part(self, first_page: int) -> bytes:
        """Return the leaves of the part that begins with ``first_page``; b"" beyond the end."""
        start = (first_page - 1) * HASH_BYTES
        return self.leaves[start : start + PART_BYTES]


def freeze(state: FinalState) -> FrozenState:
    """Return a copy: 34 bytes a page."""
    return FrozenState(
        head=state.head,
        certificate=state.certificate,
        page_size=state.tree.page_size,
        leaves=bytes(state.tree.leaves),
        groups=bytes(state.tree.groups),
    )


def make_offer(
    number: int, state: FrozenState, chain: Iterable[ConfigPiece], epoch: Epoch
) -> StateOffer | None:
    """Return the answer to an ask from ``epoch``; None when nobody could believe the state.

    ``chain``: the CONFIGs of the lineage, ascending; the genesis may be among them. A state is
    beyond belief when its leaves are not those that its frame is certified with (P19), when its
    certificate is of another frame, or when it is too large for an offer.
    """
    head, certificate = state.head, state.certificate
    if state.db_pages > STATE_PAGES_MAX:
        return None
    if certificate is not None and certificate.hash != head.hash:
        return None
    parts = parts_of_groups(state.groups)
    if root_of_parts(state.page_size, state.db_pages, parts) != head.state_root:
        return None
    return StateOffer(
        number=number,
        head=encode_head(head),
        certificate=certificate,
        page_size=state.page_size,
        db_pages=state.db_pages,
        parts=parts,
        configs=tuple(_since(epoch, head.seq, chain)),
    )


def _since(epoch: Epoch, last: Seq, chain: Iterable[ConfigPiece]) -> list[ConfigPiece]:
    """Return the first CONFIGs that ended ``epoch`` and later ones, none above ``last``."""
    pieces: list[ConfigPiece] = []
    for record, certificate in chain:
        frame = decode_frame(record)
        assert isinstance(frame, Frame), "a frame of version 1 in a lineage"
        is_genesis = frame.head.prev_hash == genesis_prev_hash(frame.payload)
        if frame.head.epoch >= epoch and frame.head.seq <= last and not is_genesis:
            pieces.append((record, certificate))
        if len(pieces) == CONFIGS_MAX:
            break
    return pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenConfig:
    """A CONFIG that an offer brought and proved. ``record`` is its frame, encoded."""

    head: Head
    record: bytes
    config: ConfigPayload
    certificate: Certificate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """What an offer has proven.

    ``electors``: who decides after ``configs``, ascending. ``target``: the state; None when the
    configs end before its epoch, so that it is to be asked for again from ``electors``.
    """

    electors: Electors
    configs: tuple[ProvenConfig, ...]
    target: "Target | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A state that is known to be final, of which the leaves are wanted.

    ``record``: the HEAD record. ``parts``: as in `StateOffer`, one each.
    """

    head: Head
    record: bytes
    certificate: Certificate | None
    page_size: int
    db_pages: int
    parts: tuple[bytes, ...]

    @property
    def place(self) -> tuple[Seq, FrameHash]:
        """Where it stands in the history."""
        return self.head.seq, self.head.hash

    def part_length(self, index: int) -> int:
        """Return how many bytes of leaf hashes part ``index`` has."""
        pages = min(PART_PAGES, self.db_pages - index * PART_PAGES)
        return pages * HASH_BYTES


def prove(offer: StateOffer, electors: Electors, *, verify: Verify = is_signed) -> Proven:
    """Return what ``offer`` proves to somebody who believes ``electors``.

    Raises `PeerError` if anything in it is wrong, or proves nothing.
    """
    try:
        return _prove(offer, electors, verify)
    except CorruptionError as error:
        raise PeerError(f"the peer offers a state that it cannot prove: {error}") from error


def _prove(offer: StateOffer, electors: Electors, verify: Verify) -> Proven:
    head = decode_head(offer.head)
    root = root_of_parts(offer.page_size, offer.db_pages, offer.parts)
    if root != head.state_root:
        raise PeerError(
            f"the parts that the peer offers make the state root {root.hex()}, and frame "
            f"{head.seq} has {head.state_root.hex()}"
        )
    now, configs = _follow(offer.configs, electors, verify)
    certificate = offer.certificate
    if head.hash == now.head.hash:
        # The epoch's own CONFIG is final by what proved it; whatever stands beside it says nothing.
        certificate = configs[-1].certificate if configs else None
    elif head.epoch > now.epoch:
        if not configs:
            raise PeerError(
                f"the peer offers a frame of epoch {head.epoch} and no CONFIG after that of "
                f"epoch {now.epoch}"
            )
        return Proven(electors=now, configs=configs, target=None)
    else:
        verify_final(now, [head], certificate, verify=verify)
    parts = offer.parts
    target = Target(
        head=head,
        record=offer.head,
        certificate=certificate,
        page_size=offer.page_size,
        db_pages=offer.db_pages,
        parts=tuple(
            parts[start : start + HASH_BYTES] for start in range(0, len(parts), HASH_BYTES)
        ),
    )
    return Proven(electors=now, configs=configs, target=target)


def _follow(
    pieces: Sequence[ConfigPiece], electors: Electors, verify: Verify
) -> tuple[Electors, tuple[ProvenConfig, ...]]:
    """Return who decides after ``pieces``, all of them verified, and what they are."""
    configs: list[ProvenConfig] = []
    for record, certificate in pieces:
        frame = decode_frame(record)
        if not isinstance(frame, Frame) or frame.head.kind != Kind.CONFIG:
            raise PeerError("the peer shows a frame as a CONFIG that is none")
        config = decode_config(frame.payload)
        shown = Succession(head=frame.head, config=config, certificate=certificate)
        electors = succeed(electors, shown, verify=verify)
        configs.append(
            ProvenConfig(head=frame.head, record=record, config=config, certificate=certificate)
        )
    return electors, tuple(configs)
