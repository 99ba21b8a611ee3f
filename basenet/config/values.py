"""Text to values, one form each: durations, sizes, counts, addresses, switches, secrets.

Every function raises `UsageError` with one sentence that shows the text and a good example, so the
same functions serve the environment and the options of commands.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Final, TypeVar

from basenet.errors import UsageError
from basenet.units import GIB, KIB, MIB

_Choice = TypeVar("_Choice", bound=StrEnum)

PORT_MAX: Final = 65535

_SECONDS_OF_UNIT: Final = {
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}
_BYTES_OF_UNIT: Final = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 1024 * GIB,
}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_DURATION = re.compile(rf"(?:{_NUMBER}(?:ms|s|m|h|d))+\Z", re.ASCII)
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(rf"({_NUMBER}) ?([A-Za-z]*)\Z", re.ASCII)
# A host is checked for what would break an address, not for what DNS would say of it.
_HOST = re.compile(r"[A-Za-z0-9._-]*\Z")
_HOST_V6 = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?\Z")


class Secret:
    """A value that must not appear in a message, a log or a ``repr``."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value itself, for the one place that uses it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where to listen or connect. An empty host means every interface, IPv4 and IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_duration(text: str) -> float:
    """Return the seconds of ``250ms``, ``1s``, ``1.5h``, ``1h30m`` or ``7d``."""
    compact = text.strip()
    if not _DURATION.match(compact):
        raise UsageError(
            f"{text!r} is not a duration: write numbers with units, such as 250ms, 1s, 5m, 24h or "
            "7d"
        )
    parts = _DURATION_PART.findall(compact)
    return float(sum(Fraction(number) * _SECONDS_OF_UNIT[unit] for number, unit in parts))


def parse_size(text: str) -> int:
    """Return the bytes of ``65536``, ``64MiB``, ``4 GiB`` or, decimal, ``4MB``."""
    match = _SIZE.match(text.strip())
    factor = _BYTES_OF_UNIT.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(
            f"{text!r} is not a size: write a number of bytes or a number with KiB, MiB, GiB, KB, "
            "MB or GB, such as 64MiB"
        )
    size = Fraction(match[1]) * factor
    if size.denominator != 1:
        raise UsageError(f"{text!r} is not a whole number of bytes: write it in a smaller unit")
    return int(size)


def parse_count(text: str) -> int:
    """Return a whole number that is not negative."""
    digits = text.strip()
    if not re.match(r"[0-9]{1,19}\Z", digits, re.ASCII):
        raise UsageError(f"{text!r} is not a whole number: write digits, such as 100000")
    return int(digits)


def parse_switch(text: str) -> bool:
    """Return whether ``text`` says yes: on, yes, true, 1 against off, no, false, 0."""
    word = text.strip().lower()
    if word in {"on", "yes", "true", "1"}:
        return True
    if word in {"off", "no", "false", "0"}:
        return False
    raise UsageError(f"{text!r} is neither on nor off: write on or off")


def parse_endpoint(text: str) -> Endpoint:
    """Return ``host:port``, ``[v6]:port`` or, for every interface, ``:port``."""
    host, colon, digits = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    form = _HOST_V6 if bracketed else _HOST
    if not colon or not form.match(host) or not re.match(r"[0-9]{1,5}\Z", digits, re.ASCII):
        raise UsageError(
            f"{text!r} is not an address: write host:port, such as 127.0.0.1:8090 or [::1]:8090, "
            "or :8090 for every interface"
        )
    port = int(digits)
    if port > PORT_MAX:
        raise UsageError(f"{text!r} has port {port}: ports end at {PORT_MAX}")
    return Endpoint(host=host, port=port)


def parse_advertised(text: str) -> str:
    """Return ``host:port``, or an http(s) URL without a path, as it stands."""
    address = text.strip().removesuffix("/")
    scheme, found, place = address.rpartition("://")
    is_whole = bool(found) and re.match(r"[A-Za-z0-9._-]{1,253}\Z", place)
    if found and scheme not in {"http", "https"}:
        raise UsageError(f"{text!r} is no address of HTTP: write host:port, or http(s)://host:port")
    if not is_whole:
        endpoint = parse_endpoint(place)
        if not endpoint.host or not endpoint.port:
            raise UsageError(
                f"{text!r} cannot be dialled: write a host and a port above 0, such as "
                "db1.example.org:8090"
            )
    return address


def parse_peers(text: str) -> tuple[Endpoint, ...]:
    """Return a comma list of ``host:port`` with hosts and ports that can be dialled."""
    peers = tuple(parse_endpoint(item) for item in split_list(text))
    if unusable := [peer for peer in peers if not peer.host or not peer.port]:
        raise UsageError(f"{str(unusable[0])!r} cannot be dialled: write a host and a port above 0")
    if repeated := [peer for peer in peers if peers.count(peer) > 1]:
        raise UsageError(f"{str(repeated[0])!r} is listed twice: list each peer once")
    return peers


# What SQLite and frameworks write before the path of a database.
_SCHEME = re.compile(r"(?:file:(?://)?|sqlite3?:(?:///)?)", re.IGNORECASE)


def parse_path(text: str) -> Path:
    """Return ``text`` as a path; raise `UsageError` for what a shell or SQLite would have read."""
    check_path(text.strip())
    return Path(text.strip())


def check_path(text: str) -> None:
    """Raise `UsageError` for a path that means something else to a shell or to SQLite."""
    if "\0" in text:
        raise UsageError(f"{text!r} is not a path: it holds a NUL byte")
    if text.startswith("~"):
        raise UsageError(
            f"{text!r} begins with ~, which only a shell expands: write the whole path, or ./ "
            "before a name that begins so"
        )
    if (scheme := _SCHEME.match(text)) is not None:
        raise UsageError(
            f"{text!r} is not a path: leave out {scheme[0]!r} and what follows a question mark, or "
            "write ./ before a name that begins so"
        )


def split_list(text: str) -> list[str]:
    """Return the items of a comma list without the blanks around them; empty items are dropped."""
    return [item.strip() for item in text.split(",") if item.strip()]


def choice(enum: type[_Choice]) -> Callable[[str], _Choice]:
    """Return a parser of one of the words of ``enum``, in any case."""

    def parse(text: str) -> _Choice:
        try:
            return enum(text.strip().lower())
        except ValueError as error:
            words = " or ".join(enum)
            raise UsageError(f"{text!r} is not one of its words: write {words}") from error

    return parse


def duration_between(low: str, high: str) -> Callable[[str], float]:
    """Return a parser of durations from ``low`` to ``high``, both allowed."""
    low_seconds, high_seconds = parse_duration(low), parse_duration(high)

    def parse(text: str) -> float:
        seconds = parse_duration(text)
        if not low_seconds <= seconds <= high_seconds:
            raise UsageError(f"{text!r} is out of range: write a duration from {low} to {high}")
        return seconds

    return parse


def size_from(low: str) -> Callable[[str], int]:
    """Return a parser of sizes of at least ``low``."""
    low_bytes = parse_size(low)

    def parse(text: str) -> int:
        size = parse_size(text)
        if size < low_bytes:
            raise UsageError(f"{text!r} is too small: write at least {low}")
        return size

    return parse


def count_between(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from ``low`` to ``high``, both allowed."""

    def parse(text: str) -> int:
        count = parse_count(text)
        if not low <= count <= high:
            raise UsageError(f"{text!r} is out of range: write a number from {low} to {high}")
        return count

    return parse
