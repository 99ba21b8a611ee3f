"""What share of a large database a query of one row fetches, right after a snapshot.

The bytes are what `basenet query` counts: all objects that it read, or parts of them. They do not
depend on how busy the machine is; the seconds do, and are told without an aim.
"""

import json
import sqlite3
import subprocess
import time
from contextlib import closing
from typing import Any, Final

from basenet.errors import UnavailableError
from basenet.testing.bench import report
from basenet.testing.bench.contenders import BASENET
from basenet.testing.bench.context import Context
from basenet.testing.bench.report import Line
from basenet.testing.bench.sidecars import Sidecar, running

ROWS: Final = 1_000_000
AIM_PERCENT: Final = 1.0
_PRIME: Final = 7919
_SECONDS_MAX: Final = 300.0


def query(context: Context) -> list[Line]:
    """Archive a large database and ask for one row, by its key and by an index."""
    if not context.wants(BASENET):
        return []
    rows = context.few(ROWS, 20_000)
    wanted = rows // 3
    text = f"{wanted * _PRIME % rows}@example.org"
    with context.scene() as scene:
        _fill(scene.database, rows)
        with running(scene, BASENET) as sidecar:
            sidecar.wait_archived()
        return [
            _line(context, sidecar, "one row by its key", f"id = {wanted}"),
            _line(context, sidecar, "one row by an index in random order", f"email = '{text}'"),
        ]


def _fill(database: object, rows: int) -> None:
    with closing(sqlite3.connect(str(database), isolation_level=None)) as connection:
        # It is only made here, and large: nothing of this is measured.
        for pragma in ("journal_mode = DELETE", "synchronous = OFF", "cache_size = -200000"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("CREATE TABLE u (id INTEGER PRIMARY KEY, email TEXT UNIQUE, x)")
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO u SELECT i, printf('%d@example.org', i * ? % ?), hex(randomblob(460)) "
            "FROM n",
            (rows, _PRIME, rows),
        )


def _line(context: Context, sidecar: Sidecar, what: str, condition: str) -> Line:
    found = _ask(sidecar, f"SELECT id, length(x) FROM u WHERE {condition}")
    share = 100 * found["fetched_bytes"] / found["database_bytes"]
    context.say(f"query {what}: {share:.3f} %, {found['seconds']:.1f} s")
    return Line(
        what=f"query of {what}, {report.megabytes(found['database_bytes'])}: fetched",
        aim=f"< {AIM_PERCENT:.0f} %",
        answers={BASENET: f"{share:.3f} %, {found['fetched_bytes'] / 1024:.0f} KiB"},
        is_met=share < AIM_PERCENT,
        facts=found,
    )


def _ask(sidecar: Sidecar, statement: str) -> dict[str, Any]:
    restore, environment = sidecar.restore_command(sidecar.scene.root / "unused")
    python = restore[: restore.index("restore")]
    command = [*python, "query", sidecar.scene.location, statement, "--shard", "app", "--json"]
    began = time.monotonic()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=_SECONDS_MAX
    )
    if done.returncode != 0:
        raise UnavailableError(f"the query ended with {done.returncode}: {done.stderr[-400:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    if len(found["rows"]) != 1:
        raise UnavailableError(f"the query gave {len(found['rows'])} rows, not one")
    return {**found, "seconds": time.monotonic() - began}
