"""What a restore would read, decided from names and a handful of objects."""

from typing import Any

import pytest

from basenet.archive.catalog import Catalog, make_catalog
from basenet.archive.facts import make_log_facts, open_log, open_set, open_tip
from basenet.archive.plan import Book, Needs, Plan, Wish, make_plan
from basenet.archive.port import Entry
from basenet.errors import CorruptionError, NotFoundError, PageSetCorrupt, UsageError
from basenet.units import Lineage, Seq
from tests.archive.builder import Archive, History
from tests.fakes.chain import signer

TRUSTED = frozenset({signer(1).public})


def list_catalog(archive: Archive, history: History) -> Catalog:
    names = archive.names(history)
    stored = sorted(archive.store.objects.items())
    entries = [Entry(name=name, size=len(found.data)) for name, found in stored]
    return make_catalog(names, [entry for entry in entries if entry.name.startswith(names.prefix)])


def plan(archive: Archive, history: History, **wish: Any) -> tuple[Plan, list[str]]:
    """Return the plan, and the objects that were needed to make it, in order."""
    catalog, book = list_catalog(archive, history), Book()
    needed: list[str] = []
    while True:
        found = make_plan(catalog, book, Wish(**wish), TRUSTED)
        if isinstance(found, Plan):
            return found, needed
        assert isinstance(found, Needs)
        for item in found.logs:
            needed.append(item.name)
            segment = open_log(
                archive.store.objects[item.name].data, item.name, item.log, catalog.names
            )
            book.logs[item.name] = make_log_facts(segment, item.name, item.log)
        for manifest in found.sets:
            needed.append(manifest.name)
            data = archive.store.objects[manifest.name].data
            book.sets[manifest.name] = open_set(data, manifest.name, manifest.set, catalog.names)
        if found.tip:
            needed.append(catalog.names.tip)
            book.tip = open_tip(archive.store.objects[catalog.names.tip].data, catalog.names)


def made(commits: int = 10, step: int = 2) -> tuple[History, Archive, list[str]]:
    history = History()
    for _ in range(commits):
        history.random_commit(grow=2)
    archive = Archive()
    names = archive.put_logs(history, step)
    archive.put_tip(history)
    return history, archive, names


def spans(found: Plan) -> list[tuple[int, int]]:
    return [(span.first, span.last) for span in found.spans]


def test_latest_needs_three_objects_to_plan() -> None:
    """The genesis, the TIP and the last log object, however long the log is."""
    history, archive, names = made(40)
    found, needed = plan(archive, history)
    assert sorted(needed) == sorted([names[0], "default/app/TIP", names[-1]])
    assert found.target.seq == 41
    assert found.base is None
    assert found.object_count == len(names)
    assert found.stored_bytes == sum(len(archive.store.objects[name].data) for name in names)


def test_the_newest_page_set_below_the_target_is_the_base() -> None:
    """One above it is of no use, and frames up to it are not read again."""
    history, archive, _ = made()
    for seq in (3, 6, 9):
        archive.put_set(history, seq)
    found, _ = plan(archive, history, to_seq=Seq(8))
    assert found.base is not None
    assert found.base.item.set.to_seq == 6
    assert spans(found) == [(7, 8)]
    assert [entry.name.endswith(".pg") for entry in found.base.parts] == [True]
    found, _ = plan(archive, history, to_seq=Seq(6))
    assert spans(found) == []
    found, _ = plan(archive, history, to_seq=Seq(2))
    assert found.base is None


def test_a_past_seq_needs_no_tip() -> None:
    """What was archived once does not depend on how far the archive went on."""
    history, archive, names = made()
    archive.flip("default/app/TIP", 50, 1)
    found, needed = plan(archive, history, to_seq=Seq(5))
    assert found.tip is None
    assert needed == [names[0], names[2]]


@pytest.mark.parametrize("missing", ["idx", "pg"])
def test_a_page_set_that_lacks_something_is_refused_from_the_listing(missing: str) -> None:
    """It is named before anything else is read."""
    history, archive, _ = made()
    name = next(n for n in archive.put_set(history, 6) if n.endswith(missing))
    archive.delete(name)
    with pytest.raises(PageSetCorrupt, match=name):
        plan(archive, history)
    plan(archive, history, to_seq=Seq(5))


def test_a_part_of_another_size_is_refused_from_the_listing() -> None:
    """A truncated upload shows before it is fetched."""
    history, archive, _ = made()
    name = archive.put_set(history, 6)[-1]
    archive.store.put(name, archive.store.objects[name].data[:-1])
    with pytest.raises(PageSetCorrupt, match=name):
        plan(archive, history)


def test_a_seq_is_counted_from_one() -> None:
    """0 is "no frame yet"."""
    history, archive, _ = made()
    with pytest.raises(UsageError, match="counts from 1"):
        plan(archive, history, to_seq=Seq(0))


def test_a_lineage_that_is_not_there_is_not_found() -> None:
    """And neither is anything in an empty shard."""
    history, archive, _ = made()
    with pytest.raises(NotFoundError, match="07" * 16):
        plan(archive, history, lineage=Lineage(b"\x07" * 16))
    empty = Archive()
    empty.store.put("default/app/LEASE", b"")
    with pytest.raises(NotFoundError, match="nothing to restore"):
        plan(empty, history)


def test_a_lost_genesis_leaves_only_the_choice_by_name() -> None:
    """Nothing says whom the lineage continues; from its page set it can still be restored."""
    history, archive, names = made()
    archive.put_set(history, 4)
    archive.delete(names[0])
    with pytest.raises(CorruptionError, match="lost its genesis"):
        plan(archive, history)
    found, _ = plan(archive, history, lineage=history.lineage)
    assert found.target.seq == 11
    assert found.standing.voters is None


def test_a_parent_that_is_gone_ends_the_line() -> None:
    """A child with a page set of its own needs its parent no more."""
    parent, _, _ = made()
    child = History(number=2, parent=parent, seed=8)
    for _ in range(4):
        child.random_commit()
    archive = Archive()
    archive.put_logs(child, 2)
    archive.put_tip(child)
    with pytest.raises(CorruptionError, match="no page set"):
        plan(archive, child)
    archive.put_set(child, child.start + 2)
    found, _ = plan(archive, child)
    assert [reach.lineage for reach in found.line] == [child.lineage]


def test_the_line_of_configs_is_read_only_if_there_was_one() -> None:
    """The epoch in the page set's head says whether the CONFIG is still that of the genesis."""
    history, archive, names = made()
    base = archive.put_set(history, 10)[0]
    _, needed = plan(archive, history)
    assert sorted(needed) == sorted([names[0], "default/app/TIP", names[-1], base])

    history.hand_over(2)
    history.random_commit()
    handed_over = Archive()
    names = handed_over.put_logs(history, 2)
    base = handed_over.put_set(history, history.tip.head.seq)[0]
    handed_over.put_tip(history)
    found, needed = plan(handed_over, history)
    assert sorted(needed) == sorted([*names, "default/app/TIP", base])
    assert found.standing.voters == frozenset({signer(2).public})
    assert found.standing.believed == {signer(1).public, signer(2).public}


def test_the_plan_does_not_depend_on_the_order_of_the_listing() -> None:
    """A catalog sorts; a store may list as it likes."""
    history, archive, _ = made()
    archive.put_set(history, 5)
    found, _ = plan(archive, history)
    names = archive.names(history)
    entries = list(list_catalog(archive, history).entries)
    shuffled = make_catalog(names, reversed(entries))
    assert shuffled.lineages == make_catalog(names, entries).lineages
    assert spans(found) == [(6, 6), (7, 8), (9, 10), (11, 11)]
