"""Several errors at once: which one decides."""

import pytest

from basenet.daemon.failures import leaves_of, only_error
from basenet.errors import CorruptionError, UnavailableError
from basenet.journal.journal import JournalBroken


def test_the_errors_of_nested_groups_are_found() -> None:
    """In their order, however deep a nursery lies in others."""
    errors = [ValueError("a"), UnavailableError("b"), KeyError("c")]
    group = BaseExceptionGroup(
        "", [BaseExceptionGroup("", [errors[0], BaseExceptionGroup("", errors[1:2])]), errors[2]]
    )
    assert list(leaves_of(group)) == errors


def test_the_first_of_our_errors_decides() -> None:
    """What follows from it in other tasks is no news."""
    first, second = UnavailableError("first"), CorruptionError("second")
    assert only_error(ExceptionGroup("", [ExceptionGroup("", [first]), second])) is first


@pytest.mark.parametrize("worse", [AssertionError("a bug"), JournalBroken("the disk failed")])
def test_a_bug_or_a_broken_journal_ends_the_process(worse: Exception) -> None:
    """Even if an error that could be shown came first."""
    group = ExceptionGroup("", [UnavailableError("harmless"), ExceptionGroup("", [worse])])
    with pytest.raises(ExceptionGroup) as caught:
        only_error(group)
    assert caught.value is group
