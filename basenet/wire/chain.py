"""The rules between frames: what may follow what.

Theory of operation
===================

A frame that is well formed and rightly signed can still be in the wrong place. `frame.check_link`
compares two neighbours' heads. Here stand the rules that need the payloads::

    genesis ── COMMIT ── PARTIAL ── PARTIAL ── COMMIT ── CONFIG ── COMMIT ──
                         └──────── one run ────────┘

*The genesis* of a lineage names itself: its prev_hash binds it to its own payload, its seq is 1, or
that of its parent's frame plus 1, and a child starts from its parent's state (Q4).

*A run* is one transaction in several frames: all but the last are PARTIAL. Page numbers ascend
strictly over the whole run; page_size, db_pages and the other flags are the same in each of its
frames; no CONFIG stands inside it (Q21).

*The page size* of a database with pages changes only in a RECOVERED frame, or run, that carries all
pages. *A database grows* only by pages that the frame, or run, carries, the lock page excepted: so
a reader never makes more room than bytes came in. *Commits* are 0 only in a frame that is PARTIAL,
RECOVERED or REGRESSED.
"""

from dataclasses import dataclass, replace

from basenet.errors import ChainBroken
from basenet.units import lock_page
from basenet.wire.frame import Flag, Head, Kind, genesis_prev_hash
from basenet.wire.payload import CommitPayload, CommitSummary, ConfigPayload, encode_config


def check_genesis(head: Head, config: ConfigPayload, parent: Head | None) -> None:
    """Raise `ChainBroken` unless ``head`` is the genesis of the lineage that ``config`` founds.

    ``config`` is the decoded payload of ``head``'s frame. ``parent`` is the head of the frame that
    ``config.parent`` names; None when it names none, or when the parent is not at hand: then only
    the genesis itself is checked.
    """
    _, parent_seq, parent_hash = config.parent or (b"", 0, b"")
    name = f"frame {head.seq} of {head.shard!r}"
    if head.kind != Kind.CONFIG or head.prev_hash != genesis_prev_hash(encode_config(config)):
        raise ChainBroken(f"{name} is no genesis: its prev_hash is not that of its own content")
    if head.seq != parent_seq + 1:
        raise ChainBroken(f"{name} is a genesis that should stand at {parent_seq + 1}")
    if parent is None:
        return
    if (parent.shard, parent.seq, parent.hash) != (head.shard, parent_seq, parent_hash):
        raise ChainBroken(
            f"{name} continues {parent_hash.hex() or 'nothing'} at {parent_seq}, not frame "
            f"{parent.seq} of {parent.shard!r}: two histories are mixed"
        )
    if parent.state_root != head.state_root:
        raise ChainBroken(f"{name} is a genesis that starts from another state than its parent's")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """The frames of one transaction so far: what they have in common, and what they carry.

    ``pages``: all of them; ``new_pages``: those beyond the database's end before the run.
    """

    flags: Flag
    page_size: int
    db_pages: int
    pgno_last: int = 0
    pages: int = 0
    new_pages: int = 0


class CommitRules:
    """Judges each frame of a lineage by the frames before it, in order.

    ``page_size`` and ``db_pages`` are what the lineage has so far, in bytes and in pages; 0 before
    its first page. A refused frame changes nothing.
    """

    __slots__ = ("_run", "db_pages", "page_size")

    def __init__(self, page_size: int, db_pages: int) -> None:
        self.page_size = page_size
        self.db_pages = db_pages
        self._run: _Run | None = None

    @property
    def is_run_open(self) -> bool:
        """Whether the last frame was PARTIAL, so that the state is not that of any moment."""
        return self._run is not None

    def accept_config(self, head: Head) -> None:
        """Take in a CONFIG frame; raise `ChainBroken` if it stands inside a run."""
        if self._run is not None:
            raise ChainBroken(
                f"frame {head.seq} of {head.shard!r} is a CONFIG inside a PARTIAL run"
            )

    def accept_commit(self, head: Head, commit: CommitPayload | CommitSummary) -> None:
        """Take in a COMMIT frame; raise `ChainBroken` if it breaks a rule."""
        problem = _commit_contradiction(head.flags, commit, self._run)
        run = self._extend_run(head, commit)
        is_last = not head.flags & Flag.PARTIAL
        if problem is None and self.db_pages and commit.page_size != self.page_size:
            problem = _resize_contradiction(run, is_last=is_last)
        elif problem is None and is_last:
            problem = _growth_contradiction(run, self.db_pages)
        if problem is not None:
            raise ChainBroken(f"frame {head.seq} of {head.shard!r} {problem}")
        self._run = None if is_last else run
        if is_last:
            self.page_size, self.db_pages = run.page_size, run.db_pages

    def _extend_run(self, head: Head, commit: CommitPayload | CommitSummary) -> _Run:
        """Return the open run, or a new one, with ``commit`` in it."""
        run = self._run or _Run(
            flags=head.flags & ~Flag.PARTIAL, page_size=commit.page_size, db_pages=commit.db_pages
        )
        pgnos = commit.pgnos
        if len(pgnos) == 0:
            return run
        old_pages = int(pgnos.searchsorted(self.db_pages, side="right"))
        return replace(
            run,
            pgno_last=int(pgnos[-1]),
            pages=run.pages + len(pgnos),
            new_pages=run.new_pages + len(pgnos) - old_pages,
        )


def _commit_contradiction(
    flags: Flag, commit: CommitPayload | CommitSummary, run: _Run | None
) -> str | None:
    """Return what is wrong with ``commit`` alone or in its ``run``, or None."""
    if commit.commits == 0 and not flags:
        return "holds no commit, and no flag says why"
    if run is None:
        return None
    facts = (flags & ~Flag.PARTIAL, commit.page_size, commit.db_pages)
    if facts != (run.flags, run.page_size, run.db_pages):
        return "has other flags, page size or database size than the PARTIAL run it belongs to"
    if len(commit.pgnos) and commit.pgnos[0] <= run.pgno_last:
        return f"repeats page {commit.pgnos[0]} of the PARTIAL run it belongs to"
    return None


def _resize_contradiction(run: _Run, *, is_last: bool) -> str | None:
    """Return why the page size may not change by ``run``, or None."""
    if not run.flags & Flag.RECOVERED:
        return f"changes the page size to {run.page_size}, which only a RECOVERED frame may"
    expected = run.db_pages - (lock_page(run.page_size) <= run.db_pages)
    if is_last and run.pages != expected:
        return f"changes the page size but carries {run.pages} of {expected} pages"
    return None


def _growth_contradiction(run: _Run, before: int) -> str | None:
    """Return which pages a database of ``before`` pages would miss after ``run``, or None."""
    expected = run.db_pages - before - (before < lock_page(run.page_size) <= run.db_pages)
    if run.new_pages < expected:
        return (
            f"makes {run.db_pages} of {before} pages but carries {run.new_pages} of the "
            f"{expected} new ones"
        )
    return None
