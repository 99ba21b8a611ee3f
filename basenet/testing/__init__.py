"""Test equipment, shipped with the program: what it takes to try basenet against bad days.

=================  ==============================================================================
`objectstores`     an S3 and a GCS server on this machine, each a child process on a free port
`faultproxy`       a proxy that delays, loses, cuts and swallows HTTP requests on purpose
=================  ==============================================================================

Nothing here runs in the daemon. Some of it needs the packages of the extra ``dev``.
"""
