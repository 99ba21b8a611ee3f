"""The types of fields that messages share, with their bounds: what msgspec decoded fits them.

A length, a sign, a number of votes that is out of bounds is refused before anybody looks at it.
"""

from typing import Annotated

from msgspec import Meta

from basenet.units import (
    HASH_BYTES,
    JOURNAL_ID_BYTES,
    KEY_BYTES,
    LINEAGE_BYTES,
    SIGNATURE_BYTES,
    Epoch,
    FrameHash,
    JournalId,
    Lineage,
    PublicKeyBytes,
    Seq,
    View,
)

Count = Annotated[int, Meta(ge=0)]
# One that is kept in SQLite, whose integers have 63 bits and a sign.
StoredCount = Annotated[int, Meta(ge=0, le=2**63 - 1)]
EpochField = Annotated[Epoch, Meta(ge=0)]
ViewField = Annotated[View, Meta(ge=0)]
SeqField = Annotated[Seq, Meta(ge=0)]
KeyField = Annotated[PublicKeyBytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
JournalIdField = Annotated[
    JournalId, Meta(min_length=JOURNAL_ID_BYTES, max_length=JOURNAL_ID_BYTES)
]
LineageField = Annotated[Lineage, Meta(min_length=LINEAGE_BYTES, max_length=LINEAGE_BYTES)]
FrameHashField = Annotated[FrameHash, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
HashField = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
SignatureField = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
