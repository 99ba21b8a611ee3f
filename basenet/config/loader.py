"""`load`: from variables to a `Config`, or to every reason why not."""

import difflib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from basenet.config import model
from basenet.config import variables as v
from basenet.config.location import ArchiveScheme
from basenet.config.shards import ShardSpec
from basenet.errors import UsageError
from basenet.keys.node import node_id_of_hostname

_T = TypeVar("_T")

PREFIX: Final = "BASE_"
_NEAR_ENOUGH: Final = 0.7
_BYZANTINE_VOTERS_MIN: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One variable that cannot be used, and why."""

    name: str
    sentence: str


class ConfigurationError(UsageError):
    """The configuration cannot be used; ``faults`` says everything that is wrong with it."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self.faults = faults
        lines = [f"{fault.name}: {fault.sentence}" for fault in faults]
        if len(lines) > 1:
            lines = [f"{len(lines)} settings cannot be used", *(f"  {line}" for line in lines)]
        super().__init__("\n".join(lines))


def load(
    environment: Mapping[str, str],
    *,
    arguments: Mapping[str, str] | None = None,
    get_hostname: Callable[[], str] = socket.gethostname,
) -> model.Config:
    """Return the configuration that ``environment`` holds.

    ``arguments`` are values from the command line under the names of the variables that they
    replace. Raises `ConfigurationError` with every fault that is found. Reads no file.
    """
    reader = _Reader({**environment, **(arguments or {})}, frozenset(arguments or {}))
    reader.check_names()
    network = reader.get(v.NETWORK)
    if network is model.Network.STANDALONE and not reader.has_refused(v.NETWORK):
        reader.refuse_cluster_variables()
    shards = reader.get(v.SHARDS)
    config = model.Config(
        network=network,
        node_id=reader.get(v.NODE_ID) or node_id_of_hostname(get_hostname()),
        shards=shards,
        data_dir=reader.get(v.DATA_DIR) or _choose_data_dir(shards),
        service=reader.get(v.SERVICE),
        archive=reader.get(v.ARCHIVE),
        archive_unconditional=reader.get(v.ARCHIVE_UNCONDITIONAL),
        archive_sse=reader.get(v.ARCHIVE_SSE),
        archive_sse_kms_key_id=reader.get(v.ARCHIVE_SSE_KMS_KEY_ID),
        archive_recipients=reader.get(v.ARCHIVE_RECIPIENTS),
        archive_identity=reader.get(v.ARCHIVE_IDENTITY),
        flush_interval_seconds=reader.get(v.FLUSH_INTERVAL),
        snapshot_interval_seconds=reader.get(v.SNAPSHOT_INTERVAL),
        retention_seconds=reader.get(v.RETENTION),
        retry_deadline_seconds=reader.get(v.RETRY_DEADLINE),
        shard_backlog_bytes_max=reader.get(v.SHARD_BACKLOG_MAX),
        shard_backlog_segments_max=reader.get(v.SHARD_BACKLOG_SEGMENTS),
        journal_bytes_max=reader.get(v.JOURNAL_MAX_BYTES),
        capture=reader.get(v.CAPTURE),
        sync_wal=reader.get(v.SYNC_WAL),
        detach_after_seconds=reader.get(v.DETACH_AFTER),
        scrub=reader.get(v.SCRUB),
        proof=_load_proof(reader),
        restore_if_missing=reader.get(v.RESTORE_IF_MISSING),
        signing_key=reader.get(v.SIGNING_KEY),
        trusted_keys=reader.get(v.TRUSTED_KEYS),
        listen_http=reader.get(v.LISTEN_HTTP),
        log_format=reader.get(v.LOG_FORMAT),
        log_level=reader.get(v.LOG_LEVEL),
        is_test=reader.get(v.TEST),
        failpoints=reader.get(v.FAILPOINTS),
        trace_file=reader.get(v.TRACE_FILE),
        cluster=_load_cluster(reader),
    )
    _check_together(config, reader)
    reader.finish()
    return config


class _Reader:
    """Takes values out of the environment and collects what is wrong with them."""

    def __init__(self, environment: Mapping[str, str], from_arguments: frozenset[str]) -> None:
        # An empty value is an unset variable: templates of containers write NAME= for "nothing".
        self._given = {
            name: value
            for name, value in environment.items()
            if name.startswith(PREFIX) and value.strip()
        }
        self._from_arguments = from_arguments
        self._faults: list[Fault] = []

    def get(self, variable: v.Variable[_T]) -> _T:
        """Return the value of ``variable``; its default if it is unset or faulty."""
        text = self._given.get(variable.name)
        if text is None:
            return variable.default
        try:
            return variable.parse(text)
        except UsageError as error:
            self.refuse(variable.name, str(error))
            return variable.default

    def is_given(self, variable: v.Variable[object]) -> bool:
        """Return whether ``variable`` has a value, good or bad."""
        return variable.name in self._given

    def refuse(self, name: str, sentence: str) -> None:
        """Note that the variable ``name`` cannot be used."""
        origin = "from the command line, " if name in self._from_arguments else ""
        self._faults.append(Fault(name=name, sentence=origin + sentence))

    def has_refused(self, variable: v.Variable[object]) -> bool:
        """Return whether ``variable`` has a value that cannot be used."""
        return any(fault.name == variable.name for fault in self._faults)

    def check_names(self) -> None:
        """Refuse names that promise too much and names that nobody knows.

        The value of such a variable is not shown: nobody knows whether it is a secret.
        """
        for name in sorted(self._given):
            if name in v.PROMISES:
                self.refuse(name, v.PROMISES[name])
            elif name not in v.TABLE:
                near = _find_nearest(name)
                hint = f"did you mean {near}? Otherwise " if near else ""
                self.refuse(name, f"basenet has no such setting; {hint}unset it for basenet")

    def refuse_cluster_variables(self) -> None:
        """Refuse what would do nothing on a standalone node."""
        for variable in v.TABLE.values():
            if variable.cluster and self.is_given(variable):
                self.refuse(
                    variable.name,
                    "it does nothing while BASE_NETWORK is standalone; unset it, or set "
                    "BASE_NETWORK=quasar",
                )

    def finish(self) -> None:
        """Raise `ConfigurationError` if anything was refused, in the order of the table."""
        if not self._faults:
            return
        order = {name: place for place, name in enumerate(v.TABLE)}
        faults = sorted(self._faults, key=lambda fault: order.get(fault.name, len(order)))
        raise ConfigurationError(tuple(faults))


def _find_nearest(name: str) -> str | None:
    """Return the known name that ``name`` is a misspelling of, as far as that can be told."""
    # Without the prefix, which would make every name look like every other.
    known = [other.removeprefix(PREFIX) for other in v.TABLE]
    near = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1, cutoff=_NEAR_ENOUGH)
    return PREFIX + near[0] if near else None


def _choose_data_dir(shards: tuple[ShardSpec, ...]) -> Path:
    """Return ``.basenet`` beside the first database; in the present directory without one."""
    return (shards[0].directory if shards else Path()) / ".basenet"


def _load_proof(reader: _Reader) -> model.Proof | None:
    interval, bytes_max = reader.get(v.PROOF_INTERVAL), reader.get(v.PROOF_BYTES_PER_DAY)
    if interval is None:
        return None
    return model.Proof(interval_seconds=interval, bytes_per_day_max=bytes_max)


def _load_cluster(reader: _Reader) -> model.ClusterConfig:
    return model.ClusterConfig(
        peers=reader.get(v.PEERS),
        listen_p2p=reader.get(v.LISTEN_P2P),
        advertise_http=reader.get(v.ADVERTISE_HTTP),
        node_role=reader.get(v.NODE_ROLE),
        replication=reader.get(v.REPLICATION),
        bootstrap_expect=reader.get(v.BOOTSTRAP_EXPECT),
        writer=reader.get(v.WRITER),
        fault_model=reader.get(v.FAULT_MODEL),
        fence=reader.get(v.FENCE),
        lease_ms=reader.get(v.LEASE_MS),
        unfinalized_commits_max=reader.get(v.MAX_UNFINALIZED_COMMITS),
        unfinalized_bytes_max=reader.get(v.MAX_UNFINALIZED_BYTES),
        unfinalized_ms_max=reader.get(v.MAX_UNFINALIZED_MS),
        tls=_load_tls(reader),
    )


def _load_tls(reader: _Reader) -> model.Tls | None:
    """Return the TLS files; a set that lacks one is refused, never completed by guessing."""
    authority, certificate = reader.get(v.TLS_CA), reader.get(v.TLS_SERVER_CERT)
    key, allowed_sans = reader.get(v.TLS_SERVER_KEY), reader.get(v.TLS_ALLOWED_SANS)
    client_certificate = reader.get(v.TLS_CLIENT_CERT)
    client_key = reader.get(v.TLS_CLIENT_KEY)
    for one, other in (
        (v.TLS_CLIENT_CERT, v.TLS_CLIENT_KEY),
        (v.TLS_CLIENT_KEY, v.TLS_CLIENT_CERT),
    ):
        if reader.is_given(one) and not reader.is_given(other):
            reader.refuse(other.name, f"it is missing while {one.name} is set; set both or neither")
    required = (v.TLS_CA, v.TLS_SERVER_CERT, v.TLS_SERVER_KEY, v.TLS_ALLOWED_SANS)
    optional = (v.TLS_CLIENT_CERT, v.TLS_CLIENT_KEY)
    given = [variable.name for variable in (*required, *optional) if reader.is_given(variable)]
    missing = [variable.name for variable in required if not reader.is_given(variable)]
    if given and missing:
        for name in missing:
            reader.refuse(name, f"it is missing while {given[0]} is set; TLS needs the whole set")
    if authority is None or certificate is None or key is None:
        return None
    return model.Tls(
        authority=authority,
        server_certificate=certificate,
        server_key=key,
        client_certificate=client_certificate or certificate,
        client_key=client_key or key,
        allowed_sans=allowed_sans,
    )


def _check_server_encryption(config: model.Config, reader: _Reader) -> None:
    archive, sse = config.archive, config.archive_sse
    if sse is not None and archive is not None and archive.scheme is not ArchiveScheme.S3:
        reader.refuse(
            v.ARCHIVE_SSE.name,
            f"it is for s3:// and {archive.url} is none; unset it, and encrypt with the disk or "
            f"the bucket, or with {v.ARCHIVE_RECIPIENTS.name}, which needs no trust in either",
        )
    with_key = (model.ServerEncryption.KMS, model.ServerEncryption.KMS_TWICE)
    if config.archive_sse_kms_key_id is not None and sse not in with_key:
        reader.refuse(
            v.ARCHIVE_SSE_KMS_KEY_ID.name,
            f"a key of the KMS is used only with {v.ARCHIVE_SSE.name}=aws:kms; set that, or unset "
            "this",
        )


def _check_together(config: model.Config, reader: _Reader) -> None:
    """Refuse values that are good alone and bad together."""
    cluster = config.cluster
    if config.failpoints and not config.is_test:
        reader.refuse(
            v.FAILPOINTS.name, "failpoints break things on purpose; unset it, or set BASE_TEST=on"
        )
    if config.archive_recipients and not reader.is_given(v.ARCHIVE_IDENTITY):
        reader.refuse(
            v.ARCHIVE_IDENTITY.name,
            f"it is missing while {v.ARCHIVE_RECIPIENTS.name} is set; basenet reads its own "
            "archive at each start, so name the file of an identity among the recipients",
        )
    _check_server_encryption(config, reader)
    if config.network is model.Network.STANDALONE:
        return
    if not config.sync_wal:
        reader.refuse(
            v.SYNC_WAL.name,
            "'off' is not possible in a cluster, where a vote must be durable; unset it",
        )
    if cluster.peers and cluster.tls is None and not reader.is_given(v.TLS_CA):
        reader.refuse(
            v.PEERS.name,
            "peers talk over TLS only; set BASE_TLS_CA, BASE_TLS_SERVER_CERT, BASE_TLS_SERVER_KEY "
            "and BASE_TLS_ALLOWED_SANS (`basenet keys init` makes the files)",
        )
    if (
        cluster.fault_model is model.FaultModel.BYZANTINE
        and cluster.replication < _BYZANTINE_VOTERS_MIN
    ):
        reader.refuse(
            v.FAULT_MODEL.name,
            f"'byzantine' needs {_BYZANTINE_VOTERS_MIN} voters and BASE_REPLICATION is "
            f"{cluster.replication}; raise that or write crash",
        )
