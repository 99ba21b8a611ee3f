"""Every row by the name that ``--rows`` takes, in the order of the table."""

from collections.abc import Callable
from typing import Final

from basenet.testing.bench.context import Context
from basenet.testing.bench.report import Line
from basenet.testing.bench.rows import throughput

Row = Callable[[Context], list[Line]]

ROWS: Final[dict[str, Row]] = {
    "throughput": throughput.sustained,
    "burst": throughput.burst,
    "batches": throughput.batches,
}
