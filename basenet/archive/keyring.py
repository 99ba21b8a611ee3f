"""For whom this node encrypts its archive, and what it can open. No ``repr`` shows a key."""

from collections.abc import Sequence
from dataclasses import dataclass

from basenet.errors import UsageError
from basenet.keys.age import load_identities
from basenet.wire.encryption import Identity, Recipient
from basenet.wire.signature import Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """Keys of the encryption at rest; all empty: nothing is encrypted and nothing can be opened.

    ``recipients``: who can read what is written from now on; none: it is written in clear.
    ``signer`` signs the ciphertext, so only who writes needs it.
    """

    recipients: tuple[Recipient, ...] = ()
    identities: tuple[Identity, ...] = ()
    signer: Signer | None = None

    @property
    def is_empty(self) -> bool:
        """Whether encryption is not configured at all."""
        return not self.recipients and not self.identities


def make_reading_keyring(identity: str | None) -> Keyring:
    """Return what ``restore`` and ``verify`` need; ``identity`` is BASE_ARCHIVE_IDENTITY.

    Raises `NotFoundError` and `UsageError` for a file that cannot be used.
    """
    return Keyring(identities=load_identities(identity) if identity is not None else ())


def make_writing_keyring(
    recipients: Sequence[Recipient], identity: str | None, signer: Signer
) -> Keyring:
    """Return what ``serve`` needs.

    Raises `UsageError` for an identity without recipients, which would write in clear what
    somebody believes to be encrypted, and for one that could not read what it writes: at its next
    start the node would not know its own archive.
    """
    identities = make_reading_keyring(identity).identities
    if identities and not recipients:
        raise UsageError(
            "BASE_ARCHIVE_IDENTITY is set and BASE_ARCHIVE_RECIPIENTS is not, so the archive would "
            "be written in clear: set both, or unset both"
        )
    own = {held.recipient for held in identities}
    if recipients and own.isdisjoint(recipients):
        raise UsageError(
            "no identity of BASE_ARCHIVE_IDENTITY belongs to a recipient of "
            "BASE_ARCHIVE_RECIPIENTS, so this node could not read its own archive after a restart: "
            "add the recipient of its identity"
        )
    return Keyring(recipients=tuple(recipients), identities=identities, signer=signer)
