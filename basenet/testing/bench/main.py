"""The command line: which rows, how long, and what is printed."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from basenet import __version__
from basenet.errors import UnavailableError
from basenet.testing.bench import machine, report
from basenet.testing.bench.contenders import COLUMNS
from basenet.testing.bench.context import Context
from basenet.testing.bench.rows.catalog import ROWS, Row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for and print the table; exit with 1 if an aim was missed."""
    options = _parse(arguments)
    facts = machine.facts()
    lines: list[report.Line] = []
    if options.directory is not None:
        options.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="basenet-bench-", dir=options.directory) as root:
        context = Context(
            root=Path(root),
            is_quick=options.quick,
            pairs=options.pairs or (1 if options.quick else 5),
            only=frozenset(options.contenders),
            trials=options.trials,
            join_mb=options.join_mb,
        )
        for name in options.rows:
            context.say(f"row {name}")
            lines += _run(name, ROWS[name], context)
    if options.json:
        sys.stdout.write(report.to_json(facts, lines) + "\n")
    else:
        sys.stdout.write(f"{machine.sentence(facts)}\n\n{report.to_markdown(lines)}\n")
    sys.exit(any(line.is_met is False for line in lines))


def _run(name: str, row: Row, context: Context) -> list[report.Line]:
    """Run one row; a contender that fails is a line of its own, not the end of the run."""
    try:
        return row(context)
    except UnavailableError as error:
        context.say(f"row {name} failed: {error}")
        return [report.Line(what=f"{name}: failed: {error}", aim="", answers={}, is_met=False)]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="basenet-bench", description="Measure basenet and litestream beside the same writer."
    )
    parser.add_argument("--version", action="version", version=f"basenet-bench {__version__}")
    parser.add_argument(
        "--rows",
        type=_names(ROWS),
        default=list(ROWS),
        metavar="ROW,...",
        help=f"which rows; all: {','.join(ROWS)}",
    )
    labels = [contender.label for contender in COLUMNS]
    parser.add_argument(
        "--contenders",
        type=_names(labels),
        default=[],
        metavar="LABEL,...",
        help=f"which contenders; all: {','.join(labels)}",
    )
    parser.add_argument("--pairs", type=int, help="rounds that a ratio is the median of [5]")
    parser.add_argument(
        "--trials", type=int, default=20, help="deaths of the writer in cluster-failover [20]"
    )
    parser.add_argument(
        "--join-mb", type=int, default=1000, help="size of the database in cluster-join [1000]"
    )
    parser.add_argument("--quick", action="store_true", help="small loads: does it all work?")
    parser.add_argument("--json", action="store_true", help="print every number, as JSON")
    parser.add_argument(
        "--directory",
        type=Path,
        help="where the databases and archives lie meanwhile; made if it is not there",
    )
    return parser.parse_args(arguments)


class _names:  # noqa: N801  (argparse says its name when a value is refused)
    """Reads a comma list of known names."""

    def __init__(self, known: Sequence[str] | dict[str, Row]) -> None:
        self._known = known

    def __call__(self, text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in self._known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(self._known)}")
        return names

    def __repr__(self) -> str:
        return "list of names"
