"""The options by which a command finds the daemon that it asks, the same for each of them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from basenet.control.client import DaemonClient, find_target

_Command = TypeVar("_Command", bound=Callable[..., Any])


def target_options(command: _Command) -> _Command:
    """Give a command ``--data-dir`` and ``--url``, which `make_client` takes."""
    by_url = click.option(
        "--url", help="Ask the daemon at http://host:port instead of a data directory's socket."
    )
    by_directory = click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="The daemon's data directory.  [default: BASE_DATA_DIR, or .basenet beside the "
        "first of BASE_SHARDS or here]",
    )
    return by_directory(by_url(command))


def make_client(data_dir: Path | None, url: str | None) -> DaemonClient:
    """Return a client of the daemon that the options and the environment mean."""
    return DaemonClient(find_target(os.environ, data_dir=data_dir, url=url))
