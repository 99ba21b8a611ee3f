"""The heart: events in, effects out, nothing else.

This room decides which frames exist and when they are final. It never reads a clock, a file or a
socket and never draws chance: time, salts and the signing key are arguments, so the same events
always give the same effects and a failing run is its list of events.

=================  ==========================================================
`engine.events`    what can happen to a shard
`engine.effects`   what the daemon must then do, in the order given
`engine.quorum`    how many voters make a frame final
`engine.state`     what a shard's replica knows between two events
`engine.replica`   the dispatch: one event, one list of effects
=================  ==========================================================

The driver's obligations (`daemon.pump` is the only driver):

1. Perform the effects of one step in the order listed; `Persist` is durable before the next
   effect of that shard is begun.
2. Report a durable `Persist` with `Stored`, in the order of the frames.
3. Never apply, archive or show as final a frame without its `Finalize`.
"""
