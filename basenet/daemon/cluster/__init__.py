"""A node among several: what the daemon is made of when BASE_NETWORK is quasar.

==========================  ===================================================================
`cluster.ports`             what these parts ask of each other
`cluster.node`              the node: connections, the lane of heartbeats, who gets a message
`cluster.members`           who said HELLO, and the membership that follows from it
`cluster.roles`             what a node is, as its HELLO says
`cluster.heights`           how far shards are at the other members
`cluster.reaching`          where the HTTP surfaces of the nodes are
`cluster.greeting`          whom this node lets in: journals from backups are found out
`cluster.lanes`             heartbeats, sent and received at once
`cluster.watch`             whether the journal gets on, without which there are none
`cluster.routing`           which shard gets a message, in order
`cluster.tally`             what came from peers and was of no use, by reason
`cluster.birth`             a shard's birth: the effects of `engine.birth`, performed
`cluster.pausing`           how long a shard that failed waits
`cluster.pacing`            births of many shards, a few at a time
`cluster.surveying`         what the archive has of a shard that is to be born
`cluster.shard`             one shard's life on this node
`cluster.exchange`          its final state: shown to peers, fetched from them
`cluster.beginning`         a lineage that became known begins in this journal
`cluster.standalone`        a standalone history of this journal becomes one of a cluster
`cluster.commands`          `basenet members` on one shard: what the operator asks
`cluster.resetting`         `basenet shards reset`: the file or the chain counts
`cluster.resigning`         a shard that stands still here is not led from here
`cluster.changing`          which CONFIG an operator's change asks for, and when it is refused
`cluster.forcing`           a forced lineage begins on the survivor
`cluster.accepting`         what was held beyond a forced lineage is kept before it is followed
`cluster.tending`           the writer comes home, and is where it can write
`cluster.witness`           a voter without a database
`cluster.term`              from the journal's record to the first failure: all parts at work
`cluster.placing`           where the file stands when a term begins
`cluster.replica`           the shard's replica between two events: steps, alarms
`cluster.perform`           effects become acts, in order
`cluster.signing`           own signatures, known again
`cluster.quickly`           a lock that mostly nobody has
`cluster.rhythm`            whether it pays to wait a moment for the next one
`cluster.intake`            what became of the frames that peers sent, counted
`cluster.frames`            frames at hand: by hash, from memory or the journal
`cluster.branch`            the states along the chain, as leaf hashes
`cluster.writing`           while the application here may write: capture, and sealing
`cluster.resuming`          a run that a crash cut off goes on
`cluster.marking`           when the file itself says that it is read-only
`cluster.leaving`           a term ends on purpose: sealed, marked, handed over
`cluster.gate`              when the fences of all shards are open
`cluster.settling`          what is final goes into the journal's log and into the file
`cluster.archiving`         the way into the archive: its writer's, and the next one's
`cluster.proving`           the certificates that go beside archived frames
`cluster.snapshots`         page sets, taken by the writer from its own file
`cluster.keeping`           how long final frames stay in the journal
`cluster.orphaning`         what lost is kept, then undone
`cluster.repair`            the file is brought to a final state by content
`cluster.adopting`          a state is taken over where the frames are gone
`cluster.history`           final history for those who are behind, in certified pieces
`cluster.historian`         who sends it to them
`cluster.file`              the database file, fenced: applied to, mended
`cluster.mending`           which pages differ from a state, and where their content comes from
`cluster.spool`             page images that wait to become one transaction
`cluster.transfer`          the state of a database, for those who lack it
`cluster.offer`             a state on offer, and what proves it
`cluster.serving`           a state, sent to who asks
`cluster.asking`            asks, answers, and peers that are silent or lie
`cluster.fetching`          a state, from who has it
`cluster.gathering`         pages, from all peers at once
`cluster.orphans`           orphan bundles
`cluster.generation`        whether what was committed here may have been undone since
`cluster.revive`            a bundle as the database that it would have been
`cluster.guard`             the daemon's end of the guardian
`cluster.service`           builds the node, runs it, takes it down
`cluster.facts`             the answers to what the control room asks
==========================  ===================================================================
"""
