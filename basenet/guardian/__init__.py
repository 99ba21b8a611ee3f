"""The guardian: a small process that keeps replicas and lapsed writers from writing.

The fence of a database is a lock, and locks die with the process that holds them. So in a cluster
their holder is not the daemon, which is large and may crash, but its parent: a process without
SQLite, network, trio or numpy, a dead-man's switch. It holds the write lock of every database of
the node, except while the daemon keeps saying "released until T".

=====================  ============================================================
`guardian.header`      repairs a torn header of -shm, so that readers do not wait
`guardian.fence`       one database's locks
`guardian.waiters`     threads that wait for locks which somebody else holds
`guardian.protocol`    what daemon and guardian say to each other
`guardian.keeper`      all fences of a node, and when they open and close
`guardian.process`     the loop: the daemon's socket, its death, signals, time
=====================  ============================================================

Its only spontaneous act is to lock. Only a message of the daemon unlocks, and never for longer than
the lease that the daemon names; with the daemon dead, stopped or silent the time runs out and the
lock is taken. What no lock can do: take the write lock from a transaction that is open at that
moment. It may commit, is captured and becomes an orphan; none *begins* after it.

A guardian that is killed together with its daemon (a container killed, a frozen cgroup, a reboot)
leaves nothing behind; BASE_FENCE=readonly is for those.
"""
