"""The daemon: the only room that knows the others.

==========================  ===================================================================
`daemon.assembly`           builds everything from the configuration, runs it, takes it down
`daemon.node`               what all shards share: configuration, journal, waker, store, threads
`daemon.supervisor`         which shards there are: starts those that appear, drops those that go
`daemon.listing`            which files BASE_SHARDS means at this moment
`daemon.shard`              one shard's life: wait, attach, birth or resume, follow, detach
`daemon.session`            one attachment: everything between attach and letting go
`daemon.chain`              a shard's chain in memory: loaded from the journal, or born
`daemon.tracefile`          what the engines decide, written to BASE_TRACE_FILE
`daemon.behind`             a file that lost commits, and how it gets them back
`daemon.waker`              who is worth a look, rung at the doorbells of the shards
`daemon.follow`             capture turns: when to look, in which thread
`daemon.waiting`            captured commits between the capture thread and the pump
`daemon.pump`               effects become acts: persist, then finalise, in that order
`daemon.framer`             captured commits become frames (CPU only)
`daemon.journalist`         the one writer of the journal
`daemon.hand`               a thread of one's own, for the journal's writer
`daemon.keeper`             the journal's cap while the archive is away
`daemon.progress`, `marks`  how far a shard has come, and what is not archived yet
`daemon.archiving`          one shard's way into the archive: lineage, lease, uploads
`daemon.compare`            journal against archive, in the daemon's own terms
`daemon.presence`           whether the archive still has what was put there
`daemon.troubles`           what is wrong with shards and their archive, in words and counts
`daemon.upkeep`             snapshots and retention, one after the other
`daemon.wallclock`          whether somebody set this machine's clock
`daemon.snapshots`          what a snapshot reads of a running shard
`daemon.scrubbing`          the scrubber at work on one session
`daemon.proof`, `prover`    a moment of the archive restored now and then, by a child process
`daemon.ledger`             what these proofs found
`daemon.missing`            databases that are brought back from the archive before all else
`daemon.host`               what the tasks around a shard may ask of it
`daemon.child`              the application as a child process (``--exec``)
`daemon.allocator`          has the C library give back what a burst of commits needed
`daemon.failures`           what several tasks raised at once, as one error
`daemon.facts`              the answers to what the control room asks
==========================  ===================================================================
"""
