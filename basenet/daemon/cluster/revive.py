"""An orphan bundle becomes a database again: the kept state with the bundle's frames on it.

Theory of operation
===================

A bundle holds the pages that its commits changed, not the database. To see them as an application
would, their *base* is needed: the whole database at the kept place. Where that comes from is not
trusted; what it is, is computed: its state root must be the kept one, or nothing is made. And what
is made must have the state root that the last whole frame was signed with. So a revived database is
exactly what stood in the file before it was rolled back, or it is not written.

A run of PARTIAL frames at the end, whose last frame is missing, was no transaction and is left out.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from basenet.daemon.cluster.orphans import Bundle
from basenet.errors import ConflictError, CorruptionError, UnavailableError
from basenet.units import MIB, PAGE_SIZE_MAX, PAGE_SIZE_MIN, Seq, is_page_size
from basenet.wire.frame import Flag, Frame, Head, Kind
from basenet.wire.merkle import (
    StateTree,
    leaf_hash,
    leaf_hashes,
    normalised_first_page,
    root_of_groups,
)
from basenet.wire.payload import decode_commit

_BLOCK_BYTES: Final = 4 * MIB
_PAGE_SIZE_OFFSET: Final = 16
_HEADER_BYTES: Final = 100
_CODE_OF_64_KIB: Final = 1
_PAGE_SIZES: Final = 8  # 512 to 65536, each the double of the one before


def read_state(path: Path) -> StateTree:
    """Return the page hashes of the database file ``path``, which nobody changes and has no log.

    Raises `CorruptionError` if it is no database, `UnavailableError` if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
            page_size = int.from_bytes(head[_PAGE_SIZE_OFFSET : _PAGE_SIZE_OFFSET + 2], "big")
            page_size = PAGE_SIZE_MAX if page_size == _CODE_OF_64_KIB else page_size
            size = os.fstat(file.fileno()).st_size
            if not size:
                return StateTree(0)
            if not is_page_size(page_size) or size % page_size:
                raise CorruptionError(f"{path} is no SQLite database of whole pages.")
            file.seek(0)
            leaves = bytearray()
            first = 1
            while block := file.read(_BLOCK_BYTES):
                leaves += leaf_hashes(first, block, page_size)
                first += len(block) // page_size
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read: {error.strerror}.") from error
    return StateTree(page_size, leaves)


def is_born_empty(bundle: Bundle) -> bool:
    """Return whether there was no database yet at the kept place, so that none is needed."""
    sizes = (0, *(PAGE_SIZE_MIN << shift for shift in range(_PAGE_SIZES)))
    return bundle.facts.kept_root in {root_of_groups(size, 0, b"") for size in sizes}


def check_base(bundle: Bundle, tree: StateTree, base: str) -> None:
    """Raise `ConflictError` unless ``tree`` is the state at the kept place; ``base`` names it."""
    facts = bundle.facts
    if not tree.db_pages and is_born_empty(bundle):
        return
    if tree.root() != facts.kept_root:
        raise ConflictError(
            f"{base} is not shard {facts.shard} at seq {facts.kept_seq}, on which the bundle "
            "stands: give a copy of that moment as --base, or the archive's URL, from which it is "
            "restored."
        )


def revive(bundle: Bundle, draft: Path, tree: StateTree) -> Head | None:
    """Put the bundle's frames onto ``draft``, the database whose page hashes ``tree`` are.

    Returns the head of the last frame whose state it now is; None when the bundle changes nothing.
    Raises `CorruptionError` when the result is not what that frame was signed with.
    """
    last: Head | None = None
    try:
        with draft.open("r+b") as file:
            for run in whole_runs(bundle):
                if run[-1].head.kind == Kind.COMMIT:
                    tree = _apply(run, file.fileno(), tree)
                last = run[-1].head
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UnavailableError(f"{draft} cannot be written: {error.strerror}.") from error
    if last is not None and tree.root() != last.state_root:
        raise CorruptionError(
            f"the frames of {bundle.path} do not lead to the state that frame {last.seq} was "
            "signed with: nothing was made of them."
        )
    return last


def whole_runs(bundle: Bundle) -> Iterator[list[Frame]]:
    """Yield the bundle's transactions, each as its frames; an unfinished one is left out."""
    run: list[Frame] = []
    for frame in bundle.frames():
        run.append(frame)
        if not frame.head.flags & Flag.PARTIAL:
            yield run
            run = []


def last_whole_seq(bundle: Bundle) -> Seq:
    """Return the seq of the last frame that ends a transaction; the kept seq if none does."""
    whole = [head.seq for head in bundle.heads if not head.is_partial]
    return whole[-1] if whole else bundle.facts.kept_seq


def _apply(run: list[Frame], file: int, tree: StateTree) -> StateTree:
    """Write the pages of one transaction, and return the tree with them."""
    pgnos: list[int] = []
    hashes: list[bytes] = []
    for frame in run:
        commit = decode_commit(frame.payload)
        size = commit.page_size
        if size != tree.page_size:
            # Only a run with all pages may change it: it is a database from the start.
            os.ftruncate(file, 0)
            tree = StateTree(size)
        for index, pgno in enumerate(commit.pgnos.tolist()):
            page = commit.page(index)
            # Page 1 says that the database is in WAL mode, as it was and as it is hashed.
            content = normalised_first_page(page) if pgno == 1 else page
            os.pwrite(file, content, (pgno - 1) * size)
            pgnos.append(pgno)
            hashes.append(leaf_hash(pgno, page))
    tree.update(pgnos, hashes, commit.db_pages)
    os.ftruncate(file, tree.db_pages * tree.page_size)
    return tree
