"""Every row by the name that ``--rows`` takes, in the order of the table."""

from collections.abc import Callable
from typing import Final

from basenet.testing.bench.context import Context
from basenet.testing.bench.report import Line
from basenet.testing.bench.rows import (
    cluster,
    engine,
    fleet,
    idle,
    kills,
    lag,
    paced,
    query,
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
    "lag-s3": lag.lag_s3,
    "query": query.query,
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
    "cluster-final": cluster.final,
    "cluster-rate": cluster.rate,
    "cluster-apply": cluster.apply,
    "cluster-failover": cluster.failover,
    "cluster-join": cluster.join,
    "cluster-idle": idle.cluster_idle,
}
