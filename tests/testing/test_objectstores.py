"""The test servers keep conditions and pages as real ones do, asked without our own stores."""

from collections.abc import Iterator

import boto3
import pytest
import requests
from botocore.exceptions import ClientError

from basenet.testing.objectstores import S3_ENVIRONMENT, make_bucket, running_object_store


@pytest.fixture(scope="module")
def gs_url() -> Iterator[str]:
    with running_object_store("gs") as url:
        make_bucket("gs", url, "bucket")
        yield url


def insert(url: str, name: str, data: bytes, **query: str) -> requests.Response:
    return requests.post(
        f"{url}/upload/storage/v1/b/bucket/o",
        params={"uploadType": "media", "name": name, **query},
        data=data,
        timeout=10,
    )


def test_gcs_keeps_a_generation(gs_url: str) -> None:
    """On creation, replacement and deletion; 412 when it is another, and nothing changes."""
    first = insert(gs_url, "a", b"first", ifGenerationMatch="0")
    assert first.status_code == 200
    generation = first.json()["generation"]
    assert insert(gs_url, "a", b"second", ifGenerationMatch="0").status_code == 412
    second = insert(gs_url, "a", b"second", ifGenerationMatch=generation)
    assert second.status_code == 200
    assert insert(gs_url, "a", b"third", ifGenerationMatch=generation).status_code == 412
    place = f"{gs_url}/storage/v1/b/bucket/o/a"
    refused = requests.delete(place, params={"ifGenerationMatch": generation}, timeout=10)
    assert refused.status_code == 412
    found = requests.get(place, params={"alt": "media"}, timeout=10)
    assert found.content == b"second"
    assert found.headers["X-Goog-Generation"] == second.json()["generation"]
    assert "Last-Modified" in found.headers


def test_gcs_lists_in_pages_from_a_name_on(gs_url: str) -> None:
    """The first name itself is included, as at Google."""
    for number in range(5):
        insert(gs_url, f"page/{number}", b"data")
    query: dict[str, str] = {"prefix": "page/", "startOffset": "page/1", "maxResults": "3"}
    place = f"{gs_url}/storage/v1/b/bucket/o"
    first = requests.get(place, params=query, timeout=10).json()
    assert [item["name"] for item in first["items"]] == ["page/1", "page/2", "page/3"]
    query["pageToken"] = first["nextPageToken"]
    last = requests.get(place, params=query, timeout=10).json()
    assert [item["name"] for item in last["items"]] == ["page/4"]
    assert "nextPageToken" not in last


def test_gcs_says_what_is_missing(gs_url: str) -> None:
    """An object and a bucket are told apart; a range beyond the end is none."""
    missing = requests.get(f"{gs_url}/storage/v1/b/bucket/o/none", timeout=10)
    assert (missing.status_code, "bucket" in missing.text) == (404, False)
    nowhere = requests.get(f"{gs_url}/storage/v1/b/other/o", timeout=10)
    assert (nowhere.status_code, "bucket does not exist" in nowhere.text) == (404, True)
    insert(gs_url, "short", b"data")
    place = f"{gs_url}/storage/v1/b/bucket/o/short"
    beyond = requests.get(
        place, params={"alt": "media"}, headers={"Range": "bytes=4-9"}, timeout=10
    )
    assert beyond.status_code == 416


def test_s3_keeps_conditions() -> None:
    """If-None-Match on creation, If-Match on replacement."""
    with running_object_store("s3") as url:
        make_bucket("s3", url, "bucket")
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name=S3_ENVIRONMENT["AWS_REGION"],
            aws_access_key_id=S3_ENVIRONMENT["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        )
        first = client.put_object(Bucket="bucket", Key="a", Body=b"first", IfNoneMatch="*")
        for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"another"'}):
            with pytest.raises(ClientError, match="PreconditionFailed"):
                client.put_object(Bucket="bucket", Key="a", Body=b"second", **condition)
        client.put_object(Bucket="bucket", Key="a", Body=b"third", IfMatch=first["ETag"])
        assert client.get_object(Bucket="bucket", Key="a")["Body"].read() == b"third"
        client.close()
