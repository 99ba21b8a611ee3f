"""When the writer comes home, and that it does not come and go."""

from basenet.daemon.cluster.tending import Watched

HOLD_S = 10.0


def test_home_is_where_it_could_be_for_a_while_without_a_break() -> None:
    watched = Watched()
    assert not watched.is_due(0.0, HOLD_S, is_right=True)
    assert not watched.is_due(9.0, HOLD_S, is_right=True)
    assert not watched.is_due(9.5, HOLD_S, is_right=False)
    assert not watched.is_due(10.5, HOLD_S, is_right=True)
    assert not watched.is_due(20.0, HOLD_S, is_right=True)
    assert watched.is_due(20.5, HOLD_S, is_right=True)


def test_each_move_in_vain_doubles_the_wait_up_to_ten_minutes() -> None:
    watched, now_s = Watched(), 0.0
    waits: list[float] = []
    for _ in range(8):
        began_s = now_s
        while not watched.is_due(now_s, HOLD_S, is_right=True):
            now_s += 1.0
        waits.append(now_s - began_s)
        watched.moved(now_s)
    assert waits == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0]


def test_a_minute_at_home_makes_the_next_move_a_first_one() -> None:
    watched = Watched()
    watched.moved(0.0)
    watched.moved(20.0)
    watched.see_leader(21.0, is_home=True)
    watched.see_leader(50.0, is_home=False)
    watched.see_leader(51.0, is_home=True)
    watched.see_leader(110.0, is_home=True)
    assert watched.moves == 2
    watched.see_leader(111.0, is_home=True)
    assert watched.moves == 0


def test_an_operators_transfer_stands_and_an_answer_to_our_own_move_does_not() -> None:
    watched = Watched()
    assert not watched.was_meant(None)
    assert watched.was_meant(5.0)
    watched.moved(100.0)
    assert not watched.was_meant(130.0)
    assert watched.was_meant(170.0)


def test_a_move_to_each_candidate_comes_before_the_wait_is_doubled() -> None:
    watched, now_s = Watched(), 0.0
    waits: list[float] = []
    for _ in range(6):
        began_s = now_s
        while not watched.is_due(now_s, HOLD_S, is_right=True, candidates=2):
            now_s += 1.0
        waits.append(now_s - began_s)
        watched.moved(now_s)
    assert waits == [10.0, 10.0, 20.0, 20.0, 40.0, 40.0]
