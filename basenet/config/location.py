"""BASE_ARCHIVE: where final frames go.

``off``, a path, ``file://PATH``, ``s3://BUCKET[/PREFIX]`` or ``gs://BUCKET[/PREFIX]``. Credentials,
regions and endpoints never stand in it: they come from the environment of the store's own SDK
(AWS_*, GOOGLE_APPLICATION_CREDENTIALS), so that the location can be printed everywhere.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from basenet.config.values import check_path
from basenet.errors import UsageError

# What S3 and GCS allow, with room for the older names that compatible servers still have.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}\Z")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)\Z", re.DOTALL)


class ArchiveScheme(StrEnum):
    """The kind of store."""

    FILE = "file"
    S3 = "s3"
    GS = "gs"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLocation:
    """A store and a place in it."""

    scheme: ArchiveScheme
    bucket: str  # empty for a directory
    prefix: str  # for a directory its path; else without a slash at either end, maybe empty

    @property
    def url(self) -> str:
        """Return the one canonical text of this place, without secrets."""
        if self.scheme is ArchiveScheme.FILE:
            return f"file://{self.prefix}"
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def directory(self) -> Path:
        """Return the path of a FILE store."""
        assert self.scheme is ArchiveScheme.FILE, "only a directory store has a path"
        return Path(self.prefix)


def parse_archive(text: str) -> ArchiveLocation | None:
    """Return the place that ``text`` names, None for ``off``; raise `UsageError` if it is none."""
    text = text.strip()
    if text.lower() == "off":
        return None
    if "\0" in text:
        raise UsageError(f"{text!r} is not an archive: it holds a NUL byte")
    match = _SCHEME.match(text)
    if match is None:
        return _parse_directory(text, text)
    scheme, rest = match[1].lower(), match[2]
    if scheme == ArchiveScheme.FILE:
        return _parse_directory(rest, text)
    if scheme not in set(ArchiveScheme):
        raise UsageError(
            f"{_hide_credentials(text)!r} is not an archive: write s3://bucket/prefix, "
            "gs://bucket/prefix, the path of a directory, or off"
        )
    return _parse_bucket(ArchiveScheme(scheme), rest, text)


def _parse_directory(path: str, text: str) -> ArchiveLocation:
    if not path:
        raise UsageError(f"{text!r} names no directory: write file:///path/of/the/archive")
    check_path(path)
    stripped = path.rstrip("/") or "/"
    return ArchiveLocation(scheme=ArchiveScheme.FILE, bucket="", prefix=stripped)


def _parse_bucket(scheme: ArchiveScheme, rest: str, text: str) -> ArchiveLocation:
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise UsageError(
            f"{_hide_credentials(text)!r} holds credentials: take them out and give them to the "
            "SDK by its own variables (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS)"
        )
    plain = re.split("[?#]", text)[0]
    if plain != text:
        raise UsageError(
            f"{plain!r} is followed by ? or #: an address has no options; "
            "an endpoint goes into AWS_ENDPOINT_URL, a region into AWS_REGION"
        )
    if not _BUCKET.match(bucket):
        raise UsageError(f"{text!r} names no usable bucket: write {scheme}://bucket/prefix")
    prefix = prefix.strip("/")
    if any(part in {"", ".", ".."} for part in prefix.split("/")) and prefix:
        raise UsageError(f"{text!r} has an empty, '.' or '..' part in its prefix: write it plainly")
    return ArchiveLocation(scheme=scheme, bucket=bucket, prefix=prefix)


def _hide_credentials(text: str) -> str:
    return re.sub(r"://.*@", "://(hidden)@", text, flags=re.DOTALL)
