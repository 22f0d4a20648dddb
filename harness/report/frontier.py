"""The Pareto frontier of costs and scores: what no other configuration beats, and whose interval lies below one's."""

from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

from harness.report.statistics import Interval

Key = TypeVar("Key", bound=Hashable)


class Point(NamedTuple):
    """What a configuration costs and scores; a cost that was counted has an interval of no width."""

    cost: Interval
    score: Interval


def frontier(points: Mapping[Key, Point]) -> list[Key]:
    """Return the points by cost that no other dominates: none costs as little and scores as much, or better in one."""

    def dominated(point: Point) -> bool:
        return any(
            other.cost.mean <= point.cost.mean
            and other.score.mean >= point.score.mean
            and (other.cost.mean, other.score.mean) != (point.cost.mean, point.score.mean)
            for other in points.values()
        )

    return sorted((key for key in points if not dominated(points[key])), key=lambda key: points[key].cost.mean)


def below(points: Mapping[Key, Point]) -> set[Key]:
    """Return the points whose score's interval lies wholly below that of another, whose cost's is not to the right.

    Intervals are held against each other two by two: nothing is paired, nor corrected for many comparisons. Points
    without an interval are never apart.
    """
    return {
        key
        for key, point in points.items()
        if any(other.cost.high <= point.cost.low and other.score.low > point.score.high for other in points.values())
    }
