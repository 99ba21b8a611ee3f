"""Adopting a state: a final place that is proven, where the frames below it are gone.

Theory of operation
===================

Frames that everybody has archived or applied are pruned, so a node that was away too long, a
learner or a new voter cannot be told the history. It gets a *state* instead: the head of a final
frame, the certificate of that frame, and the CONFIGs from the genesis with theirs, which together
prove the head's root (`wire.finality`); the pages are then checked against that root, whoever sent
them. `adopt` says what this does to the ballot, and docs/protocol.md (11.6 to 11.14) why it is
safe. In short: what is final only moves up; what was promised in the same epoch stands; nothing is
voted for.

::

    what I know final       what I voted for
          |                       v
    ---- 50 ---- 51' ---- .... 60'         kept: 60' is not above the state, nobody asks for it
          ?
         ... (pruned) ... 200 ---- 201     the state is 200; 201 was held before, and is kept
                           ^ final now

**Who asks for frames that are gone.** A replica answers a `SyncRequest`, a `Need` or a message of
an older epoch with `ServeFinal(to, above_height)`. If the driver's frame log no longer has the
frame ``above_height + 1``, it sends no frame at all, but an offer of its newest whole final state
that it can serve pages for, with the ``above_height`` that it answers. Whoever gets an offer

1. drops it unless it is proven and above its own ``ballot.final``;
2. asks its sender once more with `SyncRequest(epoch, ballot.final.height)` if the offer answers for
   less than ``ballot.final.height``: the sender did not know how far it is (it may only have seen
   a message of an older epoch), and may well have the frames that are really missing;
3. else adopts it. There is no need to wait for more: an offer is as good as its proof.

**What the driver does to adopt**, in this order; a crash between two of them starts again at 1,
from what the journal then says:

1. The application is fenced, and what it committed is captured. Fetch and verify the leaf hashes
   of the state; nothing has changed so far, and the old replica may go on meanwhile.
2. Throw the old replica away. Everything that this node's application committed above the last
   final frame that it knew (`undecided`, and all that waits for a frame) goes into a bundle, which
   is durable before anything else. It is not orphaned, but *undecided*: the frames that would tell
   are gone, so these commits may be in the state already, or lost. (An archive that still has the
   frames between can tell; the bundle stays either way.)
3. In one journal transaction: the ballot that `adopt` returns, the head (and record) of the state,
   its leaf hashes, the certificate, the CONFIG in force; the log begins anew above it. Frames that
   are held above the state stay (`kept_heads`): somebody may hold a certificate for one of them
   (docs/protocol.md 2.7). The database's place is none, until it is mended.
4. Make a new `Replica` from the journal, with the same lane of heartbeats. ``heads``: the state's
   head and `kept_heads`. ``database``: `NOWHERE` while the file is not mended. ``local_last``: the
   last local number in a frame or a bundle. Then `boot`, as ever.
5. Mend the file by content, page by page, from whoever has a page with the wanted hash, until it is
   the state exactly; `Finalize`d frames wait behind it and are applied after it. Then step the
   replica with `Applied`. A voter votes meanwhile: judging roots takes leaf hashes, not the file.

The replica neither reads nor needs anything of the database below its final frame; it will not let
the application write before `Applied` has reached the tip.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from basenet.engine.ballot import GENESIS_VIEW, Ballot, begin_epoch
from basenet.engine.liveness import Member
from basenet.errors import ConflictError, PeerError
from basenet.units import FrameHash, Seq, View
from basenet.wire.certificate import Certificate
from basenet.wire.finality import Electors
from basenet.wire.frame import Head, Kind
from basenet.wire.message import Mark

NOWHERE: Final = (Seq(0), FrameHash(b""))
"""The place of a database that is no frame's state, since it is being mended."""


def adopt(
    ballot: Ballot | None,
    *,
    me: Member,
    electors: Electors,
    head: Head,
    certificate: Certificate | None,
) -> Ballot:
    """Return the ballot after a state was taken over: at ``head``, or ``ballot`` if it is no news.

    ``ballot``: None where this journal never kept one of the lineage; then it has never voted.
    ``electors``: who decided about ``head`` (`wire.finality.verify_line`), and ``certificate`` what
    makes it final, both verified; None where one voter decides. A CONFIG is taken over as the
    start of the epoch that it begins: ``head`` is then ``electors.head``, and ``certificate`` is of
    the epoch before, or the consent to a genesis.

    Raises `PeerError` when ``head`` is no state of that epoch, and `ConflictError` when the state
    contradicts what is final here, or when this node is the only voter: its history cannot go on
    elsewhere, so this journal is an old copy.
    """
    final = place_of(electors, head, certificate)
    genesis = Mark(GENESIS_VIEW, electors.head.seq, electors.head.hash)
    if ballot is None or ballot.epoch < electors.epoch:
        ballot = begin_epoch(electors.config, electors.epoch, genesis)
    elif not is_news(ballot, electors, final):
        return ballot
    ballot = _move(ballot, max(ballot.view, final.view), final, certificate)
    if not _may_have_led(ballot, me):
        return ballot
    if len(ballot.config.voters) == 1:
        raise ConflictError(
            f"frame {final.height} is final beyond the journal of its only voter: this journal is "
            "an old copy; give the node the newest one, or an empty data directory"
        )
    return _move(ballot, ballot.view + 1, final, certificate)


def is_news(ballot: Ballot, electors: Electors, final: Mark) -> bool:
    """Return whether a state at ``final`` says more than ``ballot``.

    Raises `ConflictError` if another frame is final here at the same height of the epoch.
    """
    if ballot.epoch != electors.epoch:
        return ballot.epoch < electors.epoch
    known = ballot.final
    if known.height == final.height and known.hash != final.hash:
        raise ConflictError(
            f"two final frames at height {known.height}: {known.hash.hex()} here, and "
            f"{final.hash.hex()} elsewhere; more voters failed than the CONFIG allows for"
        )
    return final.height > known.height


def place_of(electors: Electors, head: Head, certificate: Certificate | None) -> Mark:
    """Return the final place that a state gives, with the view that made it final.

    Raises `PeerError` for a frame that is no state of the epoch in which ``electors`` decide.
    """
    if head.hash == electors.head.hash:
        return Mark(GENESIS_VIEW, head.seq, head.hash)
    if head.epoch != electors.epoch or head.kind == Kind.CONFIG or head.is_partial:
        raise PeerError(
            f"frame {head.seq} is no state of epoch {electors.epoch}: it is of another epoch, ends "
            "this one, or is inside a run"
        )
    return Mark(head.view if certificate is None else certificate.view, head.seq, head.hash)


def kept_heads(ballot: Ballot, head: Head, held: Iterable[Head]) -> tuple[Head, ...]:
    """Return what of the frames ``held`` stays after ``ballot`` took over ``head``, ascending.

    Frames of the epoch above the state: any of them may be certified (2.7). No others may be.
    """
    kept = (one for one in held if one.epoch == ballot.epoch and one.seq > head.seq)
    return tuple(sorted(kept, key=lambda one: one.seq))


def undecided(
    ballot: Ballot | None, database: tuple[Seq, FrameHash], head_of: Callable[[FrameHash], Head]
) -> tuple[Head, ...]:
    """Return the un-final frames in the database of this node, ascending, before it adopts.

    ``ballot``: before. ``database``: the frame that the file holds. ``head_of`` a frame above what
    is final. Which of them became final cannot be told: the bundle keeps all of them.
    """
    heads: list[Head] = []
    height, digest = database
    while ballot is not None and height > ballot.final.height:
        heads.append(head_of(digest))
        height, digest = Seq(height - 1), heads[-1].prev_hash
    return tuple(reversed(heads))


def _move(ballot: Ballot, view: int, final: Mark, certificate: Certificate | None) -> Ballot:
    """Return the ballot in ``view`` with ``final``; a view is entered without a vote in it."""
    is_later = view > ballot.view
    return replace(
        ballot,
        view=View(view),
        vstart=None if is_later else ballot.vstart,
        anchor=None if is_later else ballot.anchor,
        justification=None if is_later else ballot.justification,
        final=final,
        certificate=certificate,
        refused=tuple(one for one in ballot.refused if one.height > final.height),
    )


def _may_have_led(ballot: Ballot, me: Member) -> bool:
    """Return whether this node led the ballot's view, as far as can be told.

    A leader that lacks frames which its own view made final, or which it voted for itself, does
    not know what it proposed: it must neither start that view nor go on in it (12.3).
    """
    voters = ballot.config.voters
    leader = voters[ballot.view % len(voters)]
    if (leader.key, leader.journal_id) != me:
        return False
    return ballot.view in (ballot.final.view, ballot.voted.view if ballot.voted else None)
