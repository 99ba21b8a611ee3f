"""``basenet doctor``: what is wrong with a configuration and its databases, and how to mend it.

It asks nothing of a running daemon and changes nothing but for a moment: a scratch file beside
each database, to see whether locks are visible, and probe objects in the archive, which it removes.
No database is opened with SQLite (`basenet.sqlite.diagnose` says why).
"""

import os
import resource
import secrets
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import apsw
import click
import trio

from basenet.archive import probe
from basenet.archive.keyring import make_reading_keyring
from basenet.archive.store import (
    Store,
    StoreConflict,
    StoreNotFound,
    make_encryption,
    open_store,
)
from basenet.cli import output
from basenet.config import Config, ConfigurationError, load
from basenet.config.location import ArchiveScheme
from basenet.daemon.listing import find_databases, watched_directories
from basenet.errors import BasenetError, NotFoundError, UsageError
from basenet.keys import signing, trust
from basenet.sqlite import filesystem
from basenet.sqlite.diagnose import Finding, Level, diagnose_database, fail, ok, warn
from basenet.sqlite.inotify import InotifyWake
from basenet.units import MIB

# The first release without the bug that lets a checkpoint beside a commit corrupt the database.
SQLITE_VERSION_MIN: Final = (3, 51, 3)
DESCRIPTORS_PER_SHARD: Final = 12
WATCHES_PER_SHARD: Final = 3
ARCHIVE_SECONDS_MAX: Final = 30.0
CLOCK_SKEW_SECONDS_MAX: Final = 5.0
_DATA_BYTES_MIN: Final = 64 * MIB
_SOCKET_NAME: Final = "basenet.sock"
_NS: Final = 1_000_000_000
_COLOURS: Final = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
_CONFIGURATION: Final = "configuration"

# What each part of the report is about (the node, a shard, the archive), and what was found.
Report = list[tuple[str, Finding]]


@click.command("doctor")
@click.argument("db", required=False)
@click.argument("archive", required=False)
@output.json_option
def command(*, db: str | None, archive: str | None, as_json: bool) -> int:
    """Check a configuration, its databases and its archive, and say how to mend what is wrong.

    DB and ARCHIVE are those of `basenet serve`, by default BASE_SHARDS and BASE_ARCHIVE. Run it as
    the user and in the place (container, host) where basenet runs. Exit code 1: something is wrong.
    """
    report = examine(os.environ, db=db, archive=archive)
    if as_json:
        output.print_json(_document(report))
    else:
        _print(report)
    return int(any(finding.level is Level.FAIL for _, finding in report))


def examine(environment: Mapping[str, str], *, db: str | None, archive: str | None) -> Report:
    """Return everything that was found, the configuration first."""
    arguments = {}
    # An empty argument (an unset variable of the shell) is none, as with the settings.
    if db:
        arguments["BASE_SHARDS"] = f"{db}/" if Path(db).is_dir() else db
    if archive:
        arguments["BASE_ARCHIVE"] = archive
    report: Report = [(_CONFIGURATION, _check_sqlite())]
    try:
        config = load(environment, arguments=arguments)
    except ConfigurationError as error:
        faults = error.faults
        return report + [
            (_CONFIGURATION, fail(fault.name, fault.sentence, f"correct {fault.name}"))
            for fault in faults
        ]
    report.append((_CONFIGURATION, ok("settings", "every BASE_ variable is understood")))
    shards = find_databases(config.shards, served=())
    report += [(_CONFIGURATION, finding) for finding in _check_node(config, shards.refused)]
    report += [(_CONFIGURATION, finding) for finding in _check_limits(len(shards.databases))]
    for shard, path in sorted(shards.databases.items()):
        findings = _say_who_captures(diagnose_database(path), config)
        report += [(f"shard {shard}", finding) for finding in findings]
    return report + [("archive", finding) for finding in _check_archive(config, environment)]


# -- the node ------------------------------------------------------------------------------------


def _check_sqlite() -> Finding:
    version = apsw.sqlite_lib_version()
    if tuple(int(part) for part in version.split(".")) >= SQLITE_VERSION_MIN:
        return ok("sqlite", f"SQLite {version} is linked")
    return fail(
        "sqlite",
        f"SQLite {version} is linked, whose checkpoints can corrupt a database in use",
        "install a newer apsw: pip install -U apsw",
    )


def _check_node(config: Config, refused: Sequence[str]) -> Iterator[Finding]:
    """Check what BASE_SHARDS means now, the data directory and the keys."""
    if not config.shards:
        yield fail("shards", "no database is named", "name one, or set BASE_SHARDS")
    for sentence in refused:
        yield fail("shards", sentence.rstrip("."), "name it with id=path in BASE_SHARDS")
    for directory in sorted(watched_directories(config.shards)):
        if not directory.is_dir():
            yield fail("shards", f"{directory} does not exist", "create it, or correct BASE_SHARDS")
    yield from _check_data_directory(config.data_dir)
    yield _check_signing_key(config)
    yield _check_trusted_keys(config)


def _check_data_directory(path: Path) -> Iterator[Finding]:
    if not path.exists():
        yield ok("data directory", f"{path} is made at the first start")
    elif not path.is_dir():
        yield fail("data directory", f"{path} is not a directory", "correct BASE_DATA_DIR")
        return
    else:
        yield _check_data_mode(path)
    facts = filesystem.inspect(path)
    if facts.verdict is filesystem.Verdict.UNSAFE:
        yield fail(
            "data directory",
            f"{path} lies on {facts.point}, a {facts.kind} file system: {facts.reason}",
            "set BASE_DATA_DIR to a local disk: the journal is an SQLite database, too",
        )
    elif facts.verdict is filesystem.Verdict.DOUBTFUL:
        yield warn(
            "data directory",
            f"{path} lies on {facts.point} ({facts.kind}): {facts.reason}",
            "set BASE_DATA_DIR to a disk that stays: without its journal every start is a new line",
        )
    if facts.is_read_only or facts.free_bytes < _DATA_BYTES_MIN:
        yield fail(
            "data directory",
            f"{path} can take {facts.free_bytes // MIB} MiB"
            + (", for it is mounted read-only" if facts.is_read_only else ""),
            "make room: the journal keeps what the archive has not taken yet",
        )


def _check_data_mode(path: Path) -> Finding:
    facts = path.stat()
    mode = stat.S_IMODE(facts.st_mode)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return fail(
            "data directory",
            f"this user may not use {path}, which belongs to user {facts.st_uid}",
            "run doctor and basenet as one user",
        )
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return warn(
            "data directory",
            f"{path} has mode {mode:04o}: others can reach the signing key and the pages in it",
            f"run: chmod 700 {path}",
        )
    return ok("data directory", f"{path} belongs to this user alone")


def _check_signing_key(config: Config) -> Finding:
    override = config.signing_key.reveal() if config.signing_key else None
    if override is not None and override.startswith(signing.INLINE_PREFIX):
        try:
            signing.parse_inline(override)
        except UsageError as error:
            return fail("signing key", str(error), "correct BASE_SIGNING_KEY")
        return ok("signing key", "it stands in BASE_SIGNING_KEY")
    path = Path(override) if override is not None else config.data_dir / signing.SIGNING_KEY_NAME
    try:
        key = signing.load(path)
    except NotFoundError:
        if override is None:
            return ok("signing key", f"{path} is made at the first start")
        return fail("signing key", f"{path} does not exist", "correct BASE_SIGNING_KEY")
    except UsageError as error:
        return fail("signing key", str(error), f"make it readable for its owner alone: {path}")
    return ok("signing key", f"{path}, {key.fingerprint}")


def _check_trusted_keys(config: Config) -> Finding:
    path = config.trusted_keys or config.data_dir / trust.TRUSTED_KEYS_NAME
    try:
        trusted = trust.read_trusted_keys(path)
    except NotFoundError:
        if config.trusted_keys is None:
            return ok("trusted keys", f"{path} is made at the first start")
        return fail("trusted keys", f"{path} does not exist", "correct BASE_TRUSTED_KEYS")
    except UsageError as error:
        return fail("trusted keys", str(error), f"correct {path}")
    return ok("trusted keys", f"{path} names {len(trusted.keys)}")


def _check_limits(shards: int) -> Iterator[Finding]:
    """Check what the kernel allows one process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = shards * DESCRIPTORS_PER_SHARD
    if hard != resource.RLIM_INFINITY and needed > hard:
        yield fail(
            "open files",
            f"{shards} databases need {needed} open files and the limit is {hard}",
            "raise it: ulimit -Hn, or LimitNOFILE= in the unit",
        )
    else:
        yield ok("open files", f"{shards} databases need {needed} and the limit is {hard}")
    if sys.platform == "linux":
        yield _check_inotify(shards)


def _check_inotify(shards: int) -> Finding:
    try:
        InotifyWake().close()
    except BasenetError as error:
        return warn("inotify", str(error), "sysctl fs.inotify.max_user_instances=1024")
    needed = shards * WATCHES_PER_SHARD
    limit = 0
    with suppress(OSError, ValueError):
        limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
    if 0 < limit < needed:
        return warn(
            "inotify",
            f"{shards} databases need up to {needed} watches and the user has {limit}; the rest "
            "would be polled",
            f"sysctl fs.inotify.max_user_watches={max(65536, 2 * needed)}",
        )
    return ok("inotify", f"{needed} of {limit} watches are needed")


def _say_who_captures(findings: Sequence[Finding], config: Config) -> Iterator[Finding]:
    """Turn "somebody captures it" into a complaint if it is not the daemon of this configuration.

    `diagnose_database` sees the owner's lock, but not whose it is.
    """
    for finding in findings:
        if finding.check == "capture" and not _is_daemon_running(config.data_dir):
            yield warn(
                "capture",
                "another basenet process, with another data directory, captures this database",
                f"stop it, or set BASE_DATA_DIR to its own; {config.data_dir} has no daemon",
            )
        else:
            yield finding


def _is_daemon_running(data_dir: Path) -> bool:
    """Return whether a daemon answers at the socket of ``data_dir``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(os.fspath(data_dir / _SOCKET_NAME))
        except OSError:
            return False
    return True


# -- the archive ---------------------------------------------------------------------------------


def _check_archive(config: Config, environment: Mapping[str, str]) -> list[Finding]:
    if config.archive is None:
        return [
            warn(
                "archive",
                "no archive is set, so a lost disk is a lost database",
                "set BASE_ARCHIVE to s3://, gs:// or a directory on another disk",
            )
        ]
    findings = list(_check_archive_place(config))
    chosen = dict(environment)
    if config.archive_unconditional:
        chosen["BASE_ARCHIVE_UNCONDITIONAL"] = "1"
    try:
        identity = config.archive_identity
        keyring = make_reading_keyring(identity.reveal() if identity else None)
        encryption = make_encryption(config.archive_sse, config.archive_sse_kms_key_id)
        store = open_store(
            config.archive.url, environment=chosen, encryption=encryption, keyring=keyring
        )
    except BasenetError as error:
        return [*findings, fail("archive", str(error), "correct what it names")]
    is_new = config.archive.scheme is ArchiveScheme.FILE and not config.archive.directory.exists()
    findings += trio.run(partial(_try_store, store))
    if is_new:
        # A misspelt path must not become a directory by being looked at.
        with suppress(OSError):
            config.archive.directory.rmdir()
        findings.append(
            warn(
                "archive",
                f"{config.archive.url} does not exist yet",
                "correct BASE_ARCHIVE if it should; basenet makes it at the first start",
            )
        )
    return findings


def _check_archive_place(config: Config) -> Iterator[Finding]:
    """Check that a directory of an archive is not lost with the databases."""
    assert config.archive is not None, "no archive to place"
    if config.archive.scheme is not ArchiveScheme.FILE:
        return
    place = filesystem.inspect(config.archive.directory)
    for spec in config.shards:
        if filesystem.inspect(spec.path).source == place.source:
            yield warn(
                "archive",
                f"{config.archive.url} lies on the same disk as {spec.path} ({place.source})",
                "put the archive on another disk or machine: one disk fails as a whole",
            )
            return


async def _try_store(store: Store) -> list[Finding]:
    """Write, read and delete in ``store``, which this closes."""
    findings: list[Finding] = []
    try:
        with trio.move_on_after(ARCHIVE_SECONDS_MAX) as scope:
            findings.append(await _try_conditions(store))
            if findings[-1].level is not Level.FAIL:
                findings.append(await _compare_clocks(store))
        if scope.cancelled_caught:
            findings.append(
                fail(
                    "archive",
                    f"{store.url} did not answer within {ARCHIVE_SECONDS_MAX:.0f} s",
                    "see whether this machine reaches it: network, proxy, AWS_ENDPOINT_URL",
                )
            )
    except BasenetError as error:
        findings.append(fail("archive", str(error), "see the error; the daemon would meet it, too"))
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await store.aclose()
    return findings


async def _try_conditions(store: Store) -> Finding:
    if not store.is_conditional:
        return warn(
            "archive",
            f"{store.url} is used without conditional writes (BASE_ARCHIVE_UNCONDITIONAL)",
            "see that no second daemon ever writes there: nothing would stop it",
        )
    began = trio.current_time()
    # A directory of its own, so that an earlier success is not remembered.
    with tempfile.TemporaryDirectory() as nowhere:
        await probe.probe(store, Path(nowhere))
    elapsed = output.format_duration(trio.current_time() - began)
    return ok(
        "archive", f"{store.url} takes, gives and keeps conditions ({elapsed} for 6 requests)"
    )


async def _compare_clocks(store: Store) -> Finding:
    """Compare our clock with the store's, by the answer to a read of our own object.

    A directory has no clock, but that of a network file system is where its files' times are from.
    """
    name = f"{probe.PROBE_PREFIX}{secrets.token_hex(8)}"
    try:
        wrote_ns = time.time_ns()
        with suppress(StoreConflict):
            await store.put_if_absent(name, b"clock")
        before_ns = time.time_ns()
        found = await store.get(name)
        after_ns = time.time_ns()
    except StoreNotFound:
        return warn("clock", "the store lost the probe at once", "run doctor again")
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await store.delete(name)
    if found.server_now_ns is not None:
        told_ns = found.server_now_ns
    elif found.modified_ns is not None:
        told_ns, before_ns = found.modified_ns, wrote_ns
    else:
        return ok("clock", "the store does not say its time")
    # The store's second may have begun before we asked.
    skew_seconds = max(before_ns - _NS - told_ns, told_ns - after_ns, 0) / _NS
    if skew_seconds > CLOCK_SKEW_SECONDS_MAX:
        return warn(
            "clock",
            f"this machine's clock and the store's differ by {skew_seconds:.0f} s",
            "run a time service (chrony, systemd-timesyncd): restores by time go by this clock, "
            "and S3 refuses requests beyond 15 minutes",
        )
    if found.server_now_ns is None:
        return ok("clock", "files get this machine's time; a directory has no clock of its own")
    return ok("clock", "this machine's clock agrees with the store's")


# -- saying it -----------------------------------------------------------------------------------


def _document(report: Report) -> dict[str, object]:
    counts = {level.value: 0 for level in Level}
    for _, finding in report:
        counts[finding.level.value] += 1
    return {
        "ok": counts[Level.FAIL.value] == 0,
        "counts": counts,
        "findings": [
            {"subject": subject, **asdict(finding), "level": finding.level.value}
            for subject, finding in report
        ],
    }


def _print(report: Report) -> None:
    """Print a line for each finding under its subject, and how to mend what is not ok."""
    last = None
    for subject, finding in report:
        if subject != last:
            click.echo(subject)
            last = subject
        word = click.style(f"{finding.level.value:<4}", fg=_COLOURS[finding.level])
        click.echo(f"  {word}  {finding.check}: {finding.message}")
        if finding.remedy:
            click.echo(f"        -> {finding.remedy}")
    failures = sum(finding.level is Level.FAIL for _, finding in report)
    warnings = sum(finding.level is Level.WARN for _, finding in report)
    click.echo(f"{failures} failed, {warnings} to look at, {len(report)} checks")
