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
@click.option(
    "--generation",
    metavar="TEXT",
    help="What --print-generation said before the commit: fail with 4 if it may be lost since.",
)
@click.option(
    "--print-generation",
    "is_generation_wanted",
    is_flag=True,
    help="Wait for nothing: print the shard's generation on this node, for a wait later.",
)
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
    generation: str | None,
    is_generation_wanted: bool,
    shard: str | None,
    level: str | None,
    timeout: str,
    data_dir: Path | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Return when a commit is archived or final; fail with 1 when the time is up.

    A node that was deposed rolls back what lost, and may write again soon: it then answers for what
    it holds now. Ask for the generation before the commit (--print-generation) and name it here
    (--now --generation) to be told instead that the commit may be lost.
    """
    _check(seq=seq, now=now, generation=generation, is_generation_wanted=is_generation_wanted)
    client = make_client(data_dir, url)
    shard = shard or _get_only_shard(client)
    if is_generation_wanted:
        _print_generation(client.get_shard_status(shard).generation, as_json=as_json)
        return
    result = client.wait(
        shard,
        seq,
        None if level is None else Level(level),
        parse_duration(timeout),
        generation or None,
    )
    if as_json:
        output.print_json(msgspec.to_builtins(result))
    else:
        click.echo(f"shard {result.shard} is {result.level} up to seq {result.seq}")


def _check(
    *, seq: int | None, now: bool, generation: str | None, is_generation_wanted: bool
) -> None:
    if is_generation_wanted:
        if now or seq is not None or generation is not None:
            raise UsageError(
                "--print-generation waits for nothing: leave --seq, --now and the rest"
            )
    elif now == (seq is not None):
        raise UsageError("say what to wait for: either --seq N or --now")
    elif generation is not None and not now:
        raise UsageError("--generation tells of commits of this node: it goes with --now")


def _print_generation(generation: str | None, *, as_json: bool) -> None:
    """Print it; a node alone undoes nothing, so that it has none and none is needed."""
    if as_json:
        output.print_json({"generation": generation})
    else:
        click.echo(generation or "")


def _get_only_shard(client: DaemonClient) -> str:
    """Return the one shard of the daemon, which then need not be named."""
    shards = [shard.shard for shard in client.get_node_status().shards]
    if not shards:
        raise NotFoundError("the daemon serves no shard yet: set BASE_SHARDS, or wait for a file")
    if len(shards) > 1:
        names = ", ".join(shards[:_NAMED_MAX]) + (", ..." if len(shards) > _NAMED_MAX else "")
        raise UsageError(f"the daemon serves {len(shards)} shards: name one of {names} by --shard")
    return shards[0]
