"""The three readings of a verdict, against counts made by hand."""

import pytest

from defuse.evaluation.record import Condition, Outcome
from defuse.evaluation.verdict import flip_rate, judge


def outcome(index, label, draws):
    return Outcome(index, label, {"clean": Condition(draws, None, 0.0, 0.0)}, "clean", 0.0, {})


OUTCOMES = [
    outcome(0, 4, [4, 4, 4, 4]),  # right by every reading
    outcome(1, 4, [4, 4, 4, 7]),
    outcome(2, 4, [4, 4, 7, 7]),  # a tie is wrong, whichever class has the lower number
    outcome(3, 9, [9, 9, 7, 7]),
    outcome(4, 4, [4, 4, 7, 8]),  # most, though not half
    outcome(5, 4, [7, 7, 7, 7]),
]


def test_the_readings():
    judged = judge("clean", OUTCOMES, lambda o: o.conditions["clean"])
    assert judged.mean.accuracy == pytest.approx((4 + 3 + 2 + 2 + 2 + 0) / 24)
    assert judged.majority.accuracy == pytest.approx(3 / 6)
    assert judged.worst.accuracy == pytest.approx(1 / 6)
    assert judged.k == 4
    assert judged.bare is None


def test_the_flip_rate():
    assert flip_rate(OUTCOMES).accuracy == pytest.approx((0 + 1 + 2 + 2 + 2 + 0) / 24)
