"""What nodes tell each other about their journals, so that one from a backup is noticed (Q9).

`RolledBack` is sent after both HELLOs and instead of anything else: the connection is of no other
use. `Compared` is the first message on any other connection, and sent again, at most once a second,
while the sender's journal grows.
"""

import msgspec

from basenet.wire.fields import JournalIdField, StoredCount


class RolledBack(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True, kw_only=True
):
    """Your journal ``journal_id`` has forgotten: it had made ``count`` transactions already."""

    journal_id: JournalIdField
    count: StoredCount


class Compared(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True, kw_only=True
):
    """I compared the HELLO of your journal ``journal_id`` and durably remember its count.

    ``count``: how many transactions my own journal has made by now.
    """

    journal_id: JournalIdField
    count: StoredCount
