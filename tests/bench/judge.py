"""What was measured, and whether it reaches its goal."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tests.bench.rows import Goal, Group


class Sample(msgspec.Struct, frozen=True):
    """One row in one round."""

    per_second: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    requests: float = 0
    #: CPU for each request, µs, of all workers and of each store.
    app_us: float | None = None
    postgres_us: float | None = None
    redis_us: float | None = None
    #: What the busiest worker did of it: with two workers, 0.5 is even.
    busiest: float | None = None
    #: What others had of the machine meanwhile, 0 to 1.
    others: float | None = None


class Verdict(msgspec.Struct, frozen=True):
    """A goal with what was measured: the ratio of medians, and the ratios of single rounds as its spread."""

    row: str
    against: str
    figure: str
    ratio: float
    lowest: float
    highest: float
    bound: float
    at_least: bool
    hit: bool


class Fact(msgspec.Struct, frozen=True):
    """A single figure, with the most it may be, if anything."""

    title: str
    value: float
    unit: str
    at_most: float | None = None
    hit: bool = True


def fact(title: str, value: float, unit: str, at_most: float | None = None) -> Fact:
    return Fact(title, value, unit, at_most, at_most is None or value <= at_most)


def middle(samples: Sequence[Sample]) -> Sample:
    """The median of each figure by itself."""
    figures: dict[str, Any] = {}
    for name in Sample.__struct_fields__:
        column = [getattr(sample, name) for sample in samples]
        figures[name] = None if None in column else statistics.median(column)
    return Sample(**figures)


def verdicts(groups: Sequence[Group], samples: Mapping[str, Sequence[Sample]]) -> list[Verdict]:
    return [verdict(goal, samples[goal.row], samples[goal.against]) for group in groups for goal in group.goals]


def verdict(goal: Goal, ours: Sequence[Sample], theirs: Sequence[Sample]) -> Verdict:
    mine, others = ([getattr(sample, goal.figure) for sample in samples] for samples in (ours, theirs))
    each = [_ratio(one, other) for one, other in zip(mine, others, strict=True)]
    ratio = _ratio(statistics.median(mine), statistics.median(others))
    hit = ratio >= goal.bound if goal.at_least else ratio <= goal.bound
    return Verdict(goal.row, goal.against, goal.figure, ratio, min(each), max(each), goal.bound, goal.at_least, hit)


def _ratio(mine: float, other: float) -> float:
    return mine / other if other else 0.0  # nothing was answered, which voids the run: see `books`
