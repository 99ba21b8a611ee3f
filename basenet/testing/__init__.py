"""Test equipment, shipped with the program: what it takes to try basenet against bad days.

=================  ==============================================================================
`objectstores`     an S3 and a GCS server on this machine, each a child process on a free port
`faultproxy`       a proxy that delays, loses, cuts and swallows HTTP requests on purpose
`links`            TCP connections between nodes that can be cut, held and slowed
`cluster`          several real nodes on loopback: started, killed, stopped, asked
`history`          clients of a cluster, what they were told, and whether that can be true
`clustercheck`     judges databases, journals and orphan bundles of a cluster from outside
`clusterchaos`     `make soak`: load and random faults, then the judgement
`clusterdemo`      `make demo-cluster`
=================  ==============================================================================

Nothing here runs in the daemon. Some of it needs the packages of the extra ``dev``.
"""
