"""What a node tells a peer whose journal came back from a backup (Q9).

It is sent after both HELLOs and instead of anything else: the connection is of no other use.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from basenet.units import JOURNAL_ID_BYTES, JournalId


class RolledBack(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True, kw_only=True
):
    """Your journal ``journal_id`` has forgotten: it had made ``count`` transactions already."""

    journal_id: Annotated[JournalId, Meta(min_length=JOURNAL_ID_BYTES, max_length=JOURNAL_ID_BYTES)]
    count: Annotated[int, Meta(ge=0, le=2**63 - 1)]
