"""A copy of a journal is another journal; one that was moved is not (Q9)."""

import json
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from basenet.engine.roster import JournalPlace
from basenet.journal import identity
from basenet.journal.identity import find_place, is_copy
from basenet.journal.journal import Journal
from tests.fakes.branching import Branching
from tests.journal.replicas import begin, check_replica

PLACE = JournalPlace(device=1, inode=2, born_ns=3, machine_id="m")


@pytest.mark.parametrize(
    ("recorded", "found", "expected"),
    [
        (PLACE, PLACE, False),
        # A volume that was mounted again, in another container.
        (PLACE, replace(PLACE, device=9), False),
        (PLACE, replace(PLACE, inode=9), True),
        (PLACE, replace(PLACE, born_ns=9), True),
        (PLACE, replace(PLACE, machine_id="n"), True),
        (PLACE, replace(PLACE, machine_id="n", device=9), True),
        # Many containers have no machine id.
        (PLACE, replace(PLACE, machine_id=""), False),
        (replace(PLACE, machine_id=""), PLACE, False),
        # A file system that tells no birth times: then an inode may be the same by chance.
        (replace(PLACE, born_ns=0), replace(PLACE, born_ns=0), False),
        (replace(PLACE, born_ns=0), replace(PLACE, born_ns=0, device=9), True),
        (PLACE, replace(PLACE, born_ns=0), True),
    ],
)
def test_what_makes_a_copy(recorded: JournalPlace, found: JournalPlace, expected: bool) -> None:  # noqa: FBT001  (a parameter of the test)
    """What differs in a copy, and what may differ of one file."""
    assert is_copy(recorded, found) == expected


def test_a_file_has_a_place_of_its_own(tmp_path: Path) -> None:
    """Birth time and inode stay through renames, and no copy has both."""
    first = tmp_path / "a"
    first.write_bytes(b"content")
    before = _place(first)
    assert before.born_ns > 0
    os.utime(first, ns=(1, 1))
    first.rename(tmp_path / "b")
    (tmp_path / "b").write_bytes(b"other content")
    assert _place(tmp_path / "b") == before
    shutil.copy2(tmp_path / "b", first)
    assert is_copy(before, _place(first))


def _place(path: Path) -> JournalPlace:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return find_place(descriptor)
    finally:
        os.close(descriptor)


def test_a_journal_that_was_moved_keeps_its_id(tmp_path: Path) -> None:
    """A renamed data directory is the same one; so is the next start in place."""
    journal = begin(tmp_path / "a", Branching())
    known = journal.journal_id
    for name in ("a", "b", "c"):
        journal.close()
        if name != "a":
            (tmp_path / chr(ord(name) - 1)).rename(tmp_path / name)
        journal = Journal(tmp_path / name)
        assert (journal.journal_id, journal.copied_from) == (known, None)
        assert journal.jcount == 1
    journal.close()


def test_a_copy_takes_a_new_id_once(tmp_path: Path) -> None:
    """Its content stays; the journal that was copied goes on under its name."""
    journal = begin(tmp_path / "a", Branching())
    known = journal.journal_id
    journal.close()
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copy2)
    copy = Journal(tmp_path / "b")
    assert copy.copied_from == known
    fresh = copy.journal_id
    assert fresh != known
    check_replica(copy)
    copy.close()
    copy = Journal(tmp_path / "b")
    assert (copy.journal_id, copy.copied_from) == (fresh, None)
    copy.close()
    journal = Journal(tmp_path / "a")
    assert (journal.journal_id, journal.copied_from) == (known, None)
    journal.close()
    # A restore in place: the old content under the old name, in a new file.
    shutil.copy2(tmp_path / "b" / "journal.db", tmp_path / "journal.db")
    (tmp_path / "b" / "journal.db").unlink()
    (tmp_path / "journal.db").rename(tmp_path / "b" / "journal.db")
    again = Journal(tmp_path / "b")
    assert again.copied_from == fresh
    again.close()


def test_a_volume_that_is_mounted_again_is_no_copy(tmp_path: Path) -> None:
    """Its new device is noted."""
    journal = Journal(tmp_path)
    known = journal.journal_id
    journal.close()
    _record(journal.path, device=12345)
    journal = Journal(tmp_path)
    assert (journal.journal_id, journal.copied_from) == (known, None)
    journal.close()
    assert json.loads(_recorded(journal.path))["device"] == tmp_path.stat().st_dev


def test_another_machine_has_another_journal(tmp_path: Path) -> None:
    """From within nobody can tell a disk that moved from its clone."""
    journal = Journal(tmp_path)
    known = journal.journal_id
    journal.close()
    _record(journal.path, machine_id="another")
    journal = Journal(tmp_path)
    is_told = identity.find_place(journal._file._descriptor).machine_id != ""
    assert (journal.copied_from == known) == is_told
    journal.close()


def _recorded(path: Path) -> bytes:
    connection = sqlite3.connect(path)
    ((place,),) = connection.execute("SELECT value FROM meta WHERE key = 'place'")
    connection.close()
    assert isinstance(place, bytes)
    return place


def _record(path: Path, **changes: object) -> None:
    place = json.dumps(json.loads(_recorded(path)) | changes).encode()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'place'", (place,))
    connection.close()


def test_a_journal_takes_a_new_id_when_told(tmp_path: Path) -> None:
    """Others remember more of it than it does itself: it is a learner under another name."""
    journal = begin(tmp_path, Branching())
    known, count = journal.journal_id, journal.jcount
    fresh = journal.renew_id()
    assert fresh == journal.journal_id != known
    assert journal.jcount == count + 1
    journal.close()
    journal = Journal(tmp_path)
    assert (journal.journal_id, journal.jcount) == (fresh, count + 1)
    check_replica(journal)
    journal.close()
