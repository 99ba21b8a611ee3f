"""S3 and GCS servers for tests and benchmarks: each a child process on a free port.

::

    with running_object_store("gs") as url:       # http://127.0.0.1:<port>
        ...

``s3`` is moto, ``rgw`` the Ceph of `basenet.testing.radosgw`, which speaks S3 too. ``gs`` is
gcp-storage-emulator with what it lacks and the archive needs: preconditions on writes, pages and a
first name in listings, generations in the headers of downloads, 416, and 404 with a reason. moto
and it take a request in whole before they look at it, and then serve one at a time, as a real store
does for one object. A request that ends early never happened.

Run by hand: ``python -m basenet.testing.objectstores s3`` (or ``gs``). The server prints its URL
and ends when its standard input does, so it never outlives the test that started it.
"""

import io
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import HTTPServer, ThreadingHTTPServer
from typing import Any, Final, Literal

from basenet.testing.child import announce, running_module, wait_for_parent
from basenet.testing.radosgw import RADOSGW_ENVIRONMENT, running_radosgw

Kind = Literal["s3", "rgw", "gs"]
SCHEMES: Final[dict[Kind, str]] = {"s3": "s3", "rgw": "s3", "gs": "gs"}
HOST: Final = "127.0.0.1"
# What moto wants to be told; it checks none of it.
S3_ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
}


@contextmanager
def running_object_store(kind: Kind) -> Iterator[str]:
    """Run a server while the body runs, and give its URL. It keeps everything in memory."""
    if kind == "rgw":
        with running_radosgw() as url:
            yield url
        return
    with running_module("basenet.testing.objectstores", kind) as url:
        yield url


def environment_for(kind: Kind, url: str) -> dict[str, str]:
    """Return the environment with which `open_store` finds the server, or a proxy, at ``url``."""
    if kind == "gs":
        return {"STORAGE_EMULATOR_HOST": url}
    keys = RADOSGW_ENVIRONMENT if kind == "rgw" else S3_ENVIRONMENT
    return keys | {"AWS_ENDPOINT_URL": url}


def make_bucket(kind: Kind, url: str, bucket: str) -> None:
    """Make a bucket on the server at ``url``. Blocking."""
    if kind != "gs":
        import boto3  # noqa: PLC0415  (only needed for these servers)

        environment = environment_for(kind, url)
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name=environment["AWS_REGION"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=bucket)
        client.close()
    else:
        import requests  # noqa: PLC0415  (comes with google-cloud-storage)

        answer = requests.post(f"{url}/storage/v1/b", json={"name": bucket}, timeout=10)
        answer.raise_for_status()


def make_s3_server() -> HTTPServer:
    """Return moto's S3 on a free port, not serving yet."""
    from moto.moto_server.werkzeug_app import (  # noqa: PLC0415  (only needed for this server)
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server  # noqa: PLC0415  (comes with moto)

    class Handler(MotoRequestHandler):
        def log_request(self, *_: object) -> None:
            """Be quiet."""

    application = _OneAtATime(DomainDispatcherApplication(create_backend_app))
    return make_server(HOST, 0, application, threaded=True, request_handler=Handler)


class _OneAtATime:
    """A WSGI application that reads each request whole and then serves them one by one.

    moto checks a condition and writes in two steps, so two requests must not overlap.
    """

    def __init__(self, application: Any) -> None:
        self._application = application
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        wanted_bytes = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(wanted_bytes) if wanted_bytes else b""
        if len(body) < wanted_bytes:
            start_response("400 Bad Request", [("Content-Length", "0")])
            return [b""]
        environ["wsgi.input"] = io.BytesIO(body)
        with self._lock:
            return list(self._application(environ, start_response))


def make_gcs_server() -> HTTPServer:
    """Return the completed GCS emulator on a free port, not serving yet."""
    from basenet.testing.gcsemulator import make_handler  # noqa: PLC0415  (its package is optional)

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # with its 5, a burst of connections waits a second for a retry

    return Server((HOST, 0), make_handler())


def main() -> None:
    """Serve the kind that the command line names until standard input ends."""
    logging.disable()  # both servers log each object that they do not find as an error
    make = {"s3": make_s3_server, "gs": make_gcs_server}[sys.argv[1]]
    server = make()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    announce(f"http://{HOST}:{server.server_address[1]}")
    wait_for_parent()
    os._exit(0)  # requests may still hang in a fault proxy: nobody waits for them


if __name__ == "__main__":
    main()
