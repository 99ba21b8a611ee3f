"""What can go wrong, sorted by whose fault it is and by what happens next.

=====================  ==================================  =======================================
class                  whose fault                         what follows
=====================  ==================================  =======================================
`PeerError`            a replica broke the protocol        drop the connection, keep the evidence
`CorruptionError`      bytes read back differently         stop this shard, say how to restore
`UnavailableError`     the outside is out of reach         back off, retry, show it in ``status``
`UsageError`           the operator's command or config    one sentence and an exit code
`NotFoundError`        a named thing does not exist        one sentence and exit code 3
`ConflictError`        two parties want the same thing     one sentence and exit code 4
=====================  ==================================  =======================================

Our own bugs are not in this tree: they are failed assertions and end the process. Nothing that
came from a peer, a disk or an archive is checked with ``assert``.

Every message is one whole sentence that names the variable, file, object or value, and what to do.
"""

from typing import ClassVar


class BasenetError(Exception):
    """The root of all errors that basenet raises on purpose.

    ``exit_code`` is what a command ends with; ``code`` is the ``code`` of the HTTP error body.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "internal"


class PeerError(BasenetError):
    """A replica sent what the protocol forbids."""

    code = "bad_request"


class CorruptionError(BasenetError):
    """Bytes that somebody wrote read back differently, or never were what they claim to be."""

    code = "corrupt"


class UnavailableError(BasenetError):
    """The outside (store, disk, lock, peer) is out of reach for now; trying again can help."""

    code = "shard_unavailable"


class UsageError(BasenetError):
    """The operator's command, configuration or file is not usable as it is."""

    exit_code = 2
    code = "bad_request"


class NotFoundError(BasenetError):
    """A shard, archive, object or file that was named does not exist."""

    exit_code = 3
    code = "not_found"


class ConflictError(BasenetError):
    """Two parties want the same thing: a lease, a file, a history."""

    exit_code = 4
    code = "conflict"


class FrameCorrupt(CorruptionError):  # noqa: N818  (the field's word; the kind is in the base)
    """The bytes of a frame do not decode, or its checksum, chain or signature is wrong."""


class SegmentCorrupt(CorruptionError):  # noqa: N818
    """Magic, crc, signature or content of an LBN2 object is wrong."""


class SegmentUnsigned(UsageError):  # noqa: N818
    """A segment was to be written without a signer or read without trusted keys: fail closed."""


class UntrustedKey(CorruptionError):  # noqa: N818
    """An object is signed by a key that the operator does not trust."""


class PageSetCorrupt(CorruptionError):  # noqa: N818
    """A page set's manifest, index or part is not what was signed."""


class ChainBroken(CorruptionError):  # noqa: N818
    """Two neighbouring frames do not fit: a gap, another prev_hash, or another state root."""


class CertificateInvalid(CorruptionError):  # noqa: N818
    """A certificate does not prove what it stands for: its votes are too few, alien or wrong."""


class EncryptionCorrupt(CorruptionError):  # noqa: N818
    """An encrypted object is not what was encrypted under its name, or is mixed with clear ones."""
