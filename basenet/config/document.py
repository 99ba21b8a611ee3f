"""docs/configuration.md, rendered from the table so that the two cannot differ."""

from basenet.config.variables import PROMISES, SECTIONS, Section, Variable

_INTRODUCTION = """\
# Configuration

<!-- Rendered from basenet/config/variables.py by `python -m basenet.config`; edit that instead. -->

basenet is configured by environment variables. The arguments of a command replace some of them for
one run, under the same rules. `basenet doctor` checks a configuration without serving anything.

- All faults are reported at once, each with the variable's name, and nothing starts.
- An empty value is the same as an unset variable.
- An unknown `BASE_` name stops the start, with the nearest known one. When the application has such
  a variable of its own, take it away from basenet: `env -u BASE_URL basenet serve`.
- A variable of the cluster is refused while `BASE_NETWORK` is `standalone`, where it would do
  nothing.

Durations are numbers with units: `250ms`, `1s`, `1.5h`, `1h30m`, `7d`. Sizes are bytes, or numbers
with `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024) or `KB`, `MB`, `GB`, `TB` (powers of 1000).
"""


def render_markdown() -> str:
    """Return the whole document."""
    parts = [_INTRODUCTION, *(_render_section(section) for section in SECTIONS), _render_promises()]
    return "\n".join(parts)


def _render_section(section: Section) -> str:
    rows = [f"## {section.title}\n"]
    rows += [f"{section.note}\n"] if section.note else []
    rows += ["| variable | default | values | meaning |", "|---|---|---|---|"]
    rows += [_render_row(variable) for variable in section.variables]
    return "\n".join(rows) + "\n"


def _render_row(variable: Variable[object]) -> str:
    default = variable.shown if variable.shown != "``" else "empty"
    return f"| `{variable.name}` | {default} | {variable.form} | {variable.meaning} |"


def _render_promises() -> str:
    rows = ["## Refused names\n", "These promise what basenet does not do: none is ignored.\n"]
    for sentence in dict.fromkeys(PROMISES.values()):
        names = ", ".join(f"`{name}`" for name, said in PROMISES.items() if said == sentence)
        rows.append(f"- {names}: {sentence}.")
    return "\n".join(rows) + "\n"
