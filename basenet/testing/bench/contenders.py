"""What may run beside the application."""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Which program."""

    NOTHING = "nothing"
    BASENET = "basenet"
    LITESTREAM = "litestream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A program with its settings; ``label`` heads its column."""

    label: str
    kind: Kind
    capture: str = "adaptive"
    interval: str | None = None
    """Of litestream's monitor and sync, of basenet's flush; None: the program's default."""
    is_compacted: bool = True
    """Whether litestream merges small files after 30 s, as it does by default."""

    def __str__(self) -> str:
        return self.label


ALONE = Contender(label="alone", kind=Kind.NOTHING)
BASENET = Contender(label="basenet", kind=Kind.BASENET)
BASENET_STRICT = Contender(label="basenet strict", kind=Kind.BASENET, capture="strict")
BASENET_FAST = Contender(label="basenet 10 ms", kind=Kind.BASENET, interval="10ms")
LITESTREAM = Contender(label="litestream", kind=Kind.LITESTREAM)
LITESTREAM_FAST = Contender(label="litestream 10 ms", kind=Kind.LITESTREAM, interval="10ms")
LITESTREAM_LOOSE = Contender(
    label="litestream 10 ms uncompacted",
    kind=Kind.LITESTREAM,
    interval="10ms",
    is_compacted=False,
)

COLUMNS = (
    ALONE,
    LITESTREAM,
    LITESTREAM_FAST,
    LITESTREAM_LOOSE,
    BASENET,
    BASENET_STRICT,
    BASENET_FAST,
)
