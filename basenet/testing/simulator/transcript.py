"""A run as text that a human can read from top to bottom."""

from collections.abc import Callable
from typing import Any, Final

from basenet.engine.effects import Finalize, Persist
from basenet.engine.events import FinalReceived, FramesCaptured, FramesReceived, Received
from basenet.testing.simulator.clock import MILLISECOND
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Head
from basenet.wire.message import Heartbeat, HeartbeatAck, Mark

_SHORT = 6


def line(now: int, who: str, what: str, about: object) -> str:
    """Return one line of a transcript."""
    text = "" if about is None else " " + tell(about)
    return f"{now / MILLISECOND:11.3f} {who:>5} {what}{text}"


def tell(about: Any) -> str:
    """Return a fact in a few words: hashes short, the inside of frames left out."""
    teller = _TELLERS.get(type(about))
    return _tell_fields(about) if teller is None else teller(about)


def _tell_frames(event: FramesReceived | FinalReceived) -> str:
    certificate = event.certificate if isinstance(event, FinalReceived) else None
    shown = f" under {tell(certificate)}" if certificate else ""
    return f"{type(event).__name__} {_range([frame.head for frame in event.frames])}{shown}"


def _tell_final(effect: Finalize) -> str:
    return f"{_range(effect.heads)} own {effect.is_own} under {tell(effect.certificate)}"


def _tell_certificate(certificate: Certificate) -> str:
    return (
        f"certificate phase {certificate.phase} of {certificate.epoch}/{certificate.view} for "
        f"{certificate.height} {_short(certificate.hash)} by {len(certificate.votes)}"
    )


def _tell_persist(effect: Persist) -> str:
    parts = []
    if effect.own:
        parts.append(f"own {_range([own.frame.head for own in effect.own])}")
    if effect.frames:
        parts.append(f"frames {_range([frame.head for frame in effect.frames])}")
    ballot = effect.ballot
    if ballot is not None:
        parts.append(
            f"ballot {ballot.epoch}/{ballot.view} voted {tell(ballot.voted)} "
            f"final {tell(ballot.final)}"
        )
    return "; ".join(parts)


def _tell_fields(about: Any) -> str:
    names = getattr(about, "__struct_fields__", None) or getattr(about, "__dataclass_fields__", ())
    if not names:
        return str(about)
    hidden = ("signature", "justification", "sender")
    shown = [f"{name} {tell(getattr(about, name))}" for name in names if name not in hidden]
    return f"{type(about).__name__} {', '.join(shown)}"


def _range(heads: Any) -> str:
    def place(head: Head) -> str:
        return f"{head.seq} {_short(head.hash)}"

    if len(heads) == 1:
        return f"{place(heads[0])} of {heads[0].epoch}/{heads[0].view}"
    return f"{place(heads[0])} .. {place(heads[-1])} of {heads[-1].epoch}/{heads[-1].view}"


def _short(value: bytes) -> str:
    return value.hex()[:_SHORT]


def printer(write: Callable[[str], object]) -> Callable[[int, str, str, object], None]:
    """Return a transcript that writes its lines to ``write``."""

    def take(now: int, who: str, what: str, about: object) -> None:
        write(line(now, who, what, about) + "\n")

    return take


_TELLERS: Final[dict[type, Callable[[Any], str]]] = {
    Received: lambda event: tell(event.message),
    FramesReceived: _tell_frames,
    FinalReceived: _tell_frames,
    FramesCaptured: lambda event: f"FramesCaptured {len(event.frames)}",
    Persist: _tell_persist,
    Finalize: _tell_final,
    Certificate: _tell_certificate,
    Mark: lambda mark: f"[{mark.view} {mark.height} {_short(mark.hash)}]",
    Heartbeat: lambda beat: f"Heartbeat {beat.number}",
    HeartbeatAck: lambda ack: f"HeartbeatAck {ack.number}",
    bytes: _short,
    tuple: lambda facts: f"({', '.join(map(tell, facts))})",
}
