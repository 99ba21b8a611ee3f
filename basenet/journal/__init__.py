"""What must survive a crash of this node: one SQLite file per data directory.

Synchronous; the daemon chooses the threads.

======================  ======================================================
`journal.journal`       what is remembered of each shard
`journal.framelog`      one shard's frames: appended, cut, measured
`journal.replica`       what a shard with peers has beyond that, and settling
`journal.branch`        its frames above the final one, by hash
`journal.certificates`  what proves its final chain; the line of CONFIGs
`journal.ballots`       what its voter must never forget, as bytes
`journal.births`        what was promised before there was a lineage
`journal.peers`         how often the journals of others have written
`journal.orphans`       the index of orphan bundles
`journal.file`          the file, its transactions, what its errors mean
`journal.identity`      which journal it is: a copy is another one
`journal.schema`        the tables and their row ids
`journal.migration`     journals of older programs
`journal.sealed`        small values with a checksum
`journal.records`       the values that go in and come out
======================  ======================================================
"""
