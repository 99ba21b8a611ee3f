"""Judges the archive of a cluster from outside: with public keys, by `verify` and `restore` alone.

Theory of operation
===================

Both commands run as an outsider runs them: the archive's URL and a trusted-keys file, nothing of
the nodes. While the cluster works, a `Restorer` restores the newest state again and again::

    it is whole              integrity_check, and every register is what its history says
    it never goes back       at least the seq that was restored before, with all of its rows
    what status says is so   at least the seq that any node called archived before it began
    it is proven             now and then `verify` finds nothing wrong, while objects come and go

When all nodes have ended, `judge_archive` says of the archive, with `clustercheck`'s verdict on the
databases and journals as what it is compared with:

1. `verify` finds nothing wrong.
2. The newest state is the replicas', by the state root of the file. So all that holds for them
   holds for it: every operation that was acknowledged final is in it.
3. Moments drawn by lot, the oldest and all the newest's snapshots among them, can be restored. Each
   has the state root that the journals certify for its seq, where they still hold it, and is a
   prefix of the final state: no row that is not in it, no version left out, and every operation
   that was acknowledged final at or before that seq.
"""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from basenet.testing.cluster import SHARD, Cluster
from basenet.testing.clusterarchive import ClusterArchive
from basenet.testing.clustercheck import Verdict, compute_root, read_history
from basenet.testing.history import Operation, Outcome

_Rows = dict[tuple[str, int], str]

_COMMAND_S: Final = 300.0
_RESTORE_EVERY_S: Final = 8.0
# Every fourth time it verifies.
_VERIFY_EVERY: Final = 4
_MOMENTS: Final = 6
_SHOWN_MAX: Final = 8


@dataclass(kw_only=True)
class ArchiveVerdict:
    """What was found in the archive; it holds when ``violations`` is empty.

    ``restored``: moments that were restored at the end, ``compared``: those of them of which the
    journals knew the state root.
    """

    violations: list[str] = field(default_factory=list)
    objects: int = 0
    merged: int = 0
    frames: int = 0
    first_seq: int = 0
    last_seq: int = 0
    restored: int = 0
    compared: int = 0

    def __str__(self) -> str:
        facts = (
            f"archive: {self.objects} objects, {self.merged} of them merged ones, {self.frames} "
            f"frames, restorable from seq {self.first_seq} to {self.last_seq}; {self.restored} "
            f"moments restored, {self.compared} of them equal to a root in the journals"
        )
        return "\n".join([facts, *(f"VIOLATION: {text}" for text in self.violations)])


class Outsider:
    """Runs `restore` and `verify` with the public keys; its files are in a folder of its own."""

    def __init__(self, folder: Path, archive: ClusterArchive, name: str) -> None:
        """Make the folder ``name`` in that of a cluster, of which nothing but keys is read."""
        self._archive = archive
        self._folder = folder / name
        self._folder.mkdir()
        self._trusted = folder / "ca" / "trusted.keys"

    def run(self, command: str, *arguments: str) -> tuple[int, str]:
        """Return the exit code and what was printed: a JSON document, or why not."""
        inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
        done = subprocess.run(
            [sys.executable, "-m", "basenet", command, self._archive.url, *arguments],
            env=inherited
            | {
                "BASE_TRUSTED_KEYS": str(self._trusted),
                "BASE_DATA_DIR": str(self._folder / "data"),
                "BASE_RETENTION": self._archive.retention,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_S,
        )
        return done.returncode, done.stdout or done.stderr

    def restore(self, seq: int | None = None) -> tuple[Path, int] | str:
        """Return the file and the seq of the state after frame ``seq``, else why there is none."""
        out = self._folder / ("newest.db" if seq is None else f"{seq}.db")
        for suffix in ("", "-wal", "-shm"):
            Path(f"{out}{suffix}").unlink(missing_ok=True)
        moment = [] if seq is None else ["--to-seq", str(seq)]
        code, text = self.run("restore", str(out), "--shard", SHARD, "--json", *moment)
        if code:
            return text.strip()
        return out, int(json.loads(text)["seq"])

    def close(self) -> None:
        """Remove what was restored."""
        shutil.rmtree(self._folder)


class Restorer:
    """Restores the newest state again and again while a cluster works; `complaints` says more."""

    def __init__(self, cluster: Cluster, archive: ClusterArchive) -> None:
        self.complaints: list[str] = []
        self.count = 0
        """How often it restored."""
        self.verified = 0
        """How often `verify` said that all is sound."""
        self._cluster = cluster
        self._archive = archive
        self._outsider = Outsider(cluster.folder, archive, "restorer")
        self._seq = 0
        self._rows: _Rows = {}
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; idempotent."""
        self._is_stopping.set()
        self._thread.join()

    def _run(self) -> None:
        turn = 0
        while not self._is_stopping.wait(_RESTORE_EVERY_S):
            turn += 1
            if turn % _VERIFY_EVERY:
                self._restore()
            else:
                self._verify()

    def _verify(self) -> None:
        absences = self._archive.absences
        problems = _verify(ArchiveVerdict(), self._outsider)
        if not problems:
            self.verified += 1
        elif self._seq and not self._was_missing(absences):
            self.complaints += [f"beside the load: {problem}" for problem in problems]

    def _was_missing(self, absences: int) -> bool:
        """Return whether the archive was missing at any time since ``absences`` was read."""
        return absences % 2 == 1 or absences != self._archive.absences

    def _restore(self) -> None:
        statuses = [node.find_status() for node in self._cluster]
        told = max((one.archived_seq for one in statuses if one is not None), default=0)
        absences = self._archive.absences
        found = self._outsider.restore()
        if isinstance(found, str):
            if (told or self._seq) and not self._was_missing(absences):
                self.complaints.append(f"restore beside the load, after seq {self._seq}: {found}")
            return
        path, seq = found
        rows, faults = read_whole(path)
        if seq < max(told, self._seq):
            faults.append(f"seq {seq}, though {told} was archived and {self._seq} was restored")
        if not self._rows.items() <= rows.items():
            faults.append(f"rows that were restored of seq {self._seq} are not in it")
        self.complaints += [f"restored beside the load, seq {seq}: {one}" for one in faults]
        self._seq, self._rows = seq, rows
        self.count += 1


def read_whole(path: Path) -> tuple[_Rows, list[str]]:
    """Return the history in a database file that nobody uses, and what is wrong in itself."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            faults = _find_inner_faults(connection)
        return read_history(path), faults
    except sqlite3.DatabaseError as error:
        return {}, [f"it cannot be read: {error}"]


def _find_inner_faults(connection: sqlite3.Connection) -> list[str]:
    answer = connection.execute("PRAGMA integrity_check").fetchall()
    if answer != [("ok",)]:
        return [f"integrity_check says {answer[:3]}"]
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'hist'").fetchall():
        return []
    registers = dict(connection.execute("SELECT key, version FROM reg").fetchall())
    counted = "SELECT key, max(version), count(*) FROM hist GROUP BY key"
    return [
        f"{key} is {registers.get(key)}, its history has {count} up to {highest}"
        for key, highest, count in connection.execute(counted)
        if not registers.get(key) == highest == count
    ]


def judge_archive(
    folder: Path,
    archive: ClusterArchive,
    operations: Sequence[Operation],
    judged: Verdict,
    *,
    archived_seq: int,
    seed: int,
) -> ArchiveVerdict:
    """Judge the archive of the cluster in ``folder``, whose nodes have ended.

    ``judged``: what `clustercheck` says of them. ``archived_seq``: the last seq that was called
    archived. ``seed``: of the moments that are restored.
    """
    verdict = ArchiveVerdict(merged=archive.count_merged())
    outsider = Outsider(folder, archive, "restored")
    verdict.violations += _verify(verdict, outsider)
    newest = _restore(verdict, outsider, None)
    if newest is not None:
        path, seq = newest
        verdict.last_seq = seq
        if seq < archived_seq:
            verdict.violations.append(
                f"the newest state is of seq {seq}, though {archived_seq} was archived"
            )
        if (root := compute_root(path).hex()) != judged.root:
            verdict.violations.append(
                f"the newest state, of seq {seq}, has the root {root[:16]}, the replicas at seq "
                f"{judged.final_seq} have {judged.root[:16]}"
            )
        final, faults = read_whole(path)
        verdict.violations += [f"the newest state: {text}" for text in faults]
        for moment in _draw_moments(verdict, outsider, random.Random(seed)):
            found = _restore(verdict, outsider, moment)
            if found is not None:
                due = {
                    one.tag
                    for one in operations
                    if one.outcome is Outcome.FINAL and one.seq and one.seq <= moment
                }
                known = judged.state_roots.get(moment)
                verdict.compared += known is not None
                faults = find_moment_faults(found[0], final, due, known)
                if found[1] != moment:
                    faults.append(f"it is of seq {found[1]}")
                verdict.violations += [f"restored at seq {moment}: {text}" for text in faults]
                found[0].unlink()
    if not verdict.violations:
        outsider.close()
    return verdict


def _verify(verdict: ArchiveVerdict, outsider: Outsider) -> list[str]:
    """Note what there is; return the problems."""
    code, text = outsider.run("verify", "--json")
    try:
        document: dict[str, Any] = json.loads(text)
    except ValueError:
        return [f"verify ended with {code}: {text.strip()}"]
    problems: list[str] = []
    for shard in document["shards"]:
        verdict.objects += shard["objects"]
        verdict.frames += shard["frames"]
        if len(shard["lineages"]) != 1:
            problems.append(f"the archive has the lineages {shard['lineages']}")
        problems += [
            f"verify: {one['object']}: {one['problem']}" for one in shard["problems"][:_SHOWN_MAX]
        ]
    if code and not problems:
        problems.append(f"verify ended with {code}: {text.strip()}")
    return problems


def _restore(
    verdict: ArchiveVerdict, outsider: Outsider, seq: int | None
) -> tuple[Path, int] | None:
    found = outsider.restore(seq)
    if isinstance(found, str):
        verdict.violations.append(f"restore of seq {seq or 'the newest state'}: {found}")
        return None
    verdict.restored += 1
    return found


def _draw_moments(verdict: ArchiveVerdict, outsider: Outsider, chance: random.Random) -> list[int]:
    """Return seqs that can be restored, as the archive lists them, ascending."""
    code, text = outsider.run("restore", "--shard", SHARD, "--list", "--json")
    if code:
        verdict.violations.append(f"restore --list ended with {code}: {text.strip()}")
        return []
    document = json.loads(text)
    verdict.violations += [f"restore --list: {text}" for text in document["troubles"]]
    spans = [range(one["first_seq"], one["last_seq"] + 1) for one in document["restorable"]]
    seqs = [seq for span in spans for seq in span]
    if not seqs:
        verdict.violations.append("restore --list names no moment")
        return []
    verdict.first_seq = seqs[0]
    chosen = {seqs[0], *chance.sample(seqs, min(_MOMENTS, len(seqs)))}
    within = [seq for seq in document["snapshots"] if seq in set(seqs)]
    chosen |= set(within[-1:])
    return sorted(chosen)


def find_moment_faults(
    path: Path, final: Mapping[tuple[str, int], str], due: AbstractSet[str], root: str | None
) -> list[str]:
    """Return what is wrong with an earlier state in a file, as sentences; empty if nothing is.

    ``final``: the newest state's history. ``due``: the tags of what was final by then. ``root``:
    the state root that it must have, in hex, if that is known.
    """
    faults: list[str] = []
    if root is not None and (own := compute_root(path).hex()) != root:
        faults.append(f"its root is {own[:16]}, the journals have {root[:16]}")
    rows, within = read_whole(path)
    faults += within
    strange = [tag for place, tag in rows.items() if final.get(place) != tag]
    faults += [f"{tag} is in it and not in the final state" for tag in strange[:_SHOWN_MAX]]
    lost = sorted(due - set(rows.values()))
    faults += [f"{tag} was final by then and is not in it" for tag in lost[:_SHOWN_MAX]]
    return faults
