"""SQLite from the outside: the application's database file as the daemon sees it.

Theory of operation
===================

An application commits to its own file in WAL mode. This room follows it without a driver, a VFS or
an extension, by reading three files that SQLite keeps for itself::

    app.db       pages, each as of the last checkpoint
    app.db-wal   frames: newer images of pages; a frame with a size in it ends a transaction
    app.db-shm   the wal-index: where the log ends (mxFrame), the number of commits (iChange),
                 how much of it lies in app.db already (nBackfill), from where readers read (marks)

======================  ==========================================================================
`walformat`             bytes of the log: header, frames, checksums of whole blocks at once
`walindex`              bytes of the wal-index: one consistent header or none
`locks`                 the byte-range locks that SQLite's processes see of each other
`filesystem`            what the database lies on, and whether locks and shared memory work there
`attach`                one database file held by the daemon: descriptors, connections, owner, inode
`checkpoint`            our checkpoints, never into a file that is not ours
`pin`                   a read transaction that keeps the log from being reset
`policy`, `rotation`    when to pin, release or move the pin, and how
`tail`                  what the log holds beyond the cursor, across at most one reset
`unsealed`              committed frames that a bug of old SQLite left without a checksum
`captured`, `changes`   commits as values: the last image of each page, and the place behind them
`capture`               the whole: poll, hand over, go on
`wake`, `signals`       which database is worth a look: by `inotify`, or by `polling`
`resume`                where to go on after a life without us
`pages`                 the whole database at one position of the log
`glance`                pages as they are right now, without a lock, to be verified by hash
`recover`               what differs from the leaf hashes, when commits could not be followed
`scrub`                 whether the file still holds what was captured, a few pages at a time
`reinject`              giving a file back, as a log, the commits that a power failure took from it
`inject`, `apply`       a replica: final changes appended to the log beside its readers
`page1`                 what page 1 says about who may write: the read-only mark
`unmark`                takes that mark from a file that no cluster serves any more
`standby`               a copy that only we write: proven, then applied as one commit
`integrity`             integrity_check over pages that are no file
`create`                an empty database where a replica has none
`standing`              what became of a replica's file while no daemon looked
`contents`              rows, schema, and a copy of it all
`rawcopy`               a page for page copy of a database that we are not attached to
`pagevfs`               a past moment as a database that SQLite reads page by page
`rowdiff`               which rows differ between two states of a database
`diagnose`              what is wrong with a database, from its bytes and locks, without SQLite
======================  ==========================================================================

Rules that every file here keeps
--------------------------------

1. *POSIX*: closing any descriptor of a file drops every fcntl lock that the process holds on it.
   Nobody opens and closes the database, its -wal or its -shm with ``open()`` while a connection of
   ours is open; `attach.Database` owns the descriptors and closes them last.
2. Frames beyond mxFrame are somebody's unfinished business: never read as commits in their own
   generation.
3. Completeness is counted, not hoped for: captured commits == growth of iChange, or the gap is
   said and mended by a page diff.
4. Nothing is written into a file whose path leads elsewhere by now.
5. The application is never made to wait for us without bound: locks are tried, not awaited, but for
   the 20 ms in which a log that `unsealed` found is cut off.

Everything is synchronous; the daemon calls it from threads, one thread at a time per database,
except `pages`, which brings its own connection. `diagnose` and `reinject` are for files that we are
not attached to.
"""
