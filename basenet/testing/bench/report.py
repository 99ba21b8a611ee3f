"""Lines of the table, and the table as markdown or JSON."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from basenet.testing.bench.contenders import COLUMNS, Contender

MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One question: every contender's answer, what is aimed at, and whether it was met.

    ``is_met`` None: there is no aim, or the contenders that it needs did not run. ``facts`` has
    what the answers were made of.
    """

    what: str
    aim: str
    answers: Mapping[Contender, str]
    is_met: bool | None
    facts: Mapping[str, Any] = field(default_factory=dict)


def to_markdown(lines: Sequence[Line]) -> str:
    """Return the table; contenders that no line speaks of have no column."""
    columns = [column for column in COLUMNS if any(column in line.answers for line in lines)]
    rows = [["what", *(column.label for column in columns), "aim", "met"]]
    rows += [
        [
            line.what,
            *(line.answers.get(column, "") for column in columns),
            line.aim,
            {True: "yes", False: "**no**", None: ""}[line.is_met],
        ]
        for line in lines
    ]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def to_json(machine: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """Return machine and lines, with everything that the answers were made of."""
    return json.dumps(
        {
            "machine": machine,
            "lines": [
                {
                    "what": line.what,
                    "aim": line.aim,
                    "met": line.is_met,
                    "answers": {column.label: text for column, text in line.answers.items()},
                    "facts": line.facts,
                }
                for line in lines
            ],
        },
        indent=1,
        default=str,
    )


def median(values: Sequence[float]) -> float:
    """Return the median, 0 of nothing."""
    return statistics.median(values) if values else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of ``values`` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def megabytes(size: float) -> str:
    """Return ``size`` bytes in MB, with a decimal when it is small."""
    return f"{size / MB:.1f} MB" if size < 10 * MB else f"{size / MB:.0f} MB"
