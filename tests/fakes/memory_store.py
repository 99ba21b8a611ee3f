"""A store in memory that fails as it is told to."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import trio

from basenet.archive.port import (
    Entry,
    Listing,
    Object,
    Store,
    StoreConflict,
    StoreNotFound,
    StoreRefused,
    StoreUnavailable,
    Token,
)


class Fault(Enum):
    """What happens to one call."""

    FAIL = auto()  # nothing is done, and the caller hears of a failure
    LOSE_ANSWER = auto()  # it is done, and the caller hears of a failure
    REFUSE = auto()  # permission denied
    HANG = auto()  # nothing is done, and no answer ever comes
    HANG_AFTER = auto()  # it is done, and no answer ever comes


Fate = Callable[[str, str], Fault | None]
"""Decides about a call from its method's name and the object's name."""


@dataclass(slots=True)
class Stored:
    data: bytes
    version: int
    modified_ns: int


class MemoryStore(Store):
    """Objects in a dictionary. `calls` holds what was asked, `fate` decides what goes wrong."""

    def __init__(self, now_ns: Callable[[], int] | None = None) -> None:
        self.objects: dict[str, Stored] = {}
        self.calls: list[tuple[str, str]] = []
        self.fate: Fate = lambda _method, _name: None
        self.latency_seconds = 0.0
        self.now_ns = now_ns  # the store's own clock; None: it does not say
        self._versions = 0

    @property
    def url(self) -> str:
        return "memory://"

    @property
    def endpoint(self) -> str:
        return "memory"

    def put(self, name: str, data: bytes) -> Token:
        """Write without asking anybody, as the test itself."""
        self._versions += 1
        now_ns = self.now_ns() if self.now_ns else 0
        self.objects[name] = Stored(data=data, version=self._versions, modified_ns=now_ns)
        return Token(str(self._versions))

    def count(self, method: str, part: str = "") -> int:
        return sum(1 for called, name in self.calls if called == method and part in name)

    def names(self, part: str = "") -> list[str]:
        return sorted(name for name in self.objects if part in name)

    async def _call(self, method: str, name: str, act: Callable[[], Token | None]) -> Token | None:
        self.calls.append((method, name))
        fault = self.fate(method, name)
        if self.latency_seconds:
            await trio.sleep(self.latency_seconds)
        await trio.lowlevel.checkpoint()
        if fault is Fault.FAIL:
            raise StoreUnavailable(f"the store failed at {method} {name}")
        if fault is Fault.REFUSE:
            raise StoreRefused(f"the store refused {method} {name}: permission denied")
        if fault is Fault.HANG:
            await trio.sleep_forever()
        token = act()
        if fault is Fault.LOSE_ANSWER:
            raise StoreUnavailable(f"no answer to {method} {name}")
        if fault is Fault.HANG_AFTER:
            await trio.sleep_forever()
        return token

    async def put_if_absent(self, name: str, data: bytes) -> Token:
        return await self._write("put_if_absent", name, data, None)

    async def replace_if(self, name: str, data: bytes, expected: Token | None) -> Token:
        return await self._write("replace_if", name, data, expected)

    async def _write(self, method: str, name: str, data: bytes, expected: Token | None) -> Token:
        def act() -> Token:
            stored = self.objects.get(name)
            if stored is not None and stored.data == data:
                return Token(str(stored.version))
            if (Token(str(stored.version)) if stored else None) != expected:
                raise StoreConflict(f"object {name} is another")
            return self.put(name, data)

        token = await self._call(method, name, act)
        assert token is not None
        return token

    async def put_unconditional(self, name: str, data: bytes) -> Token:
        token = await self._call("put_unconditional", name, lambda: self.put(name, data))
        assert token is not None
        return token

    async def get(self, name: str) -> Object:
        await self._call("get", name, lambda: None)
        stored = self.objects.get(name)
        if stored is None:
            raise StoreNotFound(f"there is no object {name}")
        return Object(
            data=stored.data,
            token=Token(str(stored.version)),
            modified_ns=stored.modified_ns if self.now_ns else None,
            server_now_ns=self.now_ns() if self.now_ns else None,
        )

    async def get_range(self, name: str, start: int, length: int) -> bytes:
        await self._call("get_range", name, lambda: None)
        stored = self.objects.get(name)
        if stored is None:
            raise StoreNotFound(f"there is no object {name}")
        return stored.data[start : start + length]

    def list(self, prefix: str, start_after: str | None = None) -> Listing:
        is_over = False

        async def next_page() -> list[Entry] | None:
            nonlocal is_over
            if is_over:
                return None
            is_over = True
            await self._call("list", prefix, lambda: None)
            return [
                Entry(name=name, size=len(stored.data))
                for name, stored in sorted(self.objects.items())
                if name.startswith(prefix) and name > (start_after or "")
            ]

        return Listing(next_page)

    async def delete(self, name: str) -> None:
        def act() -> None:
            self.objects.pop(name, None)

        await self._call("delete", name, act)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def first(times: int, fault: Fault, *, method: str = "", part: str = "") -> Fate:
    """Return a fate that befalls the first ``times`` calls of ``method`` on names with ``part``."""
    left = times

    def fate(called: str, name: str) -> Fault | None:
        nonlocal left
        if left and method in called and part in name:
            left -= 1
            return fault
        return None

    return fate


def always(fault: Fault, *, method: str = "", part: str = "") -> Fate:
    """Return a fate that befalls every such call."""
    return lambda called, name: fault if method in called and part in name else None
