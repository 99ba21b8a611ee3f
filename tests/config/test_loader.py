"""`load`: one environment to one configuration, or to all its faults."""

import base64
import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.config import Config, ConfigurationError, load, model, variables
from basenet.config.loader import Fault
from basenet.config.location import ArchiveScheme
from basenet.config.values import Endpoint
from basenet.units import GIB, MIB

# From the tests of rage, an implementation of age.
RECIPIENT = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa"
IDENTITY = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33"
TLS = {
    "BASE_TLS_CA": "/pki/ca.crt",
    "BASE_TLS_SERVER_CERT": "/pki/a/node.crt",
    "BASE_TLS_SERVER_KEY": "/pki/a/node.key",
    "BASE_TLS_ALLOWED_SANS": "a,b,c",
}


def read(**environment: str) -> Config:
    return load(environment, get_hostname=lambda: "Host_1.local")


def refuse(**environment: str) -> dict[str, str]:
    """Return what is refused, by variable."""
    with pytest.raises(ConfigurationError) as caught:
        read(**environment)
    return {fault.name: fault.sentence for fault in caught.value.faults}


def test_an_empty_environment_is_the_defaults_of_the_document() -> None:
    """The table of defaults, value by value."""
    config = read()
    assert config.network is model.Network.STANDALONE
    assert config.node_id == "host-1.local"
    assert config.shards == ()
    assert config.data_dir == Path(".basenet")
    assert config.service == "default"
    assert config.archive is None
    assert config.archive_unconditional is False
    assert config.flush_interval_seconds == 1
    assert config.snapshot_interval_seconds == 24 * 3600
    assert config.retention_seconds == 7 * 86400
    assert config.retry_deadline_seconds == 300
    assert config.shard_backlog_bytes_max == MIB
    assert config.shard_backlog_segments_max == 100_000
    assert config.journal_bytes_max == 4 * GIB
    assert config.capture is model.CapturePolicy.ADAPTIVE
    assert config.sync_wal is True
    assert config.detach_after_seconds == 1
    assert config.scrub == model.Scrub(interval_seconds=86400, bytes_per_second_max=4_000_000)
    assert config.signing_key is None
    assert config.trusted_keys is None
    assert config.listen_http == Endpoint(host="127.0.0.1", port=8090)
    assert config.failpoints == ()
    assert config.trace_file is None
    assert config.cluster.replication == 3
    assert config.cluster.listen_p2p == Endpoint(host="", port=9999)
    assert config.cluster.lease_ms == 1000
    assert config.cluster.fence is model.Fence.LOCK
    assert config.cluster.fault_model is model.FaultModel.CRASH
    assert config.cluster.bootstrap_expect is None
    assert config.cluster.tls is None


def test_a_full_standalone_environment_is_read() -> None:
    """Every variable of a standalone node arrives in its field."""
    config = read(
        BASE_NETWORK=" StandAlone ",
        BASE_SHARDS="/data/app.db,orders=/data/o.db",
        BASE_DATA_DIR="/var/lib/basenet",
        BASE_NODE_ID="db-0",
        BASE_SERVICE="shop",
        BASE_ARCHIVE="s3://bucket/prefix",
        BASE_ARCHIVE_UNCONDITIONAL="1",
        BASE_FLUSH_INTERVAL="250ms",
        BASE_SNAPSHOT_INTERVAL="1h",
        BASE_RETENTION="30d",
        BASE_RETRY_DEADLINE="1m",
        BASE_SHARD_BACKLOG_MAX="8MiB",
        BASE_SHARD_BACKLOG_SEGMENTS="10",
        BASE_JOURNAL_MAX_BYTES="1 GiB",
        BASE_CAPTURE="strict",
        BASE_SYNC_WAL="off",
        BASE_DETACH_AFTER="5s",
        BASE_SCRUB="6h,1MiB/s",
        BASE_SIGNING_KEY="/keys/a.key",
        BASE_TRUSTED_KEYS="/keys/trusted.keys",
        BASE_LISTEN_HTTP=":0",
        BASE_LOG_FORMAT="json",
        BASE_LOG_LEVEL="debug",
        BASE_TEST="1",
        BASE_FAILPOINTS="journal.fsync=error, capture.poll=pause",
        BASE_TRACE_FILE="/var/trace",
    )
    assert [spec.shard for spec in config.shards] == ["app", "orders"]
    assert config.data_dir == Path("/var/lib/basenet")
    assert (config.node_id, config.service) == ("db-0", "shop")
    assert config.archive is not None
    assert config.archive.scheme is ArchiveScheme.S3
    assert config.archive_unconditional is True
    assert config.flush_interval_seconds == 0.25
    assert config.snapshot_interval_seconds == 3600
    assert config.retention_seconds == 30 * 86400
    assert config.retry_deadline_seconds == 60
    assert config.shard_backlog_bytes_max == 8 * MIB
    assert config.shard_backlog_segments_max == 10
    assert config.journal_bytes_max == GIB
    assert config.capture is model.CapturePolicy.STRICT
    assert config.sync_wal is False
    assert config.detach_after_seconds == 5
    assert config.scrub == model.Scrub(interval_seconds=21600, bytes_per_second_max=MIB)
    assert config.signing_key is not None
    assert config.signing_key.reveal() == "/keys/a.key"
    assert config.trusted_keys == Path("/keys/trusted.keys")
    assert config.listen_http == Endpoint(host="", port=0)
    assert config.log_format is model.LogFormat.JSON
    assert config.log_level is model.LogLevel.DEBUG
    assert config.is_test is True
    assert config.trace_file == Path("/var/trace")
    assert [(point.name, point.action) for point in config.failpoints] == [
        ("journal.fsync", "error"),
        ("capture.poll", "pause"),
    ]


def test_a_full_cluster_environment_is_read() -> None:
    """Every variable of a cluster's node arrives in its field, the TLS set as a whole."""
    config = read(
        BASE_NETWORK="quasar",
        BASE_PEERS="a:9999,b:9999,c:9999",
        BASE_LISTEN_P2P="10.0.0.1:7000",
        BASE_NODE_ROLE="witness",
        BASE_REPLICATION="5",
        BASE_BOOTSTRAP_EXPECT="3",
        BASE_WRITER="a",
        BASE_FAULT_MODEL="byzantine",
        BASE_FENCE="readonly",
        BASE_LEASE_MS="500",
        BASE_MAX_UNFINALIZED_COMMITS="1000",
        BASE_MAX_UNFINALIZED_BYTES="64MiB",
        BASE_MAX_UNFINALIZED_MS="2000",
        BASE_RESTORE_IF_MISSING="on",
        **TLS,
    )
    cluster = config.cluster
    assert [str(peer) for peer in cluster.peers] == ["a:9999", "b:9999", "c:9999"]
    assert cluster.listen_p2p == Endpoint(host="10.0.0.1", port=7000)
    assert cluster.node_role is model.NodeRole.WITNESS
    assert (cluster.replication, cluster.bootstrap_expect, cluster.writer) == (5, 3, "a")
    assert cluster.fault_model is model.FaultModel.BYZANTINE
    assert cluster.fence is model.Fence.READONLY
    assert cluster.lease_ms == 500
    assert cluster.unfinalized_commits_max == 1000
    assert cluster.unfinalized_bytes_max == 64 * MIB
    assert cluster.unfinalized_ms_max == 2000
    assert config.restore_if_missing is True
    assert cluster.tls == model.Tls(
        authority=Path("/pki/ca.crt"),
        server_certificate=Path("/pki/a/node.crt"),
        server_key=Path("/pki/a/node.key"),
        client_certificate=Path("/pki/a/node.crt"),
        client_key=Path("/pki/a/node.key"),
        allowed_sans=("a", "b", "c"),
    )


def test_another_pair_for_outgoing_connections_is_used_for_them() -> None:
    config = read(
        BASE_NETWORK="quasar", BASE_TLS_CLIENT_CERT="/c.crt", BASE_TLS_CLIENT_KEY="/c.key", **TLS
    )
    assert config.cluster.tls is not None
    assert config.cluster.tls.client_certificate == Path("/c.crt")
    assert config.cluster.tls.client_key == Path("/c.key")
    assert config.cluster.tls.server_key == Path("/pki/a/node.key")


def test_every_variable_of_the_table_changes_the_configuration() -> None:
    """A knob that does nothing is worse than a missing one: each one reaches a field."""
    examples = {
        "BASE_NETWORK": "quasar",
        "BASE_SHARDS": "/x.db",
        "BASE_DATA_DIR": "/x",
        "BASE_NODE_ID": "x",
        "BASE_SERVICE": "x",
        "BASE_LISTEN_HTTP": ":1",
        "BASE_ARCHIVE": "/x",
        "BASE_FLUSH_INTERVAL": "2s",
        "BASE_SNAPSHOT_INTERVAL": "2s",
        "BASE_RETENTION": "2s",
        "BASE_RETRY_DEADLINE": "2s",
        "BASE_SHARD_BACKLOG_MAX": "2MiB",
        "BASE_SHARD_BACKLOG_SEGMENTS": "2",
        "BASE_ARCHIVE_UNCONDITIONAL": "on",
        "BASE_ARCHIVE_SSE": "aws:kms",
        "BASE_ARCHIVE_SSE_KMS_KEY_ID": "x",
        "BASE_ARCHIVE_RECIPIENTS": RECIPIENT,
        "BASE_ARCHIVE_IDENTITY": "/x",
        "BASE_PROOF_INTERVAL": "2h",
        "BASE_PROOF_BYTES_PER_DAY": "2MiB",
        "BASE_CAPTURE": "strict",
        "BASE_SYNC_WAL": "off",
        "BASE_DETACH_AFTER": "2s",
        "BASE_SCRUB": "off",
        "BASE_JOURNAL_MAX_BYTES": "2MiB",
        "BASE_SIGNING_KEY": "/x",
        "BASE_TRUSTED_KEYS": "/x",
        "BASE_LOG_FORMAT": "json",
        "BASE_LOG_LEVEL": "error",
        "BASE_TEST": "on",
        "BASE_FAILPOINTS": "x=y",
        "BASE_TRACE_FILE": "/x",
        "BASE_PEERS": "x:1",
        "BASE_LISTEN_P2P": ":1",
        "BASE_ADVERTISE_HTTP": "https://x",
        "BASE_NODE_ROLE": "archive",
        "BASE_REPLICATION": "2",
        "BASE_BOOTSTRAP_EXPECT": "2",
        "BASE_WRITER": "x",
        "BASE_FAULT_MODEL": "byzantine",
        "BASE_FENCE": "readonly",
        "BASE_LEASE_MS": "200",
        "BASE_MAX_UNFINALIZED_COMMITS": "2",
        "BASE_MAX_UNFINALIZED_BYTES": "2MiB",
        "BASE_MAX_UNFINALIZED_MS": "2",
        "BASE_RESTORE_IF_MISSING": "on",
        "BASE_TLS_CA": "/x",
        "BASE_TLS_SERVER_CERT": "/x",
        "BASE_TLS_SERVER_KEY": "/x",
        "BASE_TLS_CLIENT_CERT": "/x",
        "BASE_TLS_CLIENT_KEY": "/x",
        "BASE_TLS_ALLOWED_SANS": "x",
    }
    assert set(examples) == set(variables.TABLE)
    cluster = {"BASE_NETWORK": "quasar", "BASE_REPLICATION": "4", **TLS}
    pairs = {"BASE_TLS_CLIENT_CERT": "/c", "BASE_TLS_CLIENT_KEY": "/c"}
    for name, value in examples.items():
        base = cluster if variables.TABLE[name].cluster else {}
        base = {**base, **pairs} if name in pairs else base
        base = {"BASE_ARCHIVE_IDENTITY": "/y"} if name == "BASE_ARCHIVE_RECIPIENTS" else base
        base = {"BASE_TEST": "on"} if name == "BASE_FAILPOINTS" else base
        base = {"BASE_ARCHIVE_SSE": "aws:kms"} if name.endswith("KMS_KEY_ID") else base
        assert read(**{**base, name: value}) != read(**base), name


def test_encryption_by_the_server_is_for_s3_and_a_key_of_its_kms() -> None:
    """In the words of S3's header; anything else would be a promise that nobody keeps."""
    bucket = {"BASE_ARCHIVE": "s3://bucket"}
    assert read(**bucket, BASE_ARCHIVE_SSE="aes256").archive_sse == "AES256"
    config = read(**bucket, BASE_ARCHIVE_SSE="aws:kms", BASE_ARCHIVE_SSE_KMS_KEY_ID=" alias/x ")
    assert (config.archive_sse, config.archive_sse_kms_key_id) == ("aws:kms", "alias/x")
    faults = refuse(**bucket, BASE_ARCHIVE_SSE="rot13")
    assert "write AES256 or aws:kms" in faults["BASE_ARCHIVE_SSE"]
    for place in ("gs://bucket", "/backups"):
        faults = refuse(BASE_ARCHIVE=place, BASE_ARCHIVE_SSE="AES256")
        assert "it is for s3://" in faults["BASE_ARCHIVE_SSE"]
    for sse in ({}, {"BASE_ARCHIVE_SSE": "AES256"}):
        faults = refuse(**bucket, **sse, BASE_ARCHIVE_SSE_KMS_KEY_ID="x")
        assert "BASE_ARCHIVE_SSE=aws:kms" in faults["BASE_ARCHIVE_SSE_KMS_KEY_ID"]


def test_an_encrypted_archive_needs_an_identity_and_shows_none() -> None:
    """Recipients alone would make an archive that its own writer cannot read."""
    faults = refuse(BASE_ARCHIVE_RECIPIENTS=RECIPIENT)
    assert "BASE_ARCHIVE_RECIPIENTS is set" in faults["BASE_ARCHIVE_IDENTITY"]
    config = read(BASE_ARCHIVE_RECIPIENTS=RECIPIENT, BASE_ARCHIVE_IDENTITY=IDENTITY)
    assert config.archive_identity is not None
    assert config.archive_identity.reveal() == IDENTITY
    assert IDENTITY not in repr(config)
    for wrong in (IDENTITY[:-1] + "Q", f"{IDENTITY}\n{IDENTITY}", IDENTITY.lower() + "q"):
        faults = refuse(BASE_ARCHIVE_RECIPIENTS=wrong, BASE_ARCHIVE_IDENTITY=wrong)
        assert "GQ9778" not in str(faults).upper()
        assert set(faults) >= {"BASE_ARCHIVE_RECIPIENTS"}


def test_the_data_directory_lies_beside_the_first_database() -> None:
    """Of a directory or a pattern: inside the directory that holds the databases."""
    assert read(BASE_SHARDS="/data/app.db,/x/b.db").data_dir == Path("/data/.basenet")
    assert read(BASE_SHARDS="/data/").data_dir == Path("/data/.basenet")
    assert read(BASE_SHARDS="/data/*.db").data_dir == Path("/data/.basenet")
    assert read(BASE_SHARDS="app.db").data_dir == Path(".basenet")


def test_arguments_replace_variables_and_faults_say_where_from() -> None:
    """The command line wins; a fault in it is not looked for in the environment."""
    config = load({"BASE_ARCHIVE": "s3://nope/.."}, arguments={"BASE_ARCHIVE": "/b"})
    assert config.archive is not None
    assert config.archive.url == "file:///b"
    with pytest.raises(ConfigurationError, match=r"^BASE_ARCHIVE: from the command line, 'x://y'"):
        load({}, arguments={"BASE_ARCHIVE": "x://y"})


def test_an_empty_value_is_an_unset_variable() -> None:
    """Templates of containers write NAME= for nothing, even for names that nobody knows."""
    blank = dict.fromkeys(variables.TABLE, "") | {"BASE_ENCRYPT": "", "BASE_WHATEVER": " "}
    assert read(**blank) == read()


def test_variables_of_others_are_not_looked_at() -> None:
    assert read(PATH="/bin", DATABASE_URL="x", base_network="quasar") == read()


def test_all_faults_are_reported_at_once_each_with_variable_value_and_remedy() -> None:
    """The one message lists them in the order of the document."""
    environment = {
        "BASE_FLUSH_INTERVAL": "soon",
        "BASE_SHARD_BACKLOG_MAX": "64M",
        "BASE_CAPTURE": "loose",
        "BASE_LISTEN_HTTP": "8090",
        "BASE_ARCHIVE": "ftp://x",
        "BASE_SHARDS": "Orders=/x",
        "BASE_SCRUB": "24h,4MB",
        "BASE_NODE_ID": "UPPER",
        "BASE_SERVICE": "a/b",
        "BASE_FAILPOINTS": "x",
        "BASE_SYNC_WAL": "maybe",
    }
    with pytest.raises(ConfigurationError) as caught:
        read(**environment)
    message = str(caught.value)
    assert message.startswith(f"{len(environment)} settings cannot be used\n")
    assert {fault.name for fault in caught.value.faults} == set(environment)
    places = [message.index(f"{name}: ") for name in variables.TABLE if name in environment]
    assert places == sorted(places)
    for fault in caught.value.faults:
        value = environment[fault.name].removesuffix("=/x")
        assert value in fault.sentence
        assert "write" in fault.sentence or "must" in fault.sentence


def test_one_fault_is_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"^BASE_CAPTURE: 'x' is not one .* strict$"):
        read(BASE_CAPTURE="x")


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    """And its value is not shown: nobody knows whether it is a secret."""
    faults = refuse(BASE_SHARD="/x", BASE_URL="https://hunter2@x")
    assert "did you mean BASE_SHARDS?" in faults["BASE_SHARD"]
    assert "did you mean" not in faults["BASE_URL"]
    assert "unset" in faults["BASE_URL"]
    assert "hunter2" not in str(faults)


@pytest.mark.parametrize("name", sorted(variables.PROMISES))
def test_a_name_that_promises_too_much_stops_the_start(name: str) -> None:
    """BASE_ENCRYPT above all: going on would be a lie. Even `off` is refused."""
    faults = refuse(**{name: "hunter2"})
    assert "unset it" in faults[name]
    assert "hunter2" not in faults[name]


def test_a_clusters_variable_is_refused_on_a_standalone_node() -> None:
    """It would do nothing; but a misspelt network does not bring these along."""
    assert "quasar" in refuse(BASE_PEERS="a:1")["BASE_PEERS"]
    assert list(refuse(BASE_PEERS="a:1", BASE_NETWORK="quaser")) == ["BASE_NETWORK"]


@pytest.mark.parametrize("missing", sorted(TLS))
def test_an_incomplete_tls_set_is_refused(missing: str) -> None:
    """It names what is missing, not what is there."""
    given = {name: value for name, value in TLS.items() if name != missing}
    faults = refuse(BASE_NETWORK="quasar", BASE_PEERS="a:1", **given)
    assert "missing" in faults[missing]


def test_half_a_client_pair_is_refused() -> None:
    for name, other in [
        ("BASE_TLS_CLIENT_CERT", "BASE_TLS_CLIENT_KEY"),
        ("BASE_TLS_CLIENT_KEY", "BASE_TLS_CLIENT_CERT"),
    ]:
        faults = refuse(BASE_NETWORK="quasar", **TLS, **{name: "/x"})
        assert list(faults) == [other]


def test_peers_without_tls_are_refused() -> None:
    assert list(refuse(BASE_NETWORK="quasar", BASE_PEERS="a:1")) == ["BASE_PEERS"]


def test_a_cluster_cannot_vote_without_syncing() -> None:
    assert "durable" in refuse(BASE_NETWORK="quasar", BASE_SYNC_WAL="off")["BASE_SYNC_WAL"]


def test_byzantine_below_four_voters_is_refused() -> None:
    faults = refuse(BASE_NETWORK="quasar", BASE_FAULT_MODEL="byzantine")
    assert "BASE_REPLICATION is 3" in faults["BASE_FAULT_MODEL"]


def test_a_lease_ends_before_an_election_may_start() -> None:
    assert "1249" in refuse(BASE_NETWORK="quasar", BASE_LEASE_MS="1250")["BASE_LEASE_MS"]


def test_failpoints_are_refused_outside_of_tests() -> None:
    assert "BASE_TEST" in refuse(BASE_FAILPOINTS="a=b")["BASE_FAILPOINTS"]
    assert read(BASE_FAILPOINTS="a=b", BASE_TEST="1").failpoints


@pytest.mark.parametrize("text", ["24h,4MB", "24h,4MB/s,x", "x", "24h;4MB/s", "24h,0/s", "0s", ","])
def test_a_scrub_plan_is_off_or_how_often_and_how_fast(text: str) -> None:
    assert "BASE_SCRUB" in refuse(BASE_SCRUB=text)


def test_scrubbing_can_be_switched_off_or_keep_its_pace() -> None:
    assert read(BASE_SCRUB="off").scrub is None
    plan = read(BASE_SCRUB="1h").scrub
    assert plan == model.Scrub(interval_seconds=3600, bytes_per_second_max=4_000_000)


@pytest.mark.parametrize(
    "value",
    [
        base64.b64encode(bytes(range(32))).decode(),
        "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----",
        "base64:hunter2",
        "base64:",
    ],
)
def test_a_pasted_key_is_refused_and_never_repeated(value: str) -> None:
    """A key in place of a path, or a broken one: the message says what to do, not what it is."""
    sentence = refuse(BASE_SIGNING_KEY=value)["BASE_SIGNING_KEY"]
    for line in value.removeprefix("base64:").splitlines():
        assert line not in sentence or not line
    assert "base64:" in sentence


def test_a_key_in_the_environment_is_a_secret() -> None:
    """It can be given on purpose, and does not show in the configuration's repr."""
    text = "base64:" + base64.b64encode(bytes(range(32))).decode()
    config = read(BASE_SIGNING_KEY=text)
    assert config.signing_key is not None
    assert config.signing_key.reveal() == text
    assert text.removeprefix("base64:") not in repr(config)


def test_a_configuration_cannot_be_changed() -> None:
    config = read()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.service = "other"  # type: ignore[misc]


@given(
    st.dictionaries(
        st.sampled_from(sorted(variables.TABLE)),
        st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])),
    )
)
def test_whatever_the_values_are_the_answer_is_a_configuration_or_its_faults(
    environment: dict[str, str],
) -> None:
    """No text makes the loader fail in any other way, and every fault names a known variable."""
    faults: tuple[Fault, ...] = ()
    try:
        load(environment, get_hostname=lambda: "host")
    except ConfigurationError as error:
        faults = error.faults
    assert {fault.name for fault in faults} <= set(variables.TABLE)
    assert all(re.search(r"\w", fault.sentence) for fault in faults)
