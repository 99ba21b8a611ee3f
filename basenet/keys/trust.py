"""Trusted keys: whose signatures a reader accepts.

A trusted keys file has one key a line, ``ed25519:<base64> [comment]``; blank lines and lines that
begin with ``#`` say nothing. The text of a public key is the same everywhere: in this file, in what
``basenet keys show`` prints and in what ``basenet serve`` says at its first start.

A reader looks in three places and takes the first that is named, never their union: the option
``--trusted-keys``, then BASE_TRUSTED_KEYS, then the data directory. A file that was named and is
missing is an error, since going on to the next would widen what the operator meant to narrow. There
is no trust on first use.
"""

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from basenet.errors import NotFoundError, UsageError
from basenet.keys import files
from basenet.units import KEY_BYTES, PublicKeyBytes
from basenet.wire import signature

TRUSTED_KEYS_NAME: Final = "trusted.keys"
ALGORITHM_PREFIX: Final = "ed25519:"

get_fingerprint = signature.get_fingerprint
"""The one short name of a key that people are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """One line of a trusted keys file."""

    public: PublicKeyBytes
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKeys:
    """The keys that a reader accepts, and the file that says so."""

    keys: tuple[TrustedKey, ...]
    source: Path

    @property
    def publics(self) -> frozenset[PublicKeyBytes]:
        """Return the keys alone, to look a signer up."""
        return frozenset(key.public for key in self.keys)


def format_public(public: bytes) -> str:
    """Return the one text form of a public key: ``ed25519:<base64>``."""
    assert len(public) == KEY_BYTES, "an Ed25519 public key has 32 bytes"
    return ALGORITHM_PREFIX + base64.b64encode(public).decode()


def parse_public(text: str) -> PublicKeyBytes:
    """Return the raw key of ``ed25519:<base64>``; raise `UsageError` if it is none."""
    encoded = text.removeprefix(ALGORITHM_PREFIX)
    try:
        public = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        public = b""
    if not text.startswith(ALGORITHM_PREFIX) or len(public) != KEY_BYTES:
        raise UsageError(
            f"{text!r} is not a public key: it must be {ALGORITHM_PREFIX} and the base64 of "
            "32 bytes, as `basenet keys show` prints it"
        )
    return PublicKeyBytes(public)


def parse_trusted_keys(text: str, *, source: Path) -> TrustedKeys:
    """Return the keys of a trusted keys file; ``source`` names it in messages.

    Raises `UsageError` that names every line that is not a key, or says that there is no key.
    """
    keys = _parse_lines(text, source)
    if not keys:
        raise UsageError(
            f"the trusted keys file {source} holds no key; add a line as `basenet keys show` "
            "prints it on the node that wrote the archive"
        )
    return TrustedKeys(keys=keys, source=source)


def read_trusted_keys(path: Path) -> TrustedKeys:
    """Return the keys of the file ``path``.

    Raises `NotFoundError` if there is no such file and `UsageError` if it is not usable.
    """
    return parse_trusted_keys(_read_text(path), source=path)


def find_trusted_keys(
    *, option: Path | None, configured: Path | None, data_dir: Path | None
) -> TrustedKeys | None:
    """Return the keys of the first place that is named, or None if no place has any.

    ``option`` is ``--trusted-keys``, ``configured`` is BASE_TRUSTED_KEYS. None means that the
    reader must refuse: it then raises `explain_missing_trust` with the signer that it met.

    Raises `NotFoundError` if a named file is missing and `UsageError` if one is not usable.
    """
    for named in (option, configured):
        if named is not None:
            return read_trusted_keys(named)
    if data_dir is None:
        return None
    try:
        return read_trusted_keys(data_dir / TRUSTED_KEYS_NAME)
    except NotFoundError:
        return None


def explain_missing_trust(*, signer: bytes | None = None) -> UsageError:
    """Return the error of a reader that has no trusted key; ``signer`` is the one it met."""
    met = f"; what lies there is signed by {get_fingerprint(signer)}" if signer else ""
    return UsageError(
        f"no trusted key is known, so nothing in the archive can be believed{met}; run `basenet "
        "keys show` on the node that wrote it, compare, and pass those lines with --trusted-keys "
        "FILE or BASE_TRUSTED_KEYS"
    )


def add_trusted_key(path: Path, public: bytes, *, comment: str = "") -> None:
    """Write ``public`` into the trusted keys file ``path`` unless it is there already.

    Raises `UsageError` if the file is not usable and `UnavailableError` if the disk refuses.
    """
    try:
        before = _read_text(path)
    except NotFoundError:
        before = ""
    if any(key.public == public for key in _parse_lines(before, path)):
        return
    if before and not before.endswith("\n"):
        before += "\n"
    line = f"{format_public(public)} {comment}".rstrip() + "\n"
    files.replace(path, (before + line).encode())


def _read_text(path: Path) -> str:
    content = files.read_file(path, what="the trusted keys file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"the trusted keys file {path} is not text in UTF-8") from error


def _parse_lines(text: str, source: Path) -> tuple[TrustedKey, ...]:
    keys: dict[PublicKeyBytes, TrustedKey] = {}
    faults: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split(maxsplit=1)
        if not fields or fields[0].startswith("#"):
            continue
        try:
            public = parse_public(fields[0])
        except UsageError as error:
            faults.append(f"line {number}: {error}")
            continue
        comment = fields[1].strip() if len(fields) > 1 else ""
        keys.setdefault(public, TrustedKey(public=public, comment=comment))
    if faults:
        raise UsageError(f"the trusted keys file {source} is not usable: {'; '.join(faults)}")
    return tuple(keys.values())
