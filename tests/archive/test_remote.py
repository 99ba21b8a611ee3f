"""Threads, retries and lost answers, on a backend that fails as it is told."""

import threading
from collections.abc import Callable

import pytest
import trio

from basenet.archive import remote
from basenet.archive.port import (
    Entry,
    Object,
    StoreConflict,
    StoreNotFound,
    StoreRefused,
    StoreUnavailable,
    Token,
)
from basenet.archive.remote import Absent, Backend, Condition, Limits, Matches, Page, RemoteStore

DOWN = StoreUnavailable("the store is down")
FULL = StoreConflict("the condition does not hold")


class ScriptedBackend(Backend):
    """One object in memory; ``on_put`` says what a write does and answers."""

    url = "test://bucket"
    endpoint = "test"

    def __init__(self) -> None:
        self.held: bytes | None = None
        self.on_put: Callable[[bytes], None] = self.store
        self.failures: list[Exception] = []
        self.call_count = 0
        self.is_closed = False

    def store(self, data: bytes) -> None:
        self.held = data

    def fail(self) -> None:
        self.call_count += 1
        if self.failures:
            raise self.failures.pop(0)

    def token(self) -> Token:
        return Token(f"token of {self.held!r}")

    def put(self, name: str, data: bytes, condition: Condition) -> Token:
        assert name == "name"
        assert isinstance(condition, Absent | Matches)
        self.on_put(data)
        return self.token()

    def get(self, name: str) -> Object:
        self.fail()
        if self.held is None:
            raise StoreNotFound(name)
        return Object(data=self.held, token=self.token(), modified_ns=None, server_now_ns=None)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        return self.get(name).data[start : start + length]

    def list_page(self, prefix: str, start_after: str | None, page: str | None) -> Page:
        assert (prefix, start_after) == ("a", "a2")
        self.fail()
        number = int(page or "0")
        entries = tuple(Entry(name=f"a{number * 2 + i}", size=0) for i in range(2))
        return Page(entries=entries, next_page=str(number + 1) if number < 2 else None)

    def delete(self, name: str) -> None:  # noqa: ARG002  (the port's)
        self.fail()
        self.held = None

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    monkeypatch.setattr(remote, "PAUSE_SECONDS_FIRST", 0)
    return ScriptedBackend()


def answers(backend: ScriptedBackend, held: bytes | None, answer: Exception) -> None:
    """Let the next write end with ``answer`` while the object is then ``held``."""

    def on_put(_: bytes) -> None:
        backend.held = held
        raise answer

    backend.on_put = on_put


@pytest.mark.parametrize(
    ("expected", "held", "answer", "outcome"),
    [
        (None, b"mine", FULL, None),
        (None, b"mine", DOWN, None),
        (None, b"other", FULL, StoreConflict),
        (None, b"other", DOWN, StoreConflict),
        (None, None, FULL, StoreConflict),
        (None, None, DOWN, StoreUnavailable),
        (b"before", b"mine", FULL, None),
        (b"before", b"mine", DOWN, None),
        (b"before", b"other", FULL, StoreConflict),
        (b"before", b"other", DOWN, StoreConflict),
        (b"before", b"before", DOWN, StoreUnavailable),
        (b"before", b"before", FULL, StoreConflict),
        (b"before", None, FULL, StoreConflict),
        (b"before", None, DOWN, StoreUnavailable),
    ],
)
async def test_after_a_doubtful_answer_the_bytes_decide(
    backend: ScriptedBackend,
    expected: bytes | None,
    held: bytes | None,
    answer: Exception,
    outcome: type[Exception] | None,
) -> None:
    """The table at the top of remote.py, line by line."""
    store = RemoteStore(backend, Limits())
    backend.held = expected
    token = None if expected is None else backend.token()
    answers(backend, held, answer)
    if outcome is None:
        assert await store.replace_if("name", b"mine", token) == backend.token()
    else:
        with pytest.raises(outcome):
            await store.replace_if("name", b"mine", token)


@pytest.mark.parametrize("answer", [FULL, DOWN])
async def test_when_reading_back_fails_the_first_answer_stands(
    backend: ScriptedBackend, answer: Exception
) -> None:
    """A failure stays a failure: nobody knows, and writing again will tell."""
    answers(backend, b"mine", answer)
    backend.failures = [StoreUnavailable("no reading either")] * remote.READ_ATTEMPTS_MAX
    with pytest.raises(type(answer)) as caught:
        await RemoteStore(backend, Limits()).put_if_absent("name", b"mine")
    assert caught.value is answer


async def test_a_refusal_is_not_read_back(backend: ScriptedBackend) -> None:
    """Without permission nothing was written, and asking again tells nothing."""
    answers(backend, b"mine", StoreRefused("no permission"))
    with pytest.raises(StoreRefused):
        await RemoteStore(backend, Limits()).put_if_absent("name", b"mine")
    assert backend.call_count == 0


async def test_reading_is_tried_a_few_times(backend: ScriptedBackend) -> None:
    """Only while the store is unavailable, and not for ever."""
    backend.held = b"data"
    store = RemoteStore(backend, Limits())
    backend.failures = [DOWN] * 2
    assert await store.get_data("name") == b"data"
    assert backend.call_count == 3
    backend.failures = [DOWN] * 3
    with pytest.raises(StoreUnavailable):
        await store.delete("name")
    backend.call_count, backend.failures = 0, [StoreRefused("no")]
    with pytest.raises(StoreRefused):
        await store.get("name")
    assert backend.call_count == 1


async def test_a_page_is_tried_again_without_losing_its_place(backend: ScriptedBackend) -> None:
    """And names up to start_after are left out, whatever the server thinks of it."""
    backend.failures = [DOWN]
    listing = RemoteStore(backend, Limits()).list("a", "a2")
    assert [entry.name async for entry in listing] == ["a3", "a4", "a5"]


async def test_no_more_calls_than_allowed_run_at_once(backend: ScriptedBackend) -> None:
    """The others wait, and can be cancelled, without a thread."""
    store = RemoteStore(backend, Limits(concurrent_calls_max=2))
    started, go_on = threading.Semaphore(0), threading.Event()
    running = most = 0
    lock = threading.Lock()

    def on_put(_: bytes) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        started.release()
        assert go_on.wait(10)
        with lock:
            running -= 1

    backend.on_put = on_put
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(store.put_if_absent, "name", b"data")
        for _ in range(2):
            await trio.to_thread.run_sync(started.acquire)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert most == 2


async def test_closing_closes_the_backend(backend: ScriptedBackend) -> None:
    """And does not wait."""
    await RemoteStore(backend, Limits()).aclose()
    assert backend.is_closed
