"""A node's own key."""

import base64
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from basenet.errors import ConflictError, NotFoundError, UsageError
from basenet.keys import signing, trust
from basenet.wire.signature import is_signed

SEED = bytes(range(32))
# RFC 8032 section 7.1, test 1.
RFC_SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


def write_private(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_the_first_start_makes_a_key_and_the_second_finds_it(tmp_path: Path) -> None:
    """Beside it lies the public half, as a line of a trusted keys file; the directory is closed."""
    data_dir = tmp_path / "deep" / ".basenet"
    first = signing.load_or_create(data_dir, comment="db-0")
    assert first.created
    assert first.path == data_dir / "signing.key"
    assert data_dir.stat().st_mode & 0o777 == 0o700
    assert first.path.stat().st_mode & 0o777 == 0o600
    assert (data_dir / "trusted.keys").read_text() == f"{first.public_text} db-0\n"
    assert sorted(path.name for path in data_dir.iterdir()) == ["signing.key", "trusted.keys"]

    second = signing.load_or_create(data_dir, comment="renamed")
    assert not second.created
    assert (second.private, second.public) == (first.private, first.public)
    assert (data_dir / "trusted.keys").read_text() == f"{first.public_text} db-0\n"


def test_a_key_signs_what_its_public_half_verifies(tmp_path: Path) -> None:
    """The vector of RFC 8032, and a signature that holds."""
    key = signing.load(write_private(tmp_path / "k", base64.b64encode(RFC_SEED)))
    assert key.public == RFC_PUBLIC
    assert key.signer().sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a")
    assert is_signed(key.public, key.signer().sign(b"x"), b"x")


def test_a_lost_list_of_trusted_keys_is_written_again(tmp_path: Path) -> None:
    """So a crash between the key and the list is healed by the next start."""
    key = signing.load_or_create(tmp_path)
    (tmp_path / "trusted.keys").unlink()
    signing.load_or_create(tmp_path)
    assert trust.read_trusted_keys(tmp_path / "trusted.keys").publics == {key.public}


def test_drafts_of_a_crashed_start_are_tidied_up(tmp_path: Path) -> None:
    write_private(tmp_path / ".signing.key.0123456789abcdef.draft", b"half a k")
    signing.load_or_create(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["signing.key", "trusted.keys"]


def test_a_named_key_is_used_and_trusted(tmp_path: Path) -> None:
    """None is made in the data directory; a restore there needs no further word."""
    named = signing.generate(tmp_path / "other.key")
    data_dir = tmp_path / "data"
    key = signing.load_or_create(data_dir, str(named.path))
    assert (key.public, key.created, key.path) == (named.public, False, named.path)
    assert [path.name for path in data_dir.iterdir()] == ["trusted.keys"]
    assert trust.read_trusted_keys(data_dir / "trusted.keys").publics == {key.public}


def test_a_new_named_key_is_added_to_the_trusted_ones(tmp_path: Path) -> None:
    """What the old key signed stays readable."""
    old = signing.load_or_create(tmp_path)
    new = signing.load_or_create(tmp_path, "base64:" + base64.b64encode(SEED).decode())
    assert new.path is None
    assert trust.read_trusted_keys(tmp_path / "trusted.keys").publics == {old.public, new.public}


def test_a_key_never_shows_itself(tmp_path: Path) -> None:
    """Neither the value nor an error about a broken one holds private bytes."""
    key = signing.load_or_create(tmp_path, "base64:" + base64.b64encode(SEED).decode())
    assert "private" not in repr(key)
    assert repr(SEED)[2:-1] not in repr(key)
    with pytest.raises(UsageError) as caught:
        signing.load_or_create(tmp_path, "base64:hunter2")
    assert "hunter2" not in str(caught.value)


def test_a_key_that_openssl_wrote_is_read(tmp_path: Path) -> None:
    """PKCS #8 in PEM is the common form; the base64 of the bytes is read, too."""
    private = Ed25519PrivateKey.from_private_bytes(SEED)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert signing.load(write_private(tmp_path / "a", pem)).private == SEED
    text = base64.b64encode(SEED) + b"\n"
    assert signing.load(write_private(tmp_path / "b", text)).private == SEED


def test_what_is_no_usable_key_is_refused(tmp_path: Path) -> None:
    """Each with the path, the reason and the way out; nothing is made in its place."""
    private = Ed25519PrivateKey.from_private_bytes(SEED)
    locked = private.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2")
    )
    curve = generate_private_key(SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    whole = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content, hint in [
        (locked, "encrypted with a password"),
        (curve, "no Ed25519 private key"),
        (whole[:-40], "no Ed25519 private key"),
        (base64.b64encode(SEED[:31]), "no Ed25519 private key"),
        (b"", "no Ed25519 private key"),
        (bytes(32), "no Ed25519 private key"),
    ]:
        write_private(tmp_path / "signing.key", content)
        with pytest.raises(UsageError, match=hint) as caught:
            signing.load_or_create(tmp_path)
        assert str(tmp_path / "signing.key") in str(caught.value)
        assert (tmp_path / "signing.key").read_bytes() == content


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = signing.load_or_create(tmp_path)
    assert key.path is not None
    key.path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        signing.load_or_create(tmp_path)


def test_a_named_key_that_is_missing_is_the_operators_fault(tmp_path: Path) -> None:
    """No key is made at a place that was named: a wrong path must not become a new identity."""
    with pytest.raises(UsageError, match="BASE_SIGNING_KEY"):
        signing.load_or_create(tmp_path / "data", str(tmp_path / "no.key"))
    assert not (tmp_path / "no.key").exists()
    with pytest.raises(NotFoundError):
        signing.load(tmp_path / "no.key")


def test_a_key_is_not_generated_over_another(tmp_path: Path) -> None:
    key = signing.generate(tmp_path / "k")
    with pytest.raises(ConflictError):
        signing.generate(tmp_path / "k")
    assert signing.load(tmp_path / "k").private == key.private


def _start(data_dir: Path) -> bytes:
    return bytes(signing.load_or_create(data_dir).public)


def test_processes_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    """Whoever links first wins; the others read what it wrote."""
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for round_number in range(10):
            data_dir = tmp_path / str(round_number)
            assert len(set(pool.map(_start, [data_dir] * 4, chunksize=1))) == 1
        pool.close()
        pool.join()


def test_a_kill_at_any_moment_leaves_a_whole_key_or_none(tmp_path: Path) -> None:
    """A process that makes keys is killed in the middle, again and again."""
    program = (
        "import sys; from pathlib import Path; from basenet.keys import signing\n"
        "print('ready', flush=True)\n"
        "for n in range(100000): signing.load_or_create(Path(sys.argv[1]) / str(n))\n"
    )
    for round_number in range(5):
        home = tmp_path / str(round_number)
        with subprocess.Popen(
            [sys.executable, "-c", program, str(home)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 20
            while not (home / str(3 + round_number)).exists():
                assert time.monotonic() < deadline, "no keys are made"
            os.kill(process.pid, signal.SIGKILL)
        for data_dir in home.iterdir():
            path = data_dir / "signing.key"
            before = signing.load(path).private if path.exists() else None
            after = signing.load_or_create(data_dir)
            assert before in {None, after.private}
            assert trust.read_trusted_keys(data_dir / "trusted.keys").publics == {after.public}


@pytest.mark.parametrize(
    ("text", "is_seed"),
    [
        (base64.b64encode(SEED).decode(), True),
        (base64.b64encode(SEED).decode() + "\n", True),
        ("/etc/basenet/signing.key", False),
        ("a" * 44, False),
        ("", False),
        ("é", False),
    ],
)
def test_a_pasted_seed_is_told_from_a_path(text: str, is_seed: bool) -> None:  # noqa: FBT001  (a parameter of the table)
    assert signing.is_seed_text(text) is is_seed
