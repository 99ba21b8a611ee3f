"""An ordinary application: inserts rows into a WAL database and says how that went.

Started as a file, so that it imports nothing of basenet. ``t`` has the columns that the loads of
docs/performance.md speak of. With ``--acknowledge`` the number and time of each commit is noted
after SQLite has answered. The last line of standard output is the report, JSON.
"""

import argparse
import contextlib
import json
import os
import resource
import sqlite3
import sys
import time
from collections.abc import Iterator
from typing import Final

_INSERT: Final = "INSERT INTO t (ts, k, v) VALUES (?, ?, ?)"
_BLOCK_BYTES: Final = 1 << 20
_WAL_LOOK_EVERY: Final = 500


def main() -> None:
    """Write as the command line asks."""
    options = _parse()
    connection = sqlite3.connect(options.database, isolation_level=None, timeout=options.busy)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, ts REAL, k TEXT, v BLOB)"
    )
    with contextlib.ExitStack() as stack:
        notes = None
        if options.acknowledge:
            notes = stack.enter_context(open(options.acknowledge, "w", buffering=1))  # noqa: PTH123
        report = _write(connection, options, notes)
    if options.truncate:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    sys.stdout.write(json.dumps(report) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("--transactions", type=int, default=1)
    parser.add_argument("--rows", type=int, default=1, help="rows of each transaction")
    parser.add_argument("--bytes", type=int, default=0, help="of each row's blob; 0: a number")
    parser.add_argument("--rate", type=float, default=0, help="transactions a second; 0: all")
    parser.add_argument("--compressible", action="store_true")
    parser.add_argument("--busy", type=float, default=5, help="busy timeout in seconds")
    parser.add_argument("--acknowledge", help="note each commit in this file")
    parser.add_argument("--truncate", action="store_true", help="checkpoint so at the end")
    return parser.parse_args()


def _write(
    connection: sqlite3.Connection, options: argparse.Namespace, notes: object
) -> dict[str, float]:
    clock = time.perf_counter
    log = f"{options.database}-wal"
    latencies: list[float] = []
    wal_bytes = busy = 0
    begun = clock()
    for index, rows in enumerate(_make_rows(options)):
        if options.rate:
            time.sleep(max(0.0, begun + index / options.rate - clock()))
        asked = clock()
        busy += _commit(connection, rows)
        latencies.append(clock() - asked)
        if notes is not None:
            print(index + 1, time.time_ns(), file=notes)  # type: ignore[call-overload]
        if index % _WAL_LOOK_EVERY == 0:
            wal_bytes = max(wal_bytes, _size(log))
    seconds = clock() - begun
    usage = resource.getrusage(resource.RUSAGE_SELF)
    latencies.sort()
    count = len(latencies)
    return {
        "transactions": count,
        "seconds": seconds,
        "p50_us": latencies[count // 2] * 1e6,
        "p99_us": latencies[count * 99 // 100] * 1e6,
        "max_ms": latencies[-1] * 1e3,
        "busy": busy,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "wal_bytes_max": max(wal_bytes, _size(log)),
        "payload_bytes": count * options.rows * (max(options.bytes, 8) + 20),
    }


def _commit(connection: sqlite3.Connection, rows: list[tuple[float, str, object]]) -> int:
    """Insert ``rows`` in one transaction; return how often SQLite had to be asked again."""
    attempts = 0
    while True:
        try:
            if len(rows) == 1:
                connection.execute(_INSERT, rows[0])
            else:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(_INSERT, rows)
                connection.execute("COMMIT")
        except sqlite3.OperationalError:
            attempts += 1
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if attempts > 10:  # noqa: PLR2004  (ten busy timeouts: this is no measurement)
                raise
        else:
            return attempts


def _make_rows(options: argparse.Namespace) -> Iterator[list[tuple[float, str, object]]]:
    block = os.urandom(_BLOCK_BYTES)
    place = 0
    for index in range(options.transactions):
        rows: list[tuple[float, str, object]] = []
        for _ in range(options.rows):
            value: object = index
            if options.bytes and options.compressible:
                value = (b"%08d" % index) * (options.bytes // 8)
            elif options.bytes:
                place = (place + options.bytes * 7 + 13) % (_BLOCK_BYTES - options.bytes)
                value = block[place : place + options.bytes]
            rows.append((time.time(), f"key-{index:08d}", value))
        yield rows


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116  (a Path costs more than the call)
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    main()
