"""The entry point: lazy commands, one sentence and an exit code for what goes wrong."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from basenet.cli import main as program
from basenet.errors import (
    BasenetError,
    ConflictError,
    CorruptionError,
    NotFoundError,
    UnavailableError,
    UsageError,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> "type[Raising]":
    """A subcommand that raises what a test gives it, in place of `version`."""
    monkeypatch.setattr(
        program.LazyGroup, "get_command", lambda *_args: click.Command("x", callback=Raising.go)
    )
    return Raising


class Raising:
    error: BaseException | None = None
    result: int | None = None

    @classmethod
    def go(cls) -> int | None:
        if cls.error is not None:
            raise cls.error
        return cls.result


def run_raising(raising: type[Raising], error: BaseException | None) -> int:
    raising.error = error
    return program.run(["version"])


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (UnavailableError("the store is away; try again"), 1),
        (CorruptionError("object x is torn; restore it"), 1),
        (UsageError("BASE_X is wrong; write y"), 2),
        (NotFoundError("shard x does not exist"), 3),
        (ConflictError("shard x belongs to b"), 4),
    ],
)
def test_an_error_of_ours_is_one_sentence_and_its_code(
    raising: type[Raising],
    capsys: pytest.CaptureFixture[str],
    error: BasenetError,
    exit_code: int,
) -> None:
    """Nothing on standard output, no traceback."""
    assert run_raising(raising, error) == exit_code
    assert capsys.readouterr() == ("", f"basenet: {error}\n")


def test_errors_of_concurrent_tasks_are_told_once_each(
    raising: type[Raising], capsys: pytest.CaptureFixture[str]
) -> None:
    """However deep trio wrapped them; the graver code is the exit code."""
    inner = ExceptionGroup("tasks", [ConflictError("b holds it"), UnavailableError("away")])
    group = ExceptionGroup("nursery", [UnavailableError("away"), inner])
    assert run_raising(raising, group) == 4
    assert capsys.readouterr().err == "basenet: away\nbasenet: b holds it\n"


def test_a_bug_keeps_its_traceback(raising: type[Raising]) -> None:
    """Alone or beside errors of ours, it is never made into a sentence."""
    with pytest.raises(ZeroDivisionError):
        run_raising(raising, ZeroDivisionError())
    group = ExceptionGroup("tasks", [UsageError("x"), ZeroDivisionError()])
    with pytest.raises(ExceptionGroup) as caught:
        run_raising(raising, group)
    assert caught.value is group


def test_an_interrupt_is_130_and_says_nothing_more(
    raising: type[Raising], capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (
        KeyboardInterrupt(),
        BaseExceptionGroup("tasks", [KeyboardInterrupt(), UsageError("x")]),
    ):
        assert run_raising(raising, error) == 130
        assert capsys.readouterr().err.strip() == ""


def test_a_command_gives_its_own_code(raising: type[Raising]) -> None:
    """What it returns is the exit code; nothing is 0."""
    raising.error = None
    for result, exit_code in [(None, 0), (0, 0), (7, 7)]:
        raising.result = result
        assert program.run(["version"]) == exit_code
    raising.result = None


def test_main_exits_with_the_code() -> None:
    with pytest.raises(SystemExit) as caught:
        program.main(["no-such-command"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "arguments", [["nope"], ["--nope"], ["version", "--nope"], ["version", "x"]]
)
def test_a_wrong_command_line_is_one_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, the wrong word, and the help to ask for."""
    assert program.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("basenet: ")
    assert err.count("\n") == 1
    assert "--help`)" in err
    assert arguments[-1] in err


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error and with code 2: nothing was done."""
    assert program.run([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_the_help_lists_every_command_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of use, each with its line."""
    assert program.run(["--help"]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n  {name} ") for name in program.COMMANDS]
    assert places == sorted(places)
    for line in program.COMMANDS.values():
        assert line in text


@pytest.mark.parametrize("name", program.COMMANDS)
def test_every_command_shows_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each one of the table exists, loads and says how it is used."""
    assert program.run([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: basenet {name}")


def test_one_command_does_not_load_the_others() -> None:
    """Listing and `version` stay quick: nothing of the daemon is imported for them."""
    code = (
        "import sys; from basenet.cli.main import run\n"
        "assert run(['--help']) == run(['--version']) == run(['version']) == 0\n"
        "print([m for m in ('trio', 'numpy', 'cryptography', 'boto3', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_program_does_not_run_without_assertions() -> None:
    """Under python -O the guards of users' data would be gone."""
    done = subprocess.run(
        [sys.executable, "-O", ROOT / "cmd" / "basenet", "version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("basenet: assertions are switched off")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["version"], ["--help"]])
def test_a_full_standard_output_is_one_sentence(arguments: list[str]) -> None:
    """What was asked for did not arrive, and whoever redirected it must hear of it."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "basenet", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "basenet: standard output cannot be written (No space left on device)\n"


_IN_A_TASK = """
import trio, sys
from basenet.cli import main as program
import click

async def tell():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, click.echo, "an event")

@click.command()
def command():
    trio.run(tell)

program.cli = command
program.main([])
"""


@pytest.mark.parametrize("words", [["-m", "basenet", "version"], ["-c", _IN_A_TASK]])
def test_a_reader_that_has_gone_is_no_fault_to_speak_of(words: list[str]) -> None:
    """A pipe into head ends the command without a word, also where tasks do the printing."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, *words],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""
