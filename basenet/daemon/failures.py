"""What several tasks raised at once, as the one error that decides what happens next."""

from collections.abc import Iterator

from basenet.errors import BasenetError
from basenet.journal.journal import JournalBroken


def leaves_of(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Yield the errors in ``group``, those of nested groups included."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves_of(error)
        else:
            yield error


def only_error(group: BaseExceptionGroup[BaseException]) -> BasenetError:
    """Return the first error in ``group`` if all are of ours and none ends the process.

    Raises ``group`` itself otherwise.
    """
    errors = list(leaves_of(group))
    ours = [error for error in errors if isinstance(error, BasenetError)]
    if len(ours) < len(errors) or any(isinstance(error, JournalBroken) for error in ours):
        raise group
    return ours[0]
