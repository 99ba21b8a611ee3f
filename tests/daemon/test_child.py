"""The application as our child."""

import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
import trio

from basenet.daemon.child import PASSED_ON, Child
from basenet.errors import NotFoundError, UsageError

WAIT_S = 20
ENVIRONMENT = {"PATH": os.environ["PATH"]}


def python(code: str, *arguments: str) -> str:
    return shlex.join([sys.executable, "-c", code, *arguments])


async def wait(child: Child) -> int:
    with trio.fail_after(WAIT_S):
        return await child.wait()


@pytest.mark.parametrize("code", [0, 1, 42, 255])
async def test_the_exit_code_is_the_applications(code: int) -> None:
    """Whoever starts us sees what it would have seen without us."""
    child = await Child.start(f"sh -c 'exit {code}'", ENVIRONMENT)
    assert await wait(child) == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_child_that_a_signal_ended_is_told_as_a_shell_does(number: signal.Signals) -> None:
    """128 and the signal's number."""
    child = await Child.start(f"sh -c 'kill -{int(number)} $$'", ENVIRONMENT)
    assert await wait(child) == 128 + number


async def test_a_signal_is_passed_on(tmp_path: Path) -> None:
    """The child handles it by itself; what we are sent for it, it gets."""
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))\n"
        "open(sys.argv[1], 'w').close()\n"
        "while True: signal.pause()"
    )
    assert signal.SIGUSR1 in PASSED_ON
    child = await Child.start(python(code, str(fifo)), ENVIRONMENT)
    await trio.to_thread.run_sync(fifo.read_bytes)
    child.send(signal.SIGUSR1)
    assert await wait(child) == 7


async def test_a_signal_to_a_child_that_is_gone_is_harmless() -> None:
    """Its number may be another process's by now, so nothing is sent."""
    child = await Child.start("true", ENVIRONMENT)
    assert await wait(child) == 0
    child.send(signal.SIGTERM)
    assert await wait(child) == 0


async def test_words_are_split_as_a_shell_does_and_not_expanded(tmp_path: Path) -> None:
    """Quotes hold words together; $, * and ; mean nothing. The environment is the given one."""
    code = "import os, sys; print(sys.argv[2:], dict(os.environ)['A'], file=open(sys.argv[1], 'w'))"
    words = f"{python(code, str(tmp_path / 'out'))} 'a b' $HOME '*' ';'"
    child = await Child.start(words, {**ENVIRONMENT, "A": "given"})
    assert await wait(child) == 0
    assert (tmp_path / "out").read_text() == "['a b', '$HOME', '*', ';'] given\n"


@pytest.mark.parametrize(
    ("command", "error", "sentence"),
    [
        ("", UsageError, "--exec is empty"),
        ("  ", UsageError, "--exec is empty"),
        ("sh -c 'x", UsageError, "cannot be split into words"),
        ("no-such-program-here --x", NotFoundError, "'no-such-program-here' cannot be started: No"),
        ("/", NotFoundError, "'/' cannot be started: Permission denied"),
    ],
)
async def test_a_command_that_cannot_be_started_is_said_in_one_sentence(
    command: str, error: type[Exception], sentence: str
) -> None:
    """With the word that is wrong, before anything runs."""
    with pytest.raises(error, match=sentence):
        await Child.start(command, ENVIRONMENT)
