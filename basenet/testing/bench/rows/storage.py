"""How many bytes the archive holds for each byte of rows that cannot be compressed."""

from dataclasses import replace
from typing import Final

from basenet.testing.bench.contenders import BASENET, LITESTREAM, Contender
from basenet.testing.bench.context import Context
from basenet.testing.bench.loads import Load
from basenet.testing.bench.processes import wait_until
from basenet.testing.bench.report import Line
from basenet.testing.bench.sidecars import Basenet, Sidecar, running

LOG_AIM: Final = 1.1
SNAPSHOT_AIM: Final = 2.1
SECOND_AIM: Final = 0.05
_COMPACTION_S: Final = 60.0
_SNAPSHOT_S: Final = 120.0
_SOON: Final = {"BASE_SNAPSHOT_INTERVAL": "1s"}


def storage(context: Context) -> list[Line]:
    """500 transactions of 200 rows of 1 KB, a snapshot, 1 % more rows, another snapshot."""
    load = Load(transactions=context.few(500, 100), rows=200, row_bytes=1024)
    log: dict[Contender, float] = {}
    whole: dict[Contender, float] = {}
    second: dict[Contender, float] = {}
    if context.wants(LITESTREAM):
        log[LITESTREAM], whole[LITESTREAM] = _measure_litestream(context, load)
    if context.wants(BASENET):
        log[BASENET], whole[BASENET], second[BASENET] = _measure_basenet(context, load)
    for name, shares in (("log", log), ("with a snapshot", whole), ("second snapshot", second)):
        told = ", ".join(f"{contender} {share:.3f}" for contender, share in shares.items())
        context.say(f"storage, {name}: {told}")
    return [
        _line("bytes stored per byte of random rows: log", LOG_AIM, log),
        _line("the same, with a snapshot (litestream: compacted)", SNAPSHOT_AIM, whole),
        _line("growth by a second snapshot after 1 % more rows", SECOND_AIM, second),
    ]


def _measure_litestream(context: Context, load: Load) -> tuple[float, float]:
    with context.scene() as scene, running(scene, LITESTREAM) as sidecar:
        payload = load.run(scene.database).payload_bytes
        sidecar.wait_archived()
        log = sidecar.stored("/ltx/0/")[1]
        if not context.is_quick:
            wait_until(
                lambda: sidecar.stored("/ltx/1/")[1] >= log / 2,
                "litestream compacts",
                seconds_max=_COMPACTION_S,
                every=1.0,
            )
        return log / payload, sidecar.stored()[1] / payload


def _measure_basenet(context: Context, load: Load) -> tuple[float, float, float]:
    with context.scene() as scene:
        with running(scene, BASENET) as sidecar:
            payload = load.run(scene.database).payload_bytes
            sidecar.wait_archived()
            log = sidecar.stored("/log/")[1]
        # The same daemon, told to take snapshots at once, so that none waits for its hour.
        with running(replace(scene, settings=_SOON), BASENET) as sidecar:
            _wait_for_snapshot(sidecar)
            first = _snapshot_bytes(sidecar)
            replace(load, transactions=max(1, load.transactions // 100)).run(scene.database)
            _wait_for_snapshot(sidecar)
            grown = _snapshot_bytes(sidecar) - first
    return log / payload, (log + first) / payload, grown / payload


def _snapshot_bytes(sidecar: Sidecar) -> int:
    return sidecar.stored("/set/")[1] + sidecar.stored("/part/")[1]


def _wait_for_snapshot(sidecar: Sidecar) -> None:
    """Return when a snapshot holds all that is committed now."""
    assert isinstance(sidecar, Basenet), "only basenet takes snapshots of ours"
    sidecar.wait_archived()
    status = sidecar.status()
    wanted = status.shards[0].archived_seq if status is not None else 0

    def is_there() -> bool:
        status = sidecar.status()
        return status is not None and (status.shards[0].last_snapshot_seq or 0) >= wanted

    wait_until(is_there, "a snapshot is taken", seconds_max=_SNAPSHOT_S, every=0.2)


def _line(what: str, aim: float, shares: dict[Contender, float]) -> Line:
    return Line(
        what=what,
        aim=f"≤ {aim:.2f}",
        answers={contender: f"{share:.3f}" for contender, share in shares.items()},
        is_met=shares[BASENET] <= aim if BASENET in shares else None,
    )
