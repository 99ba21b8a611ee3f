"""Why a view starts where it does: a quorum of promises, and the highest thing among them.

Theory of operation
===================

A NewView for view w is the promise never to vote below w again, and says the highest thing that its
sender accepted before: ``high``. Whatever became final below w was accepted by a quorum, and every
quorum of NewViews has one of those in it, so the highest ``high`` extends everything final. That is
the *anchor*, and nobody votes in w for a chain that does not go through it.

In the crash mode ``high`` is the sender's word. In the Byzantine mode it comes with the certificate
that proves it.

*Refusals bend* (crash mode, Q8). When so many voters promised never to vote for a frame that no
quorum is left for it, it never became and never becomes final. A ``high`` through that frame then
counts as one for the frame's parent: never less, since the vote for it was also one for everything
below, and that may be final. A node that does not hold the branch cannot tell, and asks for it.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple

from basenet.engine.ballot import FIRST_VIEW, GENESIS_VIEW
from basenet.engine.quorum import is_certified, mark_of
from basenet.engine.state import State
from basenet.units import ZERO_HASH, FrameHash, PublicKeyBytes, Seq, View
from basenet.wire.certificate import (
    COMMIT,
    PREPARE,
    Certificate,
    encode_certificate,
    is_ascending,
)
from basenet.wire.message import Justification, Mark, NewView, Refuse


class Missing(NamedTuple):
    """A branch that must be held before a justification can be judged."""

    height: Seq
    hash: FrameHash


def proof_hash(proof: Certificate | None) -> bytes:
    """Return what a NewView signs of its proof."""
    return ZERO_HASH if proof is None else sha256(encode_certificate(proof)).digest()


def new_view_bytes(state: State, view: View, high: Mark, proof: Certificate | None) -> bytes:
    """Return what a NewView of this epoch signs."""
    return state.scope.new_view(
        state.epoch, view, high.view, high.height, high.hash, proof_hash(proof)
    )


def is_new_view_valid(state: State, message: NewView) -> bool:
    """Return whether a voter of this epoch signed it and its high is what it may be."""
    high, proof = message.high, message.proof
    if message.sender not in state.electorate.journals or message.epoch != state.epoch:
        return False
    is_genesis = high.view == GENESIS_VIEW
    is_encodable = proof is None or is_ascending(proof)
    if high.view >= message.view or (is_genesis and high != state.genesis) or not is_encodable:
        return False
    data = new_view_bytes(state, message.view, high, proof)
    if not state.verify(message.sender, message.signature, data):
        return False
    if is_genesis or not state.electorate.is_byzantine:
        return proof is None
    return (
        proof is not None
        and proof.epoch == state.epoch
        and proof.phase in (PREPARE, COMMIT)
        and mark_of(proof) == high
        and is_certified(proof, state.scope, state.electorate, state.verify)
    )


def is_refusal_valid(state: State, message: Refuse) -> bool:
    """Return whether a voter of this epoch signed the promise."""
    return (
        message.epoch == state.epoch
        and message.sender in state.electorate.journals
        and state.verify(
            message.sender,
            message.signature,
            state.scope.refuse(message.epoch, message.height, message.hash),
        )
    )


def dead_hashes(state: State, refusals: Iterable[Refuse]) -> set[FrameHash]:
    """Return the frames that so many voters refused that no quorum is left; all valid."""
    refusers: dict[FrameHash, set[PublicKeyBytes]] = {}
    for one in refusals:
        refusers.setdefault(one.hash, set()).add(one.sender)
    blocking = state.electorate.blocking
    return {digest for digest, voters in refusers.items() if len(voters) >= blocking}


def bend(state: State, high: Mark, dead: set[FrameHash]) -> Mark | Missing:
    """Return what ``high`` counts as when ``dead`` never become final.

    The parent of the lowest dead frame; of its run's first frame when the parent is inside a run.
    """
    bent = high
    digest, height = high.hash, high.height
    is_bending = False
    while dead and height > state.final.height:
        head = state.tree.heads.get(digest)
        if head is None:
            return Missing(high.height, high.hash)
        if is_bending and not head.is_partial:
            bent = Mark(high.view, height, digest)
            is_bending = False
        is_bending = is_bending or digest in dead
        height, digest = Seq(height - 1), head.prev_hash
    # What is final is never inside a run.
    return Mark(high.view, height, digest) if is_bending else bent


def highest(
    state: State, new_views: Iterable[NewView], refusals: Iterable[Refuse]
) -> Mark | Missing:
    """Return the anchor that these promises give; all of them valid."""
    dead = dead_hashes(state, refusals)
    best: Mark | None = None
    for message in new_views:
        bent = bend(state, message.high, dead)
        if isinstance(bent, Missing):
            return bent
        if best is None or (bent.view, bent.height) > (best.view, best.height):
            best = bent
    assert best is not None, "an anchor of no promises"
    return best


def judge(
    state: State, view: int, anchor: Mark, justification: Justification | None
) -> bool | Missing:
    """Return whether ``view`` may start at ``anchor``, or what must be held to know."""
    if view == FIRST_VIEW:
        return justification is None and anchor == state.genesis
    if justification is None:
        return False
    new_views, refusals = justification.new_views, justification.refusals
    senders = {one.sender for one in new_views}
    if len(senders) != len(new_views) or len(senders) < state.electorate.quorum:
        return False
    if any(one.view != view or not is_new_view_valid(state, one) for one in new_views):
        return False
    is_bendable = not refusals or not state.electorate.is_byzantine
    if not is_bendable or not all(is_refusal_valid(state, one) for one in refusals):
        return False
    found = highest(state, new_views, refusals)
    return found if isinstance(found, Missing) else found == anchor
