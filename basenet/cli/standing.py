"""Where a copy that follows an archive stands: the small file beside it.

``app.db-follow`` belongs to ``app.db`` and says which frame's state that holds (`at`; None before
there is one), and which one's it is about to hold (`next`). It is replaced, whole and durable,
before the database is changed and after it. So whatever a crash cut off, the state root of the
database is that of one of the two, or somebody else changed the database.

The file is believed as far as the database beside it: no more is done with it than to ask the
archive for what follows, which is proven.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from basenet.archive.plan import Start
from basenet.errors import BasenetError, ConflictError, NotFoundError
from basenet.keys.files import PRIVATE_FILE_MODE, read_file, remove_drafts, replace
from basenet.units import Lineage
from basenet.wire.frame import decode_head, encode_head

SUFFIX: Final = "-follow"
_FORMAT: Final = 1


class _Frame(msgspec.Struct, frozen=True, kw_only=True):
    lineage: str
    head: str


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    service: str
    shard: str
    at: _Frame | None
    next: _Frame | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Which frames a copy may stand at: ``at``, or ``next`` if a crash came behind the change."""

    at: Start | None = None
    next: Start | None = None


class StandingFile:
    """The file beside one copy. Every method blocks."""

    def __init__(self, database: Path, *, service: str, shard: str) -> None:
        """Take the path of the copy, and of what it is one."""
        self.path = database.with_name(database.name + SUFFIX)
        self._service = service
        self._shard = shard

    def read(self) -> Standing | None:
        """Return what was written last; None if there is no file.

        Raises `ConflictError` for a file of another shard, or one that is not readable.
        """
        remove_drafts(self.path)
        try:
            content = read_file(self.path, what="the file")
        except NotFoundError:
            return None
        try:
            document = msgspec.json.decode(content, type=_Document)
            standing = Standing(at=_decode(document.at), next=_decode(document.next))
        except (msgspec.DecodeError, ValueError, BasenetError) as error:
            raise ConflictError(
                f"{self.path} is not readable ({error}), so nothing says where the copy stands: "
                "delete it and use --force to begin with a new one"
            ) from error
        found = (document.format, document.service, document.shard)
        if found != (_FORMAT, self._service, self._shard):
            raise ConflictError(
                f"{self.path} says that the copy is one of shard {document.shard} of service "
                f"{document.service}, not of {self._shard} of {self._service}: name another file"
            )
        return standing

    def write(self, standing: Standing) -> None:
        """Write where the copy stands; raises `UnavailableError`."""
        document = _Document(
            format=_FORMAT,
            service=self._service,
            shard=self._shard,
            at=_encode(standing.at),
            next=_encode(standing.next),
        )
        content = msgspec.json.format(msgspec.json.encode(document))
        replace(self.path, content + b"\n", mode=PRIVATE_FILE_MODE)


def _encode(start: Start | None) -> _Frame | None:
    if start is None:
        return None
    return _Frame(lineage=start.lineage.hex(), head=encode_head(start.head).hex())


def _decode(frame: _Frame | None) -> Start | None:
    if frame is None:
        return None
    return Start(
        lineage=Lineage(bytes.fromhex(frame.lineage)), head=decode_head(bytes.fromhex(frame.head))
    )
