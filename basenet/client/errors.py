"""What can go wrong when a commit is waited for.

None of these errors unmakes a commit. ``is_committed`` says what happened to the transaction of the
call that raised: True, it is committed in the local database, and only how safe it is remains
unknown; False, the call committed nothing (it asked or waited alone). Running the transaction again
after an error with ``is_committed`` would do its work twice.
"""

from basenet.errors import BasenetError


class ClientError(BasenetError):
    """The root of them; ``is_committed``: see above."""

    code = "shard_unavailable"

    def __init__(self, sentence: str, *, is_committed: bool = False) -> None:
        super().__init__(sentence)
        self.is_committed = is_committed


class NotFinal(ClientError):  # noqa: N818  (the field's word)
    """The time was up before the commit reached its level; it still may.

    ``level`` was waited for; ``seq`` is the frame that must reach it, None when not known yet.
    """

    code = "not_caught_up"

    def __init__(
        self, sentence: str, *, level: str, seq: int | None, is_committed: bool = False
    ) -> None:
        super().__init__(sentence, is_committed=is_committed)
        self.level = level
        self.seq = seq


class DaemonUnavailable(ClientError):  # noqa: N818
    """No daemon answered, it does not serve this database now, or it is stopping."""


class CommitOrphaned(ClientError):  # noqa: N818
    """The commit lost: another history became final. The node keeps it as an orphan bundle.

    It is also raised when only something near it is known to be lost: a commit that this connection
    waits for and that was made on this node shortly before. Then look whether the commit is there.
    ``bundles``: where it is kept, as far as the daemon said so (`basenet orphans show ID`).
    """

    code = "orphaned"

    def __init__(
        self, sentence: str, *, bundles: tuple[str, ...] = (), is_committed: bool = False
    ) -> None:
        super().__init__(sentence, is_committed=is_committed)
        self.bundles = bundles


class LineageChanged(ClientError):  # noqa: N818
    """A cookie names a commit of another lineage than the database now has (409)."""

    code = "lineage_mismatch"


class Refused(ClientError):  # noqa: N818
    """The daemon does not do what was asked, such as level archived without an archive."""

    code = "bad_request"
