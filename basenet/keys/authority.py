"""A certificate authority for development: ``basenet keys init``.

A node's identity is its certificate: the only SAN is the node id, and the Ed25519 key in it signs
the node's frames and archived objects, too. The layout of an authority's directory::

    DIR/ca.crt          the certificate that every node trusts        BASE_TLS_CA
    DIR/ca.key          signs certificates; no node needs it          0600
    DIR/trusted.keys    the public keys of all nodes                  BASE_TRUSTED_KEYS
    DIR/NODE/node.crt   the node's certificate                        BASE_TLS_SERVER_CERT
    DIR/NODE/node.key   its key, for TLS and for signatures           BASE_TLS_SERVER_KEY,
                        0600, and DIR/NODE is 0700                    BASE_SIGNING_KEY

Nothing is overwritten, ever: a second call with new names adds nodes to the same authority.
Production uses an authority of its own; what basenet asks of a certificate is above.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from basenet.errors import ConflictError, UsageError
from basenet.keys import files, signing, trust
from basenet.keys.node import parse_node_id

AUTHORITY_VALIDITY: Final = timedelta(days=3650)
NODE_VALIDITY: Final = timedelta(days=1825)
# Certificates are valid from a little before now, for peers whose clocks are behind.
_CLOCK_SLACK: Final = timedelta(hours=1)
_COMMON_NAME_LENGTH_MAX: Final = 64  # RFC 5280, ub-common-name


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFiles:
    """What `init` wrote for one node."""

    node: str
    key: signing.SigningKey
    key_path: Path
    certificate_path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Authority:
    key: Ed25519PrivateKey
    certificate: x509.Certificate


def init(directory: Path, nodes: Sequence[str], *, now: datetime) -> list[NodeFiles]:
    """Make keys and certificates for ``nodes`` under the authority in ``directory``.

    The authority is made if ``directory`` has none. ``now`` carries a time zone.

    Raises `UsageError` if a name is no node id or the authority is not usable, `ConflictError` if a
    node is there already (nothing is written then) and `UnavailableError` if the disk refuses.
    """
    names = [parse_node_id(node) for node in nodes]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"the node {min(repeated)} is named twice; name each node once")
    if reserved := {"ca.crt", "ca.key", trust.TRUSTED_KEYS_NAME}.intersection(names):
        raise UsageError(
            f"a node cannot be called {min(reserved)}: that is a file of the authority"
        )
    if taken := [name for name in names if (directory / name).exists()]:
        raise ConflictError(
            f"{directory / taken[0]} exists already and keys are never overwritten; "
            "name only new nodes, or move that directory away first"
        )
    files.make_private_directory(directory)
    authority = _load_or_create_authority(directory, now)
    return [_issue(directory, name, authority, now) for name in names]


def read_certificate(path: Path) -> x509.Certificate:
    """Return the certificate in the PEM file ``path``.

    Raises `NotFoundError` if there is no such file and `UsageError` if it holds no certificate.
    """
    content = files.read_file(path, what="the certificate")
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise UsageError(f"{path} holds no certificate in PEM") from error


def _load_or_create_authority(directory: Path, now: datetime) -> _Authority:
    key_path, certificate_path = directory / "ca.key", directory / "ca.crt"
    # The certificate can be made again from the key, so a crash between the two heals here.
    if key_path.exists() or not certificate_path.exists():
        key = _load_or_create_key(key_path)
    else:
        raise UsageError(
            f"{certificate_path} is there without {key_path}, so no node can be added; "
            "put the key back or choose another directory"
        )
    if not certificate_path.exists():
        certificate = _sign_authority(key, now)
        files.write_new(
            certificate_path,
            certificate.public_bytes(Encoding.PEM),
            mode=files.PUBLIC_FILE_MODE,
        )
    certificate = read_certificate(certificate_path)
    if certificate.public_key() != key.public_key():
        raise UsageError(
            f"{certificate_path} does not belong to {key_path}; "
            "put the matching pair back or choose another directory"
        )
    return _Authority(key=key, certificate=certificate)


def _load_or_create_key(path: Path) -> Ed25519PrivateKey:
    key = signing.load(path) if path.exists() else signing.generate(path)
    return Ed25519PrivateKey.from_private_bytes(key.private)


def _issue(directory: Path, node: str, authority: _Authority, now: datetime) -> NodeFiles:
    home = directory / node
    files.make_private_directory(home)
    key_path, certificate_path = home / "node.key", home / "node.crt"
    key = signing.generate(key_path)
    certificate = _sign_node(node, key, authority, now)
    files.write_new(
        certificate_path, certificate.public_bytes(Encoding.PEM), mode=files.PUBLIC_FILE_MODE
    )
    trust.add_trusted_key(directory / trust.TRUSTED_KEYS_NAME, key.public, comment=node)
    return NodeFiles(node=node, key=key, key_path=key_path, certificate_path=certificate_path)


def _sign_authority(key: Ed25519PrivateKey, now: datetime) -> x509.Certificate:
    name = _make_name("basenet development authority")
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + AUTHORITY_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_make_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, algorithm=None)
    )


def _sign_node(
    node: str, key: signing.SigningKey, authority: _Authority, now: datetime
) -> x509.Certificate:
    public = Ed25519PublicKey.from_public_bytes(key.public)
    issuer = authority.key.public_key()
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        x509.CertificateBuilder()
        .subject_name(_make_name(node))
        .issuer_name(authority.certificate.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(min(now + NODE_VALIDITY, authority.certificate.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(node)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_make_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        .sign(authority.key, algorithm=None)
    )


def _make_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:_COMMON_NAME_LENGTH_MAX])])


def _make_key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
