"""Which file system holds a path, what its type says, and whether locks can be seen there."""

import os
from pathlib import Path

import pytest

from basenet.errors import UnavailableError, UsageError
from basenet.sqlite import filesystem
from basenet.sqlite.filesystem import (
    LockVisibility,
    Mount,
    Verdict,
    find_mount,
    inspect,
    judge,
    locks_visible_across_processes,
    parse_mountinfo,
    require_usable,
)

MOUNTINFO = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
36 27 0:40 / /srv/my\040data rw,noatime master:1 shared:7 - nfs4 server:/export\134x rw,vers=4.2
37 27 0:41 / /srv/my\040data/inner rw - xfs /dev/vdb rw
38 27 0:42 / /mnt/ro ro,nosuid - ext4 /dev/vdc rw
39 27 0:43 / /mnt/tab\011é rw - cifs //nas/share rw
broken line
40 27 0:44 / /data rw - ext4 /dev/vdd rw
41 27 0:45 / /data rw - fuse.sshfs host:/ rw
"""


def mounts() -> list[Mount]:
    return parse_mountinfo(MOUNTINFO)


def test_mountinfo_is_parsed_with_its_escapes_and_optional_fields() -> None:
    """Blanks, tabs and backslashes in names are octal; 0 to n optional fields stand before `-`."""
    by_point = {mount.point: mount for mount in mounts()}
    assert len(mounts()) == 8, "a line that is not understood is no mount"
    nfs = by_point["/srv/my data"]
    assert (nfs.kind, nfs.source, nfs.device) == ("nfs4", "server:/export\\x", os.makedev(0, 40))
    assert by_point["/mnt/tab\té"].kind == "cifs"
    assert by_point["/mnt/ro"].is_read_only
    assert not by_point["/"].is_read_only


@pytest.mark.parametrize(
    ("path", "minor", "kind"),
    [
        ("/srv/my data/a.db", 40, "nfs4"),
        ("/srv/my data/inner/a.db", 41, "xfs"),
        ("/srv/my datafile", 0, "ext4"),
        ("/srv/my data", 40, "nfs4"),
        ("/data/a.db", 45, "fuse.sshfs"),
        ("/home/a.db", 77, "ext4"),
    ],
)
def test_the_longest_prefix_wins_and_of_equals_the_last(path: str, minor: int, kind: str) -> None:
    """Prefixes end at a slash; mounted twice, the later one hides the earlier."""
    mount = find_mount(path, os.makedev(0, minor), mounts())
    assert mount is not None
    assert mount.kind == kind


def test_a_mount_hidden_below_a_later_one_is_told_apart_by_its_device() -> None:
    """/data was mounted over a tree that had a mount of its own deeper down."""
    hidden = parse_mountinfo(
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        "2 1 8:2 / /data/deep rw - nfs server:/x rw\n"
        "3 1 8:3 / /data rw - xfs /dev/b rw\n"
    )
    mount = find_mount("/data/deep/a.db", os.makedev(8, 3), hidden)
    assert mount is not None
    assert mount.kind == "xfs"


def test_without_a_list_of_mounts_there_is_no_answer() -> None:
    """Not Linux, or no /proc: the caller says unknown."""
    assert find_mount("/a", 1, []) is None


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "cifs", "smb3", "9p", "vboxsf", "fuse.sshfs", "fuse.glusterfs", "fuse",
     "ceph", "lustre", "afs", "fuse.gcsfuse", "fakeowner"],
)  # fmt: skip
def test_network_and_imitated_file_systems_are_unsafe(kind: str) -> None:
    """Two hosts, or a host and its guest, would not see each other's locks."""
    verdict, reason = judge(kind)
    assert verdict is Verdict.UNSAFE
    assert reason


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "f2fs", "apfs", "fuseblk"])
def test_local_file_systems_are_safe(kind: str) -> None:
    """A block device with a driver in user space is a local one, too."""
    assert judge(kind) == (Verdict.SAFE, "")


def test_an_unsafe_file_system_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence names the file, the mount, its type and the way out."""
    list_of_mounts = tmp_path / "mountinfo"
    list_of_mounts.write_text("1 0 0:1 / / rw - nfs4 server:/x rw\n")
    monkeypatch.setattr(filesystem, "_MOUNTINFO", list_of_mounts)
    with pytest.raises(UsageError, match=r"a\.db lies on /, a nfs4 file system.*local disk$"):
        require_usable(tmp_path / "a.db")


def test_a_read_only_mount_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite cannot make its -wal there."""
    really = os.statvfs(tmp_path)
    fields = (*really[:8], os.ST_RDONLY, really.f_namemax)
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(fields))
    with pytest.raises(UsageError, match="mounted read-only"):
        require_usable(tmp_path / "a.db")


def test_facts_of_a_path_that_does_not_exist_are_those_of_its_nearest_parent(
    tmp_path: Path,
) -> None:
    """A database created later lies where its directory will be."""
    here, later = inspect(tmp_path), inspect(tmp_path / "not" / "yet" / "a.db")
    assert (here.point, here.kind) == (later.point, later.kind)
    assert 0 < later.free_bytes <= later.total_bytes
    assert require_usable(tmp_path / "a.db").verdict is not Verdict.UNSAFE


def test_a_symlink_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    """SQLite, too, keeps -wal beside the real file."""
    (tmp_path / "link").symlink_to("/proc/self")
    assert inspect(tmp_path / "link").kind == "proc"


def test_locks_and_shared_memory_are_seen_across_processes_on_a_local_disk(tmp_path: Path) -> None:
    """Another process's POSIX and OFD locks are shown and exclude; nothing is left behind."""
    seen = locks_visible_across_processes(tmp_path)
    assert seen == LockVisibility(posix=True, ofd=True, shared_memory=True)
    assert seen.is_good
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    """-wal and -shm could not be made there either."""
    with pytest.raises(UsageError, match="no file can be made in"):
        locks_visible_across_processes(tmp_path / "missing")


def test_a_second_process_that_cannot_lock_is_reported_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without byte-range locks answers the child with an error."""
    monkeypatch.setattr(filesystem, "_CHILD", "raise OSError('No locks available')")
    with pytest.raises(UnavailableError, match="No locks available"):
        locks_visible_across_processes(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_locks_that_are_not_seen_are_facts_not_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process that only pretends: every view is False, and doctor says what that means."""
    pretend = "import sys; print('ready', flush=True); sys.stdin.read()"
    monkeypatch.setattr(filesystem, "_CHILD", pretend)
    assert not locks_visible_across_processes(tmp_path).is_good
