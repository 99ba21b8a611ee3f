"""What a voter must never forget: the durable facts of the protocol, in one value.

The whole value is persisted in one transaction (with the frames that it speaks of, where there are
new ones), so that a crash leaves either all of a step or nothing of it.
"""

from dataclasses import dataclass, replace
from typing import Final

from basenet.units import Epoch, Seq, View
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Head, Kind
from basenet.wire.message import Justification, Mark, Refuse
from basenet.wire.payload import ConfigPayload

FIRST_EPOCH: Final = Epoch(1)
FIRST_VIEW: Final = View(0)
GENESIS_VIEW: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """The durable state of one shard's replica in one epoch.

    ``config``: who votes. ``genesis``: the final CONFIG frame that the epoch starts from, with
    view -1. ``view``: never voted in below it. ``voted``: the end of the last first-phase vote and
    its view. ``vstart``: the height of the first vote in ``view``; None before it. ``anchor``:
    where ``view`` starts, fixed by the first valid message of its leader, and
    ``justification``: why.
    ``prepared``: the highest PREPARE certificate (Byzantine mode). ``final``: the highest final
    place; ``certificate``: the votes for it, None where one voter is enough. At a genesis that is
    the certificate of the epoch before, so that its last frame is never without one on disk.
    ``refused``: this node's own promises never to vote for these (Q8).
    """

    config: ConfigPayload
    epoch: Epoch
    genesis: Mark
    view: View
    voted: Mark | None
    vstart: Seq | None
    anchor: Mark | None
    justification: Justification | None
    prepared: Certificate | None
    final: Mark
    certificate: Certificate | None
    refused: tuple[Refuse, ...]


def begin_epoch(
    config: ConfigPayload, epoch: Epoch, genesis: Mark, certificate: Certificate | None = None
) -> Ballot:
    """Return the ballot of an epoch in which nothing has happened yet; ``genesis`` is final.

    ``certificate``: what made it final in the epoch before, None for the first epoch.
    """
    return Ballot(
        config=config,
        epoch=epoch,
        genesis=genesis,
        view=FIRST_VIEW,
        voted=None,
        vstart=None,
        anchor=None,
        justification=None,
        prepared=None,
        final=genesis,
        certificate=certificate,
        refused=(),
    )


def continue_alone(config: ConfigPayload, tip: Head) -> Ballot:
    """Return the ballot of a shard with one voter, from its last whole frame.

    Nothing but that frame is needed: all that one voter stored is final, and it votes for nothing
    else. ``config`` is the one in force.
    """
    assert len(config.voters) == 1, "more voters have more to remember than their frames"
    genesis = Mark(GENESIS_VIEW, tip.seq, tip.hash)
    is_new_epoch = tip.kind == Kind.CONFIG and tip.seq != first_seq(config)
    if is_new_epoch:
        return begin_epoch(config, Epoch(tip.epoch + 1), genesis)
    place = Mark(tip.view, tip.seq, tip.hash)
    return replace(
        begin_epoch(config, tip.epoch, genesis),
        view=tip.view,
        voted=place,
        vstart=tip.seq,
        anchor=genesis,
        final=place,
    )


def first_seq(config: ConfigPayload) -> Seq:
    """Return where the lineage of ``config`` begins: at 1, or after its parent's frame."""
    return Seq(1 if config.parent is None else config.parent[1] + 1)
