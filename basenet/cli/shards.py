"""``basenet shards``: which databases a daemon serves, and under which ids."""

from pathlib import Path

import click

from basenet.cli import output
from basenet.cli.target import make_client, target_options
from basenet.control.surface import ShardStatus


@click.command()
@target_options
@output.json_option
def command(*, data_dir: Path | None, url: str | None, as_json: bool) -> None:
    """List the shards of a running node."""
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


def _document(shard: ShardStatus) -> dict[str, object]:
    return {
        "shard": shard.shard,
        "path": shard.path,
        "state": shard.state,
        "lineage": shard.lineage,
        "size_bytes": shard.db_pages * shard.page_size,
    }
