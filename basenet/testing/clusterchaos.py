"""``make soak``: a cluster under load and under random faults, judged from outside.

A run is a story drawn from a seed, so that its faults (not their interleaving) can be had again.
Clients write at whichever node is the writer; readers read everywhere; faults come one after
another, some of them two at once. The writer archives into a directory that has faults of its own,
and somebody with public keys restores it all the time. Then all is healed, the cluster must come to
rest by itself, `testing.clustercheck` judges databases and journals, and `testing.archivecheck` the
archive. Long runs are made of parts, each with its own seed and a new cluster, so that a violation
is found near its cause.

A clock that is months ahead makes retention delete what is not old, as it must. So a part has
either a clock that steps or a retention of seconds, by its seed.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from basenet import __version__
from basenet.control.surface import Level
from basenet.errors import BasenetError
from basenet.testing.archivecheck import ArchiveVerdict, Restorer, judge_archive
from basenet.testing.cluster import SHARD, Cluster, ClusterNode, ClusterStuck
from basenet.testing.clusterarchive import ClusterArchive
from basenet.testing.clustercheck import Verdict, check
from basenet.testing.hardware import can_mount, find_faketime
from basenet.testing.history import (
    ApplicationGone,
    Client,
    Operation,
    Outcome,
    RegisterApplication,
    write_unguarded,
)

_PART_MINUTES: Final = 3.0
_PAUSE_S: Final = (0.5, 4.0)
_FAULT_S: Final = (0.3, 4.0)
_SETTLE_S: Final = 300.0
_READ_EVERY_S: Final = 0.1
_CLIENTS: Final = 2
_SYNC_MS: Final = (5, 20, 80, 300)
_STRAYS_MAX: Final = 5
_HOUR_S: Final = 3600
_STEPS_S: Final = (-30 * 24 * _HOUR_S, -_HOUR_S, -5, 1, 30, _HOUR_S, 400 * 24 * _HOUR_S)
_EVERYONE: Final = "all"
_BYZANTINE_NODES: Final = 4
# What ends with a failed assertion or an unforeseen exception leaves this in a log.
_BUG_MARKS: Final = ("Traceback (most recent call last)", "AssertionError")
# What a log must never say of the archive here, what its faults bring about, and what is counted.
_ARCHIVE_ALARMS: Final = ("two_final_histories", "archive_lost")
_ALARM: Final = "nothing of shard"
_ARCHIVE_FAILURES: Final = (
    "archive_stopped",
    "compaction_failed",
    "retention_failed",
    "snapshot_failed",
)
_ARCHIVE_EVENTS: Final = ("archiving", "snapshot", "retention")
_ARCHIVED_S: Final = 5.0


@dataclass(kw_only=True)
class Outline:
    """What a story is drawn from."""

    seed: int
    seconds: float
    nodes: int = 3
    is_byzantine: bool = False
    has_disks: bool = False
    has_clock: bool = False
    has_archive: bool = True
    is_read_only: bool = False


@dataclass(kw_only=True)
class Told:
    """What happened in a run; ``complaints`` are those of readers and of the logs.

    ``kinds``: faults by the method that made them. ``events``: what the nodes logged, by its name;
    ``troubles``: what of the archive failed, with the reason. ``restores``: of the newest state,
    ``verified``: how often, beside the load.
    """

    outline: Outline
    faults: list[str] = field(default_factory=list)
    reads: int = 0
    strays: list[Operation] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    kinds: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    restores: int = 0
    verified: int = 0
    archive: ArchiveVerdict | None = None

    @property
    def is_good(self) -> bool:
        """Whether nothing was violated."""
        if self.verdict is None or self.verdict.violations or self.complaints:
            return False
        if not self.outline.has_archive:
            return True
        return self.archive is not None and not self.archive.violations


class Reader:
    """Reads one node's database again and again: each state must be whole in itself."""

    def __init__(self, node: ClusterNode, told: Told) -> None:
        self._node = node
        self._told = told
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._is_stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            if not self._node.database().exists():
                self._is_stopping.wait(_READ_EVERY_S)
                continue
            try:
                with RegisterApplication(self._node.database()) as application:
                    while not self._is_stopping.wait(_READ_EVERY_S):
                        self._read(application)
            except ApplicationGone:
                continue

    def _read(self, application: RegisterApplication) -> None:
        answer = application.ask("versions")
        if "error" in answer:
            is_harmless = any(word in answer["error"] for word in ("no such table", "locked"))
            if not is_harmless:
                self._told.complaints.append(f"reader at {self._node.name}: {answer['error']}")
            return
        self._told.reads += 1
        registers = dict(answer["reg"])
        for key, highest, count in answer["hist"]:
            if not registers.get(key) == highest == count:
                self._told.complaints.append(
                    f"reader at {self._node.name}: {key} is {registers.get(key)}, its history has "
                    f"{count} versions up to {highest}"
                )


class _Story:
    """The faults of one run."""

    def __init__(
        self,
        cluster: Cluster,
        archive: ClusterArchive | None,
        told: Told,
        say: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._archive = archive
        self._told = told
        self._say = say
        self._chance = random.Random(told.outline.seed)
        self._began_s = time.monotonic()
        self._acts: tuple[tuple[int, Callable[[ClusterNode], None]], ...] = (
            (4, self._kill),
            (3, self._kill_daemon),
            (4, self._pause),
            (3, self._isolate),
            (2, self._cut),
            (2, self._deafen),
            (1, self._slow),
            (1, self._drop_connections),
            (2, self._kill_two),
            (1, self._restart_all),
            (3, self._write_unguarded),
            (2, self._slow_disk),
            *([(2, self._fill_disk)] if told.outline.has_disks else []),
            *([(2, self._step_clock)] if told.outline.has_clock else []),
            *([(2, self._lose_archive), (1, self._age_archive)] if archive else []),
            *(
                [(1, self._protect_archive), (1, self._fill_archive)]
                if archive and told.outline.has_disks
                else []
            ),
        )
        self._clock: ClusterNode | None = None
        if told.outline.has_clock:
            self._clock = cluster[cluster.clocked[0]]

    def run(self) -> None:
        """Let faults come until the time is over."""
        while time.monotonic() - self._began_s < self._told.outline.seconds:
            time.sleep(self._chance.uniform(*_PAUSE_S))
            ((_, act),) = self._chance.choices(self._acts, [weight for weight, _ in self._acts])
            self._told.kinds[act.__name__.lstrip("_")] += 1
            act(self._draw_node())

    def _draw_node(self) -> ClusterNode:
        """Return the writer in half of all cases, since its faults matter most."""
        drawn = self._cluster[self._chance.choice(self._cluster.names)]
        if self._chance.random() < 0.5:  # noqa: PLR2004  (half)
            return self._cluster.find_writer() or drawn
        return drawn

    def _tell(self, what: str) -> None:
        text = f"{time.monotonic() - self._began_s:6.1f} s  {what}"
        self._told.faults.append(text)
        self._say(text)

    def _last(self) -> None:
        time.sleep(self._chance.uniform(*_FAULT_S))

    def _kill(self, node: ClusterNode) -> None:
        self._tell(f"kill {node.name}")
        node.kill()
        self._last()
        node.start()

    def _kill_daemon(self, node: ClusterNode) -> None:
        self._tell(f"kill the daemon of {node.name}")
        node.kill_daemon()

    def _pause(self, node: ClusterNode) -> None:
        self._tell(f"pause {node.name}")
        node.pause()
        self._last()
        node.resume()

    def _isolate(self, node: ClusterNode) -> None:
        self._tell(f"isolate {node.name} silently")
        self._cluster.isolate(node)
        self._last()
        self._cluster.heal()

    def _cut(self, node: ClusterNode) -> None:
        self._tell(f"cut {node.name} off")
        self._cluster.isolate(node, is_silent=False)
        self._last()
        self._cluster.heal()

    def _deafen(self, node: ClusterNode) -> None:
        """Hold one direction of one link."""
        other = self._chance.choice(self._cluster.others(node))
        self._tell(f"{node.name} is not heard by {other.name}")
        self._cluster.links[node.name, other.name].hold()
        self._last()
        self._cluster.heal()

    def _slow(self, node: ClusterNode) -> None:
        self._tell(f"everything from and to {node.name} takes 50 ms longer")
        for ends, link in self._cluster.links.items():
            if node.name in ends:
                link.delay(0.05)
        self._last()
        self._cluster.heal()

    def _drop_connections(self, node: ClusterNode) -> None:
        self._tell(f"all connections of {node.name} end")
        for ends, link in self._cluster.links.items():
            if node.name in ends:
                link.drop()

    def _kill_two(self, node: ClusterNode) -> None:
        other = self._chance.choice(self._cluster.others(node))
        self._tell(f"kill {node.name} and {other.name}")
        node.kill()
        other.kill()
        self._last()
        node.start()
        self._last()
        other.start()

    def _restart_all(self, node: ClusterNode) -> None:
        del node
        self._tell(f"kill {_EVERYONE}")
        for one in self._cluster:
            one.kill()
        self._cluster.start()

    # What a node runs on.

    def _slow_disk(self, node: ClusterNode) -> None:
        milliseconds = self._chance.choice(_SYNC_MS)
        self._tell(f"everything durable at {node.name} takes {milliseconds} ms longer")
        node.hardware.slow(milliseconds)
        self._last()
        node.hardware.slow(0)

    def _fill_disk(self, node: ClusterNode) -> None:
        self._tell(f"the disk of {node.name} is full")
        node.hardware.fill()
        self._last()
        node.hardware.free()

    def _step_clock(self, node: ClusterNode) -> None:
        """Only one node has such a clock; the step stays until the next one."""
        del node
        assert self._clock is not None, "no clock to step"
        seconds = self._chance.choice((0, *_STEPS_S))
        self._tell(f"the wall clock of {self._clock.name} is {seconds:+d} s off")
        self._clock.hardware.step(seconds)

    # What the nodes share.

    def _lose_archive(self, node: ClusterNode) -> None:
        del node
        assert self._archive is not None, "no archive"
        self._tell("the archive is missing")
        self._archive.take_away()
        self._last()
        self._archive.heal()

    def _protect_archive(self, node: ClusterNode) -> None:
        del node
        assert self._archive is not None, "no archive"
        self._tell(f"the archive is {'' if self._archive.protect() else 'not '}read-only")
        self._last()
        self._archive.heal()

    def _fill_archive(self, node: ClusterNode) -> None:
        del node
        assert self._archive is not None, "no archive"
        self._tell("the archive is full")
        self._archive.fill()
        self._last()
        self._archive.heal()

    def _age_archive(self, node: ClusterNode) -> None:
        """Let retention delete what merged objects cover, while the writer dies."""
        assert self._archive is not None, "no archive"
        self._tell(f"merged objects are old; kill the daemon of {node.name}")
        self._archive.grow_old()
        self._last()
        node.kill_daemon()

    def _write_unguarded(self, node: ClusterNode) -> None:
        """Let an application write while neither guardian nor daemon runs."""
        is_closed = self._chance.random() < 0.5  # noqa: PLR2004  (half)
        count = self._chance.randint(1, _STRAYS_MAX)
        self._tell(
            f"kill {node.name}; {count} commits there by an application that is "
            f"{'closed' if is_closed else 'killed'}"
        )
        node.kill()
        name = f"stray{len(self._told.strays)}"
        self._told.strays += write_unguarded(node, name, count, is_closed=is_closed)
        node.start()

    def heal(self) -> None:
        """End what may last: a full disk, a slow one, a wrong clock, cut links, ended nodes."""
        for node in self._cluster:
            if self._told.outline.has_disks:
                node.hardware.free()
            node.hardware.slow(0)
        if self._clock is not None:
            self._clock.hardware.step(0)
        if self._archive is not None:
            self._archive.heal()
        self._cluster.heal()
        self._cluster.start()


def play(folder: Path, outline: Outline, say: Callable[[str], None]) -> Told:
    """Play one story in ``folder`` and judge it; raises `ClusterStuck` if it does not settle."""
    told = Told(outline=outline)
    environment = {"BASE_FAULT_MODEL": "byzantine"} if outline.is_byzantine else {}
    if outline.is_read_only:
        environment["BASE_FENCE"] = "readonly"
    with ExitStack() as on:
        archive: ClusterArchive | None = None
        if outline.has_archive:
            archive = ClusterArchive(
                folder / "store", has_disk=outline.has_disks, has_retention=not outline.has_clock
            )
            on.callback(archive.close)
            environment |= archive.settings
        cluster = on.enter_context(
            Cluster(
                folder,
                outline.nodes,
                has_links=True,
                has_disks=outline.has_disks,
                clocked=[f"n{outline.seed % outline.nodes}"] if outline.has_clock else [],
                can_slow=True,
                **environment,
            )
        )
        cluster.start()
        cluster.wait_writer(patience_s=_SETTLE_S)
        operations, archived_seq = _load(cluster, archive, told, say)
        codes = cluster.stop()
        told.complaints += [f"{name} ended with {code}" for name, code in codes.items() if code]
        told.complaints += find_bugs(cluster)
        told.verdict = check(cluster, operations)
        if archive is not None:
            _read_events(cluster, told)
            told.archive = judge_archive(
                folder,
                archive,
                operations,
                told.verdict,
                archived_seq=archived_seq,
                seed=outline.seed,
            )
    return told


def _load(
    cluster: Cluster, archive: ClusterArchive | None, told: Told, say: Callable[[str], None]
) -> tuple[list[Operation], int]:
    """Let clients, readers and faults come, until all is at rest.

    Returns the operations, and the seq up to which all is archived.
    """
    clients = [
        Client(cluster, f"c{number}", seed=told.outline.seed * 100 + number)
        for number in range(_CLIENTS)
    ]
    with ExitStack() as on:
        for node in cluster:
            on.callback(Reader(node, told).stop)
        restorer = Restorer(cluster, archive) if archive is not None else None
        if restorer is not None:
            on.callback(restorer.stop)
        try:
            story = _Story(cluster, archive, told, say)
            story.run()
            story.heal()
            # Whoever writes must be able to again: that is the end of the faults.
            _wait_for_final(cluster, clients)
        finally:
            operations = [one for client in clients for one in client.stop()]
        seq = cluster.wait_settled(patience_s=_SETTLE_S)
        archived_seq = _wait_for_archived(cluster, seq) if archive is not None else 0
    if restorer is not None:
        told.restores, told.verified = restorer.count, restorer.verified
        told.complaints += restorer.complaints
    return operations + told.strays, archived_seq


def _wait_for_final(cluster: Cluster, clients: Sequence[Client]) -> None:
    before = sum(client.count(Outcome.FINAL) for client in clients)
    cluster.until(
        lambda: sum(client.count(Outcome.FINAL) for client in clients) > before,
        "commits become final again",
        _SETTLE_S,
    )


def _wait_for_archived(cluster: Cluster, seq: int) -> int:
    """Return ``seq`` once it is archived."""

    def question() -> bool:
        writer = cluster.find_writer()
        if writer is None:
            return False
        try:
            writer.client.wait(SHARD, seq, Level.ARCHIVED, _ARCHIVED_S)
        except BasenetError:
            return False
        return True

    cluster.until(question, f"everything up to seq {seq} is archived", _SETTLE_S)
    return seq


def _read_events(cluster: Cluster, told: Told) -> None:
    """Note what the nodes logged of the archive."""
    for node in cluster:
        for line in node.read_log().splitlines():
            try:
                logged = json.loads(line)
                event, error = logged["event"], str(logged.get("error", ""))
            except (ValueError, KeyError, TypeError):
                continue
            told.events[event] += 1
            if event in _ARCHIVE_ALARMS or (event in _ARCHIVE_FAILURES and _ALARM in error):
                told.complaints.append(f"{node.name}: {event}: {error}")
            elif event in _ARCHIVE_FAILURES:
                told.troubles[f"{event}: {error}"] += 1


def find_bugs(cluster: Cluster) -> list[str]:
    """Return what the logs tell of exceptions that nobody foresaw."""
    found: list[str] = []
    for node in cluster:
        lines = node.read_log().splitlines()
        marked = [at for at, line in enumerate(lines) if any(mark in line for mark in _BUG_MARKS)]
        if marked:
            shown = "\n".join(lines[marked[0] : marked[0] + 60])
            found.append(f"{node.log} has {len(marked)} tracebacks, the first:\n{shown}")
    return found


def say(text: str = "") -> None:
    """Print one line of the account."""
    print(text, flush=True)  # noqa: T201  (the account is what this program is for)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run parts until the time is over; exit with 1 at the first violation."""
    parser = argparse.ArgumentParser(prog="basenet-soak", description=__doc__)
    parser.add_argument("--version", action="version", version=f"basenet-soak {__version__}")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long in all [30]")
    parser.add_argument("--part", type=float, default=_PART_MINUTES, help="minutes of a part [3]")
    parser.add_argument("--seed", type=int, default=None, help="of the first part [by chance]")
    parser.add_argument(
        "--no-disks", action="store_true", help="no filesystem of their own for nodes, even as root"
    )
    parser.add_argument("--no-archive", action="store_true", help="nobody archives anything")
    parser.add_argument("--byzantine", action="store_true", help="four nodes in every part")
    parser.add_argument("--readonly", action="store_true", help="BASE_FENCE=readonly in every part")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    deadline = time.monotonic() + 60 * options.minutes
    part = 0
    while (left := deadline - time.monotonic()) > 0:
        # Every third part is a Byzantine cluster; in every fourth, files are marked read-only.
        is_byzantine = options.byzantine or part % 3 == 2  # noqa: PLR2004
        outline = Outline(
            seed=seed + part,
            seconds=min(60 * options.part, max(left, 5.0)),
            nodes=_BYZANTINE_NODES if is_byzantine else 3,
            is_byzantine=is_byzantine,
            has_disks=can_mount() and not options.no_disks,
            has_clock=find_faketime() is not None and (seed + part) % 2 == 0,
            has_archive=not options.no_archive,
            is_read_only=options.readonly or part % 4 == 1,
        )
        _play_part(outline)
        part += 1
    say(f"\n{part} parts, seeds {seed} to {seed + part - 1}: nothing was violated.")


def _play_part(outline: Outline) -> None:
    model = "byzantine" if outline.is_byzantine else "crash"
    say(
        f"\nseed {outline.seed}: {outline.nodes} nodes ({model}), {outline.seconds:.0f} s, "
        f"{'disks that fill up' if outline.has_disks else 'no disks of their own'}, "
        f"{'a clock that steps' if outline.has_clock else 'no clock that steps'}, "
        f"{'an archive' if outline.has_archive else 'no archive'}, "
        f"{'files marked read-only' if outline.is_read_only else 'files fenced by locks'}"
    )
    folder = Path(tempfile.mkdtemp(prefix=f"basenet-soak-{outline.seed}-"))
    try:
        told = play(folder, outline, lambda text: say(f"  {text}"))
    except ClusterStuck as stuck:
        say(f"FAILED: {stuck}\nfiles kept in {folder}")
        sys.exit(1)
    say(f"  {told.verdict}\n  {told.reads} reads; faults {dict(sorted(told.kinds.items()))}")
    if told.archive is not None:
        life = {event: told.events[event] for event in _ARCHIVE_EVENTS}
        say(
            f"  {told.archive}\n  beside the load {told.restores} times restored, "
            f"{told.verified} times verified; logged {life}"
        )
        for trouble, count in told.troubles.most_common():
            say(f"  {count} times {trouble}")
    for complaint in told.complaints:
        say(f"  COMPLAINT: {complaint}")
    if not told.is_good:
        say(f"FAILED: seed {outline.seed}; files kept in {folder}")
        sys.exit(1)
    shutil.rmtree(folder)
