"""Writing key files: whole or not at all, never over another, never open to others."""

import os
from pathlib import Path

import pytest

from basenet.errors import ConflictError, NotFoundError, UnavailableError, UsageError
from basenet.keys import files


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_file_is_private_and_alone(tmp_path: Path) -> None:
    """Mode 0600 under any umask, and no draft is left beside it."""
    before = os.umask(0)
    try:
        files.write_new(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert mode_of(tmp_path / "key") == 0o600
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    """The second writer is told so, the first one's bytes stay, and no draft is left."""
    files.write_new(tmp_path / "key", b"first")
    with pytest.raises(ConflictError, match="never overwritten"):
        files.write_new(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]


def test_a_crash_before_the_link_leaves_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a draft stays, which no reader takes for the key; the next writer tidies up."""

    def die(_path: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "hardlink_to", die)
        patch.setattr(Path, "unlink", lambda *_args, **_options: None)
        with pytest.raises(KeyboardInterrupt):
            files.write_new(tmp_path / "key", b"secret")
    (draft,) = tmp_path.iterdir()
    assert draft.name.startswith(".key.")
    assert mode_of(draft) == 0o600
    files.write_new(tmp_path / "key", b"other")
    files.remove_drafts(tmp_path / "key")
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]


def test_a_draft_that_another_process_tidied_up_means_that_it_won(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loser of the race is told of a conflict and not of a missing file."""
    real = Path.hardlink_to

    def lose(path: Path, draft: Path) -> None:
        draft.unlink()
        real(path, draft)

    monkeypatch.setattr(Path, "hardlink_to", lose)
    with pytest.raises(ConflictError):
        files.write_new(tmp_path / "key", b"secret")


def test_a_directory_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be written: No such file"):
        files.write_new(tmp_path / "nowhere" / "key", b"")


def test_a_replaced_file_is_whole(tmp_path: Path) -> None:
    """The new bytes and the public mode; no draft is left."""
    path = tmp_path / "trusted.keys"
    files.replace(path, b"one")
    files.replace(path, b"two")
    assert path.read_bytes() == b"two"
    assert mode_of(path) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_replacement_leaves_the_old_file(tmp_path: Path) -> None:
    """A directory in its place cannot be replaced; the draft goes."""
    (tmp_path / "name" / "inside").mkdir(parents=True)
    with pytest.raises(UnavailableError, match="cannot be written"):
        files.replace(tmp_path / "name", b"")
    assert list(tmp_path.iterdir()) == [tmp_path / "name"]


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_a_key_that_only_owner_and_group_read_is_taken(tmp_path: Path, mode: int) -> None:
    """0440 is how container platforms mount secrets."""
    path = tmp_path / "key"
    path.write_bytes(b"x")
    path.chmod(mode)
    assert files.read_file(path, what="the key", private=True) == b"x"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o620, 0o601])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    """The sentence gives the command that mends it; a public file may be read by all."""
    path = tmp_path / "key"
    path.write_bytes(b"x")
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"mode {mode:04o}.*chmod 600 {path}"):
        files.read_file(path, what="the key", private=True)
    assert files.read_file(path, what="the key") == b"x"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, a directory, far too large: three sentences with the path."""
    with pytest.raises(NotFoundError, match=f"the key {tmp_path / 'no'} does not exist"):
        files.read_file(tmp_path / "no", what="the key")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        files.read_file(tmp_path, what="the key")
    (tmp_path / "big").write_bytes(bytes(1024 * 1024 + 1))
    with pytest.raises(UsageError, match="not a key file"):
        files.read_file(tmp_path / "big", what="the key")


def test_a_private_directory_is_made_closed(tmp_path: Path) -> None:
    """Its parents keep the usual mode, and one that exists is left as it is."""
    files.make_private_directory(tmp_path / "a" / "b")
    assert mode_of(tmp_path / "a" / "b") == 0o700
    assert mode_of(tmp_path / "a") != 0o700
    (tmp_path / "a" / "b").chmod(0o750)
    files.make_private_directory(tmp_path / "a" / "b")
    assert mode_of(tmp_path / "a" / "b") == 0o750


def test_a_directory_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnavailableError, match="cannot be made"):
        files.make_private_directory(tmp_path / "file" / "inside")
    with pytest.raises(UnavailableError, match="cannot be made"):
        files.make_private_directory(tmp_path / "file")
    told = "a file has its name.*; set BASE_DATA_DIR to one that this user may write to"
    with pytest.raises(UnavailableError, match=told):
        files.make_private_directory(tmp_path / "file", setting="BASE_DATA_DIR")
