"""Test equipment, shipped with the program: what it takes to try basenet against bad days.

=================  ==============================================================================
`objectstores`     S3 and GCS servers on this machine, each a child process on a free port
`radosgw`          Ceph's S3, from Debian's packages, as one of them
`faultproxy`       a proxy that delays, loses, cuts and swallows HTTP requests on purpose
`storesoak`        `cmd/basenet-store-soak`: load, a store in bad weather, SIGKILLs; a verdict
`links`            TCP connections between nodes that can be cut, held and slowed
`hardware`         a node's disk, filled or slowed, and its clock, stepped
`cluster`          several real nodes on loopback: started, killed, stopped, asked
`history`          clients of a cluster, what they were told, and whether that can be true
`clustercheck`     judges databases, journals and orphan bundles of a cluster from outside
`clusterarchive`   the archive that the nodes of a cluster share, and how it fails
`archivecheck`     judges that archive from outside, by restores, with public keys
`clusterchaos`     `make soak`: load and random faults, then the judgement
`clusterdemo`      `make demo-cluster`
`steadyload`       every operation at many paces of an application that never rests
=================  ==============================================================================

Nothing here runs in the daemon. Some of it needs the packages of the extra ``dev``.
"""
