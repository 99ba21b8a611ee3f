"""`Config`: everything that basenet was told, as one frozen value."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from basenet.config.location import ArchiveLocation
from basenet.config.shards import ShardSpec
from basenet.config.values import Endpoint, Secret
from basenet.wire.encryption import Recipient


class Network(StrEnum):
    """One node for itself, or a cluster that agrees."""

    STANDALONE = "standalone"
    QUASAR = "quasar"


class CapturePolicy(StrEnum):
    """Whether capture pins the log only when it must, or always."""

    ADAPTIVE = "adaptive"
    STRICT = "strict"


class FaultModel(StrEnum):
    """What a voter may do wrong: stop, or lie."""

    CRASH = "crash"
    BYZANTINE = "byzantine"


class Fence(StrEnum):
    """How a replica refuses writes: by SQLite's lock, or by the file's own header."""

    LOCK = "lock"
    READONLY = "readonly"


class ServerEncryption(StrEnum):
    """How S3 encrypts what it keeps, in the words of its header."""

    AES256 = "AES256"
    KMS = "aws:kms"
    KMS_TWICE = "aws:kms:dsse"


class NodeRole(StrEnum):
    """What a node is to the shards it serves."""

    VALIDATOR = "validator"
    WITNESS = "witness"
    ARCHIVE = "archive"


class LogFormat(StrEnum):
    """``AUTO`` is console on a terminal and JSON elsewhere."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class LogLevel(StrEnum):
    """The least grave events that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrub:
    """How often the pages of a database are compared with their leaf hashes, and how gently."""

    interval_seconds: float
    bytes_per_second_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """How often a moment of the archive is restored to prove it, and how much may be read."""

    interval_seconds: float
    bytes_per_day_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failpoint:
    """A named place in the program where a test wants something to happen."""

    name: str
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The files of a node's identity; the client pair is the server pair unless given."""

    authority: Path
    server_certificate: Path
    server_key: Path
    client_certificate: Path
    client_key: Path
    allowed_sans: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """What only a node of a cluster is told; on a standalone node all of it is the default."""

    peers: tuple[Endpoint, ...]
    listen_p2p: Endpoint
    advertise_http: str | None
    node_role: NodeRole
    replication: int
    bootstrap_expect: int | None
    writer: str | None
    fault_model: FaultModel
    fence: Fence
    lease_ms: int
    unfinalized_commits_max: int | None
    unfinalized_bytes_max: int | None
    unfinalized_ms_max: int | None
    tls: Tls | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One node's configuration; see `basenet.config.variables` for what each value means."""

    network: Network
    node_id: str
    shards: tuple[ShardSpec, ...]
    data_dir: Path
    service: str
    archive: ArchiveLocation | None
    archive_unconditional: bool
    archive_sse: ServerEncryption | None
    archive_sse_kms_key_id: str | None
    archive_recipients: tuple[Recipient, ...]
    archive_identity: Secret | None  # the path of an identity file, or an identity
    flush_interval_seconds: float
    snapshot_interval_seconds: float
    retention_seconds: float
    retry_deadline_seconds: float
    shard_backlog_bytes_max: int
    shard_backlog_segments_max: int
    journal_bytes_max: int
    capture: CapturePolicy
    sync_wal: bool
    detach_after_seconds: float
    scrub: Scrub | None
    proof: Proof | None
    restore_if_missing: bool
    signing_key: Secret | None  # the path of a key file, or base64: and the key itself
    trusted_keys: Path | None
    listen_http: Endpoint
    log_format: LogFormat
    log_level: LogLevel
    is_test: bool
    failpoints: tuple[Failpoint, ...]
    trace_file: Path | None
    cluster: ClusterConfig
