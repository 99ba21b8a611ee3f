"""How fast a database comes back, compared with litestream from its own replica.

Restores of the two take turns; both results are compared with the source.
"""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from basenet.errors import UnavailableError
from basenet.testing.bench import report
from basenet.testing.bench.contenders import BASENET, LITESTREAM, Contender
from basenet.testing.bench.context import Context
from basenet.testing.bench.loads import Load
from basenet.testing.bench.report import Line
from basenet.testing.bench.restoring import Restored, read_content, restore
from basenet.testing.bench.sidecars import Sidecar, running

_ROUNDS: Final = 3
LARGE_AIM: Final = 2.0
TINY_AIM_S: Final = 1.0
PEAK_BYTES_AIM: Final = 90_500_000
_KIB_ROWS_PER_TX: Final = 200


def large(context: Context) -> list[Line]:
    """Restore a database of 684 MB: random rows, then compressible ones."""
    lines = []
    for kind, is_compressible in (("random", False), ("compressible", True)):
        load = Load(
            transactions=context.few(2_500, 100),
            rows=_KIB_ROWS_PER_TX,
            row_bytes=1024,
            is_compressible=is_compressible,
            ends_with_truncate=True,
        )
        with context.scene(is_empty=True) as scene:
            load.run(scene.database)
            size = scene.database.stat().st_size
            peaks: dict[Contender, int] = {}
            found = _measure(context, scene.database, lambda _: None, peaks)
        lines.append(_large_line(f"restore of {size / 1e6:,.0f} MB, {kind} rows", size, found))
        lines.append(_peak_line(f"memory, having archived {size / 1e6:,.0f} MB at once", peaks))
    return lines


def _peak_line(what: str, peaks: dict[Contender, int]) -> Line:
    return Line(
        what=what,
        aim="≤ 90.5 MB",
        answers={contender: report.megabytes(size) for contender, size in peaks.items()},
        is_met=peaks[BASENET] <= PEAK_BYTES_AIM if BASENET in peaks else None,
    )


def tiny(context: Context) -> list[Line]:
    """Restore a database of 50 MB and 20,000 one-row transactions behind its snapshot."""
    base = Load(
        transactions=context.few(250, 25),
        rows=_KIB_ROWS_PER_TX,
        row_bytes=1024,
        ends_with_truncate=True,
    )
    more = Load(transactions=context.few(20_000, 2_000))
    with context.scene(is_empty=True) as scene:
        base.run(scene.database)
        found = _measure(context, scene.database, lambda sidecar: _write(more, sidecar), {})
    seconds = _medians(found)
    return [
        Line(
            what="restore of 50 MB + 20 k one-row tx",
            aim="≤ 1 s",
            answers={contender: f"{value:.2f} s" for contender, value in seconds.items()},
            is_met=seconds[BASENET] <= TINY_AIM_S if BASENET in seconds else None,
            facts=_facts(found),
        )
    ]


def _write(load: Load, sidecar: Sidecar) -> None:
    load.run(sidecar.scene.database)


def _measure(
    context: Context,
    source: Path,
    change: Callable[[Sidecar], None],
    peaks: dict[Contender, int],
) -> dict[Contender, list[Restored]]:
    """Archive a copy of ``source`` and what ``change`` adds with each contender; restore it.

    ``peaks`` is told the largest memory of each sidecar: it has just taken a snapshot.
    """
    with ExitStack() as stack:
        sidecars = []
        for contender in context.choose(LITESTREAM, BASENET):
            scene = stack.enter_context(context.scene(is_empty=True))
            shutil.copy(source, scene.database)
            with running(scene, contender) as sidecar:
                change(sidecar)
                sidecar.wait_archived()
                peaks[contender] = sidecar.usage().peak_bytes
            sidecars.append(sidecar)
        return restore_in_turns(context, sidecars)


def restore_in_turns(context: Context, sidecars: list[Sidecar]) -> dict[Contender, list[Restored]]:
    """Restore each sidecar's archive three times, one after the other; compare with the source."""
    found: dict[Contender, list[Restored]] = {}
    for index in range(context.few(_ROUNDS, 1)):
        for sidecar in sidecars:
            out = sidecar.scene.root / "restored.db"
            done = restore(sidecar, out)
            found.setdefault(sidecar.contender, []).append(done)
            context.say(f"restore {sidecar.contender.label}: {done.seconds:.2f} s")
            if index == 0:
                check_same(sidecar, out)
    return found


def check_same(sidecar: Sidecar, out: Path) -> None:
    """Raise `UnavailableError` unless ``out`` holds what the source holds."""
    restored, source = read_content(out), read_content(sidecar.scene.database)
    if restored != source:
        raise UnavailableError(
            f"what {sidecar.contender.label} restored is not the source: {restored}, {source}"
        )


def _medians(found: dict[Contender, list[Restored]]) -> dict[Contender, float]:
    return {
        contender: report.median([one.seconds for one in done]) for contender, done in found.items()
    }


def _facts(found: dict[Contender, list[Restored]]) -> dict[str, object]:
    return {
        contender.label: [
            {
                "seconds": round(one.seconds, 3),
                "cpu_seconds": round(one.cpu_seconds, 2),
                "peak_mb": round(one.peak_bytes / report.MB),
            }
            for one in done
        ]
        for contender, done in found.items()
    }


def _large_line(what: str, size: int, found: dict[Contender, list[Restored]]) -> Line:
    seconds = _medians(found)
    answers = {
        contender: f"{value:.2f} s, {size / value / 1e6:.0f} MB/s"
        for contender, value in seconds.items()
    }
    is_met = None
    if BASENET in seconds and LITESTREAM in seconds:
        ratio = seconds[LITESTREAM] / seconds[BASENET]
        answers[BASENET] += f", **{ratio:.1f}x**"
        is_met = ratio >= LARGE_AIM
    return Line(
        what=what,
        aim="≥ 2x litestream's speed",
        answers=answers,
        is_met=is_met,
        facts=_facts(found),
    )
