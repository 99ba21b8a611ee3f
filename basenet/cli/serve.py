"""``basenet serve``: capture databases and archive what they commit."""

import logging
import os
import signal
import sys
from pathlib import Path

import click
import structlog
import trio

from basenet.config import load
from basenet.config.model import Config, LogFormat


@click.command("serve")
@click.argument("db", required=False)
@click.argument("archive", required=False)
@click.option(
    "--exec",
    "command",
    metavar="CMD",
    help="Start the application as a child, pass signals on to it and end with its exit code.",
)
def command(db: str | None, archive: str | None, command: str | None) -> int:
    """Watch DB (or BASE_SHARDS) and archive every commit to ARCHIVE (or BASE_ARCHIVE).

    DB is a database file, a directory, a pattern or id=path, or several with commas between them;
    it need not exist yet. ARCHIVE is a directory, s3://bucket/prefix or gs://bucket/prefix. All
    other settings are BASE_* variables; docs/configuration.md lists them.

    SIGTERM stops capturing at a commit boundary, flushes to the archive and exits with 0; a second
    one exits at once, and what was not flushed waits in the journal.
    """
    # Until the daemon listens to signals itself there is nothing to flush.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from basenet.daemon import assembly  # noqa: PLC0415  (the daemon's imports cost 0.5 s)

    arguments = {}
    if db is not None:
        arguments["BASE_SHARDS"] = f"{db}/" if Path(db).is_dir() else db
    if archive is not None:
        arguments["BASE_ARCHIVE"] = archive
    config = load(os.environ, arguments=arguments)
    _configure_logging(config)
    environment = dict(os.environ)

    async def serve() -> int:
        return await assembly.run(config, environment=environment, command=command)

    return trio.run(serve)


def _configure_logging(config: Config) -> None:
    wants_console = config.log_format is LogFormat.CONSOLE or (
        config.log_format is LogFormat.AUTO and sys.stderr.isatty()
    )
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if wants_console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            getattr(logging, config.log_level.value.upper())
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
