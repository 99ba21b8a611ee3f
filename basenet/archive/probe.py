"""Does this store keep conditions? Asked before the first write to it, because some do not (Q18).

Several servers that speak like S3 take ``If-None-Match`` and overwrite all the same. On such a
store two writers would destroy each other's work unseen, so it is refused. What is tried::

    put_if_absent  first                    must succeed
    put_if_absent  second                   must conflict
    replace_if     third,  token of first   must succeed
    replace_if     fourth, token of first   must conflict
    get                                     must give third

on an object ``.basenet-probe-<random>`` below the prefix, which is deleted at the end. A store
that passed is not asked again for 30 days; ``archive-probes.json`` in the data directory remembers.
A store that failed is asked again each time, since somebody may have repaired it.
"""

import json
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from basenet.archive.port import (
    Store,
    StoreConflict,
    StoreNotFound,
    StoreRefused,
    StoreUnavailable,
    Token,
)

PROBE_PREFIX: Final = ".basenet-probe-"
CACHE_NAME: Final = "archive-probes.json"
CACHE_SECONDS: Final = 30 * 24 * 3600
CLEAN_UP_SECONDS: Final = 5.0


async def probe(store: Store, data_directory: Path, *, now_seconds: float | None = None) -> None:
    """Return if ``store`` keeps conditions; raise `StoreRefused` if it lets one pass.

    A store opened with ``BASE_ARCHIVE_UNCONDITIONAL=1`` is not asked. ``now_seconds`` is the
    time since the epoch. Raises `StoreUnavailable` when the store does not answer.
    """
    if not store.is_conditional:
        return
    now_seconds = time.time() if now_seconds is None else now_seconds
    cache = data_directory / CACHE_NAME
    passed = await trio.to_thread.run_sync(_read_cache, cache)
    # A time in the future is a clock set back since: not to be trusted.
    if 0 <= now_seconds - passed.get(store.endpoint, -1.0) < CACHE_SECONDS:
        return
    await _try_conditions(store)
    passed[store.endpoint] = now_seconds
    await trio.to_thread.run_sync(_write_cache, cache, passed)


async def _try_conditions(store: Store) -> None:
    name = PROBE_PREFIX + secrets.token_hex(8)
    try:
        first = await _put_first(store, name)
        if not await _conflicts(store, name, b"second", None):
            raise _refusal(store, "overwrites an object that exists")
        await _replace_first(store, name, first)
        if not await _conflicts(store, name, b"fourth", first):
            raise _refusal(store, "replaces an object that is no longer the expected version")
        if await store.get_data(name) != b"third":
            raise _refusal(store, "does not give back what was written last")
    except StoreNotFound as error:
        raise _refusal(store, "does not find an object that it has just taken") from error
    finally:
        # A probe that stays behind does no harm, so nobody waits long for this.
        with (
            trio.CancelScope(shield=True, deadline=trio.current_time() + CLEAN_UP_SECONDS),
            suppress(StoreUnavailable, StoreRefused),
        ):
            await store.delete(name)


async def _put_first(store: Store, name: str) -> Token:
    try:
        return await store.put_if_absent(name, b"first")
    except StoreConflict as error:
        raise _refusal(store, "finds a conflict where there is no object") from error


async def _replace_first(store: Store, name: str, first: Token) -> None:
    try:
        await store.replace_if(name, b"third", first)
    except StoreConflict as error:
        raise _refusal(store, "finds a conflict where there is none") from error


async def _conflicts(store: Store, name: str, data: bytes, expected: Token | None) -> bool:
    """Return whether the store refuses a write whose condition does not hold."""
    try:
        if expected is None:
            await store.put_if_absent(name, data)
        else:
            await store.replace_if(name, data, expected)
    except StoreConflict:
        return True
    return False


def _refusal(store: Store, what: str) -> StoreRefused:
    return StoreRefused(
        f"the archive {store.url} {what}, so two writers could destroy each other's work: take a "
        "store with conditional writes, or set BASE_ARCHIVE_UNCONDITIONAL=1 for a single writer"
    )


def _read_cache(path: Path) -> dict[str, float]:
    """Return when each endpoint passed, in seconds since the epoch; a damaged file is empty."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        endpoint: float(seconds)
        for endpoint, seconds in found.items()
        if isinstance(seconds, int | float)
    }


def _write_cache(path: Path, passed: dict[str, float]) -> None:
    """Remember who passed. If that is not possible, the next start asks again."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        temporary.write_text(json.dumps(passed, indent=1) + "\n")
        temporary.replace(path)
