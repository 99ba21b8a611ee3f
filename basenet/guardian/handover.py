"""What the guardian hands to itself when it is exec'd anew: an upgrade in place.

The locks are on open file descriptions, which live as long as a descriptor of theirs is open, and
an exec keeps those without the close-on-exec flag. So nothing opens in between; the new program
only has to be told which descriptor is what. That is text in a memory file, one fact a line::

    basenet guardian 1
    ready                                   the daemon served before
    application PID
    fence DATABASE SHM locked|replaced PATH the path in hexadecimal

A line that begins with a word that it does not know is an error: the new program says so to a trial
before the old one ends (`is_readable`).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from basenet.guardian.fence import Fence, FenceState

VERSION: Final = 1
# The memory file's descriptor; and, for a trial, the version that the old program will write.
STATE_FD: Final = "BASENET_GUARDIAN_STATE"
TRIAL: Final = "BASENET_GUARDIAN_TRIAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What outlives the exec."""

    was_ready: bool
    application: int | None
    fences: tuple[Fence, ...]

    def encode(self) -> str:
        """Return the lines."""
        lines = [f"basenet guardian {VERSION}"]
        lines += ["ready"] if self.was_ready else []
        lines += [f"application {self.application}"] if self.application is not None else []
        for fence in self.fences:
            database, shm = fence.descriptors()
            state = "replaced" if fence.state is FenceState.REPLACED else "locked"
            lines.append(f"fence {database} {shm} {state} {os.fsencode(fence.path).hex()}")
        return "\n".join(lines) + "\n"

    @classmethod
    def decode(cls, text: str) -> "Handover":
        """Return what `encode` wrote; raises `ValueError` for anything else."""
        head, *lines = text.splitlines()
        if head != f"basenet guardian {VERSION}":
            raise ValueError(f"{head!r} is not a state that this guardian can read")
        was_ready, application, fences = False, None, []
        for line in lines:
            word, *rest = line.split(" ")
            if word == "ready":
                was_ready = True
            elif word == "application":
                application = int(rest[0])
            elif word == "fence":
                fences.append(_decode_fence(*rest))
            else:
                raise ValueError(f"{word!r} is not a fact that this guardian knows")
        return cls(was_ready=was_ready, application=application, fences=tuple(fences))

    def descriptors(self) -> tuple[int, ...]:
        """Return the descriptors that must survive the exec."""
        return tuple(each for fence in self.fences for each in fence.descriptors())

    def save(self) -> int:
        """Return a descriptor of a memory file with the lines, for `load` after an exec."""
        descriptor = os.memfd_create("basenet-guardian", 0)
        rest = memoryview(self.encode().encode())
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor


def _decode_fence(database: str, shm: str, state: str, path: str) -> Fence:
    return Fence(
        Path(os.fsdecode(bytes.fromhex(path))),
        database=int(database),
        shm=int(shm),
        state=FenceState.REPLACED if state == "replaced" else FenceState.CLOSING,
    )


def load(descriptor: int) -> Handover:
    """Return what was saved in ``descriptor``, which is closed; descriptors close on exec again."""
    with os.fdopen(descriptor) as file:
        handover = Handover.decode(file.read())
    set_inheritable(handover.descriptors(), is_inheritable=False)
    return handover


def set_inheritable(descriptors: Iterable[int], *, is_inheritable: bool) -> None:
    """Let descriptors survive an exec, or not."""
    for descriptor in descriptors:
        os.set_inheritable(descriptor, is_inheritable)


def is_readable(version: str) -> bool:
    """Return whether this program reads what one of the handover version ``version`` writes."""
    return version == str(VERSION)
