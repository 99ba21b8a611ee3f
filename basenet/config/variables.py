"""The table: every variable that basenet reads, once, with its default, parser and meaning.

`config.loader` reads the environment through it, docs/configuration.md is rendered from it, and a
name that is not in it is refused. The order is the order of the document.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from basenet.config import location, model, shards, values
from basenet.config.values import Secret
from basenet.errors import UsageError
from basenet.keys import age
from basenet.keys.node import parse_node_id
from basenet.keys.signing import INLINE_PREFIX, is_seed_text, parse_inline
from basenet.wire.encryption import Recipient

_T = TypeVar("_T")
_Value_co = TypeVar("_Value_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable(Generic[_Value_co]):
    """One variable of the environment.

    ``default`` is the value of an unset variable and ``shown`` is how the document says so.
    ``form`` and ``meaning`` are what the document says of it. A ``cluster`` variable does nothing
    on a standalone node.
    """

    name: str
    parse: Callable[[str], _Value_co]
    default: _Value_co
    shown: str
    form: str
    meaning: str
    cluster: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A heading of the document and the variables under it."""

    title: str
    variables: tuple[Variable[object], ...]
    note: str = ""


def _given(
    name: str,
    parse: Callable[[str], _T],
    default: str,
    form: str,
    meaning: str,
    *,
    cluster: bool = False,
) -> Variable[_T]:
    """Declare a variable whose default is a text like any other."""
    return Variable(
        name=name,
        parse=parse,
        default=parse(default),
        shown=f"`{default}`",
        form=form,
        meaning=meaning,
        cluster=cluster,
    )


def _optional(
    name: str,
    parse: Callable[[str], _T | None],
    shown: str,
    form: str,
    meaning: str,
    *,
    cluster: bool = False,
) -> Variable[_T | None]:
    """Declare a variable that may be absent; ``shown`` says what holds then."""
    return Variable(
        name=name,
        parse=parse,
        default=None,
        shown=shown,
        form=form,
        meaning=meaning,
        cluster=cluster,
    )


def _parse_signing_key(text: str) -> Secret:
    """Return BASE_SIGNING_KEY; no message of this function may show it."""
    value = text.strip()
    if value.startswith(INLINE_PREFIX):
        parse_inline(value)
    elif is_seed_text(value) or "-----BEGIN" in value or "\n" in value or "\0" in value:
        raise UsageError(
            "its value (not shown) is a key and not a path: write the path of a key file, or put "
            f"{INLINE_PREFIX} before the base64 of the 32 bytes"
        )
    return Secret(value)


def _parse_service(text: str) -> str:
    name = text.strip()
    if not re.match(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", name):
        raise UsageError(
            f"{text!r} is not a service name: write 1 to 64 characters A-Z, a-z, 0-9, dot, hyphen "
            "and underscore, a letter or digit first"
        )
    return name


def _parse_scrub(text: str) -> model.Scrub | None:
    if text.strip().lower() == "off":
        return None
    interval, comma, rate = (part.strip() for part in text.partition(","))
    if comma and not rate.lower().endswith("/s"):
        raise UsageError(
            f"{text!r} is not a scrub plan: write off, or how often and how fast, such as 24h,4MB/s"
        )
    return model.Scrub(
        interval_seconds=values.duration_between("1s", "365d")(interval),
        bytes_per_second_max=values.size_from("1KB")((rate or "4MB/s")[:-2]),
    )


def _parse_proof_interval(text: str) -> float | None:
    if text.strip().lower() == "off":
        return None
    return values.duration_between("10ms", "3650d")(text)


def _parse_failpoints(text: str) -> tuple[model.Failpoint, ...]:
    points = []
    for item in values.split_list(text):
        name, equals, action = (part.strip() for part in item.partition("="))
        if not (name and equals and action):
            raise UsageError(f"{item!r} is not a failpoint: write name=action")
        points.append(model.Failpoint(name=name, action=action))
    return tuple(points)


def _parse_sans(text: str) -> tuple[str, ...]:
    return tuple(parse_node_id(item) for item in values.split_list(text))


def _parse_server_encryption(text: str) -> model.ServerEncryption:
    for word in model.ServerEncryption:
        if word.lower() == text.strip().lower():
            return word
    words = " or ".join(model.ServerEncryption)
    raise UsageError(f"{text!r} is not one of its words: write {words}")


def _parse_recipients(text: str) -> tuple[Recipient, ...]:
    return age.parse_recipients(values.split_list(text))


def _parse_archive_identity(text: str) -> Secret:
    """Return BASE_ARCHIVE_IDENTITY; no message of this function may show it."""
    value = text.strip()
    if age.is_identity_text(value):
        age.parse_identities(value, what="its value")
    elif "\n" in value or "\0" in value:
        raise UsageError("its value (not shown) is neither a path nor one age identity")
    return Secret(value)


_TLS_FILE: Final = "a path"
_ON_OFF: Final = "`on` or `off`"

# What is served, and by whom.
NETWORK: Final = _given(
    "BASE_NETWORK",
    values.choice(model.Network),
    "standalone",
    "`standalone` or `quasar`",
    "One node for itself, or a node of a cluster.",
)
SHARDS: Final = _given(
    "BASE_SHARDS",
    shards.parse_shards,
    "",
    "a comma list of `path`, `dir/`, a glob, `id=path`",
    "The databases. A directory or glob is watched: databases that appear later are picked up. "
    "The id of `/data/app.db` is `app`.",
)
DATA_DIR: Final = _optional(
    "BASE_DATA_DIR",
    values.parse_path,
    "`.basenet/` beside the first database",
    "a path",
    "Where the journal, the key and the socket live. Made with mode 0700.",
)
NODE_ID: Final = _optional(
    "BASE_NODE_ID",
    parse_node_id,
    "the host's name",
    "a DNS name in lower case",
    "The name of this node.",
)
SERVICE: Final = _given(
    "BASE_SERVICE",
    _parse_service,
    "default",
    "a name",
    "Keeps the shards of several services apart in one archive.",
)
LISTEN_HTTP: Final = _given(
    "BASE_LISTEN_HTTP",
    values.parse_endpoint,
    "127.0.0.1:8090",
    "`host:port` or `:port`",
    "Health, metrics and the `/v1` surface. With port 0 the daemon prints "
    "`BASE_LISTEN_ADDR=host:port`.",
)

# The archive.
ARCHIVE: Final = _optional(
    "BASE_ARCHIVE",
    location.parse_archive,
    "`off`",
    "`s3://bucket/prefix`, `gs://bucket/prefix`, a path, `file://path`, `off`",
    "Where final frames go. Credentials come from the store's own variables (`AWS_*`, "
    "`AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `STORAGE_EMULATOR_HOST`).",
)
FLUSH_INTERVAL: Final = _given(
    "BASE_FLUSH_INTERVAL",
    values.duration_between("1ms", "1h"),
    "1s",
    "a duration",
    "How long commits are collected after a flush. The first commit after a pause leaves at once.",
)
SNAPSHOT_INTERVAL: Final = _given(
    "BASE_SNAPSHOT_INTERVAL",
    values.duration_between("10ms", "3650d"),
    "24h",
    "a duration",
    "The longest time between snapshots of a changing database; a log that outgrows the last "
    "snapshot brings one sooner.",
)
RETENTION: Final = _given(
    "BASE_RETENTION",
    values.duration_between("10ms", "36500d"),
    "7d",
    "a duration",
    "How far back every single commit can be restored. Older objects that nothing needs are "
    "deleted.",
)
RETRY_DEADLINE: Final = _given(
    "BASE_RETRY_DEADLINE",
    values.duration_between("10ms", "1d"),
    "5m",
    "a duration",
    "When one attempt to store a segment gives up. The segment waits for the next cycle, without "
    "end.",
)
SHARD_BACKLOG_MAX: Final = _given(
    "BASE_SHARD_BACKLOG_MAX",
    values.size_from("1MiB"),
    "1MiB",
    "a size",
    "Un-archived bytes that are kept in memory for a shard. Beyond it they are read again from "
    "the journal.",
)
SHARD_BACKLOG_SEGMENTS: Final = _given(
    "BASE_SHARD_BACKLOG_SEGMENTS",
    values.count_between(1, 100_000_000),
    "100000",
    "a number",
    "The same bound, in segments.",
)
ARCHIVE_UNCONDITIONAL: Final = _given(
    "BASE_ARCHIVE_UNCONDITIONAL",
    values.parse_switch,
    "off",
    _ON_OFF,
    "Use a store that ignores conditional writes. Then nothing but you prevents two writers.",
)
ARCHIVE_SSE: Final = _optional(
    "BASE_ARCHIVE_SSE",
    _parse_server_encryption,
    "the bucket's own rule",
    "`AES256`, `aws:kms` or `aws:kms:dsse`",
    "Asks S3 to encrypt each object at rest, with its own key or one of its KMS.",
)
ARCHIVE_SSE_KMS_KEY_ID: Final = _optional(
    "BASE_ARCHIVE_SSE_KMS_KEY_ID",
    str.strip,
    "the account's key for S3",
    "the id, ARN or alias of a key",
    "Which key of the KMS, with `aws:kms` or `aws:kms:dsse`.",
)
ARCHIVE_RECIPIENTS: Final = _given(
    "BASE_ARCHIVE_RECIPIENTS",
    _parse_recipients,
    "",
    "a comma list of age recipients, `age1...`",
    "Encrypts the archive, on this machine, for whoever holds one of these keys "
    "(`basenet keys age`). It must hold from a lineage's beginning; see "
    "[encryption](formats/encryption.md). A recipient that is added or removed counts for new "
    "objects.",
)
ARCHIVE_IDENTITY: Final = _optional(
    "BASE_ARCHIVE_IDENTITY",
    _parse_archive_identity,
    "none",
    "the path of an age identity file, or `AGE-SECRET-KEY-1...`",
    "Opens an encrypted archive, for restore and verify, and for `serve`, which reads its archive "
    "at each start. Keep older identities in the file. Never shown.",
)
PROOF_INTERVAL: Final = _given(
    "BASE_PROOF_INTERVAL",
    _parse_proof_interval,
    "24h",
    "`off` or a duration",
    "How often a random kept moment of one shard is restored from the archive and checked, by a "
    "process of lowest priority, and deleted again.",
)
PROOF_BYTES_PER_DAY: Final = _given(
    "BASE_PROOF_BYTES_PER_DAY",
    values.size_from("1MiB"),
    "4GiB",
    "a size",
    "How much proofs may read from the archive a day, on average: after a large one the next waits "
    "longer. A moment that needs more than seven days' worth is skipped, and `status` says so.",
)
RESTORE_IF_MISSING: Final = _given(
    "BASE_RESTORE_IF_MISSING",
    values.parse_switch,
    "off",
    _ON_OFF,
    "Restore a missing database from the archive before its shard is born, or before the "
    "application of `--exec` starts. Without history in the archive the shard begins empty.",
)

# Capture and durability.
CAPTURE: Final = _given(
    "BASE_CAPTURE",
    values.choice(model.CapturePolicy),
    "adaptive",
    "`adaptive` or `strict`",
    "`adaptive` pins the write-ahead log only while idle or behind; `strict` always does, which "
    "costs the application speed.",
)
SYNC_WAL: Final = _given(
    "BASE_SYNC_WAL",
    values.parse_switch,
    "on",
    _ON_OFF,
    "Make the application's log durable before a commit counts. `off` only on a standalone node.",
)
DETACH_AFTER: Final = _given(
    "BASE_DETACH_AFTER",
    values.duration_between("10ms", "1d"),
    "1s",
    "a duration",
    "How long after the application's last connection basenet lets go of the file. Grows to 60s "
    "when coming back costs scans.",
)
SCRUB: Final = _given(
    "BASE_SCRUB",
    _parse_scrub,
    "24h,4MB/s",
    "`off`, or a duration and, after a comma, bytes a second",
    "How often all pages are compared with their hashes, and how fast at most.",
)
JOURNAL_MAX_BYTES: Final = _given(
    "BASE_JOURNAL_MAX_BYTES",
    values.size_from("1MiB"),
    "4GiB",
    "a size",
    "The journal's largest size while the archive is away. At it the oldest waiting frames go, "
    "the archive is marked broken there and a snapshot follows.",
)

# Keys.
SIGNING_KEY: Final = _optional(
    "BASE_SIGNING_KEY",
    _parse_signing_key,
    "`signing.key` in the data directory, made at the first start",
    "the path of a key file, or `base64:` and 32 bytes",
    "The Ed25519 key that signs frames and archived objects. Never shown.",
)
TRUSTED_KEYS: Final = _optional(
    "BASE_TRUSTED_KEYS",
    values.parse_path,
    "`trusted.keys` in the data directory",
    "a path",
    "The public keys whose objects restore and verify believe, `ed25519:<base64> [comment]` a "
    "line.",
)

# Logs and tests.
LOG_FORMAT: Final = _given(
    "BASE_LOG_FORMAT",
    values.choice(model.LogFormat),
    "auto",
    "`auto`, `console` or `json`",
    "`auto` is console on a terminal and JSON elsewhere.",
)
LOG_LEVEL: Final = _given(
    "BASE_LOG_LEVEL",
    values.choice(model.LogLevel),
    "info",
    "`debug`, `info`, `warning` or `error`",
    "The least grave events that are logged.",
)
TEST: Final = _given(
    "BASE_TEST",
    values.parse_switch,
    "off",
    _ON_OFF,
    "Allows what only tests may do. Never set it in production.",
)
FAILPOINTS: Final = _given(
    "BASE_FAILPOINTS",
    _parse_failpoints,
    "",
    "a comma list of `name=action`; `sync=sleep:MS`, or the path of a file that says how many",
    "Makes something happen at named places of the program. Refused without `BASE_TEST=on`.",
)
TRACE_FILE: Final = _optional(
    "BASE_TRACE_FILE",
    values.parse_path,
    "none",
    "a path",
    "Appends every decision of the consensus engine to this file, one line of JSON each. It shows "
    "hashes and keys, no content.",
)

# The cluster.
PEERS: Final = _given(
    "BASE_PEERS",
    values.parse_peers,
    "",
    "a comma list of `host:port`",
    "The nodes of the cluster, this one may be among them.",
    cluster=True,
)
LISTEN_P2P: Final = _given(
    "BASE_LISTEN_P2P",
    values.parse_endpoint,
    ":9999",
    "`host:port` or `:port`",
    "Where peers connect.",
    cluster=True,
)
ADVERTISE_HTTP: Final = _optional(
    "BASE_ADVERTISE_HTTP",
    values.parse_advertised,
    "from BASE_LISTEN_HTTP",
    "`host:port` or a URL without a path",
    "Where clients reach this node's HTTP surface: replicas send them there while this node is the "
    "writer. Unset: the address of BASE_LISTEN_HTTP; of every interface, the host at which a peer "
    "dials this node; of the loopback, only told if peers connect on the loopback, too.",
    cluster=True,
)
NODE_ROLE: Final = _given(
    "BASE_NODE_ROLE",
    values.choice(model.NodeRole),
    "validator",
    "`validator`, `witness` or `archive`",
    "A witness votes without a database; an archive node has one and never votes.",
    cluster=True,
)
REPLICATION: Final = _given(
    "BASE_REPLICATION",
    values.count_between(1, 31),
    "3",
    "a number",
    "How many voters a new shard gets; later only `basenet members` changes them.",
    cluster=True,
)
BOOTSTRAP_EXPECT: Final = _optional(
    "BASE_BOOTSTRAP_EXPECT",
    values.count_between(1, 1000),
    "unset",
    "a number",
    "How many nodes must be present before a shard is born, when BASE_PEERS are DNS names.",
    cluster=True,
)
WRITER: Final = _optional(
    "BASE_WRITER",
    parse_node_id,
    "unset",
    "a node id",
    "The node that shall write: a new empty shard begins there, and after a failover the writer "
    "goes back there, once it has been caught up for a while.",
    cluster=True,
)
FAULT_MODEL: Final = _given(
    "BASE_FAULT_MODEL",
    values.choice(model.FaultModel),
    "crash",
    "`crash` or `byzantine`",
    "What the author of a new shard asks for; Byzantine needs 4 voters.",
    cluster=True,
)
FENCE: Final = _given(
    "BASE_FENCE",
    values.choice(model.Fence),
    "lock",
    "`lock` or `readonly`",
    "How a node that is not the writer refuses writes: by SQLite's write lock alone, or by a mark "
    "in the file as well, which also holds while basenet does not run.",
    cluster=True,
)
LEASE_MS: Final = _given(
    "BASE_LEASE_MS",
    # An election may start 1,250 ms after the last heartbeat; a lease must be over by then.
    values.count_between(100, 1249),
    "1000",
    "milliseconds, below 1250",
    "How long a writer may write without hearing from a quorum.",
    cluster=True,
)
MAX_UNFINALIZED_COMMITS: Final = _optional(
    "BASE_MAX_UNFINALIZED_COMMITS",
    values.count_between(1, 10**18),
    "unset",
    "a number",
    "The writer is held back when so many commits are not final.",
    cluster=True,
)
MAX_UNFINALIZED_BYTES: Final = _optional(
    "BASE_MAX_UNFINALIZED_BYTES",
    values.size_from("64KiB"),
    "unset",
    "a size",
    "The same bound, in bytes.",
    cluster=True,
)
MAX_UNFINALIZED_MS: Final = _optional(
    "BASE_MAX_UNFINALIZED_MS",
    values.count_between(1, 10**12),
    "unset",
    "milliseconds",
    "The same bound, in age.",
    cluster=True,
)
TLS_CA: Final = _optional(
    "BASE_TLS_CA",
    values.parse_path,
    "unset",
    _TLS_FILE,
    "The certificates that peers' certificates must come from.",
    cluster=True,
)
TLS_SERVER_CERT: Final = _optional(
    "BASE_TLS_SERVER_CERT",
    values.parse_path,
    "unset",
    _TLS_FILE,
    "This node's certificate; its SAN is the node's id.",
    cluster=True,
)
TLS_SERVER_KEY: Final = _optional(
    "BASE_TLS_SERVER_KEY",
    values.parse_path,
    "unset",
    _TLS_FILE,
    "The key of BASE_TLS_SERVER_CERT.",
    cluster=True,
)
TLS_CLIENT_CERT: Final = _optional(
    "BASE_TLS_CLIENT_CERT",
    values.parse_path,
    "BASE_TLS_SERVER_CERT",
    _TLS_FILE,
    "Another certificate for outgoing connections.",
    cluster=True,
)
TLS_CLIENT_KEY: Final = _optional(
    "BASE_TLS_CLIENT_KEY",
    values.parse_path,
    "BASE_TLS_SERVER_KEY",
    _TLS_FILE,
    "The key of BASE_TLS_CLIENT_CERT.",
    cluster=True,
)
TLS_ALLOWED_SANS: Final = _given(
    "BASE_TLS_ALLOWED_SANS",
    _parse_sans,
    "",
    "a comma list of node ids",
    "The nodes that may connect.",
    cluster=True,
)

SECTIONS: Final = (
    Section("What is served", (NETWORK, SHARDS, DATA_DIR, NODE_ID, SERVICE, LISTEN_HTTP)),
    Section(
        "The archive",
        (
            ARCHIVE,
            FLUSH_INTERVAL,
            SNAPSHOT_INTERVAL,
            RETENTION,
            RETRY_DEADLINE,
            SHARD_BACKLOG_MAX,
            SHARD_BACKLOG_SEGMENTS,
            ARCHIVE_UNCONDITIONAL,
            ARCHIVE_SSE,
            ARCHIVE_SSE_KMS_KEY_ID,
            ARCHIVE_RECIPIENTS,
            ARCHIVE_IDENTITY,
            PROOF_INTERVAL,
            PROOF_BYTES_PER_DAY,
            RESTORE_IF_MISSING,
        ),
    ),
    Section("Capture and durability", (CAPTURE, SYNC_WAL, DETACH_AFTER, SCRUB, JOURNAL_MAX_BYTES)),
    Section("Keys", (SIGNING_KEY, TRUSTED_KEYS)),
    Section("Logs and tests", (LOG_FORMAT, LOG_LEVEL, TEST, FAILPOINTS, TRACE_FILE)),
    Section(
        "The cluster",
        (
            PEERS,
            LISTEN_P2P,
            ADVERTISE_HTTP,
            NODE_ROLE,
            REPLICATION,
            BOOTSTRAP_EXPECT,
            WRITER,
            FAULT_MODEL,
            FENCE,
            LEASE_MS,
            MAX_UNFINALIZED_COMMITS,
            MAX_UNFINALIZED_BYTES,
            MAX_UNFINALIZED_MS,
            TLS_CA,
            TLS_SERVER_CERT,
            TLS_SERVER_KEY,
            TLS_CLIENT_CERT,
            TLS_CLIENT_KEY,
            TLS_ALLOWED_SANS,
        ),
        note="What they are for: [operations.md](operations.md#members).",
    ),
)
TABLE: Final = {variable.name: variable for section in SECTIONS for variable in section.variables}

# Names that promise what basenet does not do. Ignoring one would be a lie, so each stops the start.
_ENCRYPTED_OTHERWISE: Final = (
    "it does nothing here; name who may read the archive in BASE_ARCHIVE_RECIPIENTS, and the file "
    "of an identity in BASE_ARCHIVE_IDENTITY (`basenet keys age` makes both), and unset it"
)
_NOT_GUARDED: Final = (
    "basenet's HTTP surface asks for no token; keep BASE_LISTEN_HTTP on loopback or behind a proxy "
    "that does, and unset it"
)
_NO_GATEWAY: Final = "it belongs to a gateway, which this program is not; unset it"
PROMISES: Final = {
    "BASE_ENCRYPT": _ENCRYPTED_OTHERWISE,
    "BASE_ENCRYPTION": _ENCRYPTED_OTHERWISE,
    "BASE_ENCRYPT_KEY": _ENCRYPTED_OTHERWISE,
    "BASE_ENCRYPTION_KEY": _ENCRYPTED_OTHERWISE,
    "BASE_ARCHIVE_KEY": _ENCRYPTED_OTHERWISE,
    "BASE_ARCHIVE_ENCRYPTION": _ENCRYPTED_OTHERWISE,
    "BASE_TOKEN": _NOT_GUARDED,
    "BASE_TOKENS_FILE": _NOT_GUARDED,
    "BASE_METRICS_AUTH": _NOT_GUARDED,
    "BASE_SHARD_KEY": _NO_GATEWAY,
    "BASE_SHARD_QUERY_OK": _NO_GATEWAY,
}
