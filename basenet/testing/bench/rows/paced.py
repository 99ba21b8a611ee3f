"""What a commit costs an application that is not in a hurry: 2,000 transactions a second."""

from basenet.testing.bench import report
from basenet.testing.bench.contenders import ALONE, BASENET, LITESTREAM, LITESTREAM_FAST, Contender
from basenet.testing.bench.context import Context
from basenet.testing.bench.loads import Load, Report
from basenet.testing.bench.report import Line
from basenet.testing.bench.sidecars import running

_ROUNDS = 3


def paced(context: Context) -> list[Line]:
    """Ten seconds at 2,000 one-row transactions a second."""
    load = Load(transactions=context.few(20_000, 2_000), rate=2_000)
    reports: dict[Contender, list[Report]] = {}
    for _ in range(context.few(_ROUNDS, 1)):
        for contender in [ALONE, *context.choose(LITESTREAM, LITESTREAM_FAST, BASENET)]:
            with context.scene() as scene, running(scene, contender):
                done = load.run(scene.database)
            reports.setdefault(contender, []).append(done)
            context.say(f"paced {contender.label}: p50 {done.p50_us:.0f} p99 {done.p99_us:.0f} us")
    middle = {
        contender: (
            report.median([one.p50_us for one in done]),
            report.median([one.p99_us for one in done]),
        )
        for contender, done in reports.items()
    }
    is_met = None
    if BASENET in middle and LITESTREAM in middle:
        is_met = all(
            ours <= theirs for ours, theirs in zip(middle[BASENET], middle[LITESTREAM], strict=True)
        )
    return [
        Line(
            what="paced 2,000 tx/s: commit p50 / p99",
            aim="≤ litestream's",
            answers={
                contender: f"{p50:.0f} / {p99:.0f} µs" for contender, (p50, p99) in middle.items()
            },
            is_met=is_met,
            facts={
                contender.label: [
                    {"p50_us": one.p50_us, "p99_us": one.p99_us, "max_ms": one.max_ms}
                    for one in done
                ]
                for contender, done in reports.items()
            },
        )
    ]
