"""What must survive a crash of this node: one SQLite file per data directory.

Synchronous; the daemon chooses the threads.

===================  =========================================================
`journal.journal`    what is remembered of each shard
`journal.framelog`   one shard's frames: appended, cut, measured
`journal.file`       the file, its transactions, what its errors mean
`journal.schema`     the tables and their row ids
`journal.records`    the values that go in and come out
===================  =========================================================
"""
