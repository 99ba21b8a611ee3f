"""Whatever is wrong with an archive, verify names it, and so does a restore that uses it."""

import re
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.archive.verify import VerifyReport, verify
from basenet.errors import BasenetError
from basenet.wire.frame import Flag
from basenet.wire.segment import TreeRecord, encode_tree
from tests.archive.builder import Archive, History
from tests.fakes.chain import FIRST_NS, STEP_NS, signer
from tests.fakes.memory_store import Fault, MemoryStore

DAY_NS = 24 * 3600 * 10**9
EXAMPLES = 40


def grown(commits: int = 8, **options: Any) -> History:
    history = History(**options)
    history.commit({pgno: history.page() for pgno in range(1, 40)})
    for number in range(commits):
        history.random_commit(grow=-5 if number % 4 == 3 else 3)
    return history


def archived(history: History, *, step: int = 3) -> Archive:
    archive = Archive()
    archive.put_logs(history, step)
    archive.put_tip(history)
    return archive


def is_named(report: VerifyReport, name: str) -> bool:
    """Return whether a problem is about ``name``, also by a name that ends with a star."""
    return any(
        problem.object == name
        or (problem.object.endswith("*") and name.startswith(problem.object[:-1]))
        for problem in report.problems
    )


# An archive with everything in it, and whatever can befall one of its objects.


@dataclass(frozen=True)
class World:
    """Two services, two shards, two lineages: the objects, and how a restore of one shard goes."""

    objects: dict[str, bytes]
    history: History
    contents: bytes
    used: frozenset[str]  # what a restore of `history` reads

    @property
    def names(self) -> list[str]:
        return sorted(self.objects)

    def archive(self) -> Archive:
        archive = Archive(store=MemoryStore())
        for name, data in self.objects.items():
            archive.store.put(name, data)
        return archive


@cache
def world() -> World:
    archive = Archive()
    parent = grown()
    parent.commit({pgno: parent.page() for pgno in range(1, 50)}, run=3)
    child = History(number=2, parent=parent, parent_seq=7, seed=8)
    for _ in range(6):
        child.random_commit(grow=2)
    child.commit({pgno: child.page() for pgno in range(1, 50)}, run=3)
    archive.put_logs(parent, 2)
    archive.put_logs(child, 2)
    archive.put_set(parent, 4)
    archive.put_set(child, 10)
    archive.put_set(child, 13, inline=True)
    archive.put_tip(child)
    adopted = History(shard="other", pages={pgno: bytes([pgno]) * 512 for pgno in range(1, 40)})
    other = Archive(service="second", store=archive.store)
    for place in (archive, other):
        place.put_logs(adopted, 2)
        place.put_set(adopted, 1)
        place.put_tip(adopted)
    archive.store.put("default/app/LEASE", b"{}")
    archive.store.calls.clear()
    with tempfile.TemporaryDirectory() as folder:
        trio.run(lambda: archive.restore(child, Path(folder) / "a.db", to_seq=11))
        trio.run(lambda: archive.restore(child, Path(folder) / "b.db"))
        contents = (Path(folder) / "b.db").read_bytes()
    assert contents == child.contents()
    used = frozenset(name for method, name in archive.store.calls if method == "get")
    return World(
        objects={name: stored.data for name, stored in archive.store.objects.items()},
        history=child,
        contents=contents,
        used=used,
    )


def check_named(name: str, sentence: str) -> None:
    """Of what is not there any more only the frames are known, and not the whole name."""
    told = "missing|lost its genesis|TIP proves|" + re.escape(name.rpartition("/")[2])
    assert re.search(told, sentence), (name, sentence)


def judge(archive: Archive, name: str) -> None:
    """Check that verify names ``name``, and that no restore that reads it succeeds."""
    report = trio.run(archive.verify)
    assert is_named(report, name), report.problems
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for place, seq in (("a.db", 11), ("b.db", None)):
            archive.store.calls.clear()
            try:
                trio.run(partial(archive.restore, world().history, folder / place, to_seq=seq))
            except BasenetError as error:
                assert list(folder.iterdir()) == []
                check_named(name, str(error))
            else:
                assert ("get", name) not in archive.store.calls
                assert (folder / place).read_bytes() == world().history.contents(seq)
                (folder / place).unlink()


def test_a_sound_archive_has_no_problem() -> None:
    """All shards of all services, and the ranges that can be restored."""
    report = trio.run(world().archive().verify)
    assert report.problems == []
    assert [(shard.service, shard.shard) for shard in report.shards] == [
        ("default", "app"),
        ("default", "other"),
        ("second", "other"),
    ]
    app = report.shards[0]
    history = world().history
    assert [(found.lineage, found.first_seq, found.last_seq) for found in app.ranges] == [
        (bytes([1]) * 16, 1, 13),
        (history.lineage, 8, history.tip.head.seq),
    ]
    assert any("abandoned" in note for note in app.notes)
    assert any("LEASE" in note for note in app.notes)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_found(data: st.DataObject) -> None:
    """In any object, at any place, whatever the bit."""
    name = data.draw(st.sampled_from([n for n in world().names if not n.endswith("LEASE")]))
    archive = world().archive()
    position = data.draw(st.integers(0, len(world().objects[name]) - 1))
    archive.flip(name, position, 1 << data.draw(st.integers(0, 7)))
    judge(archive, name)


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(st.data())
def test_any_cut_or_longer_object_is_found(data: st.DataObject) -> None:
    """A truncated upload, or one with something behind it."""
    name = data.draw(st.sampled_from([n for n in world().names if not n.endswith("LEASE")]))
    archive = world().archive()
    whole = world().objects[name]
    archive.store.put(
        name,
        data.draw(
            st.integers(0, len(whole) - 1).map(lambda length: whole[:length])
            | st.binary(min_size=1, max_size=40).map(lambda more: whole + more)
        ),
    )
    judge(archive, name)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_any_swapped_object_is_found(data: st.DataObject) -> None:
    """Another true and signed object under the name: of another shard, lineage, service, role."""
    names = [n for n in world().names if not n.endswith("LEASE")]
    name = data.draw(st.sampled_from(names))
    other = data.draw(
        st.sampled_from([n for n in names if world().objects[n] != world().objects[name]])
    )
    archive = world().archive()
    archive.store.put(name, world().objects[other])
    judge(archive, name)


def test_any_deleted_object_below_the_tip_is_found() -> None:
    """All but what leaves no trace: see docs/formats/archive.md."""
    untraced = [
        "/TIP",
        "/LEASE",
        "/set/L9/00000000000000000000-00000000000000000013.lbn",  # page sets that no moment
        "/set/L9/00000000000000000000-00000000000000000010.lbn",  # depends on: the whole log
        "/set/L9/00000000000000000000-00000000000000000004.lbn",  # is there
        "/log/0000000000000000/00000000000000000013-00000000000000000013-",  # abandoned, the last
    ]
    for name in world().names:
        if any(part in name for part in untraced):
            continue
        archive = world().archive()
        archive.delete(name)
        judge(archive, name)


def test_any_object_signed_by_another_key_is_found() -> None:
    """Its content is true, its signature whole, and nobody trusts the signer."""
    stranger = signer(9)
    parent = grown()
    for harm in ("log", "set", "tip"):
        archive = archived(parent, step=4)
        archive.put_set(parent, 4)
        if harm == "log":
            name = archive.put_log(parent, 5, 8, key=stranger)
        elif harm == "set":
            name = archive.put_set(parent, 4, key=stranger)[0]
        else:
            name = archive.put_tip(parent, key=stranger)
        report = trio.run(archive.verify)
        assert {problem.object for problem in report.problems} == {name}


# What only verify can see.


async def test_a_frame_with_a_false_root_is_found_where_it_is() -> None:
    """Restore proves the target's root; verify proves that of every commit."""
    history = grown(5)
    sound = bytes(history.tree.leaves[0:32])
    history.tree.leaves[0:32] = bytes(32)
    history.tree._dirty.add(0)
    history.random_commit(touch=0)
    bad = history.tip.head.seq
    history.tree.leaves[0:32] = sound
    history.tree._dirty.add(0)
    history.random_commit(touch=0)
    archive = archived(history, step=1)
    archive.put_set(history, bad + 1)
    report = await archive.verify()
    assert [f"{bad:020d}-" in problem.object for problem in report.problems] == [True]
    assert "state root" in report.problems[0].sentence
    ranges = [(found.first_seq, found.last_seq) for found in report.shards[0].ranges]
    assert ranges == [(1, bad - 1), (bad + 1, bad + 1)]


async def test_every_frame_must_be_signed_by_its_author() -> None:
    """A restore looks at the last frame of an object, since the chain carries it; verify at all."""
    history = grown(5)
    other = grown(5)
    frame = history.frame(4)
    object.__setattr__(frame.head, "signature", other.frame(5).head.signature)
    archive = archived(history)
    report = await archive.verify()
    assert len(report.problems) == 1
    assert "frame 4 is not signed" in report.problems[0].sentence


async def test_a_wrong_tree_record_is_found() -> None:
    """It is signed, and disagrees with the frames beside it."""
    history = grown(2)
    archive = Archive()

    class Sealing(Archive):
        extra = encode_tree(TreeRecord(groups=((0, bytes(32)),)))

        def _seal(self, history: History, role: Any, records: Any, **more: Any) -> bytes:
            return super()._seal(history, role, [*records, self.extra], **more)

    Sealing(store=archive.store).put_log(history, 1, 4)
    archive.put_tip(history)
    report = await archive.verify()
    assert [problem.sentence for problem in report.problems] == [
        "its TREE record has another hash for group 0"
    ]
    right = history.tree.groups[:32]
    Sealing.extra = encode_tree(TreeRecord(groups=((0, bytes(right)),)))
    Sealing(store=archive.store).put_log(history, 1, 4)
    assert (await archive.verify()).problems == []


async def test_time_must_not_go_back_within_a_lineage() -> None:
    """--to-time depends on it (P33)."""
    history = grown(2)
    history.now_ns -= 3 * STEP_NS
    history.random_commit()
    report = await archived(history).verify()
    assert ["not later" in problem.sentence for problem in report.problems] == [True]


async def test_a_commit_of_no_commits_must_say_why() -> None:
    """0 is for RECOVERED, REGRESSED and PARTIAL only; those are in order."""
    history = grown(2)
    history.commit({1: history.page()}, flags=Flag.RECOVERED)
    assert (await archived(history).verify()).problems == []


async def test_frames_missing_below_the_tip_are_named_by_where_they_begin() -> None:
    """The newest objects were deleted: their names are not known, their numbers are."""
    history = grown(8)
    archive = Archive()
    names = archive.put_logs(history, 3)
    archive.put_tip(history)
    archive.delete(names[-1])
    report = await archive.verify()
    assert is_named(report, names[-1])
    assert "TIP proves" in report.problems[0].sentence


async def test_a_tip_of_a_lineage_that_is_gone_is_found() -> None:
    """All objects of the leaf were deleted, and the TIP was not."""
    parent = grown(4)
    child = History(number=2, parent=parent, seed=8)
    archive = archived(parent)
    archive.put_tip(child)
    report = await archive.verify()
    assert report.problems[0].object == f"default/app/{child.lineage.hex()}/*"


# Retention.


def retained(*, seq: int = 9) -> tuple[History, Archive]:
    """Return an archive as retention leaves it: genesis, a page set, the log from there."""
    history = grown(10)
    archive = Archive()
    archive.put_log(history, 1)
    archive.put_set(history, seq)
    archive.put_logs(history, 2, start=seq - 1)
    archive.put_tip(history)
    return history, archive


async def test_what_retention_deletes_is_no_problem() -> None:
    """Once the oldest page set is older than the retention; before that nobody may delete."""
    history, archive = retained()
    old_ns = history.frame(9).head.timestamp_ns + 8 * DAY_NS
    report = await archive.verify(now_ns=old_ns)
    assert report.problems == []
    assert any("retention" in note for note in report.shards[0].notes)
    assert [(found.first_seq, found.last_seq) for found in report.shards[0].ranges] == [
        (1, 1),
        (9, history.tip.head.seq),
    ]
    young = await archive.verify(now_ns=FIRST_NS + DAY_NS)
    assert "frames 2..7 are missing" in young.problems[0].sentence


async def test_what_is_deleted_while_an_archive_is_listed_was_old_by_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found by `make soak` (seed 313): the page set came of age after verify had begun."""
    history, archive = retained()
    of_age_ns = history.frame(9).head.timestamp_ns + 7 * DAY_NS

    def clock() -> int:
        """The last listing, behind the reading of the TIP, lasts until then."""
        return of_age_ns if archive.store.count("list") > 1 else of_age_ns - 1

    monkeypatch.setattr("basenet.archive.verify.time.time_ns", clock)
    report = await verify(archive.store, trusted=frozenset({signer(1).public}))
    assert report.problems == []


async def test_a_gap_above_the_oldest_page_set_is_never_retention() -> None:
    """However old it is: the moments there are kept."""
    history, archive = retained()
    above = next(name for name in archive.store.objects if "/00000000000000000010-" in name)
    archive.delete(above)
    report = await archive.verify(now_ns=history.tip.head.timestamp_ns + 8 * DAY_NS)
    assert is_named(report, above)


async def test_a_retired_lineage_is_no_problem() -> None:
    """Once its child has a page set older than the retention, only the genesis of it stays."""
    parent = grown(6)
    parent.hand_over(2)
    handed_over = parent.tip.head.seq
    parent.random_commit()
    child = History(number=2, parent=parent, seed=8, key=2)
    for _ in range(5):
        child.random_commit()
    archive = Archive()
    archive.put_log(parent, 1)
    archive.put_log(parent, handed_over)
    archive.put_log(child, child.start)
    base = child.start + 2
    archive.put_set(child, base)
    archive.put_logs(child, 2, start=base + 1)
    archive.put_tip(child)
    old_ns = child.tip.head.timestamp_ns + 8 * DAY_NS
    report = await archive.verify(now_ns=old_ns)
    assert report.problems == []
    assert [(found.lineage, found.last_seq) for found in report.shards[0].ranges] == [
        (parent.lineage, 1),
        (child.lineage, child.tip.head.seq),
    ]
    young = await archive.verify()
    assert "are missing" in young.problems[0].sentence


async def test_a_shard_that_cannot_be_restored_at_all_is_a_problem() -> None:
    """Its database existed before its first frame, and there is no page set."""
    history = History(pages={1: bytes(512)})
    history.random_commit()
    report = await archived(history).verify()
    assert ["nothing of lineage" in problem.sentence for problem in report.problems] == [True]


async def test_a_gap_that_retention_leaves_may_end_among_abandoned_frames() -> None:
    """A CONFIG above the seq at which a retired lineage was left stays, and all before it goes."""
    parent = History(pages={1: bytes(512)})
    for _ in range(6):
        parent.random_commit()
    parent.hand_over(2)
    abandoned = parent.tip.head.seq
    child = History(number=2, parent=parent, parent_seq=4, seed=8)
    for _ in range(5):
        child.random_commit()
    archive = Archive()
    archive.put_log(parent, 1)
    archive.put_log(parent, abandoned)
    archive.put_log(child, child.start)
    base = child.start + 2
    archive.put_set(child, base)
    archive.put_logs(child, 2, start=base + 1)
    archive.put_tip(child)
    report = await archive.verify(now_ns=parent.tip.head.timestamp_ns + 8 * DAY_NS)
    assert report.problems == []
    young = await archive.verify(now_ns=FIRST_NS + DAY_NS)
    assert "are missing" in young.problems[0].sentence
    # A frame that the kept moments need is missed as ever.
    archive.delete(archive.put_log(child, base + 1, base + 2))
    report = await archive.verify(now_ns=parent.tip.head.timestamp_ns + 8 * DAY_NS)
    assert f"frames {base + 1}..{base + 2} are missing" in report.problems[0].sentence


async def test_a_page_set_may_stand_at_a_config_that_votes_its_author_out() -> None:
    """Verify and restore ask for the author's standing before that frame."""
    history = grown(3)
    history.hand_over(2)
    at = history.tip.head.seq
    history.random_commit()
    archive = archived(history)
    archive.put_set(history, at, key=signer(2))
    assert (await archive.verify()).problems == []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.db"
        report = await archive.restore(history, out)
        assert report.page_sets
        assert out.read_bytes() == history.contents()


async def test_what_a_broken_off_snapshot_leaves_is_a_note_and_a_needed_manifest_is_not() -> None:
    """Without frames that only the manifest makes up for, nobody misses it."""
    history = grown(10)
    archive = archived(history)
    manifest, index, *_ = archive.put_set(history, 5)
    archive.put_set(history, 9)
    archive.delete(manifest)
    report = await archive.verify()
    assert report.problems == []
    assert any(index in note and "broken off" in note for note in report.shards[0].notes)
    history, archive = retained()
    manifest = next(name for name in archive.store.objects if name.endswith("00009.lbn"))
    archive.delete(manifest)
    report = await archive.verify(now_ns=history.tip.head.timestamp_ns + 8 * DAY_NS)
    assert is_named(report, manifest)


# Objects that are none of ours, or not yet.


async def test_strangers_and_leftovers_are_notes() -> None:
    """A stray file, a part that no page set names, an old log object, a snapshot in the making."""
    history = grown(5)
    archive = archived(history)
    archive.store.put("README.txt", b"?")
    archive.store.put("default/app/what", b"?")
    archive.store.put(f"default/app/{'00' * 8}/{1:020d}-{5:020d}.lbn", b"?")
    written = archive.put_set(history, history.tip.head.seq)
    archive.delete(written[0])
    report = await archive.verify()
    assert report.problems == []
    assert any("README.txt" in note for note in report.notes)
    notes = "\n".join(report.shards[0].notes)
    assert "default/app/what is no object" in notes
    assert "1 parts" in notes
    assert "a snapshot is being written" in notes


async def test_orphaned_frames_are_notes() -> None:
    """Of a writer whose lease was taken over: verified, listed, and no problem (P24)."""
    history, zombie = grown(4), grown(4)
    zombie.rng.seed(5)
    for chain in (history, zombie):
        for _ in range(6):
            chain.random_commit()
    archive = Archive()
    archive.put_logs(zombie, 3)
    archive.put_set(zombie, 9)
    for seq in range(7, history.tip.head.seq + 1):
        archive.put_log(history, seq, archive_epoch=2)
    archive.put_tip(history, archive_epoch=2)
    report = await archive.verify()
    assert report.problems == []
    notes = "\n".join(report.shards[0].notes)
    assert "are orphaned" in notes
    assert "stands on orphaned frames" in notes


async def test_two_histories_under_one_epoch_are_a_problem() -> None:
    """And the rest of the shard is not blamed for it twice."""
    history, other = grown(4), grown(4)
    other.rng.seed(5)
    for chain in (history, other):
        chain.random_commit()
    archive = archived(history, step=1)
    archive.put_log(other, 5, other.tip.head.seq)
    report = await archive.verify()
    assert any("two histories" in problem.sentence for problem in report.problems)


async def test_an_untrusted_forced_child_is_a_problem() -> None:
    """Nobody follows it by itself; with its key in the trusted keys it is in order."""
    parent = grown(4)
    child = History(number=2, parent=parent, key=2, is_forced=True, seed=8)
    child.random_commit()
    archive = archived(parent)
    names = archive.put_logs(child)
    report = await archive.verify()
    assert {problem.object for problem in report.problems} == set(names)
    assert (await archive.verify(keys=[signer(1), signer(2)])).problems == []


async def test_an_object_that_vanishes_while_it_is_read_is_looked_for_again() -> None:
    """Retention works beside us: the shard is listed and verified once more."""
    history = grown(6)
    archive = archived(history)
    name = archive.put_set(history, 4)[0]
    gone: list[str] = []

    def fate(method: str, called: str) -> Fault | None:
        if method == "get" and called == name and not gone:
            gone.append(name)
            for stored in [n for n in archive.store.objects if "/set/" in n or "/part/" in n]:
                archive.delete(stored)
        return None

    archive.store.fate = fate
    report = await archive.verify()
    assert gone == [name]
    assert report.problems == []


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
async def test_histories_of_every_page_size_are_verified(page_size: int) -> None:
    """With a page set after the page size changed, too."""
    history = grown(3, page_size=page_size)
    history.repage(page_size // 2 if page_size > 512 else 1024, 30)
    history.random_commit(grow=4)
    archive = archived(history)
    archive.put_set(history, history.tip.head.seq)
    report = await archive.verify()
    assert report.problems == []
    assert report.shards[0].frames == history.tip.head.seq
