"""Replication, backup and high availability for SQLite applications, as a sidecar.

The map of the rooms and of the path of one commit stands in docs/architecture.md.
"""

__version__ = "0.1.0"
