"""The archive in a bucket of Google Cloud Storage: ``gs://bucket/prefix``.

Credentials are Google's application default ones, which its SDK finds by itself; with
``STORAGE_EMULATOR_HOST`` there are none.
google-cloud-storage is imported when the first store is opened.

A token is a generation. Every write says which generation it replaces (0: none) in its
``ifGenerationMatch``, is sent once, and `basenet.archive.remote` settles what is then in doubt.
"""

import os
import threading
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

from basenet.archive.port import (
    Entry,
    Object,
    StoreConflict,
    StoreNotFound,
    StoreRefused,
    StoreUnavailable,
    Token,
)
from basenet.archive.remote import (
    Absent,
    Always,
    Backend,
    Condition,
    Limits,
    Matches,
    Page,
    RemoteStore,
)
from basenet.errors import BasenetError, UsageError

SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
NANOSECONDS: Final = 1_000_000_000

_Result = TypeVar("_Result")


class _BeyondEnd(StoreRefused):
    """A range begins at or after the end of its object."""


_Sentence = tuple[type[BasenetError], str]
_NO_PERMISSION: Final[_Sentence] = (
    StoreRefused,
    "{where} gives no permission for {name}: grant these credentials roles/storage.objectUser",
)
_BUSY: Final[_Sentence] = (StoreUnavailable, "{where} answers {status}: it needs some time")
_NO_BUCKET: Final[_Sentence] = (
    StoreRefused,
    "{where} does not exist: make it, or correct BASE_ARCHIVE",
)
_REFUSED: Final[_Sentence] = (
    StoreRefused,
    "{where} refuses a request for {name} with {status}: compare BASE_ARCHIVE with the project",
)
_BY_STATUS: Final[dict[int, _Sentence]] = {
    401: (StoreRefused, "{where} refuses the Google credentials: renew or correct them"),
    403: _NO_PERMISSION,
    404: (StoreNotFound, "there is no object {name} in {where}"),
    408: _BUSY,
    409: _BUSY,
    412: (StoreConflict, "the condition of a write to {name} in {where} does not hold"),
    416: (_BeyondEnd, "object {name} in {where} ends before the range"),
    429: _BUSY,
}
_SERVER_FAULT_STATUS: Final = 500


def open_gcs(
    bucket: str, prefix: str, *, environment: Mapping[str, str], limits: Limits
) -> RemoteStore:
    """Return a store on ``bucket``, whose names begin with ``prefix`` (empty, or ending with /).

    Nothing is sent yet. Raises `UsageError` when google-cloud-storage is missing.
    """
    return RemoteStore(GcsBackend(bucket, prefix, environment=environment, limits=limits), limits)


class GcsBackend(Backend):
    """google-cloud-storage in the port's words."""

    def __init__(
        self, bucket: str, prefix: str, *, environment: Mapping[str, str], limits: Limits
    ) -> None:
        """See `open_gcs`."""
        _import_sdk()
        self._bucket_name = bucket
        self._prefix = prefix
        emulator = environment.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
        self._emulator = emulator if not emulator or "://" in emulator else f"http://{emulator}"
        self._limits = limits
        self._timeouts = (limits.connect_timeout_seconds, limits.read_timeout_seconds)
        self._client: Any = None
        self._client_lock = threading.Lock()
        self._answers = _LastAnswer()
        self._server = self._emulator or "Google Cloud Storage"
        self.url = f"gs://{bucket}/{prefix}".rstrip("/")
        self.endpoint = f"gs://{bucket} at {self._server}"

    def put(self, name: str, data: bytes, condition: Condition) -> Token:
        """Insert an object with the condition's generation."""
        match condition:
            case Absent():
                generation: int | None = 0
            case Matches(token):
                generation = int(token)
            case Always():
                generation = None

        def call(bucket: Any) -> Token:
            blob = bucket.blob(self._prefix + name)
            blob.upload_from_string(
                data,
                content_type="application/octet-stream",
                if_generation_match=generation,
                timeout=self._timeouts,
                retry=None,
            )
            return _parse_generation(blob.generation)

        return self._call(call, name)

    def get(self, name: str) -> Object:
        """Download an object and what the answer's headers say of it."""
        data = self._download(name)
        headers = self._answers.headers
        return Object(
            data=data,
            token=_parse_generation(headers.get("X-Goog-Generation")),
            modified_ns=_parse_date(headers.get("Last-Modified")),
            server_now_ns=_parse_date(headers.get("Date")),
        )

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Download a part of an object."""
        try:
            return self._download(name, start=start, end=start + length - 1)
        except _BeyondEnd:
            return b""

    def _download(self, name: str, **interval: int) -> bytes:
        def call(bucket: Any) -> bytes:
            data: bytes = bucket.blob(self._prefix + name).download_as_bytes(
                raw_download=True, timeout=self._timeouts, retry=None, **interval
            )
            return data

        return self._call(call, name)

    def list_page(self, prefix: str, start_after: str | None, page: str | None) -> Page:
        """List objects."""

        def call(bucket: Any) -> Page:
            answer = bucket.client.list_blobs(
                bucket,
                prefix=self._prefix + prefix,
                start_offset=None if start_after is None else self._prefix + start_after,
                page_size=self._limits.page_entries,
                page_token=page,
                fields="items(name,size),nextPageToken",
                timeout=self._timeouts,
                retry=None,
            )
            blobs = next(answer.pages, ())
            entries = tuple(
                Entry(name=blob.name.removeprefix(self._prefix), size=blob.size) for blob in blobs
            )
            return Page(entries=entries, next_page=answer.next_page_token)

        return self._call(call, prefix)

    def delete(self, name: str) -> None:
        """Delete an object."""
        try:
            self._call(
                lambda bucket: bucket.blob(self._prefix + name).delete(
                    timeout=self._timeouts, retry=None
                ),
                name,
            )
        except StoreNotFound:
            return

    def close(self) -> None:
        """Close the connection pool."""
        if self._client is not None:
            self._client.close()

    def _call(self, call: Callable[[Any], _Result], name: str) -> _Result:
        """Let ``call`` use the bucket, and turn what goes wrong into the store's errors."""
        import requests.exceptions  # noqa: PLC0415  (comes with google-cloud-storage)
        import urllib3.exceptions  # noqa: PLC0415  (the same; raw downloads let some through)
        from google.api_core.exceptions import GoogleAPICallError  # noqa: PLC0415  (is optional)
        from google.auth.exceptions import GoogleAuthError, TransportError  # noqa: PLC0415  (same)
        from google.cloud.storage.exceptions import (  # noqa: PLC0415  (same)
            DataCorruption,
            InvalidResponse,
        )

        try:
            return call(self._get_client().bucket(self._bucket_name))
        except GoogleAPICallError as error:
            raise self._explain_answer(error.code, name, error.message) from error
        except InvalidResponse as error:
            response = error.response
            raise self._explain_answer(response.status_code, name, response.text) from error
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            TransportError,
            OSError,
        ) as error:
            raise self._unreachable(type(error).__name__) from error
        except DataCorruption as error:
            raise self._unreachable("bytes changed on the way") from error
        except GoogleAuthError as error:
            raise StoreRefused(
                "no usable Google credentials were found: set GOOGLE_APPLICATION_CREDENTIALS to a "
                "key file, or give this machine a service account"
            ) from error

    def _get_client(self) -> Any:
        # Made at the first call and in its thread: finding credentials can mean asking a server.
        with self._client_lock:
            if self._client is None:
                self._client = self._make_client()
            return self._client

    def _make_client(self) -> Any:
        import google.auth  # noqa: PLC0415  (not every archive is in GCS)
        from google.auth.credentials import AnonymousCredentials  # noqa: PLC0415  (the same)
        from google.auth.transport.requests import AuthorizedSession  # noqa: PLC0415  (the same)
        from google.cloud import storage  # noqa: PLC0415  (the same)
        from requests.adapters import HTTPAdapter  # noqa: PLC0415  (comes with it)

        # Else the SDK asks for the bucket's description, in a thread of its own and with
        # a permission that an archive does not need, only to decorate traces.
        os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        if self._emulator:
            credentials: Any = AnonymousCredentials()  # type: ignore[no-untyped-call]
        else:
            credentials, _ = google.auth.default(scopes=[SCOPE])
        session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        adapter = HTTPAdapter(pool_maxsize=self._limits.concurrent_calls_max)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        # The SDK keeps the generation to itself and drops the server's clock.
        session.hooks["response"].append(self._answers.note)
        return storage.Client(
            project="basenet",  # objects need none, and asking for one can mean asking a server
            credentials=credentials,
            client_options={"api_endpoint": self._emulator} if self._emulator else None,
            _http=session,
        )

    def _explain_answer(self, status: int | None, name: str, message: str) -> BasenetError:
        """Turn an error that the server answered into the store's; never quote what it wrote."""
        is_server_fault = status is None or status >= _SERVER_FAULT_STATUS
        kind, sentence = _BY_STATUS.get(status or 0) or (_BUSY if is_server_fault else _REFUSED)
        if kind is StoreNotFound and "bucket does not exist" in message:
            kind, sentence = _NO_BUCKET
        where = f"bucket {self._bucket_name} at {self._server}"
        return kind(sentence.format(where=where, name=name, status=status))

    def _unreachable(self, reason: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self._server} does not answer as it should ({reason}): check the network"
        )


class _LastAnswer(threading.local):
    """The headers of the answer that this thread got last."""

    headers: Mapping[str, str] = {}

    def note(self, response: Any, **_: Any) -> None:
        """Be called by requests with each answer."""
        self.headers = response.headers


def _import_sdk() -> None:
    try:
        import google.cloud.storage  # noqa: F401, PLC0415  (only whether it is there)
    except ImportError as error:
        raise UsageError(
            "an archive at gs:// needs google-cloud-storage: run pip install basenet[gcs]"
        ) from error


def _parse_generation(value: object) -> Token:
    try:
        return Token(str(int(str(value))))
    except ValueError as error:
        raise StoreUnavailable(
            "the server answered without a generation: it is no GCS, or is in trouble"
        ) from error


def _parse_date(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return round(parsedate_to_datetime(text).timestamp()) * NANOSECONDS
    except ValueError:
        return None
