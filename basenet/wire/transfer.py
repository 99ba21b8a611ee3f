"""What nodes say to each other about a state: its leaf hashes and its pages.

Values only; who answers what, and what an answer is worth, is judged in the daemon. A state is what
the database held at one final frame. It moves in three questions (docs/formats/transfer.md)::

    StateAsk   ->  StateOffer    which state; proven by certificates from what the asker believes
    LeavesAsk  ->  Leaves        the leaf hashes of 4,096 pages; proven by the offer
    PagesAsk   ->  Pages         contents; proven by their leaf hashes, whoever sends them
               ->  StateRefused  to any of them

`ArchivedUpTo` is no answer: the writer tells what the archive holds, so that the others need not
keep it any longer.

``number`` is the asker's; an answer repeats it, so that one that comes late is never taken for
another's. As in `wire.message` every bound stands in the types, and no signature covers these
bytes.
"""

from enum import IntEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from basenet.units import (
    HASH_BYTES,
    KIB,
    MIB,
    PAGE_SIZE_MAX,
    PAGE_SIZE_MIN,
    is_page_size,
)
from basenet.wire.certificate import Certificate
from basenet.wire.fields import Count, EpochField, FrameHashField, HashField, SeqField
from basenet.wire.leafparts import PART_PAGES, part_count

STATE_PAGES_MAX: Final = 2**30
"""A database of more pages (4 TiB of 4 KiB pages) is not offered: its parts need room."""
CONFIGS_MAX: Final = 64
"""So many CONFIGs in one offer; who is further behind asks again from the last of them."""
ASKED_PAGES_MAX: Final = 256
PAGES_BYTES_MAX: Final = 4 * MIB
"""What one answer may weigh; pages beyond it are named missing."""

_PARTS_BYTES_MAX: Final = STATE_PAGES_MAX // PART_PAGES * HASH_BYTES
_HEAD_BYTES_MAX: Final = KIB
# A CONFIG of 31 voters with the longest ids takes 10 KiB, its head less than one.
_CONFIG_RECORD_BYTES_MAX: Final = 16 * KIB

_PageNumber = Annotated[int, Meta(ge=1, le=STATE_PAGES_MAX)]
_Content = Annotated[bytes, Meta(min_length=PAGE_SIZE_MIN, max_length=PAGE_SIZE_MAX)]


class Why(IntEnum):
    """Why an ask is refused."""

    BUSY = 1
    """Enough others are served now; ask again later."""
    NO_STATE = 2
    """There is no state above the asked one, or none that could be sent."""
    GONE = 3
    """The leaves of that state are no longer held: ask for a state again."""


class _Transfer(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True, kw_only=True
):
    """Of one shard in one lineage, which the envelope names."""

    number: Count


class StateAsk(_Transfer, frozen=True, kw_only=True):
    """Offer me your final state if it is above ``above_seq``.

    ``epoch``: which the newest CONFIG began that the asker holds as final (1: the genesis).
    """

    above_seq: SeqField
    epoch: EpochField


class StateOffer(_Transfer, frozen=True, kw_only=True):
    """The state after the final frame ``head``, and what proves it.

    ``head``: a HEAD record. ``certificate``: of that frame; None in an epoch of one voter.
    ``page_size`` in bytes, ``db_pages``, and ``parts`` (`wire.leafparts`): they make up the head's
    state root. ``configs``: (frame record, certificate) of the CONFIGs that ended the asked epoch
    and later ones, ascending; the first `CONFIGS_MAX` of them.
    """

    head: Annotated[bytes, Meta(max_length=_HEAD_BYTES_MAX)]
    certificate: Certificate | None
    page_size: Annotated[int, Meta(ge=0, le=PAGE_SIZE_MAX)]
    db_pages: Annotated[int, Meta(ge=0, le=STATE_PAGES_MAX)]
    parts: Annotated[bytes, Meta(max_length=_PARTS_BYTES_MAX)]
    configs: Annotated[
        tuple[
            tuple[Annotated[bytes, Meta(max_length=_CONFIG_RECORD_BYTES_MAX)], Certificate | None],
            ...,
        ],
        Meta(max_length=CONFIGS_MAX),
    ]

    def __post_init__(self) -> None:
        if self.page_size and not is_page_size(self.page_size):
            raise ValueError(f"{self.page_size} is no page size")
        if self.db_pages and not self.page_size:
            raise ValueError("pages without a page size")
        if len(self.parts) != part_count(self.db_pages) * HASH_BYTES:
            raise ValueError(f"{len(self.parts)} bytes of parts for {self.db_pages} pages")


class LeavesAsk(_Transfer, frozen=True, kw_only=True):
    """Send me the leaves from ``first_page`` on of the state that you offered at (seq, hash)."""

    seq: SeqField
    hash: FrameHashField
    first_page: _PageNumber

    def __post_init__(self) -> None:
        _check_first(self.first_page)


class Leaves(_Transfer, frozen=True, kw_only=True):
    """The leaf hashes of one part, end to end; only the last part has fewer than 4,096."""

    seq: SeqField
    hash: FrameHashField
    first_page: _PageNumber
    hashes: Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=PART_PAGES * HASH_BYTES)]

    def __post_init__(self) -> None:
        _check_first(self.first_page)
        if len(self.hashes) % HASH_BYTES:
            raise ValueError("a leaf hash was cut")


class PagesAsk(_Transfer, frozen=True, kw_only=True):
    """Send me the contents of these pages that have these leaf hashes; each page once."""

    pages: Annotated[
        tuple[tuple[_PageNumber, HashField], ...], Meta(min_length=1, max_length=ASKED_PAGES_MAX)
    ]

    def __post_init__(self) -> None:
        if len({pgno for pgno, _ in self.pages}) != len(self.pages):
            raise ValueError("a page is asked for twice")


class Pages(_Transfer, frozen=True, kw_only=True):
    """The contents that the sender has, and the numbers of those that it has not.

    Together each page that was asked for, once.
    """

    pages: Annotated[tuple[tuple[_PageNumber, _Content], ...], Meta(max_length=ASKED_PAGES_MAX)]
    missing: Annotated[tuple[_PageNumber, ...], Meta(max_length=ASKED_PAGES_MAX)]

    def __post_init__(self) -> None:
        if sum(len(content) for _, content in self.pages) > PAGES_BYTES_MAX:
            raise ValueError(f"more than {PAGES_BYTES_MAX} bytes of pages")
        pgnos = {pgno for pgno, _ in self.pages} | set(self.missing)
        if len(pgnos) != len(self.pages) + len(self.missing):
            raise ValueError("a page is answered twice")


class StateRefused(_Transfer, frozen=True, kw_only=True):
    """No answer, and why."""

    why: Why


class ArchivedUpTo(_Transfer, frozen=True, kw_only=True):
    """The archive holds every final frame up to ``seq``; ``number`` is 0."""

    seq: SeqField


StateQuestion = StateAsk | LeavesAsk | PagesAsk
StateAnswer = StateOffer | Leaves | Pages | StateRefused
TransferMessage = StateQuestion | StateAnswer | ArchivedUpTo


def _check_first(page: int) -> None:
    if (page - 1) % PART_PAGES:
        raise ValueError(f"page {page} begins no part")
