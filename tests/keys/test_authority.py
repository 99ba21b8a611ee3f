"""The development authority: its certificates work in TLS, and nothing is ever overwritten."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from basenet.errors import ConflictError, NotFoundError, UsageError
from basenet.keys import authority, signing, trust

NOW = datetime.now(UTC)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def snapshot(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_an_authority_is_made_with_its_nodes(tmp_path: Path) -> None:
    """The layout of the document, private files 0600 and private directories 0700."""
    made = authority.init(tmp_path / "pki", ["a", "b.example"], now=NOW)
    assert set(snapshot(tmp_path / "pki")) == {
        "ca.crt",
        "ca.key",
        "trusted.keys",
        "a/node.crt",
        "a/node.key",
        "b.example/node.crt",
        "b.example/node.key",
    }
    for path in (tmp_path / "pki").rglob("*.key"):
        assert mode_of(path) == 0o600
    for directory in (tmp_path / "pki", tmp_path / "pki" / "a"):
        assert mode_of(directory) == 0o700
    assert [node.node for node in made] == ["a", "b.example"]
    trusted = trust.read_trusted_keys(tmp_path / "pki" / "trusted.keys")
    assert [(key.public, key.comment) for key in trusted.keys] == [
        (node.key.public, node.node) for node in made
    ]


def test_a_node_is_its_certificate(tmp_path: Path) -> None:
    """The only SAN is the node's id; the key in it is the node's signing key."""
    (made,) = authority.init(tmp_path, ["db-0"], now=NOW)
    certificate = authority.read_certificate(made.certificate_path)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["db-0"]
    assert len(list(names)) == 1
    public = certificate.public_key()
    assert isinstance(public, Ed25519PublicKey)
    assert public.public_bytes_raw() == signing.load(made.key_path).public == made.key.public
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc
    root = authority.read_certificate(tmp_path / "ca.crt")
    certificate.verify_directly_issued_by(root)


def test_more_nodes_join_the_same_authority(tmp_path: Path) -> None:
    """What was there stays byte for byte, apart from the list of trusted keys."""
    authority.init(tmp_path, ["a"], now=NOW)
    before = snapshot(tmp_path)
    authority.init(tmp_path, ["b"], now=NOW + timedelta(days=1))
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before if name != "trusted.keys"} == {
        name: content for name, content in before.items() if name != "trusted.keys"
    }
    assert len(trust.read_trusted_keys(tmp_path / "trusted.keys").keys) == 2
    root = authority.read_certificate(tmp_path / "ca.crt")
    authority.read_certificate(tmp_path / "b" / "node.crt").verify_directly_issued_by(root)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """One taken name refuses the whole call, before anything is written."""
    authority.init(tmp_path, ["a"], now=NOW)
    before = snapshot(tmp_path)
    with pytest.raises(ConflictError, match="never overwritten"):
        authority.init(tmp_path, ["b", "a"], now=NOW)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("names", [["../a"], ["A"], ["a", "a"], ["ca.key"], ["trusted.keys"]])
def test_a_name_that_cannot_be_a_node_is_refused(tmp_path: Path, names: list[str]) -> None:
    """Nothing is written for the others either."""
    with pytest.raises(UsageError):
        authority.init(tmp_path / "pki", ["good", *names], now=NOW)
    assert not (tmp_path / "pki").exists()


def test_a_crash_after_the_authoritys_key_is_healed(tmp_path: Path) -> None:
    """The certificate is made again from the key."""
    authority.init(tmp_path, ["a"], now=NOW)
    (tmp_path / "ca.crt").unlink()
    authority.init(tmp_path, ["b"], now=NOW)
    root = authority.read_certificate(tmp_path / "ca.crt")
    for name in ("a", "b"):
        node = authority.read_certificate(tmp_path / name / "node.crt")
        node.verify_directly_issued_by(root)


def test_an_authority_without_its_key_adds_nobody(tmp_path: Path) -> None:
    """Nor does one whose key and certificate do not belong together."""
    authority.init(tmp_path / "one", ["a"], now=NOW)
    authority.init(tmp_path / "two", ["a"], now=NOW)
    (tmp_path / "one" / "ca.key").unlink()
    with pytest.raises(UsageError, match="without"):
        authority.init(tmp_path / "one", ["b"], now=NOW)
    (tmp_path / "two" / "ca.key").rename(tmp_path / "one" / "ca.key")
    with pytest.raises(UsageError, match="does not belong to"):
        authority.init(tmp_path / "one", ["b"], now=NOW)
    assert not (tmp_path / "one" / "b").exists()


def test_what_is_no_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(UsageError, match="no certificate in PEM"):
        authority.read_certificate(tmp_path / "x")
    with pytest.raises(NotFoundError):
        authority.read_certificate(tmp_path / "no")


def make_context(pki: Path, node: str, *, server: bool) -> ssl.SSLContext:
    protocol = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pki / "ca.crt")
    context.load_cert_chain(pki / node / "node.crt", pki / node / "node.key")
    return context


def shake_hands(server_pki: Path, client_pki: Path, *, name: str) -> tuple[object, object]:
    """Run a TLS 1.3 handshake in memory; return what each side saw of the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = make_context(server_pki, "a", server=True).wrap_bio(
        to_server, to_client, server_side=True
    )
    client = make_context(client_pki, "b", server=False).wrap_bio(
        to_client, to_server, server_hostname=name
    )
    pending = [client, server]
    for _ in range(10):
        for side in list(pending):
            try:
                side.do_handshake()
                pending.remove(side)
            except ssl.SSLWantReadError:
                continue
        if not pending:
            return client.getpeercert(), server.getpeercert()
    raise AssertionError("the handshake did not end")


def test_nodes_of_one_authority_meet_over_tls(tmp_path: Path) -> None:
    """TLS 1.3 with certificates on both sides; each sees the other's node id."""
    authority.init(tmp_path, ["a", "b"], now=NOW)
    seen_by_client, seen_by_server = shake_hands(tmp_path, tmp_path, name="a")
    assert isinstance(seen_by_client, dict)
    assert isinstance(seen_by_server, dict)
    assert seen_by_client["subjectAltName"] == (("DNS", "a"),)
    assert seen_by_server["subjectAltName"] == (("DNS", "b"),)


def test_nodes_of_another_authority_or_another_name_do_not(tmp_path: Path) -> None:
    authority.init(tmp_path / "one", ["a", "b"], now=NOW)
    authority.init(tmp_path / "two", ["a", "b"], now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path / "one", tmp_path / "two", name="a")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path / "one", tmp_path / "one", name="c")
