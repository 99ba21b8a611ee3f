"""Samples as lines of Prometheus' text format 0.0.4 and of OpenMetrics 1.0.

Theory of operation
===================

The two differ in little: OpenMetrics announces a counter without its ``_total``, says ``unknown``
for ``untyped``, escapes quotes in a help, and has an end mark. A sample is the same line in both.

prometheus_client writes them too, from several objects a sample, each of them checked again: ten
times the work of the line. So the lines are made here, and the library chooses the format; a test
has it read ours and write them again, letter for letter.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Final

from prometheus_client.utils import floatToGoString

from basenet.control.surface import HistogramSample

OPENMETRICS_END: Final = "# EOF\n"
_TOTAL: Final = "_total"


class Kind(StrEnum):
    """What a family is announced as."""

    COUNTER = "counter"
    """Its name ends in ``_total``."""

    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    UNKNOWN = "unknown"


def format_head(name: str, documentation: str, kind: Kind, *, is_openmetrics: bool) -> str:
    """Return the two lines that announce a family."""
    assert kind is not Kind.COUNTER or name.endswith(_TOTAL), "or readers append the suffix"
    text = documentation.replace("\\", r"\\").replace("\n", r"\n")
    word = kind.value
    if is_openmetrics:
        text = text.replace('"', r"\"")
        name = name.removesuffix(_TOTAL) if kind is Kind.COUNTER else name
    elif kind is Kind.UNKNOWN:
        word = "untyped"
    return f"# HELP {name} {text}\n# TYPE {name} {word}\n"


def format_labels(**labels: str) -> str:
    """Return labels as they stand behind a name; nothing for none."""
    if not labels:
        return ""
    parts = (f'{name}="{_escape(value)}"' for name, value in sorted(labels.items()))
    return "{" + ",".join(parts) + "}"


def format_sample(name: str, labels: str, value: float) -> str:
    """Return the line of one sample; ``labels`` are of `format_labels`."""
    number = floatToGoString(value) if value else "0.0"  # type: ignore[no-untyped-call]  # (there)
    return f"{name}{labels} {number}\n"


def format_histogram(name: str, sample: HistogramSample, **labels: str) -> Iterator[str]:
    """Yield the lines of one histogram: each bucket holds those below it."""
    assert len(sample.counts) == len(sample.bounds) + 1, "one bucket beyond the last bound"
    count = 0
    bounds = [*(repr(float(bound)) for bound in sample.bounds), "+Inf"]
    for bound, observed in zip(bounds, sample.counts, strict=True):
        count += observed
        yield format_sample(f"{name}_bucket", format_labels(le=bound, **labels), count)
    yield format_sample(f"{name}_count", format_labels(**labels), count)
    yield format_sample(f"{name}_sum", format_labels(**labels), sample.total)


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
