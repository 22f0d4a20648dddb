from math import nan

from harness.report.frontier import Point, below, frontier
from harness.report.statistics import Interval


def point(cost: float, mean: float, low: float, high: float) -> Point:
    return Point(Interval(cost, cost, cost), Interval(mean, low, high))


# From cheap to dear: b is as dear as c and worse, d is dearer than c and worse, though within its interval; e is worse
# than everything by far, f is the best.
POINTS = {
    "a": point(1, 0.50, 0.45, 0.55),
    "b": point(2, 0.60, 0.55, 0.65),
    "c": point(2, 0.70, 0.66, 0.75),
    "d": point(3, 0.68, 0.63, 0.73),
    "e": point(4, 0.40, 0.35, 0.44),
    "f": point(5, 0.71, 0.66, 0.76),
}


def test_the_frontier_by_hand():
    assert frontier(POINTS) == ["a", "c", "f"]
    assert frontier({}) == [] and frontier({"e": POINTS["e"]}) == ["e"]


def test_whose_interval_lies_below_by_hand():
    # b: c's interval begins at 0.66, above b's end. e: even a's begins above e's end. d overlaps with c.
    assert below(POINTS) == {"b", "e"}


def test_equals_are_both_on_the_frontier():
    twins = {"x": POINTS["c"], "y": POINTS["c"], "z": point(2, 0.70, 0.1, 0.9)}
    assert frontier(twins) == ["x", "y", "z"] and below(twins) == set()


def test_intervals_that_touch_are_not_apart():
    assert below({"x": point(1, 0.6, 0.5, 0.7), "y": point(1, 0.4, 0.3, 0.5)}) == set()
    assert below({"x": point(1, 0.6, 0.51, 0.7), "y": point(1, 0.4, 0.3, 0.5)}) == {"y"}


def test_a_cost_that_spreads_into_the_other_is_not_apart():
    fast, slow = Interval(1.0, 0.8, 1.6), Interval(2.0, 1.5, 2.5)
    points = {"x": Point(fast, Interval(0.9, 0.8, 1.0)), "y": Point(slow, Interval(0.3, 0.2, 0.4))}
    assert frontier(points) == ["x"] and below(points) == set()
    points["y"] = points["y"]._replace(cost=Interval(2.0, 1.6, 2.5))
    assert below(points) == {"y"}


def test_what_has_no_interval_is_never_apart():
    points = {"x": point(1, 0.9, nan, nan), "y": point(1, 0.1, 0.0, 0.2), "z": point(1, 0.05, nan, nan)}
    assert frontier(points) == ["x"] and below(points) == set()
