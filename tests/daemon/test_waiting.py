"""The queue between a capture thread and the pump."""

import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from basenet.daemon.waiting import WAITING_BYTES_MAX, Waiting
from basenet.errors import UnavailableError
from basenet.sqlite.captured import Captured
from basenet.units import MIB, PARTIAL_RAW_BYTES_MAX
from tests.daemon.model import Model

Result = TypeVar("Result")

JOIN_S = 10


class Telling(threading.Condition):
    """A condition that says when somebody has to wait at it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_awaited = threading.Event()

    def wait_for(self, predicate: Callable[[], Result], timeout: float | None = None) -> Result:
        if not predicate():
            self.is_awaited.set()
        return super().wait_for(predicate, timeout)


def large(model: Model) -> Captured:
    """A commit of 4 MiB."""
    return model.commit(*range(1, PARTIAL_RAW_BYTES_MAX // model.page_size + 1))


def fill(waiting: Waiting) -> Model:
    """Fill ``waiting`` to its limit with commits."""
    model = Model(0, page_size=65536)
    while waiting.put([large(model)]):
        pass
    return model


def test_what_was_put_is_taken_once_and_in_order() -> None:
    """`take` empties the queue, and the counts go with it."""
    model, waiting = Model(), Waiting(lambda: None)
    items = [model.commit() for _ in range(5)]
    assert waiting.put(items[:2])
    assert waiting.put(items[2:])
    assert (waiting.commits, waiting.put_count) == (5, 5)
    assert waiting.oldest_ns == items[0].captured_ns
    assert waiting.take() == items
    assert waiting.take() == []
    assert (waiting.commits, waiting.put_count) == (0, 5)
    assert waiting.oldest_ns is None


def test_the_pump_is_woken_for_news_and_for_plenty_only() -> None:
    """Once when something waits, once when it fills a frame, and so again after `take`."""
    wakes: list[int] = []
    model, waiting = Model(0, page_size=65536), Waiting(lambda: wakes.append(1))
    small = Model()
    for _ in range(3):
        waiting.put([small.commit()])
    assert len(wakes) == 1
    assert not waiting.is_ample
    waiting.put([large(model)])
    waiting.put([small.commit()])
    assert waiting.is_ample
    assert len(wakes) == 2
    waiting.take()
    waiting.put([small.commit()])
    assert len(wakes) == 3


def take_all(waiting: Waiting) -> list[Captured]:
    """Take until nothing waits."""
    items: list[Captured] = []
    while some := waiting.take():
        items += some
    return items


def test_a_full_queue_takes_commits_but_says_so() -> None:
    """A commit that was read is never refused; the thread is only told to stop reading."""
    waiting = Waiting(lambda: None)
    model = fill(waiting)
    assert not waiting.has_room
    assert not waiting.put([model.commit()])
    assert sum(item.raw_bytes for item in take_all(waiting)) == WAITING_BYTES_MAX + MIB // 16
    assert waiting.has_room


def test_no_more_is_taken_than_fills_a_frame() -> None:
    """So memory stays bounded in the pump, too; it is woken for the rest, in order."""
    wakes: list[int] = []
    waiting = Waiting(lambda: wakes.append(1))
    model, small = Model(0, page_size=65536), Model()
    items = [small.commit(), large(model), large(model), small.commit()]
    for item in items:
        waiting.put([item])
    wakes.clear()
    assert waiting.take() == items[:1]
    assert waiting.take() == items[1:2]
    assert waiting.oldest_ns == items[2].captured_ns
    assert len(wakes) == 2
    assert take_all(waiting) == items[2:]


def test_a_little_of_what_waits_can_be_taken() -> None:
    """Who has little time takes what fits it, and is woken for the rest."""
    wakes: list[int] = []
    waiting, model = Waiting(lambda: wakes.append(1)), Model()
    assert (waiting.is_empty, waiting.raw_bytes) == (True, 0)
    items = [model.commit() for _ in range(5)]
    waiting.put(items)
    size = items[0].raw_bytes
    assert (waiting.is_empty, waiting.raw_bytes) == (False, sum(each.raw_bytes for each in items))
    wakes.clear()
    assert waiting.take(2 * size) == items[:2]
    assert wakes == [1]
    assert waiting.take() == items[2:]
    assert waiting.is_empty


def test_a_piece_of_a_run_waits_for_room() -> None:
    """It cannot be handed over by halves, nor may it fill the memory."""
    waiting = Waiting(lambda: None)
    waiting._room = telling = Telling()
    piece, *_ = fill(waiting).three_pieces()
    thread = threading.Thread(target=waiting.put, args=([piece],))
    thread.start()
    assert telling.is_awaited.wait(JOIN_S)
    before = waiting.take()
    assert piece not in before
    thread.join(JOIN_S)
    assert take_all(waiting)[-1] is piece


def test_closing_frees_the_thread_that_waits_for_room() -> None:
    """It hears that the pump is gone, and what it brought is not taken."""
    waiting = Waiting(lambda: None)
    waiting._room = telling = Telling()
    piece, *_ = fill(waiting).three_pieces()
    waiting_items = len(waiting._items)
    errors: list[UnavailableError] = []

    def put() -> None:
        try:
            waiting.put([piece])
        except UnavailableError as error:
            errors.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    assert telling.is_awaited.wait(JOIN_S)
    waiting.close()
    thread.join(JOIN_S)
    assert len(errors) == 1
    assert len(take_all(waiting)) == waiting_items


def test_a_closed_queue_refuses_commits() -> None:
    """So capture keeps them, and the next session captures them again."""
    waiting = Waiting(lambda: None)
    waiting.close()
    with pytest.raises(UnavailableError, match="pump has ended"):
        waiting.put([Model().commit()])
    assert waiting.take() == []
