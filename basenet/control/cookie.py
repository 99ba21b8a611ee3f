"""The txseq cookie: how a commit is named to a reader elsewhere.

It is the first 4 bytes of the lineage in hex, a hyphen, and the seq: ``00112233-42``. Seqs go on in
a child lineage, so a seq alone could name a commit of another history. Whoever shows a cookie of
another lineage than the shard has is refused, never answered (Q30).
"""

import re
from typing import Final

from basenet.errors import UsageError
from basenet.units import Seq

LINEAGE_DIGITS: Final = 8
_COOKIE: Final = re.compile(r"([0-9a-f]{8})-([0-9]{1,20})\Z", re.ASCII)
_SEQ_MAX: Final = 2**64 - 1


def format_cookie(lineage: str, seq: int) -> str:
    """Return the cookie of frame ``seq`` of the lineage in hex; empty when there is no lineage."""
    return f"{lineage[:LINEAGE_DIGITS]}-{seq}" if lineage else ""


def parse_cookie(text: str) -> tuple[str, Seq]:
    """Return the lineage's first digits and the seq; raise `UsageError` if it is no cookie."""
    match = _COOKIE.match(text)
    if match is None or int(match[2]) > _SEQ_MAX:
        raise UsageError(
            f"{text[:64]!r} is no cookie: give it as it was answered, such as 00112233-42"
        )
    return match[1], Seq(int(match[2]))
