"""``basenet shards``: which databases a daemon serves, and what counts where a file is in doubt."""

from pathlib import Path

import click

from basenet.cli import output
from basenet.cli.target import make_client, target_options
from basenet.control.reset import Keep, ResetCommand
from basenet.control.surface import ShardStatus
from basenet.errors import UsageError
from basenet.sqlite.unmark import remove_mark


@click.group(invoke_without_command=True)
@target_options
@output.json_option
@click.pass_context
def command(
    context: click.Context, *, data_dir: Path | None, url: str | None, as_json: bool
) -> None:
    """List the shards of a running node, or decide about one of them."""
    if context.invoked_subcommand is not None:
        if as_json or data_dir is not None or url is not None:
            raise UsageError("write the options of shards behind its subcommand, not before it")
        return
    shards = make_client(data_dir, url).get_node_status().shards
    if as_json:
        output.print_json({"shards": [_document(shard) for shard in shards]})
        return
    output.print_table(
        ("SHARD", "STATE", "SIZE", "LINEAGE", "PATH"),
        [
            (
                shard.shard,
                shard.state,
                output.format_size(shard.db_pages * shard.page_size),
                shard.lineage or "-",
                shard.path,
            )
            for shard in shards
        ],
    )


@command.command("reset", short_help="Say what counts where a shard's file is in doubt.")
@click.argument("shard", metavar="ID")
@click.option(
    "--keep",
    type=click.Choice([keep.value for keep in Keep]),
    required=True,
    help="chain: set the file aside and make it anew from the other nodes. "
    "file: take what differs for commits of this node.",
)
@click.option(
    "--force",
    "is_forced",
    is_flag=True,
    help="Also where commits are not final yet or an application has the file open.",
)
@target_options
@output.json_option
def reset(
    *,
    shard: str,
    keep: str,
    is_forced: bool,
    data_dir: Path | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Say what counts on this node where the file of a shard is not the shard's own.

    For a node of a cluster that says `stopped` (another file lies at the path) or `refused` (the
    file has rows of its own), or whose file is to be made anew. Nothing is deleted: with --keep
    chain the file and its log go into a folder beside it, with --keep file what does not become
    final is kept as an orphan. What this node voted is kept in either case.
    """
    reset_command = ResetCommand(keep=Keep(keep), is_forced=is_forced)
    done = make_client(data_dir, url).reset(shard, reset_command)
    if as_json:
        output.print_json({"shard": shard, "keep": keep, "done": done})
    else:
        click.echo(done)


@command.command("writable", short_help="Let a file be written to that a cluster left read-only.")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@output.json_option
def writable(*, path: Path, as_json: bool) -> None:
    """Let applications write to a database that says that it is read-only.

    With BASE_FENCE=readonly a node of a cluster marks its file wherever it is not the writer, and
    takes the mark away by itself. This is for a file that no node serves any more: it is refused
    while one does. What is written afterwards is not in the cluster.
    """
    is_changed = remove_mark(path)
    if as_json:
        output.print_json({"path": str(path), "changed": is_changed})
    elif is_changed:
        click.echo(f"{path} is writable: close connections that are open, they stay read-only.")
    else:
        click.echo(f"{path} was not marked as read-only.")


def _document(shard: ShardStatus) -> dict[str, object]:
    return {
        "shard": shard.shard,
        "path": shard.path,
        "state": shard.state,
        "lineage": shard.lineage,
        "size_bytes": shard.db_pages * shard.page_size,
    }
