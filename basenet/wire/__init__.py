"""Bytes to values and back: every format that basenet writes, and nothing else.

This room is pure: no clock, no file, no socket, no chance, no log. Bytes become values here, once;
above this room nobody slices bytes. Every decoder bounds a length before it trusts it, refuses
unknown versions, kinds, flags, codecs and trailing bytes, and raises a typed error that names what
is wrong. The offset tables stand in docs/formats/.

========================  ==============================================================
`wire.codec`              a bounded cursor over bytes
`wire.compression`        zstd: one frame of a known size, or nothing
`wire.signature`          Ed25519: sign and verify
`wire.merkle`             leaf hashes, the state tree, the state root
`wire.payload`            what a frame carries: COMMIT pages, CONFIG voters
`wire.frame`              the frame record: head, payload, hash
`wire.chain`              what may follow what: genesis, PARTIAL runs, page size
`wire.tuples`             what votes, promises and proposals sign
`wire.quorum`             how many voters decide, in either fault model
`wire.certificate`        the CERT record: who voted for a frame, and whether that is enough
`wire.finality`           which frames of a lineage are final, from public keys alone
`wire.fields`             bounds of fields that messages share
`wire.message`            what nodes say to each other about a shard that they share
`wire.birth`              the same about a shard of which one of them knows no lineage
`wire.transfer`           a state between nodes: its leaf hashes, its pages
`wire.leafparts`          4,096 leaves, verified against a state root by themselves
`wire.rollback`           a node whose journal went back in time is told
`wire.reachable`          where a node's HTTP surface is
`wire.heights`            how far shards are final at a node
`wire.envelope`           the shard and lineage of a message, and frames in packs
`wire.hello`              HELLO: who is there, before anything else on a connection
`wire.packed`             the small frames of a log object, compressed together
`wire.segment`            LBN2: the one signed container of the archive
`wire.encryption`         an object encrypted at rest, for whom, and bound to its name
`wire.pageset`            snapshots: manifest, index rows, parts
========================  ==============================================================
"""
