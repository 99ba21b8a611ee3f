"""How `basenet serve` becomes the guardian, and how the guardian starts `basenet serve` again.

An exec and not a function call: what has been imported for the command line is several times the
size of a guardian.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from basenet.guardian.protocol import GUARDIAN_FD


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Return whether this process, told to serve, is to be the guardian.

    Looks at BASE_NETWORK alone: whether the rest can be used is the daemon's to say.
    """
    is_cluster = environment.get("BASE_NETWORK", "").strip().lower() == "quasar"
    return is_cluster and GUARDIAN_FD not in environment


def become_guardian(words: Sequence[str], command: str | None) -> NoReturn:
    """Replace this process by the guardian of a daemon that serves ``words``."""
    option = [] if command is None else [f"--exec={command}"]
    line = [*_interpreter(), "-m", "basenet.guardian", *option, "--", *words]
    # Until the guardian listens, a wish to end waits.
    signal.pthread_sigmask(
        signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(line[0], line)  # noqa: S606  (no shell is wanted)


def daemon_words(words: Sequence[str]) -> list[str]:
    """Return the command line of a daemon that serves ``words``."""
    return [*_interpreter(), "-m", "basenet", "serve", "--", *words]


def module_words(module: str) -> list[str]:
    """Return the command line of a child process that runs ``module`` of basenet."""
    return [*_interpreter(), "-m", module]


def _interpreter() -> list[str]:
    """Return the interpreter, with the present directory searched for modules only if it is now."""
    is_searched = bool(sys.path) and sys.path[0] in ("", os.getcwd())  # noqa: PTH109
    isolated = ["-I"] if sys.flags.isolated else []
    return [sys.executable, *isolated, *([] if is_searched else ["-P"])]
