"""Calls that take turns: which order they run in, what counts, and that drift hits all alike."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import pytest

from ztdeploy.target.measure import turns
from ztdeploy.target.measure.statistics import median_ratio
from ztdeploy.target.measure.turns import take_turns


class Clock:
    """Time that passes only while a call runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        monkeypatch.setattr(turns.time, "perf_counter", lambda: self.now)

    def call(self, name: str, milliseconds: Callable[[int], float]) -> Callable[[], None]:
        """A call that takes as long as a function of how many were made before it says."""

        def run() -> None:
            self.now += milliseconds(len(self.calls)) / 1000
            self.calls.append(name)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_calls_take_turns_and_the_first_round_does_not_count(clock: Clock) -> None:
    calls = [clock.call("a", lambda made: 500 if made < 4 else 2), clock.call("b", lambda made: 900 if made < 4 else 3)]
    samples = take_turns(calls, rounds=2, iterations=2)
    assert "".join(clock.calls) == "aabb" * 3
    assert [own.keys() for own in samples] == [{0, 1}, {0, 1}]
    assert [[pytest.approx(times) for times in own.values()] for own in samples] == [[[2, 2]] * 2, [[3, 3]] * 2]


@pytest.mark.parametrize(("count", "rounds", "iterations"), [(1, 1, 1), (2, 9, 20), (3, 4, 5)])
def test_every_call_gets_as_many_samples(clock: Clock, count: int, rounds: int, iterations: int) -> None:
    samples = take_turns([clock.call("x", lambda _: 1)] * count, rounds=rounds, iterations=iterations)
    assert [[len(times) for times in own.values()] for own in samples] == [[iterations] * rounds] * count
    assert len(clock.calls) == count * (rounds + 1) * iterations


def test_nothing_to_time_takes_no_time(clock: Clock) -> None:
    assert take_turns([], rounds=3, iterations=3) == []


def test_a_device_that_gets_slower_does_not_change_the_verdict(clock: Clock) -> None:
    """Hot, it clocks down: each call takes longer than the one before, and the first is still 1.25 times slower."""
    calls = [clock.call("a", lambda made: 5 * 1.01**made), clock.call("b", lambda made: 4 * 1.01**made)]
    first, second = take_turns(calls, rounds=9, iterations=4)
    assert median_ratio(first, second) == pytest.approx(1.25 / 1.01**4)
    assert median(first[0]) < median(second[8]), "the drift is larger than the difference"


def test_one_disturbed_round_does_not_change_the_verdict() -> None:
    calm = {turn: [2.0, 2.0] for turn in range(8)}
    assert median_ratio({**calm, 8: [50.0, 60.0]}, {turn: [1.0, 1.0] for turn in range(9)}) == 2
    assert median_ratio({turn: [1.0, 1.0] for turn in range(9)}, {**calm, 8: [50.0, 60.0]}) == 0.5


def test_equals_are_equal() -> None:
    """No reason to keep plugins, then: more than 1 is asked for."""
    assert median_ratio({0: [3.0], 1: [4.0]}, {0: [3.0], 1: [4.0]}) == 1


def test_rounds_of_one_side_alone_do_not_count() -> None:
    assert median_ratio({0: [1.0], 1: [7.0]}, {0: [0.5], 2: [9.0]}) == 2
    with pytest.raises(ValueError, match="median"):
        median_ratio({0: [1.0]}, {1: [1.0]})


def test_a_call_that_fails_is_not_swallowed() -> None:
    def fails() -> None:
        raise RuntimeError("the engine refused to run")

    with pytest.raises(RuntimeError, match="refused"):
        take_turns([fails], rounds=1, iterations=1)
