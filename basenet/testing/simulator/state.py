"""A toy database: its content is the list of its commits, its state root a hash over them.

A commit is a number that no other commit of the run has. A payload is a list of them::

    (kind u8 | commit u64)*      kind 0: a commit, or the last part of a big one; 1: another part

So a root can be computed as fast as a hash, and a wrong one can be told.
"""

from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from struct import Struct
from typing import Final

from basenet.units import ZERO_HASH, StateRoot
from basenet.wire.frame import Frame, Kind

EMPTY_ROOT: Final = StateRoot(sha256(b"an empty toy database").digest())
_WHOLE: Final = 0
_PART: Final = 1
_ENTRY: Final = Struct(">BQ")


def encode_commits(commits: list[int]) -> bytes:
    """Return the payload of a frame with these whole commits (or the last part of a big one)."""
    return b"".join(_ENTRY.pack(_WHOLE, commit) for commit in commits)


def encode_part(commit: int) -> bytes:
    """Return the payload of a PARTIAL frame of ``commit``."""
    return _ENTRY.pack(_PART, commit)


def commits_of(frame: Frame) -> tuple[int, ...]:
    """Return the commits that are complete with ``frame``."""
    return _commits_in(frame.payload) if frame.head.kind == Kind.COMMIT else ()


@lru_cache(maxsize=1 << 16)
def _commits_in(payload: bytes) -> tuple[int, ...]:
    return tuple(commit for kind, commit in _ENTRY.iter_unpack(payload) if kind == _WHOLE)


def root_after(root: StateRoot, commits: Iterable[int]) -> StateRoot:
    """Return the root of a database with ``root`` after more ``commits``."""
    for commit in commits:
        root = StateRoot(sha256(root + commit.to_bytes(8)).digest())
    return root


def expected_root(root: StateRoot, frame: Frame) -> StateRoot:
    """Return the root that ``frame`` must carry on a database with ``root``; zeros in a PARTIAL."""
    if frame.head.is_partial:
        return StateRoot(ZERO_HASH)
    return root_after(root, commits_of(frame))


def wrong_root(root: StateRoot) -> StateRoot:
    """Return another root than ``root``."""
    return StateRoot(sha256(b"wrong" + root).digest())
