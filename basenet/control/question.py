"""A question about how far one shard is: how a request asks it, and how it is answered.

Two paths ask: ``/v1/shards/{id}`` and ``/v1/shards/{id}/wait``. They come with each commit of an
application that waits for its commits, so they are answered in two places, `control.conversation`
and `control.routes`, with the same words: these.

A query that is not understood is refused, not ignored: a misspelt ``level`` must not look like an
answered wait.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.responses import Response

from basenet.config.values import parse_duration, parse_switch
from basenet.control.answers import exception_response, json_response
from basenet.control.cookie import parse_cookie
from basenet.control.surface import (
    Level,
    LineageMismatch,
    NodeStatus,
    NotCaughtUp,
    Orphaned,
    Surface,
)
from basenet.errors import BasenetError, UsageError
from basenet.units import Seq

WAIT_SECONDS_DEFAULT: Final = 30.0
WAIT_SECONDS_MAX: Final = 3600.0
SEQ_MAX: Final = 2**64 - 1
_WAIT_QUERY: Final = frozenset({"seq", "now", "cookie", "generation", "level", "timeout"})

Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What is waited for; see `Surface.wait`."""

    shard: str
    seq: Seq | None  # None: what is committed now
    lineage: str | None  # how it begins; None: any
    level: Level | None  # None: the node's own, `get_default_level`
    timeout_s: float
    generation: str | None


def parse_wait(path: str, shard: str, query: Query) -> Wait:
    """Return the wait for ``shard`` that ``path`` is asked for; raises `UsageError`."""
    check_query(path, query, _WAIT_QUERY)
    given = dict(query)
    seq, lineage = _parse_target(given)
    return Wait(
        shard=shard,
        seq=seq,
        lineage=lineage,
        level=_parse_level(given.get("level")),
        timeout_s=_parse_timeout(given.get("timeout")),
        generation=given.get("generation") or None,
    )


def check_query(path: str, query: Query, known: frozenset[str]) -> None:
    """Raise `UsageError` for a name that ``path`` does not know or that comes twice."""
    names = [name for name, _ in query]
    for name in names:
        if name not in known:
            hint = f"it knows {', '.join(sorted(known))}" if known else "it knows none"
            raise UsageError(f"{path} has no query parameter {name[:64]!r}: {hint}")
        if names.count(name) > 1:
            raise UsageError(f"the query parameter {name!r} is given twice: give it once")


def get_default_level(node: NodeStatus) -> Level:
    """Return what a wait means that names no level; it never changes while ``node`` runs."""
    # Alone, a journal is no more than the disk that the database lies on.
    is_alone = node.network == "standalone" and node.archive is not None
    return Level.ARCHIVED if is_alone else Level.FINAL


async def answer_wait(surface: Surface, wait: Wait, default: Level) -> Response:
    """Return the answer when what is waited for is there; raises what `Surface.wait` raises.

    Raises `LineageMismatch` when it was named by a cookie of another lineage.
    """
    if wait.lineage is not None:
        _check_lineage(wait.shard, wait.lineage, surface.shard_status(wait.shard).lineage)
    level = wait.level or default
    result = await surface.wait(wait.shard, wait.seq, level, wait.timeout_s, wait.generation)
    # It may have become a child lineage meanwhile, or have had none at first.
    _check_lineage(result.shard, wait.lineage, result.lineage)
    lag = max(0, result.seq - result.final_seq)
    return json_response(result, headers=shard_headers(result.shard, result.final_seq, lag))


def answer_status(surface: Surface, shard: str) -> Response:
    """Return the answer of one shard's own path; raises `NotFoundError` for an unknown one."""
    status = surface.shard_status(shard)
    lag = max(0, status.captured_seq - status.final_seq)
    return json_response(status, headers=shard_headers(status.shard, status.final_seq, lag))


def shard_headers(shard: str, final_seq: int, lag: int) -> dict[str, str]:
    """Return the headers of every answer about a shard."""
    return {"x-base-shard": shard, "x-base-seq": str(final_seq), "x-base-lag": str(lag)}


def refuse(error: BasenetError, shard: str | None, request_id: str) -> Response:
    """Return the error body of ``error``; ``shard``: whom the request named."""
    more: dict[str, object] = {"shard": shard} if shard is not None else {}
    if isinstance(error, NotCaughtUp):
        more["target_seq"] = error.target_seq
    if isinstance(error, Orphaned):
        more["bundles"] = error.bundles
    return exception_response(error, request_id=request_id, **more)


def _parse_target(query: dict[str, str]) -> tuple[Seq | None, str | None]:
    """Return the seq to wait for, None for now, and how its lineage begins, None for any."""
    given = {name: query.get(name) for name in ("seq", "now", "cookie")}
    if given["now"] is not None and not parse_switch(given["now"]):
        given["now"] = None
    said = [(name, text) for name, text in given.items() if text is not None]
    if len(said) > 1:
        raise UsageError("a wait is for seq=N, for now=1 or for a cookie: leave one of them out")
    if not said:
        raise UsageError("a wait needs its commit: seq=N, cookie=..., or now=1 for the present one")
    name, text = said[0]
    if name == "now":
        return None, None
    if name == "cookie":
        lineage, seq = parse_cookie(text)
        return seq, lineage
    if not re.match(r"[0-9]{1,20}\Z", text, re.ASCII) or int(text) > SEQ_MAX:
        raise UsageError(f"seq={text[:64]!r} is not a seq: write a whole number, such as seq=42")
    return Seq(int(text)), None


def _parse_level(text: str | None) -> Level | None:
    if text is None:
        return None
    try:
        return Level(text)
    except ValueError as error:
        raise UsageError(
            f"level={text[:64]!r} is no level: write archived, final or applied"
        ) from error


def _parse_timeout(text: str | None) -> float:
    """Return seconds; a bare number counts as seconds, too."""
    if text is None:
        return WAIT_SECONDS_DEFAULT
    seconds = parse_duration(text[:64] + "s" if text[-1:].isdecimal() else text[:64])
    if seconds > WAIT_SECONDS_MAX:
        raise UsageError(
            f"timeout={text[:64]!r} is too long: wait at most {WAIT_SECONDS_MAX:g}s, then ask again"
        )
    return seconds


def _check_lineage(shard: str, expected: str | None, present: str | None) -> None:
    """Raise `LineageMismatch` unless ``present``, if known, begins with ``expected``, if given."""
    if expected and present and not present.startswith(expected):
        raise LineageMismatch(
            f"the cookie is of the lineage {expected}..., and shard {shard} is of {present}: what "
            "it names was written in another history; read again without it"
        )
