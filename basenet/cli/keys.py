"""``basenet keys``: make keys and certificates for development, and show public keys.

What ``keys show`` prints is at the same time a trusted keys file: a key a line, with its
fingerprint and where it stands as the comment.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from basenet.cli import output
from basenet.config import load
from basenet.errors import NotFoundError, UsageError
from basenet.keys import age, authority, files, signing, trust
from basenet.units import PublicKeyBytes
from basenet.wire.signature import Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    public: PublicKeyBytes
    name: str

    @property
    def line(self) -> str:
        return (
            f"{trust.format_public(self.public)} {trust.get_fingerprint(self.public)} {self.name}"
        )

    @property
    def document(self) -> dict[str, str]:
        return {
            "name": self.name,
            "public_key": trust.format_public(self.public),
            "fingerprint": trust.get_fingerprint(self.public),
        }


@click.group()
def command() -> None:
    """Make keys and show the public ones."""


@command.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The directory of the authority; made if missing.",
)
@click.option("--node", "nodes", multiple=True, help="A node id; once per node.")
@click.argument("more_nodes", metavar="[NAME]...", nargs=-1)
@output.json_option
def init(
    *, directory: Path, nodes: Sequence[str], more_nodes: Sequence[str], as_json: bool
) -> None:
    """Make a development authority, and for each node a certificate and an Ed25519 key.

    Nothing is overwritten. Called again with other names it adds nodes to the same authority.
    """
    names = [*nodes, *more_nodes]
    if not names:
        raise UsageError("no node is named; write --node NAME, once per node")
    made = authority.init(directory, names, now=datetime.now(UTC))
    if as_json:
        output.print_json(
            {
                "ca_certificate": str(directory / "ca.crt"),
                "trusted_keys": str(directory / trust.TRUSTED_KEYS_NAME),
                "nodes": [
                    {
                        "node": node.node,
                        "certificate": str(node.certificate_path),
                        "key": str(node.key_path),
                        "public_key": node.key.public_text,
                        "fingerprint": node.key.fingerprint,
                    }
                    for node in made
                ],
            }
        )
        return
    click.echo(f"authority  {directory / 'ca.crt'}")
    for node in made:
        click.echo(f"{node.node}  {node.certificate_path}  {node.key_path}")
        click.echo(f"  {node.key.public_text} {node.key.fingerprint}")
    click.echo(f"The public keys stand in {directory / trust.TRUSTED_KEYS_NAME}.")


@command.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="A data directory, or the directory of `keys init`.",
)
@output.json_option
def show(*, file: Path | None, directory: Path | None, as_json: bool) -> None:
    """Show public keys and their fingerprints.

    FILE is a signing key, a certificate or a trusted keys file. Without FILE and --dir the key of
    this node is shown, which BASE_SIGNING_KEY or BASE_DATA_DIR names.
    """
    if file is not None and directory is not None:
        raise UsageError("FILE and --dir exclude each other; write one of them")
    if file is not None and not file.is_dir():
        shown = list(_read_any(file))
    elif file is not None or directory is not None:
        shown = _read_directory(file or directory or Path())
    else:
        shown = [_read_own()]
    if as_json:
        output.print_json({"keys": [key.document for key in shown]})
        return
    for key in shown:
        click.echo(key.line)


@command.command("age")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--show",
    "is_shown",
    is_flag=True,
    help="Show the recipients of the identities in FILE, and the key ids that messages name.",
)
@output.json_option
def make_identity(*, file: Path, is_shown: bool, as_json: bool) -> None:
    """Make an age identity in FILE, for an encrypted archive, and show its recipient.

    FILE gets mode 0600 and is never overwritten. The recipient goes into BASE_ARCHIVE_RECIPIENTS,
    the path of FILE into BASE_ARCHIVE_IDENTITY. Keep a copy of FILE elsewhere: without it nobody
    can read the archive.
    """
    if is_shown:
        _show_recipients(file, as_json=as_json)
        return
    recipient = age.format_recipient(age.generate(file))
    if as_json:
        output.print_json({"identity_file": str(file), "recipient": recipient})
        return
    click.echo(recipient)


def _show_recipients(file: Path, *, as_json: bool) -> None:
    shown = [
        {"recipient": age.format_recipient(one.recipient), "key_id": one.recipient.key_id.hex()}
        for one in age.load_identities(str(file))
    ]
    if as_json:
        output.print_json({"identity_file": str(file), "identities": shown})
        return
    for line in shown:
        click.echo(f"{line['recipient']} key id {line['key_id']}")


def _read_own() -> _Shown:
    """Return the key that ``basenet serve`` would sign with in this environment."""
    config = load(os.environ)
    override = config.signing_key.reveal() if config.signing_key else None
    if override is not None and override.startswith(signing.INLINE_PREFIX):
        public = Signer(signing.parse_inline(override)).public
        return _Shown(public=public, name="BASE_SIGNING_KEY")
    path = Path(override) if override is not None else config.data_dir / signing.SIGNING_KEY_NAME
    try:
        return _Shown(public=signing.load(path).public, name=str(path))
    except NotFoundError as error:
        raise NotFoundError(
            f"{path} does not exist; `basenet serve` makes it at its first start, or name a file, "
            "--dir or BASE_DATA_DIR"
        ) from error


def _read_directory(directory: Path) -> list[_Shown]:
    """Return every signing key in ``directory``, or else its trusted keys."""
    own = directory / signing.SIGNING_KEY_NAME
    paths = [own] if own.exists() else sorted(directory.glob("*/node.key"))
    if paths:
        return [_Shown(public=signing.load(path).public, name=str(path)) for path in paths]
    trusted = directory / trust.TRUSTED_KEYS_NAME
    if trusted.exists():
        return list(_read_any(trusted))
    raise NotFoundError(
        f"{directory} holds no {signing.SIGNING_KEY_NAME}, no NODE/node.key and no "
        f"{trust.TRUSTED_KEYS_NAME}; name a data directory or one of `basenet keys init`"
    )


def _read_any(path: Path) -> Iterator[_Shown]:
    """Yield the public keys of a file, whatever kind it is of."""
    content = files.read_file(path, what="the key file")
    if b"-----BEGIN CERTIFICATE-----" in content:
        public = authority.read_certificate(path).public_key()
        if not isinstance(public, Ed25519PublicKey):
            raise UsageError(f"{path} certifies a key that is not Ed25519; basenet cannot use it")
        yield _Shown(public=PublicKeyBytes(public.public_bytes_raw()), name=str(path))
    elif trust.ALGORITHM_PREFIX.encode() in content:
        for key in trust.read_trusted_keys(path).keys:
            yield _Shown(public=key.public, name=key.comment or str(path))
    else:
        yield _Shown(public=signing.load(path).public, name=str(path))
