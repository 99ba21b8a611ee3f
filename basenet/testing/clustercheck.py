"""Judges a cluster from outside, by its files alone, when all its nodes have ended.

Theory of operation
===================

Nothing is believed but what lies on disk. Databases and journals are copied first, logs included,
and read in the copies. What must hold, each with a sentence when it does not:

1. Every database passes ``integrity_check``, is equal to every other page for page, and has the
   state root of the last whole frame in its node's journal (computed here, from the pages).
2. The final chains are linked, signed, and equal wherever two journals hold the same seq.
3. Every operation that was acknowledged final is in every database, and the history of all clients
   is linearizable (`testing.history`); the frame at the seq of the acknowledgement was written by
   the node that acknowledged. So no two writers acknowledged the same seqs.
4. Every operation that SQLite acknowledged is in the final state, or its row is in the frames of
   an orphan bundle, proven by its signature, or in a file that was kept aside. And counted: each
   node's local numbers, over its final frames, its branch and its bundles, have no gap and no
   overlap, above those of final frames that the journal dropped because they are archived.
"""

import shutil
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from basenet.daemon.cluster.orphans import FOLDER, Bundle, list_bundles, read_bundle
from basenet.daemon.cluster.placing import REPLACED
from basenet.errors import BasenetError
from basenet.journal.schema import frame_ids
from basenet.keys.trust import read_trusted_keys
from basenet.testing.cluster import SHARD, Cluster, ClusterNode
from basenet.testing.history import Operation, Outcome, find_contradictions
from basenet.units import StateRoot
from basenet.wire.frame import HEAD_RECORD_VERSION, Frame, Head, Kind, decode_frame, decode_head
from basenet.wire.merkle import StateTree, leaf_hashes
from basenet.wire.payload import decode_commit

JOURNAL: Final = "journal.db"
_PAGES_AT_ONCE: Final = 1024
_SHOWN_MAX: Final = 8
_SQLITE_MAX_PAGE: Final = 65_536


@dataclass(kw_only=True)
class Journalled:
    """What one node's journal says of a shard. Ranges of local numbers are (first, last).

    ``branch``: those of own frames above the final one, by hash; what lost stays there until what
    won has passed it. ``aside``: those that a whole file was kept for. ``dropped_below``: what is
    below this local number may have been in final frames that are archived and dropped.
    """

    heads: dict[int, Head]
    tip: Head
    local_ranges: list[tuple[int, int]]
    local_last: int
    branch: dict[bytes, tuple[int, int]]
    aside: list[tuple[int, int]]
    dropped_below: int


@dataclass(kw_only=True)
class Verdict:
    """What was found; it holds when ``violations`` is empty.

    ``state_roots``: of the final frames that any journal still holds, by seq.
    """

    violations: list[str] = field(default_factory=list)
    final_seq: int = 0
    root: str = ""
    state_roots: dict[int, str] = field(default_factory=dict)
    operations: int = 0
    acknowledged: int = 0
    local: int = 0
    orphaned: int = 0
    bundles: int = 0
    aside: int = 0

    def __str__(self) -> str:
        facts = (
            f"final seq {self.final_seq}, root {self.root[:16]}, {self.operations} operations: "
            f"{self.local} acknowledged by SQLite, {self.acknowledged} of them final, "
            f"{self.orphaned} in {self.bundles} orphan bundles or {self.aside} files kept aside"
        )
        return "\n".join([facts, *(f"VIOLATION: {text}" for text in self.violations)])


def check(
    cluster: Cluster,
    operations: Sequence[Operation] = (),
    *,
    shard: str = SHARD,
    nodes: Sequence[ClusterNode] | None = None,
    has_registers: bool = True,
) -> Verdict:
    """Judge the files of ``nodes`` (all by default), which have ended.

    ``has_registers``: whether the database is that of `testing.history`.
    """
    judged = list(cluster) if nodes is None else list(nodes)
    assert not any(node.is_running for node in judged), "files are judged when nobody writes"
    verdict = Verdict(operations=len(operations))
    scratch = cluster.folder / "judged"
    shutil.rmtree(scratch, ignore_errors=True)
    copies = {node.name: _copy(node, scratch / node.name, shard) for node in judged}
    aside = {node.name: _read_aside(node, scratch / node.name, shard) for node in judged}
    verdict.aside = sum(map(len, aside.values()))
    journals = {name: _read_journal(folder / JOURNAL, shard) for name, folder in copies.items()}
    roots = {
        name: _judge_database(verdict, name, folder / f"{shard}.db", journals[name])
        for name, folder in copies.items()
    }
    _judge_equality(verdict, copies, roots, shard)
    _judge_chains(verdict, journals)
    bundles = _read_bundles(verdict, cluster, judged, shard)
    _judge_counts(verdict, journals, bundles)
    if has_registers:
        databases = {name: folder / f"{shard}.db" for name, folder in copies.items()}
        _judge_operations(verdict, operations, databases, bundles, aside)
        _judge_authors(verdict, cluster, operations, journals)
    if not verdict.violations:
        shutil.rmtree(scratch)
    return verdict


# -- reading ---------------------------------------------------------------------------------------


def _copy(node: ClusterNode, folder: Path, shard: str) -> Path:
    folder.mkdir(parents=True)
    for source in (node.database(shard), node.data_dir / JOURNAL):
        for suffix in ("", "-wal"):
            if Path(f"{source}{suffix}").exists():
                subprocess.run(
                    ["cp", "--sparse=always", f"{source}{suffix}", str(folder)], check=True
                )
    return folder


def _read_aside(node: ClusterNode, folder: Path, shard: str) -> list[set[str]]:
    """Return the tags in each file that was kept aside."""
    found: list[set[str]] = []
    for source in sorted(node.database(shard).parent.glob(f"{shard}.db.before-*")):
        if source.suffix != ".partial":
            copied = folder / source.name
            shutil.copyfile(source, copied)
            found.append(set(read_history(copied).values()))
    return found


def _read_journal(path: Path, shard: str) -> Journalled:
    with closing(sqlite3.connect(path)) as connection:
        ((number, tip),) = connection.execute(
            "SELECT number, tip FROM shard WHERE shard = ?", (shard,)
        ).fetchall()
        heads: dict[int, Head] = {}
        ranges: list[tuple[int, int]] = []
        rows = connection.execute(
            "SELECT local_first, local_last, record FROM frame WHERE id BETWEEN ? AND ? "
            "ORDER BY id",
            frame_ids(number),
        )
        for first, last, record in rows:
            head = _head_of(record)
            heads[head.seq] = head
            ranges.append((first, last))
        branch = connection.execute(
            "SELECT local_first, local_last, hash FROM branch WHERE number = ?", (number,)
        ).fetchall()
        ((local_last,),) = connection.execute(
            "SELECT local_last FROM replica WHERE number = ?", (number,)
        ).fetchall()
        aside = connection.execute(
            "SELECT first_local, last_local FROM orphan WHERE shard = ? AND reason = ?",
            (shard, REPLACED),
        ).fetchall()
    own = [(first, last) for first, last in ranges if first <= last]
    is_whole = min(heads, default=0) == 1
    return Journalled(
        heads=heads,
        tip=decode_head(tip),
        local_ranges=own,
        local_last=local_last,
        branch={digest: (first, last) for first, last, digest in branch if first <= last},
        aside=aside,
        dropped_below=0 if is_whole else min((first for first, _ in own), default=local_last + 1),
    )


def _head_of(record: bytes) -> Head:
    if record[0] == HEAD_RECORD_VERSION:
        return decode_head(record)
    frame = decode_frame(record)
    assert isinstance(frame, Frame), "a journal of a cluster holds no frame of version 1"
    return frame.head


def compute_root(path: Path) -> StateRoot:
    """Return the state root of a database file that has no log beside it."""
    with path.open("rb") as file:
        header = file.read(100)
        stored = int.from_bytes(header[16:18], "big")
        page_size = _SQLITE_MAX_PAGE if stored == 1 else stored
        file.seek(0)
        leaves, pgno = bytearray(), 1
        while block := file.read(page_size * _PAGES_AT_ONCE):
            leaves += leaf_hashes(pgno, block, page_size)
            pgno += len(block) // page_size
    return StateTree(page_size, leaves).root()


def _read_bundles(
    verdict: Verdict, cluster: Cluster, judged: Sequence[ClusterNode], shard: str
) -> dict[str, list[Bundle]]:
    trusted = read_trusted_keys(cluster.folder / "ca" / "trusted.keys").publics
    found: dict[str, list[Bundle]] = {}
    for node in judged:
        found[node.name] = []
        for path in list_bundles(node.data_dir / FOLDER, shard):
            try:
                found[node.name].append(read_bundle(path, trusted))
            except BasenetError as error:
                verdict.violations.append(f"{node.name}: {error}")
    verdict.bundles = sum(map(len, found.values()))
    return found


# -- judging ---------------------------------------------------------------------------------------


def _judge_database(verdict: Verdict, name: str, path: Path, journal: Journalled) -> str:
    with closing(sqlite3.connect(path)) as connection:
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not busy, "somebody has a copy open that only this process knows"
        answer = connection.execute("PRAGMA integrity_check").fetchall()
    if answer != [("ok",)]:
        verdict.violations.append(f"{name}: integrity_check says {answer[:3]}")
    root = compute_root(path).hex()
    if root != journal.tip.state_root.hex():
        verdict.violations.append(
            f"{name}: the file's root is {root[:16]}, that of its journal's frame "
            f"{journal.tip.seq} is {journal.tip.state_root.hex()[:16]}"
        )
    return root


def _judge_equality(
    verdict: Verdict, copies: Mapping[str, Path], roots: Mapping[str, str], shard: str
) -> None:
    verdict.root = next(iter(roots.values()))
    if len(set(roots.values())) > 1:
        sizes = {name: (folder / f"{shard}.db").stat().st_size for name, folder in copies.items()}
        verdict.violations.append(f"the databases differ: {dict(roots)}, sizes {sizes}")


def _judge_chains(verdict: Verdict, journals: Mapping[str, Journalled]) -> None:
    known: dict[int, tuple[str, Head]] = {}
    for name, journal in journals.items():
        for one, other in pairwise(sorted(journal.heads)):
            before, after = journal.heads[one], journal.heads[other]
            if other != one + 1 or after.prev_hash != before.hash:
                verdict.violations.append(f"{name}: frame {other} does not follow frame {one}")
        for seq, head in journal.heads.items():
            if not head.is_signed_by_author():
                verdict.violations.append(f"{name}: frame {seq} is not signed by its author")
            held_by, held = known.setdefault(seq, (name, head))
            verdict.state_roots[seq] = held.state_root.hex()
            if held.hash != head.hash or held.state_root != head.state_root:
                verdict.violations.append(f"final frame {seq} of {name} is not that of {held_by}")
    tips = {name: journal.tip.seq for name, journal in journals.items()}
    verdict.final_seq = max(tips.values())
    if len(set(tips.values())) > 1:
        verdict.violations.append(f"the final tips differ: {tips}")


def _judge_counts(
    verdict: Verdict, journals: Mapping[str, Journalled], bundles: Mapping[str, Sequence[Bundle]]
) -> None:
    for name, journal in journals.items():
        kept = {head.hash for one in bundles[name] for head in one.heads}
        ranges = list(journal.local_ranges)
        ranges += [held for digest, held in journal.branch.items() if digest not in kept]
        ranges += [
            (one.facts.first_local, one.facts.last_local)
            for one in bundles[name]
            if one.facts.first_local <= one.facts.last_local
        ]
        ranges.sort()
        # What was undecided when its file was kept aside may be final or in a bundle by now.
        ranges.append((journal.local_last + 1, journal.local_last + 1))
        for (first, last), (following, _) in pairwise(ranges):
            missing = (last + 1, following - 1)
            is_aside = any(one <= missing[0] and missing[1] <= end for one, end in journal.aside)
            is_excused = is_aside or missing[1] < journal.dropped_below
            if following != last + 1 and not (missing[0] <= missing[1] and is_excused):
                verdict.violations.append(
                    f"{name}: local commits {first}..{last} are followed by {following}"
                )


def _judge_operations(
    verdict: Verdict,
    operations: Sequence[Operation],
    databases: Mapping[str, Path],
    bundles: Mapping[str, Sequence[Bundle]],
    aside: Mapping[str, Sequence[set[str]]],
) -> None:
    final: dict[tuple[str, int], str] = {}
    for name, path in databases.items():
        rows = read_history(path)
        contradictions = find_contradictions(operations, rows)
        verdict.violations += [f"{name}: {text}" for text in contradictions[:_SHOWN_MAX]]
        final = rows
    tags = set(final.values())
    known = [one for one in operations if one.outcome in {Outcome.LOCAL, Outcome.FINAL}]
    verdict.local = len(known)
    verdict.acknowledged = sum(one.outcome is Outcome.FINAL for one in operations)
    lost = [one for one in known if one.tag not in tags]
    images = {name: _images(verdict, held) for name, held in bundles.items()}
    for one in lost:
        is_bundled = any(one.tag.encode() in image for image in images.get(one.node, ()))
        if is_bundled or any(one.tag in kept for kept in aside.get(one.node, ())):
            verdict.orphaned += 1
        else:
            verdict.violations.append(
                f"{one.tag} was committed at {one.node} as version {one.version} of {one.key}; it "
                "is neither final nor in an orphan bundle or a file kept aside there"
            )


def read_history(path: Path) -> dict[tuple[str, int], str]:
    """Return ``hist`` of a database that nobody else has open; empty if it has none."""
    with closing(sqlite3.connect(path)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'hist'").fetchall():
            return {}
        rows = connection.execute("SELECT key, version, tag FROM hist")
        return {(key, version): tag for key, version, tag in rows}


def _images(verdict: Verdict, bundles: Sequence[Bundle]) -> list[bytes]:
    """Return the page images of all frames of ``bundles``, one string a frame."""
    found: list[bytes] = []
    for bundle in bundles:
        try:
            found += [
                bytes(decode_commit(frame.payload).pages)
                for frame in bundle.frames()
                if frame.head.kind is Kind.COMMIT
            ]
        except BasenetError as error:
            verdict.violations.append(f"{bundle.path}: {error}")
    return found


def _judge_authors(
    verdict: Verdict,
    cluster: Cluster,
    operations: Sequence[Operation],
    journals: Mapping[str, Journalled],
) -> None:
    """Check that the frame at an acknowledged seq is of the node that acknowledged it."""
    heads: dict[int, Head] = {}
    for journal in journals.values():
        heads |= journal.heads
    keys = {
        entry.comment: entry.public
        for entry in read_trusted_keys(cluster.folder / "ca" / "trusted.keys").keys
    }
    acknowledged = {
        (one.seq, one.node) for one in operations if one.outcome is Outcome.FINAL and one.seq
    }
    for seq, name in sorted(acknowledged):
        head = heads.get(seq)
        if head is not None and head.author != keys[name]:
            verdict.violations.append(f"{name} acknowledged seq {seq}, which another node wrote")
