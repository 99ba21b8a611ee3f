"""Opening an archive's store by its URL. The port itself is in `basenet.archive.port`.

=====================  =============================================================
``file:///path``       a directory; so are a plain ``/path`` and ``path``
``s3://bucket/prefix`` a bucket of S3 or of a server that speaks like it
``gs://bucket/prefix`` a bucket of Google Cloud Storage
=====================  =============================================================

This module also passes the port on, so that users of a store need one import.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from basenet.archive.directory import DirectoryStore
from basenet.archive.encrypted import EncryptedStore
from basenet.archive.gcs import open_gcs
from basenet.archive.keyring import Keyring
from basenet.archive.metered import MeteredStore, StoreUsage
from basenet.archive.port import (
    Entry,
    Listing,
    Object,
    Store,
    StoreConflict,
    StoreNotFound,
    StoreRefused,
    StoreUnavailable,
    Token,
    check_name,
)
from basenet.archive.remote import Limits
from basenet.archive.s3 import Encryption, make_encryption, open_s3
from basenet.archive.unconditional import UnconditionalStore
from basenet.errors import UsageError

__all__ = [
    "Encryption",
    "Entry",
    "Limits",
    "Listing",
    "Object",
    "Store",
    "StoreConflict",
    "StoreNotFound",
    "StoreRefused",
    "StoreUnavailable",
    "StoreUsage",
    "Token",
    "make_encryption",
    "open_store",
]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)\Z", re.DOTALL)
# What both Amazon and Google let a bucket be called, roughly: enough to find typing errors.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]\Z")
_FORMS: Final = "give file:///path, s3://bucket/prefix or gs://bucket/prefix"


def open_store(
    url: str,
    *,
    environment: Mapping[str, str],
    limits: Limits | None = None,
    encryption: Encryption | None = None,
    keyring: Keyring | None = None,
    usage: StoreUsage | None = None,
) -> Store:
    """Return the store that ``url`` names; the caller closes it with `Store.aclose`.

    ``environment`` gives the AWS and Google variables, and ``BASE_ARCHIVE_UNCONDITIONAL``.
    ``encryption`` is for S3, by the server; ``keyring`` is for all stores, by us: without one, what
    is encrypted is refused with the name of the variable. ``usage`` counts what is asked of the
    store; nothing is yet.
    Raises `UsageError` when ``url`` is none of the three, or when the package that speaks to it is
    not installed.
    """
    limits = limits or Limits()
    match = _SCHEME.match(url)
    scheme, rest = (match[1].lower(), match[2]) if match else ("file", url)
    store: Store
    if scheme == "file":
        store = DirectoryStore(_parse_path(url, rest))
    elif scheme == "s3":
        bucket, prefix = _parse_bucket(url, rest)
        store = open_s3(
            bucket, prefix, environment=environment, limits=limits, encryption=encryption
        )
    elif scheme == "gs":
        bucket, prefix = _parse_bucket(url, rest)
        store = open_gcs(bucket, prefix, environment=environment, limits=limits)
    else:
        raise UsageError(f"archive {_without_secrets(url)!r} is of no known kind: {_FORMS}")
    if usage is not None:
        store = MeteredStore(store, usage)
    is_conditional = environment.get("BASE_ARCHIVE_UNCONDITIONAL", "0") in ("", "0")
    return EncryptedStore(
        store if is_conditional else UnconditionalStore(store), keyring or Keyring()
    )


def _parse_path(url: str, rest: str) -> Path:
    if not rest or "\0" in rest or rest == "off":
        raise UsageError(f"archive {url!r} names no directory: {_FORMS}")
    return Path(rest)


def _parse_bucket(url: str, rest: str) -> tuple[str, str]:
    """Return the bucket, and the prefix of all names: empty, or ending with a slash."""
    bucket, _, path = rest.partition("/")
    if "@" in bucket:
        raise UsageError(
            f"archive {_without_secrets(url)!r} holds credentials: give them in the environment"
        )
    if not _BUCKET.match(bucket):
        raise UsageError(f"archive {url!r} names no bucket: {_FORMS}")
    prefix = path.strip("/")
    if not prefix:
        return bucket, ""
    try:
        check_name(prefix)
    except StoreRefused as error:
        raise UsageError(f"archive {url!r} has no usable prefix: {_FORMS}") from error
    if "?" in prefix or "#" in prefix:
        raise UsageError(f"archive {url!r} has ? or # in its prefix: take other characters")
    return bucket, prefix + "/"


def _without_secrets(url: str) -> str:
    """Return ``url`` without what could be a user name and password in it."""
    return re.sub(r"//[^/]*@", "//", url)
