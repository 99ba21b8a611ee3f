"""The daemon: the only room that knows the others.

==========================  ===================================================================
`daemon.assembly`           builds everything from the configuration, runs it, takes it down
`daemon.supervisor`         which shards there are: starts those that appear, drops those that go
`daemon.shard`              one shard's life: wait, attach, birth or resume, follow, detach
`daemon.chain`              a shard's chain in memory: loaded from the journal, or born
`daemon.follow`             capture turns: when to look, in which thread
`daemon.waiting`            captured commits between the capture thread and the pump
`daemon.pump`               effects become acts: persist, then finalise, in that order
`daemon.framer`             captured commits become frames (CPU only)
`daemon.journalist`         the one writer of the journal
`daemon.archiving`          one shard's way into the archive: lineage, lease, uploads, snapshots
`daemon.child`              the application as a child process (``--exec``)
`daemon.facts`              the answers to what the control room asks
==========================  ===================================================================
"""
