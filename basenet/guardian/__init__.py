"""The guardian: a small process that keeps replicas and lapsed writers from writing.

The fence of a database is a lock, and locks die with the process that holds them. So in a cluster
their holder is not the daemon, which is large and may crash, but its parent: a process without
SQLite, network, trio or numpy, a dead-man's switch. It holds the write lock of every database of
the node, except while the daemon keeps saying "released until T".

=====================  ============================================================
`guardian.become`      how `basenet serve` turns into the guardian, and starts itself again
`guardian.parent`      daemon, application and fences of one node, from start to end
`guardian.children`    processes: started, signalled, reaped
`guardian.process`     the loop: the daemon's socket, the ends of processes, time
`guardian.keeper`      all fences of a node, and when they open and close
`guardian.fence`       one database's locks
`guardian.header`      repairs a torn header of -shm, so that readers do not wait
`guardian.waiters`     threads that wait for locks which somebody else holds
`guardian.protocol`    what daemon and guardian say to each other
`guardian.handover`    what it hands to itself when it is exec'd anew
`guardian.report`      its lines in the log
=====================  ============================================================

Its only spontaneous act is to lock. Only a message of the daemon unlocks, and never for longer than
the lease that the daemon names; with the daemon dead, stopped or silent the time runs out and the
lock is taken. What no lock can do: take the write lock from a transaction that is open at that
moment. It may commit, is captured and becomes an orphan; none *begins* after it.

A guardian that is killed alone leaves its locks to the daemon, which has duplicates of the
descriptors, locks through them what was open, and ends (`daemon.cluster.guard`). Killed together
with its daemon (a container killed, a frozen cgroup, a reboot) it leaves nothing behind;
BASE_FENCE=readonly is for those.
"""
