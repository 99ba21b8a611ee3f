"""``basenet version``."""

import platform

import apsw
import click

from basenet import __version__
from basenet.cli import output


@click.command()
@output.json_option
def command(*, as_json: bool) -> None:
    """Show the versions of basenet and of what it stands on."""
    facts = {
        "basenet": __version__,
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if as_json:
        output.print_json(facts)
    else:
        click.echo(
            f"basenet {facts['basenet']} (Python {facts['python']}, SQLite {facts['sqlite']}, "
            f"{facts['platform']})"
        )
