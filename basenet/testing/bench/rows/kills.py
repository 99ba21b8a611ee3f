"""What is lost, and what is shipped again, when processes are killed.

*host lost*: writer and sidecar get SIGKILL in mid-write and only the archive is left. *sidecar
killed*: three times under load, each time started again. *sidecar away*: the application writes on
and truncates its log meanwhile.
"""

import random
import time
from dataclasses import dataclass
from typing import Any, Final

from basenet.testing.bench.contenders import BASENET, LITESTREAM, Contender, Kind
from basenet.testing.bench.context import Context
from basenet.testing.bench.loads import Load, read_acknowledged, read_report
from basenet.testing.bench.report import Line, megabytes
from basenet.testing.bench.restoring import read_content, restore
from basenet.testing.bench.sidecars import Scene, Sidecar, make_sidecar, running

_RATE: Final = 1_000.0
_TRIALS: Final = 3
_KILLS: Final = 3
# The flush interval and 500 ms.
LOST_AGE_AIM_MS: Final = 1_500.0
SHIPPED_AIM: Final = 0.1
_SNAPSHOTS: Final = {Kind.BASENET: "/set/L9/", Kind.LITESTREAM: "/ltx/9/"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a restore lacked: acknowledged rows, and the age of the oldest at the kill."""

    rows: int
    age_ms: float

    @property
    def facts(self) -> dict[str, Any]:
        """The loss as plain values."""
        return {"rows": self.rows, "age_ms": round(self.age_ms)}


def host_lost(context: Context) -> list[Line]:
    """SIGKILL to both at 1,000 transactions a second; restore from the archive alone."""
    losses: dict[Contender, list[Loss]] = {}
    for _ in range(context.few(_TRIALS, 1)):
        for contender in context.choose(LITESTREAM, BASENET):
            with context.scene() as scene:
                loss = _lose_host(scene, contender)
            losses.setdefault(contender, []).append(loss)
            context.say(f"host lost {contender.label}: {loss.facts}")
    worst = {
        contender: max(found, key=lambda loss: loss.age_ms) for contender, found in losses.items()
    }
    return [
        Line(
            what="host lost at 1,000 tx/s: acknowledged rows gone, age of the oldest (worst)",
            aim="≤ flush interval + 500 ms",
            answers={
                contender: f"{loss.rows:,} rows, {loss.age_ms:.0f} ms"
                for contender, loss in worst.items()
            },
            is_met=worst[BASENET].age_ms <= LOST_AGE_AIM_MS if BASENET in worst else None,
            facts={
                contender.label: [loss.facts for loss in found]
                for contender, found in losses.items()
            },
        )
    ]


def _lose_host(scene: Scene, contender: Contender) -> Loss:
    notes = scene.root / "acknowledged"
    with running(scene, contender) as sidecar:
        with Load(transactions=60_000, rate=_RATE).start(scene.database, notes) as writer:
            time.sleep(random.uniform(3.0, 4.5))
            writer.kill()
            killed_ns = time.time_ns()
            sidecar.kill()
        out = scene.root / "restored.db"
        restore(sidecar, out)
    acknowledged = read_acknowledged(notes)
    kept = read_content(out).rows - 1  # the row that the scene began with
    lost = acknowledged[kept:]
    return Loss(rows=len(lost), age_ms=(killed_ns - lost[0][1]) / 1e6 if lost else 0.0)


def sidecar_killed(context: Context) -> list[Line]:
    """SIGKILL to the sidecar three times at 1,000 transactions a second."""
    missing: dict[Contender, int] = {}
    snapshots: dict[Contender, int] = {}
    for contender in context.choose(LITESTREAM, BASENET):
        with context.scene() as scene:
            missing[contender], snapshots[contender] = _kill_sidecar(context, scene, contender)
        context.say(
            f"killed {contender}: {missing[contender]} missing, {snapshots[contender]} snapshots"
        )
    is_met = None
    if BASENET in missing:
        is_met = missing[BASENET] == 0 and snapshots[BASENET] <= 1
    return [
        Line(
            what="sidecar killed 3x at 1,000 tx/s: rows missing, snapshots in the archive",
            aim="nothing missing, only the first snapshot",
            answers={
                contender: f"{missing[contender]} missing, {snapshots[contender]} snapshots"
                for contender in missing
            },
            is_met=is_met,
        )
    ]


def _kill_sidecar(context: Context, scene: Scene, contender: Contender) -> tuple[int, int]:
    sidecar = make_sidecar(scene, contender)
    try:
        sidecar.start()
        sidecar.wait_ready()
        load = Load(transactions=context.few(6_000, 4_000), rate=_RATE)
        with load.start(scene.database) as writer:
            for _ in range(_KILLS):
                time.sleep(random.uniform(0.8, 1.6))
                sidecar.kill()
                sidecar.start()
            read_report(writer)
        sidecar.wait_ready()
        sidecar.stop()
        snapshots = sidecar.stored(_SNAPSHOTS[contender.kind])[0]
        out = scene.root / "restored.db"
        restore(sidecar, out)
    finally:
        sidecar.kill()
    # A page set's index lies beside its manifest.
    manifests = -(-snapshots // 2) if contender.kind is Kind.BASENET else snapshots
    return read_content(scene.database).rows - read_content(out).rows, manifests


def sidecar_away(context: Context) -> list[Line]:
    """Write and truncate the log while the sidecar is down."""
    shares: dict[Contender, float] = {}
    size = 0
    base = Load(transactions=context.few(250, 25), rows=200, row_bytes=1024)
    more = Load(transactions=context.few(5_000, 500), ends_with_truncate=True)
    for contender in context.choose(LITESTREAM, BASENET):
        with context.scene() as scene:
            base.run(scene.database)
            with running(scene, contender) as sidecar:
                sidecar.wait_archived()
                sidecar.kill()
            before = sidecar.stored()[1]
            more.run(scene.database)
            shipped = _ship_rest(sidecar) - before
            size = scene.database.stat().st_size
            shares[contender] = shipped / size
            context.say(f"away {contender.label}: {shipped:,} of {size:,} bytes shipped")
    return [
        Line(
            what="sidecar away, app writes and truncates: bytes shipped / database "
            f"({megabytes(size)})",
            aim="only the changed pages (≤ 10 %)",
            answers={contender: f"{share:.1%}" for contender, share in shares.items()},
            is_met=shares[BASENET] <= SHIPPED_AIM if BASENET in shares else None,
        )
    ]


def _ship_rest(sidecar: Sidecar) -> int:
    """Start the sidecar again; return the archive's bytes when it has caught up."""
    try:
        sidecar.start()
        sidecar.wait_ready()
        return sidecar.stored()[1]
    finally:
        sidecar.stop()
        sidecar.kill()
