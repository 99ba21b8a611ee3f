"""``basenet status``: how far each shard has come, and what is wrong.

On a terminal the table is drawn and coloured; anywhere else it is plain columns, so that ``awk``
and a log read the same words. ``--watch`` repeats it and outlives a restart of the daemon.
"""

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

import click
import msgspec

from basenet.cli import output
from basenet.cli.target import make_client, target_options
from basenet.control.client import DaemonClient
from basenet.control.surface import FenceState, NodeStatus, ShardState, ShardStatus
from basenet.errors import UnavailableError

WATCH_SECONDS: Final = 1.0
CLOCK_STEP_SECONDS_MAX: Final = 60.0
_MS: Final = 1000
_NS: Final = 1_000_000_000
_NONE: Final = "-"

_HEADINGS: Final = (
    "SHARD",
    "STATE",
    "CAPTURED",
    "FINAL",
    "ARCHIVED",
    "LAG",
    "LAG BYTES",
    "LAG AGE",
    "WAL",
    "SNAPSHOT IN",
)
_COLOURS: Final = {
    ShardState.CAPTURING: "green",
    ShardState.STOPPED: "red",
    ShardState.REFUSED: "red",
}


@click.command()
@click.option("--shard", help="Show this shard alone, in full.")
@click.option("--watch", is_flag=True, help="Repeat every second until interrupted.")
@target_options
@output.json_option
def command(
    *, shard: str | None, watch: bool, data_dir: Path | None, url: str | None, as_json: bool
) -> None:
    """Show how far each shard has come.

    CAPTURED, FINAL and ARCHIVED are the seq up to which a shard has come that far; LAG is how many
    captured commits are not archived, LAG AGE how old the oldest of them is. With --watch --json
    there is one document a line.
    """
    client = make_client(data_dir, url)
    if watch:
        _watch(client, shard, as_json=as_json)
    else:
        _show(_ask(client, shard), as_json=as_json)


def _ask(client: DaemonClient, shard: str | None) -> NodeStatus | ShardStatus:
    """Return the one shard that was asked for, else the node with all of them."""
    return client.get_node_status() if shard is None else client.get_shard_status(shard)


def _show(told: NodeStatus | ShardStatus, *, as_json: bool) -> None:
    if as_json:
        output.print_json(msgspec.to_builtins(told))
    elif isinstance(told, ShardStatus):
        output.print_facts(_describe_shard(told))
    else:
        _show_node(told)


def _show_node(node: NodeStatus) -> None:
    if sys.stdout.isatty():
        _print_rich(node)
    else:
        click.echo(_describe_node(node))
        output.print_table(_HEADINGS, [_describe_row(shard, node) for shard in node.shards])
        _print_remarks(node)


def _watch(client: DaemonClient, shard: str | None, *, as_json: bool) -> None:
    """Show the status again and again; a daemon that is away is said so and waited for."""
    try:
        while True:
            try:
                answer = _ask(client, shard)
            except UnavailableError as error:
                output.say(str(error))
            else:
                _show_again(answer, as_json=as_json)
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return  # the way to end a watch, and not a failure


def _show_again(told: NodeStatus | ShardStatus, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(told))
        return
    click.clear()  # does nothing when the output is no terminal
    _show(told, as_json=False)


def _describe_node(node: NodeStatus) -> str:
    """Return the node in one line."""
    readiness = "ready" if node.ready else "not ready"
    archive = node.archive or "off"
    uptime = output.format_duration(node.uptime_s)
    return f"{node.node_id}  {node.network}  {readiness}  up {uptime}  archive {archive}"


def _describe_row(shard: ShardStatus, node: NodeStatus) -> Sequence[str]:
    return (
        shard.shard,
        shard.state,
        str(shard.captured_seq),
        str(shard.final_seq),
        str(shard.archived_seq) if node.archive is not None else _NONE,
        str(shard.lag_commits),
        output.format_size(shard.lag_bytes),
        output.format_duration(shard.lag_ms / _MS) if shard.lag_ms else _NONE,
        output.format_size(shard.wal_bytes),
        _format_until(shard.next_snapshot_ns, node.now_ns),
    )


def _describe_shard(shard: ShardStatus) -> dict[str, str]:
    """Return everything that is known of one shard, a fact a line."""
    facts = {
        "shard": shard.shard,
        "path": shard.path,
        "state": shard.state.value,
        "error": shard.error or "",
        "lineage": shard.lineage or "",
        "epoch, view": f"{shard.epoch}, {shard.view}",
        "captured": f"seq {shard.captured_seq}, commit {shard.captured_local}",
        "last captured": _format_moment(shard.last_captured_ns),
        "final": f"seq {shard.final_seq}",
        "archived": f"seq {shard.archived_seq}",
        "last archived": _format_moment(shard.last_archived_ns),
        "last restore point": _format_moment(shard.last_restore_point_ns),
        "lag": f"{shard.lag_commits} commits, {output.format_size(shard.lag_bytes)}, "
        f"{output.format_duration(shard.lag_ms / _MS)}",
        "worst-case loss": output.format_duration(shard.worst_case_loss_ms / _MS),
        "archive": shard.archive,
        "retention": shard.retention,
        "last proof": shard.proof,
        "last proven": _format_moment(shard.proof_verified_ns),
        "archive epoch": str(shard.archive_epoch or ""),
        "archive broken at": str(shard.archive_broken_seq or ""),
        "database": f"{shard.db_pages} pages of {shard.page_size} bytes",
        "fence": _describe_fence(shard),
        "wal": output.format_size(shard.wal_bytes),
        "journal": output.format_size(shard.journal_bytes),
        "last snapshot": f"seq {shard.last_snapshot_seq}" if shard.last_snapshot_seq else "",
        "next snapshot in": _format_until(shard.next_snapshot_ns, shard.now_ns),
        "recovered, lapped, regressed": f"{shard.recovered}, {shard.lapped}, {shard.regressed}",
    }
    return {name: value or _NONE for name, value in facts.items()}


def _describe_fence(shard: ShardStatus) -> str:
    """Return what keeps applications from writing: the fence, and what the file says itself."""
    words = [] if shard.fence is FenceState.NONE else [shard.fence.value]
    return ", ".join([*words, *(["the file is marked read-only"] if shard.is_read_only else [])])


def _remarks(node: NodeStatus) -> list[str]:
    """Return what an operator must read: why the node is not ready, and every shard's error."""
    said = "\n".join(node.reasons)
    shards = [
        f"{shard.shard}: {shard.error}"
        for shard in node.shards
        if shard.error and shard.error not in said
    ]
    proofs = [
        f"{shard.shard}: proof {shard.proof}" for shard in node.shards if shard.is_proof_failed
    ]
    return list(dict.fromkeys([*node.reasons, *shards, *proofs, *_clock_remarks(node)]))


def _clock_remarks(node: NodeStatus) -> list[str]:
    """Return a sentence where the host's clock was set by more than a time service does."""
    if abs(node.clock_step_s) <= CLOCK_STEP_SECONDS_MAX:
        return []
    way = "forward" if node.clock_step_s > 0 else "back"
    step = timedelta(seconds=round(abs(node.clock_step_s)))
    sentence = (
        f"the clock of this host was set {way} by {step} since basenet started: commits are "
        "stamped by it, so if `date` is wrong, set it right; nothing is deleted by it"
    )
    return [sentence]


def _print_remarks(node: NodeStatus) -> None:
    for remark in _remarks(node):
        click.echo(f"! {remark}")


def _print_rich(node: NodeStatus) -> None:
    """Draw the table; only here is the drawing library loaded."""
    from rich.console import Console  # noqa: PLC0415  (a tenth of a second that pipes do not pay)
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False)
    # One space between columns, so that a usual row fits 80 columns; ids and states stay whole.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in _HEADINGS:
        is_word = heading in _HEADINGS[:2]
        table.add_column(heading, justify="left" if is_word else "right", no_wrap=is_word)
    for shard in node.shards:
        cells = [escape(cell) for cell in _describe_row(shard, node)]
        cells[1] = f"[{_COLOURS.get(shard.state, 'yellow')}]{cells[1]}[/]"
        table.add_row(*cells)
    console.print(escape(_describe_node(node)), style="bold" if node.ready else "bold red")
    console.print(table)
    for remark in _remarks(node):
        console.print(f"[red]![/] {escape(remark)}")


def _format_moment(moment_ns: int | None) -> str:
    return "" if moment_ns is None else output.format_time(moment_ns)


def _format_until(moment_ns: int | None, now_ns: int | None) -> str:
    """Return how long it is until a moment, by the daemon's own clock."""
    if moment_ns is None or now_ns is None:
        return _NONE
    return output.format_duration(max(0, moment_ns - now_ns) / _NS)
