"""The entry point: find the subcommand, run it, turn what goes wrong into a sentence and a code.

=====  =========================================
code   meaning
=====  =========================================
0      done
1      failed: corrupt, unavailable, refused
2      usage: the command or the configuration
3      a thing that was named does not exist
4      conflict: another party has it
130    interrupted from the keyboard
=====  =========================================

An error that basenet raises on purpose ends as one sentence on standard error and its code.
Anything else is a bug, and keeps its traceback.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from basenet import __version__
from basenet.cli import output
from basenet.errors import BasenetError, UsageError

INTERRUPTED: Final = 130

# Every subcommand: its module in this room and what the list of commands says of it.
COMMANDS: Final = {
    "serve": "Watch databases and archive what they commit.",
    "restore": "Rebuild a database, as of any commit, from an archive.",
    "query": "Ask a past moment of a database, without restoring it.",
    "diff": "Show which tables and rows changed between two moments.",
    "verify": "Read a whole archive and prove it, or name what is wrong.",
    "archive": "List and count an archive's objects, delete what nobody needs.",
    "status": "Show how far each shard has come.",
    "wait": "Return when a commit is archived or final.",
    "shards": "List the shards of a running node.",
    "members": "Show who is in the cluster, and change the members of a shard.",
    "orphans": "List, show and export commits that lost against another history.",
    "keys": "Make keys and show the public ones.",
    "doctor": "Check a configuration and its databases, and say how to mend them.",
    "version": "Show the versions of basenet and of what it stands on.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, and not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table, which is the order of use."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command ``cmd_name``; None if the table has no such name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"basenet.cli.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command), f"{module.__name__}.command is no command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table alone."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="basenet", message="%(prog)s %(version)s")
def cli() -> None:
    """Replication and backup for SQLite applications, as a sidecar.

    Settings come from BASE_* variables (docs/configuration.md); options of a command replace some.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program with ``arguments``, by default the process's own, and exit."""
    output.guard_standard_output()
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    try:
        _refuse_without_assertions()
        result = cli.main(arguments, prog_name="basenet", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):  # click makes an Abort of an interrupt
        return INTERRUPTED
    except click.ClickException as error:
        return _fail_usage(error)
    except BasenetError as error:
        return _fail(str(error), error.exit_code)
    except BaseExceptionGroup as group:
        return _fail_group(group)
    # A command returns its exit code, or nothing when all went well.
    return result if isinstance(result, int) else 0


def _refuse_without_assertions() -> None:
    """Refuse ``python -O``: the assertions guard users' data and must stay on."""
    if not __debug__:
        raise UsageError(
            "assertions are switched off (python -O or PYTHONOPTIMIZE), and basenet does not run "
            "without them; start it without that"
        )


def _fail(sentence: str, exit_code: int) -> int:
    click.echo(f"basenet: {sentence}", err=True)
    return exit_code


def _fail_usage(error: click.ClickException) -> int:
    """Report what click refused, as one sentence of ours and the help to ask for."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f" (see `{context.command_path} --help`)" if context else ""
    return _fail(error.format_message().rstrip(".") + hint, error.exit_code)


def _fail_group(group: BaseExceptionGroup[BaseException]) -> int:
    """Report what concurrent tasks raised, if all of it was raised on purpose.

    The graver code wins: the tasks were one command.
    """
    if group.subgroup(KeyboardInterrupt) is not None:
        return INTERRUPTED
    _, bugs = group.split(BasenetError)
    if bugs is not None:
        if bugs.split(output.ReaderGone)[1] is None:
            return 1
        raise group
    errors = _list_errors(group)
    for sentence in dict.fromkeys(str(error) for error in errors):
        _fail(sentence, 0)
    return max(error.exit_code for error in errors)


def _list_errors(group: BaseExceptionGroup[BaseException]) -> list[BasenetError]:
    errors: list[BasenetError] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            errors.extend(_list_errors(error))
        elif isinstance(error, BasenetError):
            errors.append(error)
    return errors
