"""Writing files of keys so that a crash leaves a whole file or none.

A file is written beside its name, flushed to the disk and then *linked* to its name: linking fails
when the name is taken, so of two processes that make a key at the same moment one wins and the
other reads what the winner wrote. Only a file of public keys may be replaced.
"""

import os
import secrets
from pathlib import Path
from typing import Final

from basenet.errors import ConflictError, NotFoundError, UnavailableError, UsageError

PRIVATE_FILE_MODE: Final = 0o600
PUBLIC_FILE_MODE: Final = 0o644
PRIVATE_DIRECTORY_MODE: Final = 0o700
# A key that others can read or the group can change is no secret. The group may read: a container
# platform mounts secrets as 0440 with a group of their own.
_LOOSE_MODE_BITS: Final = 0o027
# Far above any key, certificate or list of trusted keys; a wrong path may name a database.
_FILE_BYTES_MAX: Final = 1024 * 1024


def make_private_directory(path: Path, *, setting: str | None = None) -> None:
    """Make ``path`` and its parents if they are missing; only ``path`` itself is closed to others.

    Raises `UnavailableError` if that cannot be done; ``setting`` is the variable that names it.
    """
    try:
        if path.is_dir():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=PRIVATE_DIRECTORY_MODE, exist_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        reason = "a file has its name" if path.is_file() else error.strerror
        choose = f"set {setting} to" if setting else "choose"
        raise UnavailableError(
            f"the directory {path} cannot be made ({reason}); {choose} one that this user may "
            "write to"
        ) from error


def read_file(path: Path, *, what: str, private: bool = False) -> bytes:
    """Return the content of ``path``; ``what`` names its role in messages.

    Raises `NotFoundError` if there is no such file and `UsageError` if it cannot be read, is far
    too large or, when ``private``, is open to others.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            content = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"{what} {path} does not exist") from error
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}") from error
    if len(content) > _FILE_BYTES_MAX:
        raise UsageError(f"{what} {path} is larger than {_FILE_BYTES_MAX} bytes: not a key file")
    if private and mode & _LOOSE_MODE_BITS:
        raise UsageError(
            f"{what} {path} has mode {mode:04o}, so that others than its owner can reach the "
            f"private key; run: chmod 600 {path}"
        )
    return content


def write_new(path: Path, content: bytes, *, mode: int = PRIVATE_FILE_MODE) -> None:
    """Write ``path``, whole and durable, unless it exists.

    Raises `ConflictError` if the name is taken and `UnavailableError` if the disk refuses.
    """
    draft = _write_draft(path, content, mode)
    try:
        path.hardlink_to(draft)
    # The draft itself is gone when another process has just written this name and tidied up.
    except (FileExistsError, FileNotFoundError) as error:
        raise ConflictError(
            f"{path} exists already and is never overwritten; "
            "move it away first if a new one is really wanted"
        ) from error
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
    sync_directory(path.parent)


def replace(path: Path, content: bytes, *, mode: int = PUBLIC_FILE_MODE) -> None:
    """Write ``path``, whole and durable, in place of what is there.

    Raises `UnavailableError` if the disk refuses; the old content then stands.
    """
    draft = _write_draft(path, content, mode)
    try:
        draft.replace(path)
    except OSError as error:
        draft.unlink()
        raise UnavailableError(f"{path} cannot be written: {error.strerror}") from error
    sync_directory(path.parent)


def remove_drafts(path: Path) -> None:
    """Delete what a crash in the middle of writing ``path`` left beside it."""
    for draft in path.parent.glob(f".{path.name}.*.draft"):
        draft.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make the names in ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_draft(path: Path, content: bytes, mode: int) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.draft")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask says
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UnavailableError(f"{path} cannot be written: {error.strerror}") from error
    return draft
