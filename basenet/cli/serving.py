"""The process around ``basenet serve``: configuration, logging and the event loop."""

import logging
import os
import sys
from pathlib import Path

import structlog
import trio

from basenet.config import load
from basenet.config.model import Config, LogFormat
from basenet.daemon import assembly
from basenet.daemon.allocator import give_memory_back


def serve(database: str | None, archive: str | None, command: str | None) -> int:
    """Serve until a signal or the application's end; return the exit code.

    Raises what makes a start impossible, as `assembly.run` does.
    """
    arguments = {}
    # An empty argument (an unset variable of the shell) is none, as with the settings.
    if database:
        arguments["BASE_SHARDS"] = f"{database}/" if Path(database).is_dir() else database
    if archive:
        arguments["BASE_ARCHIVE"] = archive
    config = load(os.environ, arguments=arguments)
    _configure_logging(config)
    environment = dict(os.environ)
    give_memory_back()

    async def run() -> int:
        return await assembly.run(config, environment=environment, command=command)

    return trio.run(run)


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
