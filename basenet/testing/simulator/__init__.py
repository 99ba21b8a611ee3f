"""A deterministic simulator of the consensus engine: seeds of bad days, checked from outside.

Theory of operation
===================

One process holds a whole cluster: every node is the real engine (`engine.replica`, `engine.pulse`)
on a toy disk with a toy database. Time is virtual, chance comes from the seed, nothing waits. The
same command gives the same run, event by event: no clock, no hash of the process and no order of a
set enters it.

::

    scenario ── seed ── schedule of faults
                            |
        scheduler ──> mishaps, network, nodes ──> engine ──> effects ──> disk, network, application
                                   |
                               checkers: after each event, from outside

A run has two halves. First chaos: nodes crash between any two effects, come back with their disk,
another one or an old one, prune what is final, clocks drift, the network cuts, loses, doubles and
delays, Byzantine nodes lie, operators move the leader and the voters. Then everything is well
again, and the run must make progress and settle: a protocol that is safe because it stands still
does not pass.

======================  =======================================================================
`clock`, `chance`       virtual time and machines' clocks; chance by name
`scenario`, `faults`    what a run is like; the list of all that will go wrong in it
`network`, `disk`       what lies between nodes; what survives their death
`node`, `application`   the driver of one replica; what commits beside it
`adopting`              states in place of frames that were pruned
`operator`              transfers, CONFIGs, reads
`byzantine`             nodes that lie
`checkers`              the invariants
`world`, `mishaps`      one run; how its faults happen
`runner`, `suite`       many runs; all configurations
`mutants`               the engine with one thing left out, which must be noticed
`minimise`              which faults of a failing run matter
`transcript`, `main`    a run as text; the command line (`cmd/basenet-sim`)
======================  =======================================================================
"""
