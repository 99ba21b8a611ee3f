"""The archive: signed frames and snapshots as objects in a directory, S3 or GCS.

::

    writing    backlog -> seal -> uploader -> store        lease: who may; tip: how far
               turns: how many shards ship much at once
               takeover: where the next writer goes on     (several nodes)
               pageset -> layout -> snapshot -> publish    page sets;   schedule: when
               compaction -> compact                       small log objects become larger ones
               watch -> cutoff -> retention -> prune       what no kept moment needs
    reading    catalog -> lineage, stretch -> plan -> survey
               fetch -> setreader, replay -> place         restore;   partial: broken off
               overlay -> past; ranges                     query; which moments there are
               pursuit                                     what came after a frame that is held
               proof -> scratch                            a random moment, restored to nowhere
               inspector, walk -> findings                 verify
               stats                                       what there is, counted
               finality: which frames certificates prove   (several voters)
    deciding   continuation, parentstate                   how a journal continues an archive
    stores     port: directory, s3, gcs, unconditional     store: by URL;   probe: does it hold?
               metered: what is asked of a store, counted
               encrypted: what a store keeps, encrypted at rest;   keyring: for whom
               remote, files: what each store needs        patience, backoff, clock: how long
    common     names -> facts                              baseline: what a restore would begin with
               pagebuffer, spool                           pages on their way to a file or a part

Nothing here imports SQLite, the journal or the daemon: what is needed from them comes in through
small Protocols. Reading trusts nothing but keys that the operator named (`trust`).
"""
