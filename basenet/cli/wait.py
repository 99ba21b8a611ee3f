"""``basenet wait``: return when a commit is safe.

A script that must not go on before its writes are off this host commits, then calls
``basenet wait --now``: what the application has committed at that moment is captured first, and
its last frame is waited for.
"""

from pathlib import Path

import click
import msgspec

from basenet.cli import output
from basenet.cli.target import make_client, target_options
from basenet.config.values import parse_duration
from basenet.control.client import DaemonClient
from basenet.control.surface import Level
from basenet.errors import NotFoundError, UsageError

_NAMED_MAX = 10


@click.command()
@click.option("--seq", type=click.IntRange(min=0), help="Wait for this seq.")
@click.option("--now", is_flag=True, help="Wait for what is committed at this moment.")
@click.option("--shard", help="The shard; not needed where there is only one.")
@click.option(
    "--level",
    type=click.Choice([level.value for level in Level]),
    help="How safe it must be.  [default: final with peers, else archived]",
)
@click.option("--timeout", default="30s", show_default=True, help="Give up after this long.")
@target_options
@output.json_option
def command(
    *,
    seq: int | None,
    now: bool,
    shard: str | None,
    level: str | None,
    timeout: str,
    data_dir: Path | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Return when a commit is archived or final; fail with 1 when the time is up."""
    if now == (seq is not None):
        raise UsageError("say what to wait for: either --seq N or --now")
    client = make_client(data_dir, url)
    shard = shard or _get_only_shard(client)
    result = client.wait(
        shard, seq, None if level is None else Level(level), parse_duration(timeout)
    )
    if as_json:
        output.print_json(msgspec.to_builtins(result))
    else:
        click.echo(f"shard {result.shard} is {result.level} up to seq {result.seq}")


def _get_only_shard(client: DaemonClient) -> str:
    """Return the one shard of the daemon, which then need not be named."""
    shards = [shard.shard for shard in client.get_node_status().shards]
    if not shards:
        raise NotFoundError("the daemon serves no shard yet: set BASE_SHARDS, or wait for a file")
    if len(shards) > 1:
        names = ", ".join(shards[:_NAMED_MAX]) + (", ..." if len(shards) > _NAMED_MAX else "")
        raise UsageError(f"the daemon serves {len(shards)} shards: name one of {names} by --shard")
    return shards[0]
