"""What every room's tests share: the profile of hypothesis, and object stores.

A property is no measurement: on a machine with other work an example may take any time. A store is
started once, when it is first needed.
Tests of radosgw are system tests: `make radosgw` installs it, and `.ci/run` does so.
"""

import functools
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from basenet.testing.objectstores import Kind, make_bucket, running_object_store

BUCKET = "archive-test"

settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job; what the tests start would inherit that, and never end by ^C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_server(kind: Kind) -> Iterator[str]:
    with running_object_store(kind) as url:
        make_bucket(kind, url, BUCKET)
        yield url


@pytest.fixture(scope="session")
def shared_service_models() -> Iterator[None]:
    """Let boto3 parse its descriptions of S3 once, not for each of many stores."""
    import botocore.session  # noqa: PLC0415  (a third of a second, and most tests need none)

    with pytest.MonkeyPatch.context() as patch:
        create_loader = functools.cache(botocore.session.create_loader)
        patch.setattr(botocore.session, "create_loader", create_loader)
        yield


@pytest.fixture(scope="session")
def s3_server(shared_service_models: None) -> Iterator[str]:  # noqa: ARG001  (while it runs)
    """Give the URL of a moto."""
    yield from run_server("s3")


@pytest.fixture(scope="session")
def rgw_server(shared_service_models: None) -> Iterator[str]:  # noqa: ARG001  (the same)
    """Give the URL of a Ceph."""
    yield from run_server("rgw")


@pytest.fixture(scope="session")
def gs_server() -> Iterator[str]:
    """Give the URL of a GCS emulator."""
    yield from run_server("gs")
