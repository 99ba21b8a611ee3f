"""Which store a URL names, and how one that names none is refused."""

import sys
from pathlib import Path

import pytest

from basenet.archive.store import open_store
from basenet.errors import UsageError


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("file:///var/archive", "file:///var/archive"),
        ("FILE:///var/archive/", "file:///var/archive"),
        ("/var/archive", "file:///var/archive"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3://bucket/some/prefix/", "s3://bucket/some/prefix"),
        ("gs://bucket/prefix", "gs://bucket/prefix"),
    ],
)
async def test_a_url_names_a_store(given: str, wanted: str) -> None:
    """Schemes in any case, slashes at the end as one likes; nothing is asked of the store."""
    store = open_store(given, environment={})
    assert store.url == wanted
    assert store.is_conditional
    await store.aclose()


async def test_a_relative_path_is_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made absolute at once, so that a later chdir changes nothing."""
    monkeypatch.chdir(tmp_path)
    for given in ("backups/app", "file://backups/app"):
        assert open_store(given, environment={}).url == f"file://{tmp_path}/backups/app"


@pytest.mark.parametrize(
    "given",
    [
        "",
        "off",
        "file://",
        "ftp://host/path",
        "https://bucket.s3.amazonaws.com/prefix",
        "s3://",
        "s3:///prefix",
        "s3://Bucket_With_Capitals",
        "gs://b",
        "s3://bucket/../prefix",
        "s3://bucket/a//b",
        "s3://bucket/prefix?region=eu",
    ],
)
def test_what_names_no_store_is_refused(given: str) -> None:
    """The sentence quotes the value."""
    with pytest.raises(UsageError) as caught:
        open_store(given, environment={})
    assert repr(given) in str(caught.value)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    """They would end up in logs, metrics and error messages."""
    for url in ("s3://key:secret@bucket/prefix", "ftp://key:secret@host/"):
        with pytest.raises(UsageError) as caught:
            open_store(url, environment={})
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [("s3://bucket", "boto3", "s3"), ("gs://bucket", "google.cloud.storage", "gcs")],
)
def test_a_missing_package_is_named_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    """One sentence at the start, not a traceback at the first upload."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install basenet\[{extra}\]"):
        open_store(url, environment={})


async def test_the_operator_can_give_up_conditions(tmp_path: Path) -> None:
    """BASE_ARCHIVE_UNCONDITIONAL=1 for a single writer; 0 and empty are no."""
    for value, is_conditional in (("1", False), ("0", True), ("", True)):
        environment = {"BASE_ARCHIVE_UNCONDITIONAL": value}
        assert open_store(str(tmp_path), environment=environment).is_conditional is is_conditional
