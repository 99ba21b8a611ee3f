"""The archive of real nodes: certified, continued after a failover, restored, and born from.

Restore and verify run as the commands do, with a trusted-keys file and nothing else of the cluster.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from basenet.control.surface import Level
from basenet.keys import signing
from basenet.keys.trust import format_public
from basenet.testing.cluster import SHARD, Cluster, ClusterNode
from basenet.testing.clustercheck import check
from basenet.units import PublicKeyBytes
from basenet.wire.certificate import Certificate, encode_certificate
from basenet.wire.frame import encode_frame
from basenet.wire.segment import decode_segment, encode_epoch, encode_segment
from basenet.wire.signature import Signer
from tests.sqlite.application import Application

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@contextlib.contextmanager
def archived(folder: Path, count: int = 3, **options: str) -> Iterator[Cluster]:
    """Give a cluster that was born and archives into a directory."""
    settings = {
        "BASE_ARCHIVE": f"file://{folder}/archive",
        "BASE_FLUSH_INTERVAL": "200ms",
        "BASE_RESTORE_IF_MISSING": "1",
    }
    (folder / "archive").mkdir(exist_ok=True)
    with Cluster(folder / "cluster", count, **(settings | options)) as cluster:
        cluster.start()
        cluster.wait_writer()
        yield cluster


def write(cluster: Cluster, count: int, *, size: int = 100) -> int:
    """Commit ``count`` rows at the writer, each for itself; return the seq that holds the last."""
    writer = cluster.wait_writer()
    with Application(writer.database()) as application:
        application.sql(
            "PRAGMA busy_timeout=20000",
            "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v)",
        )
        for _ in range(count):
            application.sql(f"INSERT INTO t (v) VALUES (randomblob({size}))")
    return writer.wait_final().seq


@contextlib.contextmanager
def loaded(node: ClusterNode) -> Iterator[None]:
    """Let an application write meanwhile, as fast as it can; it is killed afterwards."""
    application = Application(node.database())
    try:
        application.start("while True: c.execute('INSERT INTO t (v) VALUES (randomblob(200))')")
        yield
    finally:
        application.kill()


def find_final(node: ClusterNode) -> int:
    """Return what is final at a node; 0 when it does not answer."""
    status = node.find_status()
    return status.final_seq if status is not None else 0


def wait_archived(cluster: Cluster) -> int:
    """Return the seq up to which everything is archived, once that is all there is."""
    seq = cluster.wait_settled()
    for node in cluster:
        if node is cluster.find_writer():
            node.client.wait(SHARD, seq, Level.ARCHIVED, 30.0)
    return seq


def run(folder: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `basenet restore` or `verify` with the public keys alone."""
    inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
    return subprocess.run(
        [sys.executable, "-m", "basenet", command, *arguments],
        env=inherited
        | {
            "BASE_ARCHIVE": f"file://{folder}/archive",
            "BASE_TRUSTED_KEYS": str(folder / "cluster" / "ca" / "trusted.keys"),
            "BASE_DATA_DIR": str(folder / "reader"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def restore(folder: Path, out: str, *arguments: str) -> Path:
    """Restore into ``out`` and return its path; fail if that fails."""
    path = folder / out
    done = run(folder, "restore", "--shard", SHARD, "--out", str(path), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def rows(path: Path) -> list[tuple[int, bytes]]:
    """Return all rows of a database that nobody serves."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT * FROM t ORDER BY id").fetchall()


def logs(folder: Path) -> list[Path]:
    """Return the log objects, by their first frame."""
    found = [path for path in (folder / "archive").rglob("*.lbn") if "/log/" in str(path)]
    return sorted(found, key=lambda path: path.name)


def test_archive_goes_on_after_a_failover(tmp_path: Path) -> None:
    """Writer killed under load: the next one continues; every moment is restored and verified."""
    with archived(tmp_path) as cluster:
        write(cluster, 30)
        early = wait_archived(cluster)
        writer = cluster.wait_writer()
        early_rows = rows(restore(tmp_path, "early.db", "--to-seq", str(early)))
        cluster.until(
            lambda: (
                (status := writer.find_status()) is not None
                and status.last_snapshot_seq is not None
            ),
            "the status tells of a snapshot",
        )
        with loaded(writer):
            cluster.until(
                lambda: find_final(writer) > early + 20,
                "the load is final",
            )
            writer.kill()
        cluster.wait_writer(but=writer)
        write(cluster, 30)
        writer.start()
        wait_archived(cluster)
        judged = run(tmp_path, "verify")
        assert judged.returncode == 0, judged.stdout + judged.stderr
        cluster.stop()
        newest = rows(restore(tmp_path, "newest.db"))
        for node in cluster:
            assert rows(node.database()) == newest, node.name
        assert rows(restore(tmp_path, "again.db", "--to-seq", str(early))) == early_rows
        assert newest[: len(early_rows)] == early_rows
        assert "archiving" in cluster.nodes[writer.name].read_log()


@pytest.mark.parametrize(("count", "model"), [(1, "crash"), (4, "byzantine")])
def test_other_sizes_and_fault_models(tmp_path: Path, count: int, model: str) -> None:
    """One voter needs no certificates; in the Byzantine model they have other quorums."""
    with archived(tmp_path, count, BASE_FAULT_MODEL=model) as cluster:
        write(cluster, 20)
        wait_archived(cluster)
        cluster.stop()
    judged = run(tmp_path, "verify")
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert rows(restore(tmp_path, "out.db")) == rows(cluster["n0"].database())


def test_a_wrong_certificate_is_refused_and_named(tmp_path: Path) -> None:
    """A byte of a vote is changed, and the object signed again by a voter's own key."""
    with archived(tmp_path) as cluster:
        write(cluster, 10)
        wait_archived(cluster)
        write(cluster, 10)
        wait_archived(cluster)
        cluster.stop()
    assert run(tmp_path, "verify").returncode == 0
    broken = logs(tmp_path)[-1]
    name = str(broken.relative_to(tmp_path / "archive"))
    whole = broken.read_bytes()
    key = signing.load(tmp_path / "cluster" / "ca" / "n0" / "node.key").signer()
    for harm in (spoil_vote, drop_certificates):
        broken.write_bytes(harm(whole, key))
        judged = run(tmp_path, "verify")
        assert judged.returncode == 1, judged.stdout + judged.stderr
        assert name in judged.stdout + judged.stderr
        refused = run(tmp_path, "restore", "--shard", SHARD, "--out", str(tmp_path / "no.db"))
        assert refused.returncode != 0
        assert name in refused.stdout + refused.stderr
        assert not (tmp_path / "no.db").exists()
    flipped = bytearray(whole)
    flipped[-200] ^= 1
    broken.write_bytes(flipped)
    assert name in run(tmp_path, "verify").stdout
    broken.write_bytes(whole)
    restore(tmp_path, "yes.db")


def test_an_archive_of_strangers_is_refused(tmp_path: Path) -> None:
    """One trusted voter is enough; none is not."""
    with archived(tmp_path) as cluster:
        write(cluster, 5)
        wait_archived(cluster)
        cluster.stop()
    keys = tmp_path / "cluster" / "ca" / "trusted.keys"
    lines = [line for line in keys.read_text().splitlines() if line.startswith("ed25519:")]
    one = tmp_path / "one.keys"
    one.write_text(lines[-1] + "\n")
    judged = run(tmp_path, "verify", "--trusted-keys", str(one))
    assert judged.returncode == 0, judged.stdout + judged.stderr
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    one.write_text(format_public(PublicKeyBytes(stranger)) + "\n")
    assert run(tmp_path, "verify", "--trusted-keys", str(one)).returncode == 1


def test_all_data_lost_is_born_again_from_the_archive(tmp_path: Path) -> None:
    """Every node's disk is empty: the archive's newest state comes back as a child lineage."""
    with archived(tmp_path) as cluster:
        write(cluster, 20)
        wait_archived(cluster)
        before = cluster["n0"].find_status()
        cluster.stop()
        lost = rows(cluster["n0"].database())
        for node in cluster:
            shutil.rmtree(node.data_dir)
            shutil.rmtree(node.database().parent)
            node.database().parent.mkdir()
        cluster.start()
        cluster.wait_writer()
        write(cluster, 5)
        wait_archived(cluster)
        after = cluster["n0"].find_status()
        assert before is not None
        assert after is not None
        assert after.lineage != before.lineage
        judged = run(tmp_path, "verify")
        assert judged.returncode == 0, judged.stdout + judged.stderr
        cluster.stop()
        newest = rows(restore(tmp_path, "newest.db"))
        assert newest[: len(lost)] == lost
        assert len(newest) == len(lost) + 5
        for node in cluster:
            assert rows(node.database()) == newest, node.name


@pytest.mark.parametrize("has_archive", [False, True])
def test_a_node_away_for_too_long_takes_over_a_state(tmp_path: Path, *, has_archive: bool) -> None:
    """Its peers dropped the frames it lacks: it comes back by state, and nothing is lost."""
    settings = {"BASE_JOURNAL_MAX_BYTES": "16MiB"}
    if not has_archive:
        settings["BASE_ARCHIVE"] = "off"
    with archived(tmp_path, **settings) as cluster:
        write(cluster, 5)
        seq = cluster.wait_settled()
        away = cluster.others(cluster.wait_writer())[0]
        away.terminate()
        away.wait_ended()
        write(cluster, 60, size=50_000)
        cluster.wait_settled(nodes=2)
        for node in cluster.others(away):
            cluster.until(lambda node=node: is_short(node, seq), f"{node.name} dropped frames")  # type: ignore[misc]
        away.start()
        cluster.wait_settled()
        assert "state_adopted" in away.read_log()
        cluster.stop()
        verdict = check(cluster, has_registers=False)
        assert not verdict.violations, str(verdict)
        assert len(rows(away.database())) == 65


def is_short(node: ClusterNode, above: int) -> bool:
    """Return whether a node's journal does not hold the frame behind ``above`` any more."""
    with contextlib.closing(
        sqlite3.connect(f"file:{node.data_dir}/journal.db?mode=ro", uri=True)
    ) as journal:
        ((first,),) = journal.execute("SELECT min(id) FROM frame")
        return bool(first & ((1 << 44) - 1) > above + 1)


def spoil_vote(data: bytes, key: Signer) -> bytes:
    """Return a log object whose last certificate has a wrong signature, signed by ``key``."""

    def harm(proof: Certificate) -> list[Certificate]:
        (voter, signature), *others = proof.votes
        wrong = (voter, bytes([signature[0] ^ 1]) + signature[1:])
        return [msgspec.structs.replace(proof, votes=(wrong, *others))]

    return _sealed_again(data, key, harm)


def drop_certificates(data: bytes, key: Signer) -> bytes:
    """Return a log object without certificates, signed by ``key``."""
    return _sealed_again(data, key, lambda _proof: [])


def _sealed_again(
    data: bytes, key: Signer, harm: Callable[[Certificate], list[Certificate]]
) -> bytes:
    segment = decode_segment(data, trusted={data[-96:-64]})
    epoch = segment.epoch
    assert epoch is not None
    return encode_segment(
        shard=segment.shard,
        start_seq=segment.start_seq,
        count=segment.count,
        records=[
            encode_epoch(replace(epoch, writer=key.public)),
            *[encode_frame(frame) for frame in segment.frames],
            *[
                encode_certificate(harmed)
                for proof in segment.certificates
                for harmed in harm(proof)
            ],
        ],
        signer=key,
    )
