"""Between nodes: authenticated bytes in, authenticated bytes out; what they mean is not known here.

======================  ==========================================================
`transport.tls`         TLS 1.3 contexts from files that may change under them
`transport.framing`     length-prefixed messages on a stream
`transport.handshake`   HELLO on a fresh connection: who is there, proven
`transport.outbox`      what waits to be sent to one peer, bounded
`transport.link`        one connection that this node dials and sends on
`transport.listener`    the connections of peers, on which this node only receives
`transport.mesh`        all of it: one sender per peer and lane, one listener
`transport.addresses`   where peers may be found: literals and DNS
======================  ==========================================================

Every connection carries data in one direction, from the node that dialled it, so that two nodes
that dial each other at once have nothing to settle. Losing messages is allowed everywhere here: the
protocol above asks again. Forging or mixing them up is not.
"""
