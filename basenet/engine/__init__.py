"""The heart: events in, effects out, nothing else.

This room decides which frames exist and when they are final, for any number of voters and in both
fault models. It never reads a clock, a file or a socket and never draws chance: time, salts, the
signing key and a source of chance are arguments, so the same events always give the same effects
and a failing run is its list of events. The rules are numbered in docs/protocol.md.

========================  ==================================================================
`engine.events`           what can happen to a shard
`engine.effects`          what the driver must then do, in the order given
`engine.replica`          the dispatch: one event, one list of effects
`engine.state`            what a replica knows between two events, and what a step gathers
`engine.ballot`           what of it must survive a crash
`engine.tree`             the heads above the final frame, by hash
`engine.quorum`           who votes, and what proves that they did
`engine.proposing`        the leader: where a view starts, what is sealed, asking for votes
`engine.voting`           what to vote for, counting votes, locks
`engine.finality`         what a certificate makes final, and what lost against it
`engine.elections`        silence, wishes, promises
`engine.views`            coming into a view; `engine.justification`: where it may start
`engine.membership`       CONFIG and transfer; `engine.configuration`: which may follow
`engine.catchup`          frames by hash, final history
`engine.adoption`         a state instead of a history that nobody has as frames any more
`engine.reads`            how far a read must wait
`engine.evidence`         what peers did that they may not; `engine.trace`: what was done
`engine.limits`           every time and every bound, with its name
`engine.liveness`         the lane of heartbeats as a replica sees it
`engine.pulse`            that lane (with `lease`, `promise`, `leadlist`); `engine.alone`
`engine.birth`            how a shard gets its first history, with the rooms beside it
========================  ==================================================================

The driver's obligations:

1. Call `Replica.boot` once, before any event, and perform what it returns like any step's.
2. Perform the effects of one step in the order listed; `Persist` is durable before the next effect
   of that shard is begun, and all of a `Persist` is one transaction.
3. After each step look at `wake_at`, and give a `Ticked` when it has come; also when the lane of
   heartbeats rouses the shard.
4. Give captured commits only while `can_seal` holds; until then keep them. An `Orphan` takes all
   that wait with it.
5. Never apply, archive or show as final a frame without its `Finalize`, and report with `Applied`
   what the database holds; what was captured here it holds already.
6. Keep the certificate of a ballot beside the frame that it makes final, if it is of the frame's
   own epoch: what a later epoch says of the CONFIG that it starts from proves nothing to others.
7. Let the application write only until `writable_until`, and lock it out at a `Fence`.
8. Judge roots in the order of `Judge`, and answer every one of them.
9. When a `Persist` fails, throw the replica away and make it anew from the journal.
10. Where a `ServeFinal` asks for frames that are pruned, offer a state; take one over as
    `engine.adoption` says.
11. A witness has no database: when it leads, give it a `TransferWanted` to a voter with data.
"""
