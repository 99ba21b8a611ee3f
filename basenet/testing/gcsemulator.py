"""gcp-storage-emulator, completed to what the archive asks of Google Cloud Storage.

Its route table is rebuilt with handlers that add what it lacks: ``ifGenerationMatch`` on uploads
and deletions, ``maxResults``, ``pageToken`` and ``startOffset`` in listings, the generation and
the time of an object in the headers of its download, 416, and 404 with a reason.
"""

import io
import threading
from collections.abc import Callable
from datetime import datetime
from email.utils import format_datetime
from functools import partial, partialmethod, wraps
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.storage import Storage

PAGE_ENTRIES_MAX: Final = 1000
_NO_GENERATION: Final = "0"

_Handle = Callable[[Any, Any, "ConditionalStorage"], None]


class _PreconditionFailed(Exception):  # noqa: N818  (the name of the HTTP status)
    """The generation that a request expects is not the object's."""


class ConditionalStorage(Storage):  # type: ignore[misc]  # (the emulator is not typed)
    """The emulator's memory, writing only what the present request's condition allows."""

    def __init__(self) -> None:
        super().__init__(use_memory_fs=True)
        self.expected_generation: str | None = None
        self._expected_by_upload: dict[str, str | None] = {}

    def check(self, bucket: str, name: str, expected: str | None) -> None:
        """Raise unless ``expected`` is None or the object's generation (``0``: no object)."""
        try:
            generation = self.get_file_obj(bucket, name)["generation"]
        except NotFound:
            generation = _NO_GENERATION
        if expected not in (None, generation):
            raise _PreconditionFailed

    def create_file(
        self, bucket: str, name: str, content: bytes, resource: Any, upload: str | None = None
    ) -> None:
        """Store an object; a resumable upload keeps to the condition that it began with."""
        expected = self._expected_by_upload.pop(upload, None) if upload else None
        self.check(bucket, name, expected or self.expected_generation)
        super().create_file(bucket, name, content, resource, upload)

    def create_resumable_upload(self, bucket: str, name: str, resource: Any) -> str:
        """Begin a resumable upload."""
        upload: str = super().create_resumable_upload(bucket, name, resource)
        self._expected_by_upload[upload] = self.expected_generation
        return upload

    def delete_file(self, bucket: str, name: str) -> None:
        """Delete an object for good."""
        self.check(bucket, name, self.expected_generation)
        self._hard_delete_file(bucket, name)

    def _write_config_to_file(self) -> None:
        """Do nothing: the emulator would write out all it knows at each change."""


def _conditional(handle: _Handle) -> _Handle:
    """Give ``handle`` the request's condition, and its failures their reasons."""

    @wraps(handle)
    def handle_with_condition(request: Any, response: Any, storage: ConditionalStorage) -> None:
        storage.expected_generation = _first(request, "ifGenerationMatch")
        try:
            handle(request, response, storage)
        except _PreconditionFailed:
            _fail(response, HTTPStatus.PRECONDITION_FAILED, "conditionNotMet")
        if response.status == HTTPStatus.NOT_FOUND:
            is_bucket = request.params["bucket_name"] in storage.buckets
            reason = "No such object." if is_bucket else "The specified bucket does not exist."
            _fail(response, HTTPStatus.NOT_FOUND, reason)

    return handle_with_condition


def _list(request: Any, response: Any, storage: ConditionalStorage) -> None:
    """Answer objects.list: a page of the names from ``startOffset`` on."""
    bucket = request.params["bucket_name"]
    if bucket not in storage.buckets:
        response.status = HTTPStatus.NOT_FOUND
        return
    found, _ = storage.get_file_list(bucket, _first(request, "prefix"))
    start = max(_first(request, "startOffset") or "", _first(request, "pageToken") or "")
    found = [resource for resource in found if resource["name"] >= start]
    count = int(_first(request, "maxResults") or PAGE_ENTRIES_MAX)
    answer: dict[str, Any] = {"kind": "storage#objects", "items": found[:count]}
    if found[count:]:
        answer["nextPageToken"] = found[count]["name"]
    response.json(answer)


def _get(request: Any, response: Any, storage: ConditionalStorage) -> None:
    """Answer objects.get: the resource, or with ``alt=media`` the content."""
    if _first(request, "alt") == "media":
        _download(request, response, storage)
    else:
        objects.get(request, response, storage)


def _download(request: Any, response: Any, storage: ConditionalStorage) -> None:
    """Answer with content, saying which version it is of."""
    objects.download(request, response, storage)
    if response.status == HTTPStatus.NOT_FOUND:
        return
    resource = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
    interval = request.get_header("range", "")
    if interval and int(interval.removeprefix("bytes=").split("-")[0]) >= int(resource["size"]):
        _fail(response, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "beyond the end")
        return
    response["X-Goog-Generation"] = resource["generation"]
    updated = datetime.fromisoformat(resource["updated"])
    response["Last-Modified"] = format_datetime(updated, usegmt=True)


def _first(request: Any, key: str) -> str | None:
    values = request.query.get(key)
    return values[0] if values else None


def _fail(response: Any, status: HTTPStatus, message: str) -> None:
    response.status = status
    response.json({"error": {"code": status.value, "message": message}})


class _Handler(server.RequestHandler):  # type: ignore[misc]  # (the emulator is not typed)
    """Takes a request in whole, serves it alone, and sends the answer as one piece."""

    protocol_version = "HTTP/1.1"
    one_at_a_time = threading.Lock()
    rfile: Any
    wfile: Any

    def serve(self, method: str) -> None:
        """Serve one request."""
        wanted_bytes = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(wanted_bytes)
        if len(body) < wanted_bytes:
            self.close_connection = True
            return
        connection = self.rfile, self.wfile
        answer = io.BytesIO()
        self.rfile, self.wfile = io.BytesIO(body), answer
        try:
            with self.one_at_a_time:
                server.Router(self).handle(method)
        finally:
            self.rfile, self.wfile = connection
        self.wfile.write(answer.getvalue())


for _method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
    setattr(_Handler, f"do_{_method}", partialmethod(_Handler.serve, _method))


def make_handler() -> Callable[..., BaseHTTPRequestHandler]:
    """Return the request handler of one empty store, for `http.server`.

    Rebuilds the emulator's one route table, so a process should do this once.
    """
    completed: dict[Any, _Handle] = {
        objects.ls: _conditional(_list),
        objects.get: _conditional(_get),
        objects.download: _conditional(_download),
        objects.delete: _conditional(objects.delete),
        objects.insert: _conditional(objects.insert),
        objects.upload_partial: _conditional(objects.upload_partial),
    }
    server.HANDLERS = tuple(
        (pattern, {method: completed.get(handle, handle) for method, handle in handlers.items()})
        for pattern, handlers in server.HANDLERS
    )
    return partial(_Handler, ConditionalStorage())
