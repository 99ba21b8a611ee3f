"""What only the S3 store does: headers, endpoints, credentials and the server's sentences."""

import io
import socket
import threading
from typing import Any

import pytest
from botocore import exceptions
from botocore.response import StreamingBody

from basenet.archive.port import (
    StoreConflict,
    StoreNotFound,
    StoreRefused,
    StoreUnavailable,
    Token,
)
from basenet.archive.remote import Absent, Always, Limits, Matches
from basenet.archive.s3 import Encryption, S3Backend
from basenet.errors import BasenetError, UsageError

SECRET = "AKIASECRETSECRET"  # noqa: S105  (an example)
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": SECRET,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
}


class RecordingClient:
    """Stands for boto3's client: answers as told, and remembers what it was asked."""

    def __init__(self, answer: dict[str, Any] | Exception) -> None:
        self.answer = answer
        self.asked: dict[str, Any] = {}

    def act(self, **arguments: Any) -> dict[str, Any]:
        self.asked = arguments
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    put_object = get_object = list_objects_v2 = delete_object = act


def make_backend(
    answer: dict[str, Any] | Exception, encryption: Encryption | None = None
) -> tuple[S3Backend, RecordingClient]:
    backend = S3Backend(
        "bucket", "prefix/", environment=ENVIRONMENT, limits=Limits(), encryption=encryption
    )
    backend._client = client = RecordingClient(answer)
    return backend, client


def make_client_error(code: str, status: int) -> exceptions.ClientError:
    return exceptions.ClientError(
        {
            "Error": {"Code": code, "Message": f"{SECRET} is not known", "AWSAccessKeyId": SECRET},
            "ResponseMetadata": {"HTTPStatusCode": status},
        },
        "PutObject",
    )


@pytest.mark.parametrize(
    ("code", "status", "kind", "words"),
    [
        ("NoSuchBucket", 404, StoreRefused, "does not exist"),
        ("AccessDenied", 403, StoreRefused, "no permission"),
        ("InvalidAccessKeyId", 403, StoreRefused, "credentials"),
        ("SignatureDoesNotMatch", 403, StoreRefused, "credentials"),
        ("ExpiredToken", 400, StoreRefused, "expired: renew"),
        ("KMS.NotFoundException", 400, StoreRefused, "BASE_ARCHIVE_SSE_KMS_KEY_ID"),
        ("KMS.InternalException", 500, StoreUnavailable, "needs some time"),
        ("RequestTimeout", 400, StoreUnavailable, "needs some time"),
        ("SlowDown", 429, StoreUnavailable, "429"),
        ("RequestTimeTooSkewed", 403, StoreUnavailable, "clock"),
        ("AuthorizationHeaderMalformed", 400, StoreRefused, "AWS_REGION"),
        ("PermanentRedirect", 301, StoreRefused, "AWS_REGION"),
        ("NoSuchKey", 404, StoreNotFound, "no object name"),
        ("404", 404, StoreNotFound, "no object name"),
        ("PreconditionFailed", 412, StoreConflict, "does not hold"),
        ("ConditionalRequestConflict", 409, StoreUnavailable, "409"),
        ("SlowDown", 503, StoreUnavailable, "503"),
        ("InternalError", 500, StoreUnavailable, "500"),
        ("RequestTimeout", 408, StoreUnavailable, "408"),
        ("NotImplemented", 501, StoreRefused, "BASE_ARCHIVE_UNCONDITIONAL=1"),
        ("EntityTooLarge", 400, StoreRefused, "EntityTooLarge"),
    ],
)
def test_what_the_server_says_becomes_one_sentence(
    code: str, status: int, kind: type[BasenetError], words: str
) -> None:
    """Of the right kind, naming the bucket, and never quoting the server, who may quote a key."""
    backend, _ = make_backend(make_client_error(code, status))
    with pytest.raises(kind, match=words) as caught:
        backend.get("name")
    assert SECRET not in str(caught.value)
    assert "bucket" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (exceptions.NoCredentialsError(), StoreRefused, "AWS_ACCESS_KEY_ID"),
        (
            exceptions.PartialCredentialsError(provider="env", cred_var="secret"),
            StoreRefused,
            "AWS_ACCESS_KEY_ID",
        ),
        (exceptions.EndpointConnectionError(endpoint_url="x"), StoreUnavailable, "does not answer"),
        (exceptions.ConnectTimeoutError(endpoint_url="x"), StoreUnavailable, "does not answer"),
        (exceptions.ReadTimeoutError(endpoint_url="x"), StoreUnavailable, "does not answer"),
        (exceptions.SSLError(endpoint_url="x", error="y"), StoreUnavailable, "does not answer"),
        (exceptions.ParamValidationError(report="bad bucket"), StoreRefused, "correct it"),
        (ConnectionResetError(), StoreUnavailable, "does not answer"),
    ],
)
def test_what_boto3_says_becomes_one_sentence(
    error: Exception, kind: type[BasenetError], words: str
) -> None:
    """Unreachable is for later, unusable is for the operator."""
    backend, _ = make_backend(error)
    with pytest.raises(kind, match=words):
        backend.put("name", b"data", Absent())


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        (Absent(), {"IfNoneMatch": "*"}),
        (Matches(Token("abc")), {"IfMatch": '"abc"'}),
        (Always(), {}),
    ],
)
def test_a_condition_is_one_header(
    condition: Absent | Matches | Always, wanted: dict[str, str]
) -> None:
    """And an unconditional write has none."""
    backend, client = make_backend({"ETag": '"new"'})
    assert backend.put("name", b"data", condition) == "new"
    assert client.asked == {
        "Bucket": "bucket",
        "Key": "prefix/name",
        "Body": b"data",
        **wanted,
    }


def test_a_write_is_one_way_there_and_back() -> None:
    """The body follows its head at once: no waiting for 100-continue on a distant server."""
    listener = socket.create_server(("127.0.0.1", 0))
    received: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while not b"".join(received).endswith(b"the data"):
                received.append(connection.recv(65536))
            connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\n\r\n')

    with listener:
        server = threading.Thread(target=serve)
        server.start()
        port = listener.getsockname()[1]
        backend = open_with({**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
        assert backend.put("name", b"the data", Absent()) == "x"
        server.join(10)
        backend.close()
    head = b"".join(received).lower()
    assert b"expect" not in head
    assert b"if-none-match: *" in head


@pytest.mark.parametrize("etag", ['"abc-2"', "abc-2", 'W/"abc-2"'])
def test_an_etag_may_come_with_or_without_quotes(etag: str) -> None:
    """One object has one token, however the server writes it that day."""
    backend, _ = make_backend({"ETag": etag})
    assert backend.put("name", b"data", Absent()) == "abc-2"


def test_an_answer_without_an_etag_is_a_doubt() -> None:
    """Not a success: without a token the object could never be replaced."""
    backend, _ = make_backend({})
    with pytest.raises(StoreUnavailable, match="ETag"):
        backend.put("name", b"data", Absent())


def test_a_replaced_object_that_is_gone_is_a_conflict() -> None:
    """S3 answers If-Match on a missing object with 404."""
    backend, _ = make_backend(make_client_error("NoSuchKey", 404))
    with pytest.raises(StoreConflict, match="gone"):
        backend.put("name", b"data", Matches(Token("abc")))
    with pytest.raises(StoreRefused, match="bucket"):
        backend.put("name", b"data", Absent())


def test_a_range_beyond_the_end_is_empty() -> None:
    """S3 answers 416."""
    backend, client = make_backend(make_client_error("InvalidRange", 416))
    assert backend.get_range("name", 10, 5) == b""
    assert client.asked["Range"] == "bytes=10-14"


def test_an_object_without_times_has_none() -> None:
    """A server that sends no Date cannot be used as a clock."""

    class Raw:
        """A connection that gives four bytes."""

        def read(self, _: object = None) -> bytes:
            return b"data"

        def close(self) -> None:
            pass

    for headers in ({}, {"date": "soon"}):
        backend, _ = make_backend(
            {
                "ETag": '"abc"',
                "Body": StreamingBody(Raw(), 4),
                "ResponseMetadata": {"HTTPHeaders": headers},
            }
        )
        found = backend.get("name")
        assert (found.data, found.modified_ns, found.server_now_ns) == (b"data", None, None)


def test_the_server_can_be_asked_to_encrypt() -> None:
    """With its own key, or with one of the operator's."""
    for encryption, wanted in (
        (Encryption(algorithm="AES256"), {"ServerSideEncryption": "AES256"}),
        (
            Encryption(algorithm="aws:kms", kms_key_id="key"),
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key"},
        ),
    ):
        backend, client = make_backend({"ETag": '"new"'}, encryption)
        backend.put("name", b"data", Always())
        assert wanted.items() <= client.asked.items()


def open_with(environment: dict[str, str]) -> S3Backend:
    return S3Backend("bucket", "", environment=environment, limits=Limits(), encryption=None)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("https://minio.example", "https://minio.example"),
        ("minio.example:9000", "https://minio.example:9000"),
        ("minio.example", "https://minio.example"),
    ],
)
def test_an_endpoint_may_lack_its_scheme(given: str, wanted: str) -> None:
    """Then it is https, and when that fails the sentence says so. Buckets are in the path."""
    backend = open_with({**ENVIRONMENT, "AWS_ENDPOINT_URL": given})
    assert backend.endpoint == f"s3://bucket at {wanted}"
    client = backend._get_client()
    assert client.meta.endpoint_url == wanted
    assert client.meta.config.s3["addressing_style"] == "path"
    assert client.meta.config.retries["total_max_attempts"] == 1
    client.close()


def test_without_an_endpoint_it_is_amazon() -> None:
    """In the region that AWS_REGION names, which boto3 alone would not read."""
    backend = open_with(
        {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-north-1"}
    )
    client = backend._get_client()
    assert client.meta.region_name == "eu-north-1"
    assert "amazonaws.com" in client.meta.endpoint_url
    client.close()


@pytest.mark.parametrize(
    "given", ["ftp://host", "http://", "https://user:AKIASECRETSECRET@minio.example", "://"]
)
def test_an_unusable_endpoint_is_refused(given: str) -> None:
    """Without repeating what may be a secret."""
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL") as caught:
        open_with({"AWS_ENDPOINT_URL": given})
    assert SECRET not in str(caught.value)


def test_without_a_scheme_an_outage_says_what_was_taken() -> None:
    """The usual mistake with a server on the own network."""
    backend = open_with({**ENVIRONMENT, "AWS_ENDPOINT_URL": "127.0.0.1:1"})
    with pytest.raises(StoreUnavailable, match=r"https:// was taken"):
        backend.get("name")
    backend.close()


def test_no_credentials_anywhere_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's own chain is asked to its end: environment, files, machine."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    backend = open_with({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    with pytest.raises(StoreRefused, match="AWS_ACCESS_KEY_ID"):
        backend.get("name")
    backend.close()
    with pytest.raises(StoreRefused, match="AWS_ACCESS_KEY_ID"):
        open_with({"AWS_PROFILE": "missing"}).get("name")


class Server:
    """Stands for boto3's client of a server that keeps one kind of ETag, and counts its calls."""

    def __init__(self, *, takes_quotes: bool, heeds_bare: bool) -> None:
        self.etags: dict[str, str] = {}
        self.asked: list[str] = []
        self._takes_quotes = takes_quotes
        self._heeds_bare = heeds_bare

    def put_object(self, **arguments: Any) -> dict[str, Any]:
        key, match = arguments["Key"], arguments.get("IfMatch")
        self.asked.append(f"PUT {match}")
        etag = self.etags.get(key)
        is_quoted = match is not None and match.startswith('"')
        if is_quoted and not (self._takes_quotes and match == f'"{etag}"'):
            raise make_client_error("PreconditionFailed", 412)
        if match is not None and not is_quoted and self._heeds_bare and match != etag:
            raise make_client_error("PreconditionFailed", 412)
        self.etags[key] = f"v{len(self.asked)}"
        return {"ETag": f'"{self.etags[key]}"'}

    def get_object(self, **arguments: Any) -> dict[str, Any]:
        self.asked.append("GET")
        if arguments["Key"] not in self.etags:
            raise make_client_error("NoSuchKey", 404)
        return {
            "ETag": f'"{self.etags[arguments["Key"]]}"',
            "Body": StreamingBody(io.BytesIO(b""), 0),
            "ResponseMetadata": {"HTTPHeaders": {}},
        }

    def delete_object(self, **arguments: Any) -> None:
        self.asked.append("DELETE")
        self.etags.pop(arguments["Key"], None)


def serve(*, takes_quotes: bool, heeds_bare: bool) -> tuple[S3Backend, Server]:
    backend, _ = make_backend({})
    backend._client = server = Server(takes_quotes=takes_quotes, heeds_bare=heeds_bare)
    return backend, server


def test_a_server_that_wants_quotes_never_sees_a_bare_etag() -> None:
    """A replacement is one request, and a conflict is one more until a replacement succeeded."""
    backend, server = serve(takes_quotes=True, heeds_bare=True)
    first = backend.put("LEASE", b"", Absent())
    second = backend.put("LEASE", b"", Matches(first))
    with pytest.raises(StoreConflict):
        backend.put("LEASE", b"", Matches(first))
    assert server.asked == ["PUT None", f'PUT "{first}"', f'PUT "{first}"']
    assert server.etags == {"prefix/LEASE": second}


def test_a_server_that_compares_bare_etags_is_found_out_once() -> None:
    """Ceph's: 412 for the quoted ETag of the very version that is there."""
    backend, server = serve(takes_quotes=False, heeds_bare=True)
    first = backend.put("LEASE", b"", Absent())
    second = backend.put("LEASE", b"", Matches(first))
    assert server.asked[1:] == [f'PUT "{first}"', "GET", f"PUT {first}", f"PUT {first}"]
    server.asked.clear()
    third = backend.put("LEASE", b"", Matches(second))
    with pytest.raises(StoreConflict):
        backend.put("LEASE", b"", Matches(second))
    assert server.asked == [f"PUT {second}", f"PUT {second}"]
    assert server.etags == {"prefix/LEASE": third}


def test_a_conflict_with_another_writer_shows_nothing_about_quotes() -> None:
    """The version is another one, or gone: that is all that the answer says."""
    backend, server = serve(takes_quotes=False, heeds_bare=True)
    backend.put("LEASE", b"", Absent())
    for name in ("LEASE", "gone"):
        with pytest.raises(StoreConflict):
            backend.put(name, b"", Matches(Token("other")))
    assert backend._compares_bare_etags is None
    assert not [asked for asked in server.asked if asked == "PUT other"]


def test_a_server_that_ignores_bare_etags_is_never_given_one_for_an_object() -> None:
    """It would overwrite: what shows it is an object of its own, which goes again."""
    backend, server = serve(takes_quotes=False, heeds_bare=False)
    first = backend.put("LEASE", b"", Absent())
    with pytest.raises(StoreConflict):
        backend.put("LEASE", b"", Matches(first))
    assert server.asked[1:] == [f'PUT "{first}"', "GET", f"PUT {first}", "DELETE"]
    assert server.etags == {"prefix/LEASE": first}


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_refused_credentials_are_looked_for_anew(code: str) -> None:
    """Somebody may have renewed them in their file: no restart is needed."""
    backend, client = make_backend(make_client_error(code, 403))
    with pytest.raises(StoreRefused):
        backend.get("name")
    assert backend._client is None
    backend._client = client
    client.answer = make_client_error("AccessDenied", 403)
    with pytest.raises(StoreRefused):
        backend.get("name")
    assert backend._client is client
