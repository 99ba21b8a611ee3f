"""Keys in the form of age: recipients ``age1...`` and identities ``AGE-SECRET-KEY-1...``.

Both are raw X25519 keys in Bech32 (BIP 173), so that files made by ``age-keygen`` work here, and
those made here work there. An *identity file* holds identities, one a line, and comments that
begin with ``#``. Its newest identity may stand anywhere: all of them are tried.

No message of this module shows an identity.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from basenet.errors import UsageError
from basenet.keys import files
from basenet.wire.encryption import RECIPIENTS_MAX, Identity, Recipient

IDENTITY_PREFIX: Final = "AGE-SECRET-KEY-"
RECIPIENT_PREFIX: Final = "age"
_X25519_BYTES: Final = 32
_CHARACTERS: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_CHECKSUM_CHARACTERS: Final = 6
_GENERATORS: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def format_recipient(recipient: Recipient) -> str:
    """Return ``recipient`` as ``age1...``."""
    return _encode(RECIPIENT_PREFIX, recipient.public)


def format_identity(identity: Identity) -> str:
    """Return ``identity`` as ``AGE-SECRET-KEY-1...``: a secret."""
    return _encode(IDENTITY_PREFIX.lower(), identity.private).upper()


def parse_recipient(text: str) -> Recipient:
    """Return the recipient of ``age1...``; raise `UsageError` if it is none.

    An identity that was put here by mistake is not repeated in the message.
    """
    if text.strip().upper().startswith(IDENTITY_PREFIX):
        raise UsageError(
            "a value (not shown) is an identity, which is secret, and not a recipient: write the "
            "age1... that `basenet keys age` or age-keygen printed with it"
        )
    public = _decode(RECIPIENT_PREFIX, text.strip())
    if public is None:
        raise UsageError(
            f"{text!r} is not an age recipient: write age1 and 58 characters, as `basenet keys "
            "age` prints it (ssh keys, plugins and passphrases are not supported)"
        )
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        # One of the few points with which everybody agrees on the same secret.
        raise UsageError(f"{text!r} is no key that anything can be encrypted for") from error
    return Recipient(public=public)


def parse_recipients(items: Iterable[str]) -> tuple[Recipient, ...]:
    """Return the recipients, each once; raise `UsageError` for too many, or one that is none."""
    recipients = tuple(dict.fromkeys(parse_recipient(item) for item in items))
    if len(recipients) > RECIPIENTS_MAX:
        raise UsageError(
            f"{len(recipients)} recipients are too many: name at most {RECIPIENTS_MAX}"
        )
    return recipients


def parse_identities(text: str, *, what: str) -> tuple[Identity, ...]:
    """Return the identities in ``text``, a file's content; ``what`` names it in messages."""
    identities = []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        private = _decode(IDENTITY_PREFIX.lower(), stripped)
        if private is None:
            raise UsageError(
                f"line {number} of {what} (not shown) is not an age X25519 identity: it must be "
                "AGE-SECRET-KEY-1 and 58 characters, as `basenet keys age` makes it"
            )
        identities.append(Identity(private=private))
    if not identities:
        raise UsageError(f"{what} holds no age identity: make one with `basenet keys age FILE`")
    return tuple(identities)


def is_identity_text(text: str) -> bool:
    """Return whether ``text`` is meant to be an identity itself and not the path of a file."""
    return text.strip().upper().startswith(IDENTITY_PREFIX)


def load_identities(value: str) -> tuple[Identity, ...]:
    """Return the identities that BASE_ARCHIVE_IDENTITY names: a file's, or the one in the value.

    Raises `NotFoundError` without such a file and `UsageError` if it is open to others or holds
    anything else.
    """
    if is_identity_text(value):
        return parse_identities(value, what="BASE_ARCHIVE_IDENTITY")
    what = "the identity file of BASE_ARCHIVE_IDENTITY"
    content = files.read_file(Path(value), what=what, private=True)
    return parse_identities(content.decode("utf-8", "replace"), what=f"{what}, {value},")


def generate(path: Path, *, now: datetime | None = None) -> Recipient:
    """Make an identity, write it to ``path`` with mode 0600 and return its recipient.

    Raises `ConflictError` if the name is taken and `UnavailableError` if the disk refuses.
    """
    identity = Identity(private=X25519PrivateKey.generate().private_bytes_raw())
    created = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    content = (
        f"# created: {created}\n"
        f"# public key: {format_recipient(identity.recipient)}\n"
        f"{format_identity(identity)}\n"
    )
    files.write_new(path, content.encode())
    return identity.recipient


def _checksum(values: Iterable[int]) -> int:
    """Return Bech32's checksum polynomial over ``values`` of 5 bits."""
    state = 1
    for value in values:
        top = state >> 25
        state = (state & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATORS):
            state ^= generator if top >> bit & 1 else 0
    return state


def _expand(prefix: str) -> list[int]:
    return [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]


def _encode(prefix: str, data: bytes) -> str:
    bits = int.from_bytes(data, "big") << (-8 * len(data) % 5)
    count = -(-8 * len(data) // 5)
    values = [bits >> 5 * (count - 1 - place) & 31 for place in range(count)]
    check = _checksum([*_expand(prefix), *values, *[0] * _CHECKSUM_CHARACTERS]) ^ 1
    values += [check >> 5 * (_CHECKSUM_CHARACTERS - 1 - place) & 31 for place in range(6)]
    return f"{prefix}1{''.join(_CHARACTERS[value] for value in values)}"


def _decode(prefix: str, text: str) -> bytes | None:
    """Return the 32 bytes of a Bech32 text in one case with ``prefix``, or None if it is none."""
    if text not in (text.lower(), text.upper()):
        return None
    lower = text.lower()
    head, one, tail = lower.rpartition("1")
    values = [_CHARACTERS.find(character) for character in tail]
    if head != prefix or not one or -1 in values or len(values) < _CHECKSUM_CHARACTERS:
        return None
    if _checksum([*_expand(prefix), *values]) != 1:
        return None
    values = values[:-_CHECKSUM_CHARACTERS]
    spare = 5 * len(values) - 8 * _X25519_BYTES
    bits = 0
    for value in values:
        bits = bits << 5 | value
    # 52 characters hold 260 bits: the four that are left over must be zeros.
    if spare != -8 * _X25519_BYTES % 5 or bits & ((1 << spare) - 1):
        return None
    return (bits >> spare).to_bytes(_X25519_BYTES, "big")
