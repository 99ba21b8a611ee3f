"""What a node's journal can hand to one that is behind: the final history in certified pieces."""

from collections.abc import Iterator
from itertools import groupby
from typing import Final

from basenet.engine.events import FinalReceived
from basenet.testing.simulator.disk import Disk
from basenet.units import PublicKeyBytes, Seq
from basenet.wire.frame import Frame

_FRAMES_MAX: Final = 400


def final_pieces(disk: Disk, sender: PublicKeyBytes, above: Seq) -> Iterator[FinalReceived]:
    """Yield the history above ``above``: a piece for each epoch, with what certifies its end.

    Where no certificate stands in an epoch, its only voter's own frames need none.
    """
    if Seq(above + 1) not in disk.history:
        return
    top = min(disk.ballot.final.height, above + _FRAMES_MAX)
    while top > above and disk.frames[disk.history[Seq(top)]].head.is_partial:
        top += 1
    heights = (Seq(height) for height in range(above + 1, top + 1))
    frames = [disk.frames[disk.history[height]] for height in heights if height in disk.history]
    for _, group in groupby(frames, key=_epoch_of):
        piece = list(group)
        certified = [
            index for index, frame in enumerate(piece) if frame.head.seq in disk.certificates
        ]
        if certified:
            piece = piece[: certified[-1] + 1]
        certificate = disk.certificates.get(piece[-1].head.seq)
        yield FinalReceived(sender=sender, frames=tuple(piece), certificate=certificate)


def _epoch_of(frame: Frame) -> int:
    return frame.head.epoch
