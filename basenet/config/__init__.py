"""Configuration: the environment, read once, typed, and refused as a whole or taken as a whole.

Theory of operation
===================

Everything that basenet can be told stands in ``BASE_*`` variables; the arguments of a command only
replace some of them for one run. `load` turns them into one frozen `Config` and finds *all* faults
before it says no, because an operator who mends one fault per restart loses an evening.

A variable that would do nothing is refused rather than ignored: an unknown name (with the nearest
known one), a name that promises what basenet does not do, a cluster's variable on a standalone
node. An empty value means the same as an unset variable. Nothing here touches the file system or
the network, so a configuration can be checked on any machine.

========================  ==============================================================
`config.values`           durations, sizes, addresses: text to values, for the CLI, too
`config.shards`           BASE_SHARDS
`config.location`         BASE_ARCHIVE
`config.model`            `Config` and the values in it
`config.variables`        the table: every variable once, with default, parser and help
`config.loader`           `load`
`config.document`         docs/configuration.md, rendered from the table
========================  ==============================================================
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from basenet.config.loader import ConfigurationError, load
    from basenet.config.model import Config

__all__ = ["Config", "ConfigurationError", "load"]


def __getattr__(name: str) -> object:
    """Import what reads all variables when it is asked for: `basenet wait` needs none of it."""
    if name in __all__:
        from basenet.config import loader, model  # noqa: PLC0415  (why: above)

        return getattr(model if name == "Config" else loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
