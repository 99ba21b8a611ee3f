"""How commands speak: results on standard output for people or as JSON, remarks on standard error.

With ``--json`` a command prints exactly one JSON document, so a script reads it whole. Numbers for
people are rounded and carry their unit; numbers in JSON are exact and carry it in their name.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from basenet.errors import UnavailableError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_Command = TypeVar("_Command", bound=Callable[..., Any])

_SIZE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_SIZE_STEP: Final = 1024
_TWO_DIGITS: Final = 10  # from here on a fraction tells people nothing
_MINUTE_SECONDS: Final = 60
_HOUR_SECONDS: Final = 3600
_DAY_SECONDS: Final = 86400
_NS_PER_SECOND: Final = 1_000_000_000
_MS_PER_SECOND: Final = 1000
_STANDARD_MAX: Final = 2


class ReaderGone(BrokenPipeError):  # noqa: N818  (states a fact; the kind is in the base)
    """Nobody reads our standard output any more: as with `| head`."""


class _Standard(io.FileIO):
    """Standard output, which says in a sentence that its disk is full."""

    def write(self, data: "ReadableBuffer") -> int:
        """Write; raise `UnavailableError`, or `ReaderGone`."""
        try:
            return super().write(data)
        except OSError as error:
            # What is still in a buffer must not fail once more at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):
                raise ReaderGone(*error.args) from error
            why = os.strerror(error.errno or 0)
            raise UnavailableError(f"standard output cannot be written ({why})") from error


def guard_standard_output() -> None:
    """Make a standard output that takes nothing an error of ours, for the rest of the process.

    A closed one (``>&-``) becomes one that nobody reads.
    """
    # Else the next file or socket is opened as descriptor 0, 1 or 2, and is written to as such.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_MAX:
        os.set_inheritable(spare, True)
    os.close(spare)
    before = sys.stdout
    if before is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  (until the process ends)
    elif isinstance(before, io.TextIOWrapper):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Standard(before.fileno(), "w", closefd=False)),
            encoding=before.encoding,
            errors=before.errors,
            line_buffering=before.line_buffering,
        )


def json_option(command: _Command) -> _Command:
    """Give a command the option ``--json``, which arrives as ``as_json``."""
    option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    return option(command)


def print_json(document: object) -> None:
    """Print ``document``, made of what JSON has, and bytes, which become hexadecimal."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=_encode))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns under ``headings``."""
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def print_facts(facts: Mapping[str, str]) -> None:
    """Print one fact a line, the values aligned."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        click.echo(f"{name.ljust(width)}  {value}".rstrip())


def say(sentence: str) -> None:
    """Say something to people, on standard error, so that results can be piped."""
    click.echo(sentence, err=True)


def format_size(size_bytes: int) -> str:
    """Return ``size_bytes`` for people: ``512 B``, ``1.5 KiB``, ``12 MiB``."""
    size, place = float(size_bytes), 0
    while size >= _SIZE_STEP and place < len(_SIZE_UNITS) - 1:
        size, place = size / _SIZE_STEP, place + 1
    digits = 1 if place and size < _TWO_DIGITS else 0
    return f"{size:.{digits}f} {_SIZE_UNITS[place]}"


def format_duration(seconds: float) -> str:
    """Return ``seconds`` for people: ``350 ms``, ``4.2 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if seconds < 1:
        return f"{seconds * _MS_PER_SECOND:.0f} ms"
    if seconds < _MINUTE_SECONDS:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < _HOUR_SECONDS:
        return f"{whole // _MINUTE_SECONDS} min {whole % _MINUTE_SECONDS} s"
    if whole < _DAY_SECONDS:
        return f"{whole // _HOUR_SECONDS} h {whole % _HOUR_SECONDS // _MINUTE_SECONDS} min"
    return f"{whole // _DAY_SECONDS} d {whole % _DAY_SECONDS // _HOUR_SECONDS} h"


def format_time(timestamp_ns: int) -> str:
    """Return nanoseconds since 1970 as RFC 3339 in UTC, to the millisecond."""
    seconds, ns = divmod(timestamp_ns, _NS_PER_SECOND)
    moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{ns // 1_000_000:03d}Z"


def _encode(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
