"""Every store with the real program: who may write when the writer is gone, and what is refused."""

import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import botocore.auth
import pytest
import trio

from basenet.archive.store import (
    StoreRefused,
    StoreUnavailable,
    make_encryption,
    open_store,
)
from basenet.errors import BasenetError
from basenet.testing.radosgw import RADOSGW_ENVIRONMENT, STRANGER_KEYS
from tests.sqlite.application import Application
from tests.system.harness import Daemon
from tests.system.stores import KINDS, Archive, Host, make_archive

pytestmark = pytest.mark.system
# The lease of a writer that is gone stands still for 30 s before another takes it.
TAKEOVER_S = 120.0


def start_application(path: Path) -> Application:
    application = Application(path)
    application.sql("PRAGMA journal_mode=WAL", "CREATE TABLE IF NOT EXISTS t(x, y)")
    return application


def wait_archive(daemon: Daemon, *words: str) -> str:
    """Return the archive's sentence once one of ``words`` is in it."""
    return daemon.wait_status(
        lambda status: any(word in status.archive for word in words), f"{words}"
    ).archive


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Application]:
    """Run an application that commits several times a second until it is killed."""
    application = start_application(path)
    application.start(
        "while True:\n"
        " c.execute('INSERT INTO t VALUES (?, randomblob(300))', (db,))\n"
        " time.sleep(0.2)"
    )
    try:
        yield application
    finally:
        if application.process.poll() is None:
            application.kill()


def take_over(archive: Archive, folder: Path) -> None:
    """A host dies and another one, with a restored database, waits and goes on in its place.

    Whoever archives has something to archive all the time: else its lease may stand still.
    """
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        first, second = (Host(folder / name, archive, stack) for name in ("first", "second"))
        writer = stack.enter_context(writing(first.database()))
        one = first.serve(BASE_NODE_ID="first")
        one.wait_archived()
        archive.restore(second.database(), shard="app", data_dir=first.data_dir)
        second.data_dir.mkdir(mode=0o700)
        shutil.copy(first.data_dir / "signing.key", second.data_dir)

        # While the first one lives the second one writes nothing.
        survivor = stack.enter_context(writing(second.database()))
        two = second.serve(BASE_NODE_ID="second")
        wait_archive(two, "lease of node first", "archived by node first")
        assert two.status().archive_epoch == 0
        assert one.status().archive == "ok"

        # It dies in mid-write; the second one takes over, as a child of all that was archived.
        one.kill()
        writer.kill()
        two.wait_archived(patience_s=TAKEOVER_S)
        epoch = two.status().archive_epoch
        assert epoch > 1

        # It comes back, and the history that the second one leads does not fork.
        one = first.serve(BASE_NODE_ID="first")
        wait_archive(one, "lease of node second", "archived by node second")
        one.kill()
        survivor.kill()
        reader = stack.enter_context(start_application(second.database()))
        two.wait_archived()
        assert two.status().archive_epoch == epoch
        assert two.status().archive == "ok"
        archive.check(second.database(), data_dir=second.data_dir)
        archive.verify(data_dir=second.data_dir)
        assert reader.sql("SELECT count(DISTINCT x) FROM t") == [[2]]  # both have written


@pytest.mark.timeout(300)
def test_every_store_hands_a_dead_writers_archive_on_and_keeps_one_history(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """SIGKILL of one of two daemons, on all stores at once, since each of them waits for 30 s."""
    archives = [make_archive(request, kind, tmp_path / "archive") for kind in KINDS]
    with ThreadPoolExecutor(len(KINDS)) as pool:
        running = [
            pool.submit(take_over, archive, tmp_path / kind)
            for kind, archive in zip(KINDS, archives, strict=True)
        ]
        for one in running:
            one.result()


# What a real server refuses. The words are those of Ceph, which differ from moto's in places.


async def fail_at(archive: Archive, **environment: str) -> BasenetError:
    """Return what the store raises when it is asked for an object and for a write."""
    store = open_store(archive.url, environment=dict(archive.environment) | environment)
    errors: list[BasenetError] = []
    calls = (lambda: store.get("a"), lambda: store.put_if_absent("a", b"data"))
    for call in calls:
        with pytest.raises(BasenetError) as caught:
            await call()
        errors.append(caught.value)
    await store.aclose()
    first, second = errors
    assert type(first) is type(second)
    for error in errors:
        sentence = str(error)
        assert "\n" not in sentence
        assert sentence.count(". ") == 0
        assert RADOSGW_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"] not in sentence
    return second


@pytest.fixture
def ceph(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    return make_archive(request, "rgw", tmp_path)


async def test_refused_credentials_are_one_sentence(ceph: Archive) -> None:
    """A key that is not known, a wrong secret, and none at all."""
    error = await fail_at(ceph, AWS_ACCESS_KEY_ID="nobody")
    assert isinstance(error, StoreRefused)
    assert "refuses the AWS credentials with InvalidAccessKeyId" in str(error)
    error = await fail_at(ceph, AWS_SECRET_ACCESS_KEY="wrong")  # noqa: S106  (an example)
    assert "refuses the AWS credentials with SignatureDoesNotMatch" in str(error)


async def test_a_bucket_of_somebody_else_is_one_sentence(ceph: Archive) -> None:
    """403: the sentence names the permissions that are needed."""
    key, secret = STRANGER_KEYS
    stranger = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    error = await fail_at(ceph, **stranger)
    assert isinstance(error, StoreRefused)
    assert "gives no permission for a: allow s3:GetObject, s3:PutObject" in str(error)


async def test_a_bucket_that_is_not_there_is_one_sentence(ceph: Archive) -> None:
    """It is no missing object, and it is not made."""
    error = await fail_at(replace(ceph, url="s3://nowhere/archive"))
    assert isinstance(error, StoreRefused)
    assert "bucket nowhere at http://127.0.0.1:" in str(error)
    assert "does not exist: make it, or correct BASE_ARCHIVE" in str(error)


async def test_a_clock_that_is_wrong_is_one_sentence(
    ceph: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request is signed with the time; an hour is too much, and goes away by itself."""
    late = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda **_: late)
    error = await fail_at(ceph)
    assert isinstance(error, StoreUnavailable)
    assert "the clock of this machine differs too much" in str(error)


async def test_credentials_that_are_renewed_in_their_file_need_no_restart(
    ceph: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same store finds them at the next attempt."""
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    keys = RADOSGW_ENVIRONMENT
    environment = {name: text for name, text in ceph.environment.items() if name not in keys}
    lines = "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    file.write_text(lines.format(keys["AWS_ACCESS_KEY_ID"], "expired"))
    store = open_store(ceph.url, environment=environment)
    with pytest.raises(StoreRefused, match="credentials"):
        await store.put_if_absent("a", b"data")
    file.write_text(lines.format(keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"]))
    await store.put_if_absent("a", b"data")
    await store.aclose()


async def test_the_server_encrypts_with_the_key_that_is_named(ceph: Archive) -> None:
    """SSE-KMS on a real server: conditions hold as ever, and an unknown key is refused."""
    store = open_store(
        ceph.url, environment=ceph.environment, encryption=make_encryption("aws:kms", "testkms")
    )
    first = await store.put_if_absent("LEASE", b"first")
    second = await store.replace_if("LEASE", b"second", first)
    found = await store.get("LEASE")
    assert (found.data, found.token) == (b"second", second)
    assert await store.get_range("LEASE", 1, 3) == b"eco"
    await store.aclose()
    assert await trio.to_thread.run_sync(read_encryption, ceph, "LEASE") == ("aws:kms", "testkms")
    store = open_store(
        ceph.url, environment=ceph.environment, encryption=make_encryption("aws:kms", None)
    )
    with pytest.raises(StoreRefused, match="BASE_ARCHIVE_SSE"):
        await store.put_if_absent("other", b"data")
    await store.aclose()


def read_encryption(archive: Archive, name: str) -> tuple[str, str]:
    """Return how the server says that it has encrypted an object."""
    bucket, _, prefix = archive.url.removeprefix("s3://").partition("/")
    environment = archive.environment
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    head = client.head_object(Bucket=bucket, Key=f"{prefix}/{name}")
    client.close()
    return head["ServerSideEncryption"], head["SSEKMSKeyId"]
