"""Who signs, and whom a reader trusts.

Theory of operation
===================

A node has one Ed25519 key. It signs the node's frames and archived objects, and in a cluster it is
the key of the node's certificate, too. Whoever restores needs the *public* half, and gets it from
somewhere else than the archive: a key that lies beside what it signed proves nothing.

=======================  ==============================================================
`keys.files`             the only writer of secrets: 0600, whole or not at all, never over another
`keys.signing`           a node's own key: made once in the data directory, or named by the operator
`keys.trust`             trusted.keys: whose signatures a reader accepts
`keys.authority`         the development CA of ``basenet keys init``
`keys.age`               who can read an encrypted archive, in the form of age's keys
=======================  ==============================================================

The private half never appears in a message, a log or a ``repr``.
"""
