"""How a commit is waited for: by asking the daemon beside the database.

Theory of operation
===================

A commit is SQLite's own and is done when SQLite says so; nothing here can stop or undo it. What
this adds is the answer to "and is it safe?", at one of three levels::

    local      SQLite's word: on this disk, as far as PRAGMA synchronous goes
    final      in a quorum of journals (a node alone: in its own), so no failover loses it
    archived   in the archive, and a restore reaches it

The daemon is asked for *now*: it captures what is committed at that moment and answers when that
has reached the level. This connection's commit was before the question, so it is covered, whatever
else was committed meanwhile.

Unless it is gone: a node that was deposed, lost the commit, rolled it back and writes again would
answer for a database without it. So before a transaction begins the daemon is asked for its
*generation*, which ends when something is undone on that node, and the wait names it: then the
answer is `CommitOrphaned`. A busy connection has it from its last wait. An old one is as good, but
that what was undone before the commit is taken to have hit it; so one second is the oldest, as long
as nothing waits to be waited for.

Which shard the database is, is found by its file: the daemon lists its shards with their paths. In
another mount namespace paths differ, and the shard is named instead.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from basenet.client.errors import (
    ClientError,
    CommitOrphaned,
    DaemonUnavailable,
    LineageChanged,
    NotFinal,
    Refused,
)
from basenet.client.exchange import Answer, Exchange, Place
from basenet.errors import UsageError

SOCKET_NAME: Final = "basenet.sock"
DATA_DIR_NAME: Final = ".basenet"
TIMEOUT_SECONDS: Final = 30.0
# How much longer than the daemon we wait, so that its own time-out, which says more, comes first.
_MARGIN_SECONDS: Final = 5.0
_ASK_SECONDS: Final = 10.0
# The application waits for this before it may write, and can do without.
_GENERATION_SECONDS: Final = 2.0
# To be deposed, to lose a commit and to write again takes longer than a lease.
_FRESH_SECONDS: Final = 1.0
_OK: Final = 200
_NOT_FOUND: Final = 404
_UNAVAILABLE: Final = 503
_NAMED_MAX: Final = 10


class Level(StrEnum):
    """How safe a commit must be before a call returns; see the theory above."""

    LOCAL = "local"
    FINAL = "final"
    ARCHIVED = "archived"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What a wait was granted: everything at or below ``seq`` of ``lineage`` is at its level.

    ``cookie`` names that place to a reader elsewhere. ``generation``: the daemon's, for what is
    committed from now on.
    """

    seq: int
    lineage: str
    cookie: str
    generation: str | None = None


def find_place(path: Path, daemon: str | os.PathLike[str] | None) -> Place:
    """Return where the daemon of the database ``path`` listens.

    ``daemon``: its http:// address, data directory or socket. By default, the first that there is:
    BASE_DATA_DIR, ``.basenet`` beside the database, BASE_LISTEN_HTTP. Raises `UsageError`.
    """
    if daemon is not None:
        text = os.fspath(daemon)
        if text.startswith("http://"):
            return _parse_url(text)
        if "://" in text:
            raise UsageError(f"daemon {text!r} is neither http://host:port nor a path.")
        named = Path(text)
        return Place(socket_path=named / SOCKET_NAME if named.is_dir() else named)
    if given := os.environ.get("BASE_DATA_DIR", "").strip():
        return Place(socket_path=Path(given) / SOCKET_NAME)
    beside = Path(os.path.realpath(path)).parent / DATA_DIR_NAME / SOCKET_NAME
    listen = os.environ.get("BASE_LISTEN_HTTP", "").strip()
    if listen and not beside.exists():
        host, _, port = listen.rpartition(":")
        return _parse_url(f"http://{host or '127.0.0.1'}:{port}")
    return Place(socket_path=beside)


def _parse_url(url: str) -> Place:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None:
        raise UsageError(f"{url!r} is not the address of a daemon: write http://host:port.")
    return Place(host=host, port=port)


class Waiter:
    """Waits for one database. Not for two threads at once."""

    def __init__(self, path: Path, place: Place, shard: str | None = None) -> None:
        """``shard``: its id, where its path does not lead to it."""
        self._path = path
        self._exchange = Exchange(place)
        self._shard = shard
        self._is_named = shard is not None
        self._generation: str | None = None
        self._read_s = -_FRESH_SECONDS
        self._is_owed = False

    def close(self) -> None:
        """End the connection to the daemon."""
        self._exchange.close()

    @property
    def generation(self) -> str | None:
        """The generation in which the next wait believes all that was committed; None: unknown."""
        return self._generation

    def before_commit(self) -> None:
        """Learn the generation in which the next commit is made; to be called before it.

        Raises nothing: without an answer the older one counts.
        """
        now = time.monotonic()
        # What is still to be waited for was committed in the older one.
        if self._is_owed and self._generation is not None:
            return
        if now - self._read_s < _FRESH_SECONDS:
            return
        with contextlib.suppress(ClientError):
            generation = self._read_generation()
            self._generation = self._generation if generation is None else generation
            self._read_s = now
        if self._generation is not None:
            self._read_s = now  # one that does not answer is not asked at every transaction

    def _read_generation(self) -> str | None:
        """Return the present one; None: a node alone has none, or it is not known yet."""
        if self._shard is None:
            self._shard = self._find_shard()
        path = f"/v1/shards/{quote(self._shard, safe='')}"
        answer = self._exchange.get(path, _GENERATION_SECONDS)
        body = self._decode(answer)
        if answer.status != _OK:
            raise _make_error(answer.status, body, "")
        generation = body.get("generation")
        return generation if isinstance(generation, str) else None

    def on_commit(self) -> None:
        """Learn that something was committed, which is to be waited for by whoever waits next."""
        self._is_owed = True

    def wait_now(self, level: Level, timeout_s: float) -> Reached:
        """Return once what is committed at this moment is at ``level``, final or archived.

        Raises `NotFinal` when the time is up, and the other errors of `client.errors`.
        """
        target = {"now": "1"}
        if self._generation is not None:
            target["generation"] = self._generation
        try:
            reached = self._wait(target, level.value, timeout_s)
        except CommitOrphaned:
            # That is told now; what is committed next is another matter.
            self._is_owed, self._generation, self._read_s = False, None, -_FRESH_SECONDS
            raise
        self._is_owed = False
        self._generation, self._read_s = reached.generation, time.monotonic()
        return reached

    def wait_applied(self, cookie: str, timeout_s: float) -> Reached:
        """Return once the commit that ``cookie`` names is in this database; errors as above."""
        return self._wait({"cookie": cookie}, "applied", timeout_s)

    def _wait(self, target: Mapping[str, str], level: str, timeout_s: float) -> Reached:
        query = _encode_query(*target.items(), ("level", level), ("timeout", _encode_ms(timeout_s)))
        answer = self._ask_wait(query, timeout_s)
        if answer.status == _NOT_FOUND and not self._is_named:
            self._shard = None  # the daemon was started anew with other ids
            answer = self._ask_wait(query, timeout_s)
        body = self._decode(answer)
        if answer.status != _OK:
            raise _make_error(answer.status, body, level)
        try:
            generation = body.get("generation")
            return Reached(
                seq=int(body["seq"]),
                lineage=str(body["lineage"]),
                cookie=str(body["cookie"]),
                generation=None if generation is None else str(generation),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange() from error

    def _ask_wait(self, query: str, timeout_s: float) -> Answer:
        if self._shard is None:
            self._shard = self._find_shard()
        path = f"/v1/shards/{quote(self._shard, safe='')}/wait?{query}"
        return self._exchange.get(path, timeout_s + _MARGIN_SECONDS)

    def _find_shard(self) -> str:
        """Return the id of the shard whose file is ours."""
        # On a connection of its own: one that asks for nothing but waits is answered sooner.
        finder = Exchange(self._exchange.place)
        try:
            answer = finder.get("/v1/shards", _ASK_SECONDS)
        finally:
            finder.close()
        body = self._decode(answer)
        if answer.status != _OK:
            raise _make_error(answer.status, body, "")
        try:
            shards = {str(shard["shard"]): str(shard["path"]) for shard in body["shards"]}
        except (KeyError, TypeError) as error:
            raise self._strange() from error
        ours = os.path.realpath(self._path)
        for shard, path in shards.items():
            if os.path.realpath(path) == ours or _is_same_file(path, ours):
                return shard
        served = ", ".join(sorted(shards)[:_NAMED_MAX]) or "it serves none"
        raise DaemonUnavailable(
            f"the daemon at {self._exchange.place} does not serve {ours}; if it sees the file "
            f"under another path, name the shard: {served}."
        )

    def _decode(self, answer: Answer) -> dict[str, Any]:
        try:
            body = json.loads(answer.body)
        except ValueError as error:
            raise self._strange() from error
        if not isinstance(body, dict):
            raise self._strange()
        return body

    def _strange(self) -> DaemonUnavailable:
        return DaemonUnavailable(
            f"what answers at {self._exchange.place} is not a basenet daemon of this version."
        )


# A connection asks the same after each of its commits.
@lru_cache(maxsize=16)
def _encode_query(*parts: tuple[str, str]) -> str:
    return urlencode(parts)


def _encode_ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms"


def _is_same_file(path: str, other: str) -> bool:
    try:
        return Path(path).samefile(other)
    except OSError:
        return False


def _make_error(status: int, body: Mapping[str, Any], level: str) -> ClientError:
    """Return the exception that stands behind an error body."""
    sentence, code = str(body.get("error", f"the daemon answered {status}")), body.get("code")
    if code == NotFinal.code:
        seq = body.get("target_seq")
        return NotFinal(sentence, level=level, seq=seq if isinstance(seq, int) else None)
    if code == CommitOrphaned.code:
        bundles = body.get("bundles")
        named = tuple(map(str, bundles)) if isinstance(bundles, list) else ()
        return CommitOrphaned(sentence, bundles=named)
    if code == LineageChanged.code:
        return LineageChanged(sentence)
    return DaemonUnavailable(sentence) if status >= _UNAVAILABLE else Refused(sentence)
