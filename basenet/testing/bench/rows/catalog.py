"""Every row by the name that ``--rows`` takes, in the order of the table."""

from collections.abc import Callable
from typing import Final

from basenet.testing.bench.context import Context
from basenet.testing.bench.report import Line
from basenet.testing.bench.rows import (
    engine,
    fleet,
    kills,
    lag,
    paced,
    restores,
    s3,
    slow,
    storage,
    throughput,
    truncating,
)

Row = Callable[[Context], list[Line]]

ROWS: Final[dict[str, Row]] = {
    "throughput": throughput.sustained,
    "burst": throughput.burst,
    "batches": throughput.batches,
    "paced": paced.paced,
    "lag": lag.lag,
    "restore": restores.large,
    "restore-tiny": restores.tiny,
    "s3": s3.s3,
    "storage": storage.storage,
    "slow": slow.slow,
    "host-lost": kills.host_lost,
    "killed": kills.sidecar_killed,
    "away": kills.sidecar_away,
    "fleet": fleet.fleet,
    "truncating": truncating.truncating,
    "engine": engine.engine,
}
