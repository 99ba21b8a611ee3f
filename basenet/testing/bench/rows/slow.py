"""What an application costs that writes little: 20 rows of 100 B a second, to S3.

A counting proxy stands before the store, so every program's requests are counted alike.
"""

from functools import partial
from typing import Final

import trio

from basenet.testing.bench.contenders import BASENET, LITESTREAM, Contender
from basenet.testing.bench.context import Context
from basenet.testing.bench.loads import Load
from basenet.testing.bench.report import Line
from basenet.testing.bench.rows.s3 import count_objects
from basenet.testing.bench.sidecars import running
from basenet.testing.faultproxy import running_fault_proxy
from basenet.testing.objectstores import environment_for, make_bucket, running_object_store

_BUCKET: Final = "bench"
_RATE: Final = 20.0


def slow(context: Context) -> list[Line]:
    """One minute of small writes."""
    seconds = context.few(60, 6)
    load = Load(transactions=int(seconds * _RATE), row_bytes=100, rate=_RATE)
    stored: dict[Contender, float] = {}
    writes: dict[Contender, float] = {}
    with running_object_store("s3") as url:
        make_bucket("s3", url, _BUCKET)
        for contender in context.choose(LITESTREAM, BASENET):
            share, count = trio.run(partial(_measure, context, contender, url, load))
            stored[contender], writes[contender] = share, count / seconds
            context.say(f"slow {contender.label}: {share:.2f} x payload, {count} writes")
    is_both = len(stored) > 1
    return [
        Line(
            what="20 tx/s of 100 B for a minute: bytes stored per byte",
            aim="≤ litestream's",
            answers={contender: f"{share:.1f} x" for contender, share in stored.items()},
            is_met=stored[BASENET] <= stored[LITESTREAM] if is_both else None,
        ),
        Line(
            what="the same: writes to the store a second (PUT and POST)",
            aim="≤ litestream's",
            answers={contender: f"{rate:.2f}/s" for contender, rate in writes.items()},
            is_met=writes[BASENET] <= writes[LITESTREAM] if is_both else None,
        ),
    ]


async def _measure(
    context: Context, contender: Contender, url: str, load: Load
) -> tuple[float, int]:
    """Return stored bytes per payload byte, and the writes while the application wrote."""
    async with running_fault_proxy(url) as proxy:

        def run() -> tuple[float, int]:
            with context.scene(
                archive_url=f"s3://{_BUCKET}/{contender.kind.value}",
                environment=environment_for("s3", proxy.url),
            ) as scene:
                with running(scene, contender) as sidecar:
                    before = count_objects(scene.location, environment_for("s3", url))[1]
                    began = _writes(proxy.request_counts)
                    done = load.run(scene.database)
                    count = _writes(proxy.request_counts) - began
                    sidecar.wait_archived()
                after = count_objects(scene.location, environment_for("s3", url))[1]
                return (after - before) / done.payload_bytes, count

        return await trio.to_thread.run_sync(run)


def _writes(counts: dict[str, int]) -> int:
    return counts["PUT"] + counts["POST"]
