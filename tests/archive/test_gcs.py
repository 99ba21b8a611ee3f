"""What only the GCS store does: generations, credentials and the server's sentences."""

import json
from pathlib import Path
from typing import Any

import google.api_core.exceptions
import google.auth.exceptions
import pytest
import requests
from google.cloud.storage.exceptions import DataCorruption

from basenet.archive.gcs import GcsBackend
from basenet.archive.port import (
    StoreConflict,
    StoreNotFound,
    StoreRefused,
    StoreUnavailable,
    Token,
)
from basenet.archive.remote import Absent, Always, Limits, Matches
from basenet.errors import BasenetError

api: Any = google.api_core.exceptions  # neither is typed
auth: Any = google.auth.exceptions
SECRET = "ya29.SECRET"  # noqa: S105  (an example)


class RecordingBlob:
    """Stands for the SDK's blob: fails as told, and remembers what it was asked."""

    generation: int | None = 7

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.asked: dict[str, Any] = {}

    def act(self, *_: Any, **arguments: Any) -> bytes:
        self.asked = arguments
        if self.error is not None:
            raise self.error
        return b"data"

    upload_from_string = download_as_bytes = delete = act


class OneBlobClient:
    """Stands for the SDK's client with one bucket and one blob."""

    def __init__(self, blob: RecordingBlob) -> None:
        self._blob = blob

    def bucket(self, name: str) -> "OneBlobClient":
        assert name == "bucket"
        return self

    def blob(self, name: str) -> RecordingBlob:
        assert name == "prefix/name"
        return self._blob


def make_backend(error: Exception | None = None) -> tuple[GcsBackend, RecordingBlob]:
    backend = GcsBackend("bucket", "prefix/", environment={}, limits=Limits())
    blob = RecordingBlob(error)
    backend._client = OneBlobClient(blob)
    return backend, blob


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (api.NotFound(f"No such object {SECRET}"), StoreNotFound, "no object name"),
        (api.NotFound("The specified bucket does not exist."), StoreRefused, "does not exist"),
        (api.Forbidden(SECRET), StoreRefused, "no permission"),
        (api.Unauthorized(SECRET), StoreRefused, "credentials"),
        (api.PreconditionFailed(SECRET), StoreConflict, "does not hold"),
        (api.TooManyRequests(SECRET), StoreUnavailable, "429"),
        (api.ServiceUnavailable(SECRET), StoreUnavailable, "503"),
        (api.InternalServerError(SECRET), StoreUnavailable, "500"),
        (api.BadRequest(SECRET), StoreRefused, "400"),
        (requests.ConnectionError(SECRET), StoreUnavailable, "does not answer"),
        (requests.ReadTimeout(SECRET), StoreUnavailable, "does not answer"),
        (auth.TransportError(SECRET), StoreUnavailable, "does not answer"),
        (auth.RefreshError(SECRET), StoreRefused, "GOOGLE_APPLICATION_CREDENTIALS"),
        (auth.DefaultCredentialsError(SECRET), StoreRefused, "GOOGLE_APPLICATION_CREDENTIALS"),
        (DataCorruption(None, SECRET), StoreUnavailable, "changed on the way"),
        (ConnectionResetError(SECRET), StoreUnavailable, "does not answer"),
    ],
)
def test_what_goes_wrong_becomes_one_sentence(
    error: Exception, kind: type[BasenetError], words: str
) -> None:
    """Of the right kind, and never quoting what may quote a secret."""
    backend, _ = make_backend(error)
    with pytest.raises(kind, match=words) as caught:
        backend.put("name", b"data", Absent())
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("condition", "generation"), [(Absent(), 0), (Matches(Token("12")), 12), (Always(), None)]
)
def test_a_condition_is_a_generation(
    condition: Absent | Matches | Always, generation: int | None
) -> None:
    """0 says that there is no object. The SDK must not try twice by itself."""
    backend, blob = make_backend()
    assert backend.put("name", b"data", condition) == "7"
    assert blob.asked["if_generation_match"] == generation
    assert blob.asked["retry"] is None
    assert blob.asked["timeout"] == (5.0, 30.0)


def test_an_answer_without_a_generation_is_a_doubt() -> None:
    """Not a success: without a token the object could never be replaced."""
    backend, blob = make_backend()
    blob.generation = None
    with pytest.raises(StoreUnavailable, match="generation"):
        backend.put("name", b"data", Absent())


def test_an_emulator_needs_no_scheme_and_no_credentials() -> None:
    """STORAGE_EMULATOR_HOST is host:port or a URL."""
    for given in ("127.0.0.1:1", "http://127.0.0.1:1/"):
        backend = GcsBackend(
            "bucket", "", environment={"STORAGE_EMULATOR_HOST": given}, limits=Limits()
        )
        assert backend.endpoint == "gs://bucket at http://127.0.0.1:1"
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
            backend.get("name")
        backend.close()


def test_a_key_file_that_is_none_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is missing, no JSON, or no key."""
    path = tmp_path / "key.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    for content in (None, "not JSON", json.dumps({"type": "unknown"})):
        if content is not None:
            path.write_text(content)
        backend = GcsBackend("bucket", "", environment={}, limits=Limits())
        with pytest.raises(StoreRefused, match="GOOGLE_APPLICATION_CREDENTIALS"):
            backend.get("name")
