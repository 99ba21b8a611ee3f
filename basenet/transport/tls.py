"""TLS between nodes: version 1.3, both sides with a certificate, names from a list.

A peer is known by a DNS name among the subject alternative names of its certificate (RFC 6125;
never by the common name, never by its address) that stands in the allow-list. With TLS 1.3 the
client's handshake succeeds even when the server is about to refuse it, so nobody counts as
connected before the HELLO of the other side (`transport.handshake`).

The files may be replaced at any time: each new connection looks whether they changed. Files that do
not load leave the old ones in use, and are reported once.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from basenet.errors import PeerError, UsageError
from basenet.units import PublicKeyBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where a node's certificates and keys lie, all in PEM."""

    authority: Path
    server_certificate: Path
    server_key: Path
    client_certificate: Path
    client_key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """Both sides' contexts and this node's own certificates (DER), of one state of the files."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    server_certificate: bytes
    client_certificate: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCertificate:
    """What a handshake proved: the certificate, its DNS names, its key if that is Ed25519."""

    encoded: bytes
    names: frozenset[str]
    key: PublicKeyBytes | None
    expires_at: datetime


class Credentials:
    """This node's TLS identity, read again when its files change."""

    def __init__(self, files: TlsFiles, *, on_problem: Callable[[str], None]) -> None:
        """Load ``files``; raises `UsageError` if they are not usable.

        ``on_problem`` is told, once for each state of the files, why changed files are not used.
        """
        self._files = files
        self._on_problem = on_problem
        self._stamp = self._read_stamp()
        self._contexts = _load(files)

    def contexts(self) -> Contexts:
        """Return the contexts for a new connection."""
        stamp = self._read_stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._contexts = _load(self._files)
            except UsageError as error:
                self._on_problem(str(error))
        return self._contexts

    def _read_stamp(self) -> tuple[object, ...]:
        """Return what changes when a file is written or replaced."""
        return tuple(_stamp(path) for path in _paths(self._files))


def _paths(files: TlsFiles) -> tuple[Path, ...]:
    return (
        files.authority,
        files.server_certificate,
        files.server_key,
        files.client_certificate,
        files.client_key,
    )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _load(files: TlsFiles) -> Contexts:
    server = _make_context(
        ssl.PROTOCOL_TLS_SERVER, files.authority, files.server_certificate, files.server_key
    )
    # A resumed session would skip the certificates.
    server.num_tickets = 0
    client = _make_context(
        ssl.PROTOCOL_TLS_CLIENT, files.authority, files.client_certificate, files.client_key
    )
    return Contexts(
        server=server,
        client=client,
        server_certificate=_read_certificate(files.server_certificate),
        client_certificate=_read_certificate(files.client_certificate),
    )


def _make_context(
    protocol: ssl._SSLMethod, authority: Path, certificate: Path, key: Path
) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The names are checked against the allow-list after the handshake: addresses come from DNS,
    # and who answers there is told by its certificate alone.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"BASE_TLS_CA: {authority} is not usable ({_reason(error)}); it must hold the "
            "certificates of the authority in PEM"
        ) from error
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"BASE_TLS_SERVER_CERT, BASE_TLS_SERVER_KEY: {certificate} and {key} are not usable "
            f"together ({_reason(error)}); they must be a certificate and its key in PEM"
        ) from error
    return context


def _reason(error: OSError) -> str:
    return error.strerror or getattr(error, "reason", None) or str(error)


def _read_certificate(path: Path) -> bytes:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no certificate in PEM ({error})") from error


def read_peer(stream: trio.SSLStream[trio.SocketStream]) -> PeerCertificate:
    """Return what the handshake of ``stream`` proved.

    Raises `PeerError` when the peer showed no certificate or one that cannot be read.
    """
    encoded = stream.getpeercert(binary_form=True)
    if not encoded:
        raise PeerError("the peer has shown no certificate; connection refused")
    try:
        certificate = x509.load_der_x509_certificate(encoded)
        extensions = certificate.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns_names = frozenset(names.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        dns_names = frozenset()
    except ValueError as error:
        raise PeerError(f"the peer's certificate cannot be read: {error}") from error
    public = certificate.public_key()
    key = None
    if isinstance(public, Ed25519PublicKey):
        key = PublicKeyBytes(public.public_bytes(Encoding.Raw, PublicFormat.Raw))
    return PeerCertificate(
        encoded=encoded, names=dns_names, key=key, expires_at=certificate.not_valid_after_utc
    )
