"""Encryption at rest: a store whose objects are encrypted, as far as the rest can tell a clear one.

Theory of operation
===================

Everything above the port reads and writes what it always did; this store encrypts each object on
its way down and decrypts it on its way up (`basenet.wire.encryption`). So what is signed, chained
and hashed inside is judged by the same code whether it was encrypted or not, and whoever holds no
key finds a signature over the ciphertext.

*In clear* stay `LEASE` and the probe of conditions. A lease must be readable for every node that
may take over, whatever identity it was given: were it not, a wrong key would look like no lease.
TIP is encrypted: a node that cannot read it cannot continue the archive either.

*Bytes decide*, says the port: an equal write succeeds. Two encryptions of equal bytes differ, so a
write that meets a conflict reads what is there, and succeeds if it holds the same plaintext.

*No mixture.* Each lineage is encrypted whole or not at all; a parent may differ from its child.
What a lineage is, its first object says, which is looked at before it is listed or written.
An object of the other kind is refused in reading, and in writing nothing is written. So a
variable that got lost never puts clear objects beside encrypted ones, and the way to switch is a
child lineage. TIP belongs to the shard: it is replaced by one of the kind that its writer writes.

*No keys at all*: then nothing is changed but one thing: an encrypted object is refused with the
name of the variable, before somebody above takes it for damaged and writes it anew.

*Listings* tell the sizes of the plaintext, which follow from those of the objects (and cost, once a
lineage, a look at what it is).

*Ranges* cost the blocks that they touch, and once the header. A header is kept for reading on; an
object that was replaced meanwhile shows as a block that does not decrypt, and is looked at again.
"""

import re
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

import trio

from basenet.archive.keyring import Keyring
from basenet.archive.port import (
    Entry,
    Object,
    Store,
    StoreConflict,
    StoreNotFound,
    StoreRefused,
    Token,
    WrappedStore,
)
from basenet.archive.probe import PROBE_PREFIX
from basenet.errors import EncryptionCorrupt
from basenet.units import KIB
from basenet.wire import segment
from basenet.wire.encryption import (
    BLOCK_BYTES,
    DATA_KEY_BYTES,
    HEADER_BYTES,
    MAGIC,
    TAG_BYTES,
    Header,
    Opened,
    count_blocks,
    decode_header,
    encrypt_object,
    is_encrypted,
    open_header,
    plain_bytes,
    stored_bytes,
)

# Below this a thread costs more than the work.
_INLINE_BYTES_MAX: Final = 64 * KIB
_HEADERS_KEPT: Final = 256
_LOOKS_MAX: Final = 8
_LINEAGE = re.compile(r"[^/]+/[^/]+/[0-9a-f]{32}/")
_Result = TypeVar("_Result")


def stays_clear(name: str) -> bool:
    """Return whether the object ``name`` is never encrypted."""
    return name.rpartition("/")[2] == "LEASE" or name.startswith(PROBE_PREFIX)


class EncryptedStore(WrappedStore):
    """The port on a store of encrypted objects. With an empty keyring: on one of clear objects.

    Beyond what the port raises: `StoreRefused` for an object that no identity opens, and
    `EncryptionCorrupt`, which names it, for one that is damaged or of the wrong kind.
    """

    def __init__(self, store: Store, keyring: Keyring) -> None:
        """Take over ``store``, which `aclose` closes."""
        super().__init__(store)
        self._keyring = keyring
        self._kinds: dict[str, bool] = {}  # by lineage: whether its objects are encrypted
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self.hides_content = bool(keyring.recipients)

    # Writing.

    async def put_if_absent(self, name: str, data: bytes) -> Token:
        """Create the object; one that holds the same plaintext is success."""
        sealed = await self._encrypt(name, data)
        return await self._unless_equal(name, data, lambda: self._store.put_if_absent(name, sealed))

    async def replace_if(self, name: str, data: bytes, expected: Token | None) -> Token:
        """Replace the object; one that holds the same plaintext already is success."""
        sealed = await self._encrypt(name, data)
        return await self._unless_equal(
            name, data, lambda: self._store.replace_if(name, sealed, expected)
        )

    async def put_unconditional(self, name: str, data: bytes) -> Token:
        """Write the object whatever was there."""
        self._opened.pop(name, None)
        return await self._store.put_unconditional(name, await self._encrypt(name, data))

    async def delete(self, name: str) -> None:
        """Delete the object."""
        self._opened.pop(name, None)
        await self._store.delete(name)

    async def _unless_equal(
        self, name: str, data: bytes, write: Callable[[], Awaitable[Token]]
    ) -> Token:
        self._opened.pop(name, None)
        try:
            return await write()
        except StoreConflict:
            if not self._keyring.recipients or stays_clear(name):
                raise
            try:
                found = await self.get(name)
            except (StoreNotFound, EncryptionCorrupt):
                found = None
            if found is None or found.data != data:
                raise
            return found.token

    async def _encrypt(self, name: str, data: bytes) -> bytes:
        if self._keyring.is_empty or stays_clear(name):
            return data
        await self.check_writable(name)
        recipients, signer = self._keyring.recipients, self._keyring.signer
        if not recipients:
            return data
        assert signer is not None, "who writes has a key"

        def encrypt() -> bytes:
            return encrypt_object(
                name,
                data,
                data_key=secrets.token_bytes(DATA_KEY_BYTES),
                recipients=recipients,
                signer=signer,
            )

        return await _in_thread(encrypt, len(data))

    async def check_writable(self, lineage: str) -> None:
        """Raise `StoreRefused` if the lineage, or that of an object, is of the other kind."""
        match = _LINEAGE.match(lineage)
        if match is None or self._keyring.is_empty:
            return
        lineage = match[0]
        if await self._find_kind(lineage) is None:
            self._kinds[lineage] = self.hides_content
        if self._kinds[lineage] != self.hides_content:
            was, now = (
                ("in clear", "encrypted") if self.hides_content else ("encrypted", "in clear")
            )
            raise StoreRefused(
                f"{lineage} in {self.url} is written {was}, and BASE_ARCHIVE_RECIPIENTS asks for "
                f"{now}: put it back as it was, or move the journal out of the data directory, so "
                "that a child lineage begins"
            )

    async def _find_kind(self, lineage: str) -> bool | None:
        """Return whether a lineage is encrypted; None when it has no object that says so."""
        known = self._kinds.get(lineage)
        if known is not None:
            return known
        looks = 0
        async for entry in self._store.list(lineage):
            if not entry.name.endswith(".lbn"):
                continue
            looks += 1
            with suppress(StoreNotFound):
                head = await self._store.get_range(entry.name, 0, len(MAGIC))
                if head in (MAGIC, segment.MAGIC):
                    return self._kinds.setdefault(lineage, is_encrypted(head))
            if looks == _LOOKS_MAX:
                break  # that many damaged ones are somebody else's business
        return None

    # Reading.

    async def get(self, name: str) -> Object:
        """Return the object, decrypted."""
        found = await self._store.get(name)
        return replace(found, data=await self._decrypt(name, found.data))

    async def get_data(self, name: str) -> bytes:
        """Return the object's plaintext."""
        return await self._decrypt(name, await self._store.get_data(name))

    async def get_token(self, name: str) -> Token:
        """Return the token of the object, which need not be readable."""
        return await self._store.get_token(name)

    async def get_range(self, name: str, start: int, length: int) -> bytes:
        """Return a part of the plaintext."""
        if self._keyring.is_empty or stays_clear(name):
            return await self._store.get_range(name, start, length)
        kept = self._opened.get(name)
        if kept is not None:
            try:
                return await self._read_blocks(kept, start, length)
            except EncryptionCorrupt:
                self._opened.pop(name, None)  # perhaps another object by now
        data = await self._store.get_range(name, 0, HEADER_BYTES)
        if not self._check_kind(name, data):
            return await self._store.get_range(name, start, length)
        opened = self._open(decode_header(data, name))
        result = await self._read_blocks(opened, start, length)
        self._opened[name] = opened
        if len(self._opened) > _HEADERS_KEPT:
            self._opened.popitem(last=False)
        return result

    async def _read_blocks(self, opened: Opened, start: int, length: int) -> bytes:
        header, step = opened.header, BLOCK_BYTES + TAG_BYTES
        stop = min(start + length, header.plain_len)
        if start >= stop:
            return b""
        first, after = start // BLOCK_BYTES, count_blocks(stop)
        begin = HEADER_BYTES + first * step
        end = min(HEADER_BYTES + after * step, stored_bytes(header.plain_len))
        data = await self._store.get_range(header.name, begin, end - begin)
        if len(data) != end - begin:
            raise header.fail(f"it ends {end - begin - len(data)} bytes too early, or is cut off")
        plain = await _in_thread(lambda: opened.decrypt_blocks(first, data), len(data))
        return plain[start - first * BLOCK_BYTES : stop - first * BLOCK_BYTES]

    async def _decrypt(self, name: str, data: bytes) -> bytes:
        if stays_clear(name) or not self._check_kind(name, data):
            return data

        def decrypt() -> bytes:
            opened = self._open(decode_header(data, name))
            return opened.decrypt_body(memoryview(data)[HEADER_BYTES:])

        return await _in_thread(decrypt, len(data))

    def _check_kind(self, name: str, data: bytes) -> bool:
        """Return whether the object is encrypted; raise if it must not be, or must be."""
        found = is_encrypted(data)
        if found and not self._keyring.identities:
            raise StoreRefused(
                f"{name} in {self.url} is encrypted: name the file of an identity that can read it "
                "in BASE_ARCHIVE_IDENTITY"
            )
        match = _LINEAGE.match(name)
        if match is None:
            return found
        known = self._kinds.get(match[0])
        # What begins like neither says nothing about its lineage, and whoever reads it refuses it.
        if known is None and (found or data[: len(segment.MAGIC)] == segment.MAGIC):
            known = self._kinds[match[0]] = found
        if known is not None and known != found:
            was, now = ("in clear", "encrypted") if found else ("encrypted", "not encrypted")
            raise EncryptionCorrupt(
                f"{name} is {now}, and its lineage is {was}: it is damaged, or was put there by "
                "somebody else; a lineage is never mixed"
            )
        return found

    def _open(self, header: Header) -> Opened:
        opened = open_header(header, self._keyring.identities)
        if opened is None:
            wanted = ", ".join(key_id.hex() for key_id, _ in header.slots)
            held = ", ".join(one.recipient.key_id.hex() for one in self._keyring.identities)
            raise StoreRefused(
                f"{header.name} in {self.url} is encrypted for the key ids {wanted}, and no "
                "identity in BASE_ARCHIVE_IDENTITY is one of them: name the right file, and keep "
                f"older identities in it (it has {held}; `basenet keys age --show FILE` tells "
                "those of a file)"
            )
        return opened

    async def is_for_all(self, name: str) -> bool:
        """Return whether each present recipient can read the object ``name``."""
        if not self._keyring.recipients:
            return True
        data = await self._store.get_range(name, 0, HEADER_BYTES)
        return is_encrypted(data) and decode_header(data, name).is_for(self._keyring.recipients)

    # Listing.

    def list(self, prefix: str, start_after: str | None = None) -> AsyncIterator[Entry]:
        """Iterate over the objects; their sizes are those of the plaintext."""
        entries = self._store.list(prefix, start_after)
        return entries if self._keyring.is_empty else _PlainSizes(entries, self._get_size)

    async def _get_size(self, entry: Entry) -> int:
        """Return how many bytes the object holds, for whoever reads it through this store."""
        match = _LINEAGE.match(entry.name)
        is_clear = match is not None and await self._find_kind(match[0]) is False
        if is_clear or stays_clear(entry.name):
            return entry.size
        size = plain_bytes(entry.size)
        return entry.size if size is None else size


class _PlainSizes(AsyncIterator[Entry]):
    """A listing with the sizes of the plaintext."""

    def __init__(
        self, entries: AsyncIterator[Entry], get_size: Callable[[Entry], Awaitable[int]]
    ) -> None:
        self._entries = entries
        self._get_size = get_size

    async def __anext__(self) -> Entry:
        entry = await anext(self._entries)
        return Entry(name=entry.name, size=await self._get_size(entry))


async def _in_thread(work: Callable[[], _Result], size: int) -> _Result:
    if size <= _INLINE_BYTES_MAX:
        return work()
    return await trio.to_thread.run_sync(work)
