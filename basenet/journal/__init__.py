"""What must survive a crash of this node: one SQLite file per data directory.

Synchronous; the daemon chooses the thread. `journal.journal` is the file and its transactions,
`journal.schema` its tables, `journal.records` the values that go in and come out.
"""
