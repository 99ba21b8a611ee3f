"""The control room: what a running daemon can be asked, over HTTP and by commands.

=========================  ===================================================================
`control.surface`          the facts, and the Protocol that the daemon satisfies
`control.histogram`        an accumulator for the one thing that needs a distribution
`control.metrics`          facts to Prometheus samples, under exactly the promised names
`control.listeners`        the two addresses: BASE_LISTEN_HTTP and the data directory's socket
`control.connections`      streams that cannot hang, and no more of them than were allowed
`control.answers`          facts and exceptions to JSON bodies, status codes and headers
`control.boundary`         what every request passes: its id, its size, its client, its last error
`control.routes`           the paths
`control.server`           all of the above on hypercorn, from start to a clean end
`control.client`           the other side, for commands
=========================  ===================================================================

Nothing here knows the daemon, the archive, the journal or SQLite, and nothing here changes
anything: every path only reads, or waits.
"""
