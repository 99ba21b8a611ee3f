"""Restores from an object store with 2,007 objects: plain, and 20 ms away.

The store is moto in a process of its own, one request at a time; the distance is a proxy on
loopback. All archive every few milliseconds, so that there are many small objects. Litestream
merges them after half a minute; it takes part as it is, and with that put off, so that a restore
really reads them: that is what the aims are set against.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

import trio

from basenet.archive.store import open_store
from basenet.testing.bench import report
from basenet.testing.bench.contenders import (
    BASENET_FAST,
    LITESTREAM_FAST,
    LITESTREAM_LOOSE,
    Contender,
)
from basenet.testing.bench.context import Context
from basenet.testing.bench.loads import Load
from basenet.testing.bench.report import Line
from basenet.testing.bench.restoring import Restored
from basenet.testing.bench.rows.restores import restore_in_turns
from basenet.testing.bench.sidecars import Sidecar, make_sidecar, running
from basenet.testing.faultproxy import running_latency_proxy
from basenet.testing.objectstores import environment_for, make_bucket, running_object_store

OBJECTS: Final = 2_007
LATENCY_S: Final = 0.020
FAR_AIM: Final = 4.0
NEAR_AIM: Final = 1.0
_BUCKET: Final = "bench"
_RATE: Final = 150.0
_ROUNDS_OF_WRITING_MAX: Final = 8


def s3(context: Context) -> list[Line]:
    """Archive to S3 until there are enough objects, then restore over both ways."""
    with ExitStack() as stack:
        near = stack.enter_context(running_object_store("s3"))
        far = stack.enter_context(running_latency_proxy(near, LATENCY_S))
        make_bucket("s3", near, _BUCKET)
        sidecars, counts = [], {}
        for contender in context.choose(LITESTREAM_FAST, LITESTREAM_LOOSE, BASENET_FAST):
            name = contender.label.replace(" ", "-")
            scene = stack.enter_context(
                context.scene(
                    archive_url=f"s3://{_BUCKET}/{name}", environment=environment_for("s3", near)
                )
            )
            with running(scene, contender) as sidecar:
                counts[contender] = _fill(context, sidecar)
            sidecars.append(sidecar)
        found_near = restore_in_turns(context, sidecars)
        found_far = restore_in_turns(context, [_move(sidecar, far) for sidecar in sidecars])
    what = f"restore from S3 (moto), {context.few(OBJECTS, 100):,} objects"
    return [
        _line(what, NEAR_AIM, counts, found_near),
        _line(f"{what}, +20 ms a request", FAR_AIM, counts, found_far),
    ]


def _fill(context: Context, sidecar: Sidecar) -> int:
    """Write until the archive has the objects; return how many it has."""
    wanted = context.few(OBJECTS, 100)
    scene = sidecar.scene
    count = 0
    for _ in range(_ROUNDS_OF_WRITING_MAX):
        count = count_objects(scene.location, scene.environment)[0]
        if count >= wanted:
            break
        missing = wanted - count
        Load(transactions=max(50, missing * 5 // 4), rate=_RATE).run(scene.database)
        sidecar.wait_archived()
    context.say(f"s3 {sidecar.contender.label}: {count} objects")
    return count


def count_objects(url: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return (objects, bytes) below ``url``."""

    async def count() -> tuple[int, int]:
        store = open_store(url, environment=environment)
        try:
            sizes = [entry.size async for entry in store.list("")]
        finally:
            await store.aclose()
        return len(sizes), sum(sizes)

    return trio.run(count)


def _move(sidecar: Sidecar, url: str) -> Sidecar:
    """Return a sidecar that finds the same archive at ``url``."""
    scene = replace(sidecar.scene, environment=environment_for("s3", url))
    return make_sidecar(scene, sidecar.contender)


def _line(
    what: str,
    aim: float,
    counts: Mapping[Contender, int],
    found: dict[Contender, list[Restored]],
) -> Line:
    seconds = {
        contender: report.median([one.seconds for one in done]) for contender, done in found.items()
    }
    answers = {
        contender: f"{value:.2f} s ({counts[contender]:,} objects)"
        for contender, value in seconds.items()
    }
    is_met = None
    if LITESTREAM_LOOSE in seconds and BASENET_FAST in seconds:
        ratio = seconds[LITESTREAM_LOOSE] / seconds[BASENET_FAST]
        answers[BASENET_FAST] += f", **{ratio:.1f}x**"
        is_met = ratio >= aim
    return Line(
        what=what,
        aim=f"≥ {aim:.0f}x litestream's speed, uncompacted"
        if aim > 1
        else "not slower than litestream, uncompacted",
        answers=answers,
        is_met=is_met,
        facts={
            contender.label: [(one.seconds, one.cpu_seconds) for one in done]
            for contender, done in found.items()
        },
    )
