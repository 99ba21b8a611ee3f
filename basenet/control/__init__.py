"""The control room: what a running daemon can be asked, over HTTP and by commands.

=========================  ===================================================================
`control.surface`          the facts, and the Protocol that the daemon satisfies
`control.cookie`           how a commit is named to a reader elsewhere
`control.members`          what an operator can do to the members of a shard
`control.reset`            what an operator decides about a file that is not the shard's own
`control.histogram`        an accumulator for the one thing that needs a distribution
`control.slices`           answers about all shards, made without holding up the event loop
`control.metrics`          facts to Prometheus samples, under exactly the promised names
`control.textformat`       samples as lines of Prometheus' text format and of OpenMetrics
`control.listeners`        the two addresses: BASE_LISTEN_HTTP and the data directory's socket
`control.connections`      streams that cannot hang, and no more of them than were allowed
`control.answers`          facts and exceptions to JSON bodies, status codes and headers
`control.question`         how far a shard is, and waits for it: how it is asked and answered
`control.conversation`     a connection from its first byte: what comes with each commit, at once
`control.boundary`         what every request passes: its id, its size, its client, its last error
`control.routes`           the paths
`control.operator`         who may command, and how a command is written in a request
`control.server`           all of the above on hypercorn, from start to a clean end
`control.client`           the other side, for commands
=========================  ===================================================================

Nothing here knows the daemon, the archive, the journal or SQLite. Every path only reads, or waits,
but the commands of an operator, which are taken only from this host.
"""
