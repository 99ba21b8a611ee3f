"""What nodes tell each other about their journals, so that one from a backup is noticed (Q9).

`RolledBack` is sent after both HELLOs and instead of anything else: the connection is of no other
use. `Compared` is the first message on any other connection, and sent again, at most once a second,
while the sender's journal grows.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from basenet.units import JOURNAL_ID_BYTES, JournalId

_JournalId = Annotated[JournalId, Meta(min_length=JOURNAL_ID_BYTES, max_length=JOURNAL_ID_BYTES)]
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class RolledBack(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True, kw_only=True
):
    """Your journal ``journal_id`` has forgotten: it had made ``count`` transactions already."""

    journal_id: _JournalId
    count: _Count


class Compared(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True, kw_only=True
):
    """I compared the HELLO of your journal ``journal_id`` and durably remember its count.

    ``count``: how many transactions my own journal has made by now.
    """

    journal_id: _JournalId
    count: _Count
