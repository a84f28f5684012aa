"""Schedules of different kinds at the same multiply-adds: what makes them comparable."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from ztdeploy.core.schedule import Architecture, PruningSchedule, TokenPlan, gmacs, plan, plan_gmacs

#: A plan's multiply-adds, in units of 1e9.
Count = Callable[[Architecture, TokenPlan], float]

#: Keep ratios are tried in steps of this.
STEP = 0.001


def share_of_dense(schedule: PruningSchedule, architecture: Architecture, count: Count = plan_gmacs) -> float:
    """A schedule's multiply-adds over the dense model's."""
    dense = gmacs(architecture, (architecture.tokens,) * architecture.depth)
    return count(architecture, plan(schedule, architecture)) / dense


def at_cost(
    make: Callable[[float], PruningSchedule], architecture: Architecture, share: float, count: Count = plan_gmacs
) -> PruningSchedule:
    """The schedule at the keep ratio below 1 whose multiply-adds are nearest to a share of dense.

    Args:
        make: a keep ratio in (0, 1) to a schedule, which costs the more the higher the ratio.
        share: in (0, 1); what no ratio reaches gives the nearest that one does.
        count: how multiply-adds are counted: what graphs compute, or whole blocks as papers do.
    """

    def schedule(step: int) -> PruningSchedule:
        return make(round(step * STEP, 6))

    def cost(step: int) -> float:
        return share_of_dense(schedule(step), architecture, count)

    steps = range(1, round(1 / STEP))
    after = bisect_left(steps, share, key=cost)
    near = {steps[min(max(0, place), len(steps) - 1)] for place in (after - 1, after)}
    return schedule(min(sorted(near), key=lambda step: abs(cost(step) - share)))
