"""What the daemon must do after a step, in the order listed."""

from dataclasses import dataclass

from basenet.units import LocalNumber
from basenet.wire.frame import Frame, Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Make ``frame`` durable in the journal, with its range of local numbers; then `Stored`."""

    frame: Frame
    local_first: LocalNumber
    local_last: LocalNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalize:
    """The frame ``head`` is final: archive it, show it, wake who waits for it."""

    head: Head


Effect = Persist | Finalize
