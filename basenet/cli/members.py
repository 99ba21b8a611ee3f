"""``basenet members``: who is in the cluster, and the commands that change a shard's voters.

A command is sent to the daemon of this host, over its socket or the loopback, and answered when it
is done or durably begun. What it means for the shard is decided by the daemons, not here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from basenet.cli import output
from basenet.cli.target import make_client, target_options
from basenet.control.client import DaemonClient
from basenet.control.members import MembersCommand, MembersVerb
from basenet.control.surface import Member, NodeStatus, ShardRole, ShardStatus
from basenet.errors import UsageError

_NONE: Final = "-"


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the daemon is, as said before the subcommand."""

    data_dir: Path | None
    url: str | None

    def make_client(self, data_dir: Path | None, url: str | None) -> DaemonClient:
        """Return the client, of what was said behind the subcommand first."""
        if data_dir is None and url is None:
            return make_client(self.data_dir, self.url)
        return make_client(data_dir, url)


@click.group(invoke_without_command=True)
@click.option("--shard", metavar="ID", help="Show the members of this shard alone, in full.")
@target_options
@output.json_option
@click.pass_context
def command(
    context: click.Context,
    *,
    shard: str | None,
    data_dir: Path | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Show who is in the cluster, and change the members of a shard.

    Without a command the nodes are listed with what they are to each shard, as the node that is
    asked knows it.
    """
    context.obj = _Target(data_dir, url)
    if context.invoked_subcommand is None:
        _list(make_client(data_dir, url), shard, as_json=as_json)
    elif shard is not None or as_json:
        raise UsageError("write --shard and --json behind the subcommand of members, not before it")


@command.command("list", short_help="List the nodes and what they are to each shard.")
@click.option("--shard", metavar="ID", help="Show the members of this shard alone, in full.")
@target_options
@output.json_option
@click.pass_obj
def list_members(
    target: _Target, /, *, shard: str | None, data_dir: Path | None, url: str | None, as_json: bool
) -> None:
    """List the nodes and what they are to each shard, as the node that is asked knows it."""
    _list(target.make_client(data_dir, url), shard, as_json=as_json)


_shard_option = click.option("--shard", required=True, metavar="ID", help="The shard to change.")
_nodes_argument = click.argument("nodes", nargs=-1, required=True, metavar="NODE...")


@command.command("init")
@_shard_option
@click.option(
    "--from", "node", required=True, metavar="NODE", help="Whose database it begins with."
)
@target_options
@output.json_option
@click.pass_obj
def init(target: _Target, /, *, shard: str, node: str, **options: Any) -> None:
    """Decide whose database a new shard begins with.

    Needed once, where several nodes have different files with rows for it: no history begins by
    itself then. The files of the other nodes are kept aside.
    """
    _send(target, shard, MembersCommand(verb=MembersVerb.INIT, nodes=(node,)), **options)


@command.command("add")
@_nodes_argument
@_shard_option
@target_options
@output.json_option
@click.pass_obj
def add(target: _Target, /, *, nodes: tuple[str, ...], shard: str, **options: Any) -> None:
    """Make nodes voters of a shard.

    They must be connected and have caught up. Name two to go from one voter to three at once.
    """
    _send(target, shard, MembersCommand(verb=MembersVerb.ADD, nodes=nodes), **options)


@command.command("remove")
@_nodes_argument
@_shard_option
@target_options
@output.json_option
@click.pass_obj
def remove(target: _Target, /, *, nodes: tuple[str, ...], shard: str, **options: Any) -> None:
    """Take voters out of a shard.

    It takes a quorum of the present voters. A removed node stays fenced, and goes on as a learner
    while it is in BASE_PEERS.
    """
    _send(target, shard, MembersCommand(verb=MembersVerb.REMOVE, nodes=nodes), **options)


@command.command("transfer", short_help="Move the writer of a shard to another voter.")
@_shard_option
@click.option("--to", "node", required=True, metavar="NODE", help="The voter that shall write.")
@target_options
@output.json_option
@click.pass_obj
def transfer(target: _Target, /, *, shard: str, node: str, **options: Any) -> None:
    """Move the writer of a shard to another voter, in order and without a loss."""
    _send(target, shard, MembersCommand(verb=MembersVerb.TRANSFER, nodes=(node,)), **options)


@command.command("force", short_help="Leave a lost quorum behind; final commits may be lost.")
@_shard_option
@click.option("--from", "node", required=True, metavar="NODE", help="The survivor: this node.")
@click.option(
    "--yes-final-commits-may-be-lost",
    "is_loss_accepted",
    is_flag=True,
    help="Say that you know it: what only the lost nodes held is gone from this history.",
)
@target_options
@output.json_option
@click.pass_obj
def force(
    target: _Target, /, *, shard: str, node: str, is_loss_accepted: bool, **options: Any
) -> None:
    """Leave a lost quorum behind: the shard goes on as a forced history of one survivor.

    For when a majority of the voters is gone for good, and never else: it is refused while they
    answer. The survivor keeps everything that it ever voted for. Other nodes report the forced
    history and follow it only after `basenet members accept`.
    """
    _send(
        target,
        shard,
        MembersCommand(verb=MembersVerb.FORCE, nodes=(node,), is_loss_accepted=is_loss_accepted),
        **options,
    )


@command.command("accept")
@click.argument("lineage", metavar="HEX")
@_shard_option
@target_options
@output.json_option
@click.pass_obj
def accept(target: _Target, /, *, lineage: str, shard: str, **options: Any) -> None:
    """Follow a forced history on this node, named by its lineage.

    What this node holds beyond its beginning is kept as an orphan bundle (`basenet orphans list`).
    """
    _send(
        target, shard, MembersCommand(verb=MembersVerb.ACCEPT, lineage=lineage.lower()), **options
    )


def _send(
    target: _Target,
    shard: str,
    members_command: MembersCommand,
    *,
    data_dir: Path | None,
    url: str | None,
    as_json: bool,
) -> None:
    done = target.make_client(data_dir, url).command(shard, members_command)
    if as_json:
        output.print_json({"shard": shard, "verb": members_command.verb, "done": done})
    else:
        click.echo(done)


# -- the list ------------------------------------------------------------------------------------


def _list(client: DaemonClient, shard: str | None, *, as_json: bool) -> None:
    node = client.get_node_status()
    chosen = None if shard is None else client.get_shard_status(shard)
    if as_json:
        output.print_json(_document(node, node.shards if chosen is None else [chosen]))
    elif chosen is not None:
        _print_shard(node, chosen)
    else:
        _print_nodes(node)
        if node.shards:
            click.echo()
            _print_shards(node)


def _print_nodes(node: NodeStatus) -> None:
    output.print_table(
        ("NODE", "ROLE", "CONNECTED", "ADDRESS", "HTTP", "WRITES", "VOTES IN"),
        [
            (
                member.node_id,
                member.role,
                _describe_connection(member, node),
                member.address or _NONE,
                member.endpoint or _NONE,
                str(sum(shard.writer == member.node_id for shard in node.shards)),
                str(sum(member.node_id in _list_voters(shard) for shard in node.shards)),
            )
            for member in node.members
        ],
    )


def _describe_connection(member: Member, node: NodeStatus) -> str:
    if member.node_id == node.node_id:
        return "(asked)"
    return "yes" if member.is_connected else "no"


def _print_shards(node: NodeStatus) -> None:
    output.print_table(
        ("SHARD", "HERE", "WRITER", "EPOCH", "VIEW", "CAPTURED", "FINAL", "APPLIED", "VOTERS"),
        [
            (
                shard.shard,
                shard.role,
                shard.writer or _NONE,
                str(shard.epoch),
                str(shard.view),
                str(shard.captured_seq) if shard.role is ShardRole.WRITER else _NONE,
                str(shard.final_seq),
                str(shard.applied_seq),
                ",".join(_list_voters(shard)),
            )
            for shard in node.shards
        ],
    )


def _print_shard(node: NodeStatus, shard: ShardStatus) -> None:
    output.print_facts(
        {
            "shard": shard.shard,
            "writer": shard.writer or _NONE,
            "writer's http": shard.writer_endpoint or _NONE,
            "this node": f"{node.node_id}, {shard.role}, fence {shard.fence}",
            "lineage": shard.lineage or _NONE,
            "epoch, view": f"{shard.epoch}, {shard.view}",
            "final, applied": f"{shard.final_seq}, {shard.applied_seq}",
            "not final": f"{shard.unfinal_commits} commits, "
            f"{output.format_size(shard.unfinal_bytes)}",
            "orphans": str(shard.orphans),
        }
    )
    if not shard.members:
        return
    click.echo()
    output.print_table(
        ("NODE", "ROLE", "VOTES", "CONNECTED", "FINAL", "BEHIND", "KEY"),
        [
            (
                member.node_id,
                member.role,
                "yes" if member.is_voter else "no",
                "yes" if member.is_connected else "no",
                _NONE if member.final_seq is None else str(member.final_seq),
                _NONE
                if member.final_seq is None
                else str(max(0, shard.final_seq - member.final_seq)),
                member.key,
            )
            for member in shard.members
        ],
    )


def _list_voters(shard: ShardStatus) -> list[str]:
    """Return the voters of ``shard``; alone, the writer is the only one and not listed as such."""
    voters = [member.node_id for member in shard.members if member.is_voter]
    return voters or ([shard.writer] if shard.writer is not None else [])


def _document(node: NodeStatus, shards: Sequence[ShardStatus]) -> dict[str, object]:
    return {
        "node_id": node.node_id,
        "network": node.network,
        "members": msgspec.to_builtins(node.members),
        "shards": [_shard_document(shard) for shard in shards],
    }


def _shard_document(shard: ShardStatus) -> dict[str, object]:
    return {
        "shard": shard.shard,
        "role": shard.role,
        "writer": shard.writer,
        "writer_endpoint": shard.writer_endpoint,
        "lineage": shard.lineage,
        "epoch": shard.epoch,
        "view": shard.view,
        "captured_seq": shard.captured_seq,
        "final_seq": shard.final_seq,
        "applied_seq": shard.applied_seq,
        "unfinal_commits": shard.unfinal_commits,
        "fence": shard.fence,
        "orphans": shard.orphans,
        "members": msgspec.to_builtins(shard.members),
    }
