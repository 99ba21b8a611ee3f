"""The archive's port: what basenet asks of a place that keeps objects.

Theory of operation
===================

A store keeps *objects*: bytes under a name. Names are separated by ``/`` and lie below the
prefix of the store's URL. Everything that the archive promises rests on two conditional writes:

* ``put_if_absent`` makes an object that did not exist;
* ``replace_if`` replaces the version of an object whose *token* the writer has read.

Of many writers exactly one succeeds.

An answer can be lost: the store wrote, and the writer never heard. So in every implementation
*the bytes decide*. A conditional write succeeds when the object now holds exactly the bytes that
were to be written, whoever wrote them and however often. A writer to whom "my write" must differ
from "an equal write of another" (a lease) puts a unique token into its bytes.

A write that raised `StoreUnavailable`, or was cancelled, is undecided: it may have happened, and
may even happen later. Writing the same bytes again is always right.

Waiting is the caller's business: every method can be cancelled at once, also while an endpoint
swallows packets. Conditional writes are attempted once; how often to try again, and how long, is
the uploader's decision. Reads, listings and deletions try a few times by themselves.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NewType

from basenet.errors import ConflictError, NotFoundError, UnavailableError, UsageError

Token = NewType("Token", str)
"""Names one version of one object: an ETag, a generation or a content hash. Only compare it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """An object's bytes, and what the store says about them.

    ``modified_ns`` is when the store last wrote the object and ``server_now_ns`` when it
    answered, both by the store's own clock, so that their difference is an age that no clock of
    ours can falsify. Either is None when the store does not say. S3 and GCS count whole seconds.
    """

    data: bytes
    token: Token
    modified_ns: int | None
    server_now_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a listing: an object's name below the store's prefix, and its size in bytes."""

    name: str
    size: int


class StoreUnavailable(UnavailableError):  # noqa: N818  (the field's word; the kind is in the base)
    """The store did not answer, or answered that it cannot now; trying again can help."""


class StoreRefused(UsageError):  # noqa: N818
    """The store will not serve us until somebody changes a permission, a key, a name or a disk."""


class StoreNotFound(NotFoundError):  # noqa: N818
    """There is no object of that name."""


class StoreConflict(ConflictError):  # noqa: N818
    """The condition of a write did not hold: somebody else's bytes are there."""


class Listing(AsyncIterator[Entry]):
    """The entries of a listing, fetched page by page as they are consumed.

    A class, not an async generator: it holds nothing open, so leaving it half read is fine.
    """

    def __init__(self, next_page: Callable[[], Awaitable[Sequence[Entry] | None]]) -> None:
        """Draw pages from ``next_page`` until it returns None."""
        self._next_page = next_page
        self._entries: deque[Entry] = deque()

    async def __anext__(self) -> Entry:
        while not self._entries:
            page = await self._next_page()
            if page is None:
                raise StopAsyncIteration
            self._entries.extend(page)
        return self._entries.popleft()


class Store(ABC):
    """A place that keeps objects. See the top of this file for what its methods have in common.

    Every method may raise `StoreUnavailable` and `StoreRefused`. Close a store with `aclose`.
    """

    is_conditional: bool = True
    """Whether the store itself keeps conditions. False: two writers are not excluded (Q18)."""

    hides_content: bool = False
    """Whether it encrypts what is written: then names must not tell anything of it either."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Return the store's URL as the operator would write it, without secrets."""

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """Return what two stores share exactly when they are the same server and bucket."""

    @abstractmethod
    async def put_if_absent(self, name: str, data: bytes) -> Token:
        """Create the object and return its token, durable; `StoreConflict`: other bytes exist."""

    @abstractmethod
    async def replace_if(self, name: str, data: bytes, expected: Token | None) -> Token:
        """Replace the object if ``expected`` is its token; None means that it must not exist.

        Returns the new token. Raises `StoreConflict` when the object is another or gone.
        """

    @abstractmethod
    async def put_unconditional(self, name: str, data: bytes) -> Token:
        """Write the object whatever was there. For `UnconditionalStore` only."""

    @abstractmethod
    async def get(self, name: str) -> Object:
        """Return the object; raise `StoreNotFound` if there is none."""

    async def get_data(self, name: str) -> bytes:
        """Return the object's bytes alone, which for some stores costs less than `get`."""
        return (await self.get(name)).data

    async def get_token(self, name: str) -> Token:
        """Return the token of an object whose content does not matter, and may be damaged."""
        return (await self.get(name)).token

    async def check_writable(self, lineage: str) -> None:  # noqa: B027  (most have nothing to say)
        """Raise `StoreRefused` if what lies below ``lineage`` is not to be continued through this.

        A store in clear continues everything: what it could not, it cannot read.
        """

    async def is_for_all(self, name: str) -> bool:  # noqa: ARG002  (a store in clear is)
        """Return whether everybody can read the object who can read what is written now."""
        return True

    @abstractmethod
    async def get_range(self, name: str, start: int, length: int) -> bytes:
        """Return up to ``length`` bytes from offset ``start``: fewer, or none, past the end.

        Raises `StoreNotFound` if there is no such object.
        """

    @abstractmethod
    def list(self, prefix: str, start_after: str | None = None) -> AsyncIterator[Entry]:
        """Iterate over the objects whose names begin with ``prefix``, in the order of the names.

        ``prefix`` is text, not a directory. With ``start_after`` only names beyond it are listed.
        """

    @abstractmethod
    async def delete(self, name: str) -> None:
        """Delete the object; one that does not exist is deleted already."""

    @abstractmethod
    async def aclose(self) -> None:
        """Give up connections and threads. Does not wait for calls that hang."""


class WrappedStore(Store):
    """A store that stands before another one, and is the same place."""

    def __init__(self, store: Store) -> None:
        """Take over ``store``, which `aclose` closes."""
        self._store = store
        self.is_conditional = store.is_conditional

    @property
    def url(self) -> str:
        """Return the inner store's URL."""
        return self._store.url

    @property
    def endpoint(self) -> str:
        """Return the inner store's server and bucket."""
        return self._store.endpoint

    async def aclose(self) -> None:
        """Close the inner store."""
        await self._store.aclose()


def check_name(name: str) -> str:
    """Return ``name`` if a store can hold it; raise `StoreRefused` if not.

    Names can come out of an archive that somebody else wrote, so none may lead out of the prefix.
    """
    segments = name.split("/")
    if "\0" in name or any(segment in ("", ".", "..") for segment in segments):
        raise StoreRefused(
            f"object name {name!r} is not usable: give non-empty segments other than . and .. "
            "separated by single slashes"
        )
    return name
