"""BASE_ARCHIVE."""

from pathlib import Path

import pytest

from basenet.config.location import ArchiveScheme, parse_archive
from basenet.errors import UsageError


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("/backup/app/", "file:///backup/app"),
        ("backup", "file://backup"),
        ("file:///backup/a b", "file:///backup/a b"),
        ("file:///", "file:///"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3://bucket/a/b/", "s3://bucket/a/b"),
        ("gs://my_bucket.example/p", "gs://my_bucket.example/p"),
    ],
)
def test_a_place_has_one_canonical_text(text: str, url: str) -> None:
    """However it was written; and that text is read as the same place."""
    location = parse_archive(text)
    assert location is not None
    assert location.url == url
    assert parse_archive(location.url) == location


def test_off_is_no_archive() -> None:
    assert parse_archive(" OFF ") is None


def test_a_directory_is_a_path() -> None:
    location = parse_archive("./backup")
    assert location is not None
    assert location.scheme is ArchiveScheme.FILE
    assert location.directory == Path("backup")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ftp://host/x", "gs://bucket/prefix"),
        ("https://bucket.s3.amazonaws.com/x", "s3://bucket/prefix"),
        ("file://", "names no directory"),
        ("s3://", "no usable bucket"),
        ("s3:///prefix", "no usable bucket"),
        ("s3://a b/x", "no usable bucket"),
        ("s3://bucket/a//b", "in its prefix"),
        ("s3://bucket/../b", "in its prefix"),
        ("/a\0", "NUL"),
        ("~/backups", "only a shell expands: write the whole path"),
        ("file://~/backups", "only a shell expands"),
        ("file:backups", "leave out 'file:'"),
    ],
)
def test_what_is_no_archive_is_refused(text: str, hint: str) -> None:
    """Each with its text and what to write instead."""
    with pytest.raises(UsageError, match=hint):
        parse_archive(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIA:hunter2@bucket/x",
        "s3://bucket/x?secret=hunter2",
        "s3://bucket/x#hunter2",
        "https://user:hunter2@host/x",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(text: str) -> None:
    """The message points at the SDK's own variables, or at least never shows the secret."""
    with pytest.raises(UsageError) as caught:
        parse_archive(text)
    assert "hunter2" not in str(caught.value)
