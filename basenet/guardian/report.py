"""The guardian's few lines in the log: JSON on standard error, as the daemon's are.

A log that nobody reads must never stop the guardian, since a fence would then stay open beyond its
time. So a line that would have to wait is dropped.
"""

import json
import os
import select
import sys
import time


def report(event: str, level: str = "info", **facts: object) -> None:
    """Write one line, of less than 4 KiB, or nothing when standard error takes none now."""
    now_s = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))
    line = {
        "event": event,
        "process": "guardian",
        **facts,
        "level": level,
        "timestamp": f"{whole}.{int(now_s * 1_000_000) % 1_000_000:06}Z",
    }
    _write(json.dumps(line, default=str)[:4000] + "\n")


def say(sentence: str) -> None:
    """Write a sentence to whoever started the program."""
    _write(f"basenet: {sentence}\n")


def _write(text: str) -> None:
    try:
        descriptor = sys.stderr.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if poll.poll(0):
            os.write(descriptor, text.encode())
    except (OSError, ValueError, AttributeError):
        return  # there is no standard error
