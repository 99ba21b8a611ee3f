"""How fast the application commits at full speed, beside each contender and alone.

Each round runs the load once alone and once beside every contender, one after the other on a fresh
database; the answer is the median of the rounds' ratios. The same runs tell the size of the WAL,
the sidecar's CPU and its memory.
"""

from dataclasses import dataclass
from typing import Any, Final

from basenet.testing.bench import report
from basenet.testing.bench.contenders import (
    ALONE,
    BASENET,
    BASENET_STRICT,
    LITESTREAM,
    LITESTREAM_FAST,
    Contender,
    Kind,
)
from basenet.testing.bench.context import Context
from basenet.testing.bench.loads import Load, Report
from basenet.testing.bench.others import Others
from basenet.testing.bench.report import Line
from basenet.testing.bench.sidecars import running

RATIO_AIM: Final = 0.95
RATIO_STRICT_AIM: Final = 0.5
WAL_BYTES_AIM: Final = 16 * 1_000_000
WAL_BYTES_STRICT_AIM: Final = 64 * 1_000_000
PEAK_BYTES_AIM: Final = 90_500_000
CPU_AIM_S: Final = 1.0
_LAPPED_SHARE_MAX: Final = 0.1
# The peers only show where they stand; their rounds are few so that ours can be many.
_PEER_ROUNDS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One load beside one contender."""

    report: Report
    ratio: float
    laps: int
    cpu_during_s: float
    cpu_total_s: float
    peak_bytes: int
    others_cores: float

    @property
    def facts(self) -> dict[str, Any]:
        """What the answers are made of."""
        return {
            "tx_per_second": round(self.report.rate),
            "ratio": round(self.ratio, 3),
            "p99_us": round(self.report.p99_us),
            "max_ms": round(self.report.max_ms, 1),
            "wal_mb_max": round(self.report.wal_bytes_max / report.MB, 1),
            "laps": self.laps,
            "cpu_during_s": round(self.cpu_during_s, 2),
            "cpu_total_s": round(self.cpu_total_s, 2),
            "peak_mb": round(self.peak_bytes / report.MB, 1),
            "others_cores": self.others_cores,
        }


def sustained(context: Context) -> list[Line]:
    """300,000 one-row transactions at full speed."""
    load = Load(transactions=context.few(300_000, 20_000))
    return _measure(context, "300 k one-row tx", load, is_main=True)


def burst(context: Context) -> list[Line]:
    """60,000 one-row transactions at full speed."""
    load = Load(transactions=context.few(60_000, 10_000))
    return _measure(context, "60 k one-row tx", load)


def batches(context: Context) -> list[Line]:
    """10,000 transactions of ten rows of 1 KB each."""
    load = Load(transactions=context.few(10_000, 1_000), rows=10, row_bytes=1024)
    return _measure(context, "10 k tx of 10 x 1 KB", load)


def _measure(context: Context, name: str, load: Load, *, is_main: bool = False) -> list[Line]:
    others = context.choose(BASENET, BASENET_STRICT, LITESTREAM, LITESTREAM_FAST)
    rounds: dict[Contender, list[Round]] = {ALONE: []}
    for index in range(context.pairs):
        alone = _run(context, load, ALONE, None)
        rounds[ALONE].append(alone)
        context.say(f"{name} #{index} alone: {alone.facts}")
        for contender in others:
            if index >= _PEER_ROUNDS and contender is not BASENET:
                continue
            done = _run(context, load, contender, alone.report.rate)
            rounds.setdefault(contender, []).append(done)
            context.say(f"{name} #{index} {contender.label}: {done.facts}")
    lines = [_throughput_line(name, rounds), _wal_line(name, rounds)]
    if not is_main:
        lines.append(_cpu_line(name, load, rounds))
    return [*lines, _memory_line(name, rounds)]


def _run(context: Context, load: Load, contender: Contender, alone: float | None) -> Round:
    with context.scene() as scene, running(scene, contender) as sidecar:
        before = sidecar.usage()
        others = Others()
        done = load.run(scene.database)
        during = sidecar.usage()
        cpu_during_s = during.cpu_seconds - before.cpu_seconds
        others_cores = others.cores(done.cpu_seconds + cpu_during_s)
        sidecar.wait_archived()
        after = sidecar.usage()
        return Round(
            report=done,
            ratio=1.0 if alone is None else done.rate / alone,
            laps=sidecar.laps(),
            cpu_during_s=cpu_during_s,
            cpu_total_s=after.cpu_seconds - before.cpu_seconds,
            peak_bytes=after.peak_bytes,
            others_cores=others_cores,
        )


def _throughput_line(name: str, rounds: dict[Contender, list[Round]]) -> Line:
    answers = {}
    for contender, done in rounds.items():
        rate = report.median([one.report.rate for one in done])
        ratio = report.median([one.ratio for one in done])
        answers[contender] = f"{rate:,.0f}/s" if contender is ALONE else f"**{ratio:.2f}**"
        lapped = [index for index, one in enumerate(done) if one.laps]
        if contender.kind is Kind.BASENET:
            answers[contender] += f" ({len(lapped)} of {len(done)} lapped)"
    ours = rounds.get(BASENET, [])
    strict = rounds.get(BASENET_STRICT, [])
    lapped_count = sum(bool(one.laps) for one in ours)
    is_met = (
        report.median([one.ratio for one in ours]) >= RATIO_AIM
        and lapped_count <= max(1, _LAPPED_SHARE_MAX * len(ours))
        and (not strict or report.median([one.ratio for one in strict]) >= RATIO_STRICT_AIM)
    )
    return Line(
        what=f"{name}: throughput beside / alone (median of pairs)",
        aim="≥ 0.95, at most 1 pair in 10 lapped; strict ≥ 0.5",
        answers=answers,
        is_met=is_met if ours else None,
        facts=_facts(rounds),
    )


def _facts(rounds: dict[Contender, list[Round]]) -> dict[str, Any]:
    return {contender.label: [one.facts for one in done] for contender, done in rounds.items()}


def _wal_line(name: str, rounds: dict[Contender, list[Round]]) -> Line:
    is_met = None
    for contender, done in rounds.items():
        if contender.kind is Kind.BASENET:
            met = all(one.report.wal_bytes_max <= _wal_aim(contender, one) for one in done)
            is_met = met and is_met is not False
    return Line(
        what=f"{name}: largest WAL",
        aim="≤ 16 MB; strict, or after a lap, ≤ 64 MB",
        answers={
            contender: report.megabytes(max(one.report.wal_bytes_max for one in done))
            for contender, done in rounds.items()
        },
        is_met=is_met,
    )


def _wal_aim(contender: Contender, one: Round) -> int:
    is_strict = contender is BASENET_STRICT or one.laps > 0
    return WAL_BYTES_STRICT_AIM if is_strict else WAL_BYTES_AIM


def _cpu_line(name: str, load: Load, rounds: dict[Contender, list[Round]]) -> Line:
    seconds = {
        contender: report.median([one.cpu_total_s for one in done])
        for contender, done in rounds.items()
        if contender is not ALONE
    }
    has_aim = load.rows == 1 and BASENET in seconds
    return Line(
        what=f"{name}: the sidecar's CPU until all is archived",
        aim="≤ 1.0 s" if load.rows == 1 else "",
        answers={contender: f"{value:.2f} s" for contender, value in seconds.items()},
        is_met=seconds[BASENET] <= CPU_AIM_S if has_aim else None,
    )


def _memory_line(name: str, rounds: dict[Contender, list[Round]]) -> Line:
    peaks = {
        contender: max(one.peak_bytes for one in done)
        for contender, done in rounds.items()
        if contender is not ALONE
    }
    return Line(
        what=f"{name}: the sidecar's largest memory (VmHWM)",
        aim="≤ 90.5 MB",
        answers={contender: report.megabytes(value) for contender, value in peaks.items()},
        is_met=peaks[BASENET] <= PEAK_BYTES_AIM if BASENET in peaks else None,
    )
