"""What a schedule costs: compute, counted; or time, predicted from what was measured once. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.cost import plan_gmacs
from ztdeploy.core.plan import TokenPlan, plan
from ztdeploy.core.schedule import Architecture, PruningSchedule
from ztdeploy.report.tune.records import Cost, GmacsCost, LatencyCost
from ztdeploy.target.measure.sweep_report import Staircase

Price = Callable[[PruningSchedule], float]
DENSE = PruningSchedule(name="dense")
#: The share of a block's time that lies behind its attention.
_BEHIND_ATTENTION = 2 / 3
#: The share of a block's time that stays however few its tokens are: calling its operators.
_FIXED = 0.15


def price_of(cost: Cost, architecture: Architecture) -> Price:
    """What a schedule costs a model, in the cost's unit."""

    def price(schedule: PruningSchedule) -> float:
        found = plan(schedule, architecture)
        if isinstance(cost, GmacsCost):
            return plan_gmacs(architecture, found)
        blocks, layers, pairs = features(found, cost.staircase, architecture)
        own = cost.layer_ms.get(schedule.method, 0.0) * layers
        own += cost.pair_ns.get(schedule.method, 0.0) * 1e-6 * pairs
        return cost.ends_ms + cost.scale * blocks + own

    return price


def features(found: TokenPlan, staircase: Staircase, architecture: Architecture) -> tuple[float, float, float]:
    """What a call's time is made of: its blocks alone in ms, pruning layers, pairs of tokens that enter those."""
    early = {
        layer.block: layer.tokens_out
        for layer in found.layers
        if layer.inside or not layer.reads_gone  # as `plan_gmacs` has it
    }
    last = architecture.depth - 1
    if architecture.read_tokens is not None and all(layer.inside for layer in found.layers if layer.block == last):
        early[last] = architecture.read_tokens
    blocks = 0.0
    for block, tokens in enumerate(found.tokens_per_block):
        blocks += (1 - _BEHIND_ATTENTION) * block_ms(staircase, tokens)
        blocks += _BEHIND_ATTENTION * block_ms(staircase, early.get(block, tokens))
    return blocks, float(len(found.layers)), float(sum(layer.tokens_in**2 for layer in found.layers))


def block_ms(staircase: Staircase, tokens: float) -> float:
    """The time of a block at any number of tokens: on the line between two that were measured, and below them all."""
    counts = [point.tokens for point in staircase.points]
    times = never_falling([point.block_ms for point in staircase.points])
    if tokens < counts[0]:
        return float(times[0] * (_FIXED + (1 - _FIXED) * tokens / counts[0]))
    return float(np.interp(tokens, counts, times))


def never_falling(values: Sequence[float]) -> NDArray[np.float64]:
    """A higher count that was measured as faster lends its time to the lower ones."""
    found: NDArray[np.float64] = np.minimum.accumulate(np.array(values)[::-1])[::-1]
    return found


def fit(
    staircase: Staircase,
    probes: Sequence[PruningSchedule],
    times: dict[str, float],
    methods: Sequence[str],
    architecture: Architecture,
) -> LatencyCost:
    """The cost that predicts the measured times best.

    Args:
        times: of variants by name, in ms; "dense" is among them.
    """
    known = [one for one in (DENSE, *probes) if one.name in times]
    rows = []
    for one in known:
        blocks, layers, pairs = features(plan(one, architecture), staircase, architecture)
        own = [value * (one.method == method) for method in methods for value in (layers, 1e-6 * pairs)]
        rows.append([1.0, blocks, *own])
    table, measured = np.array(rows), np.array([times[one.name] for one in known])
    found = least_squares(table, measured)
    return LatencyCost(
        staircase=staircase,
        ends_ms=float(found[0]),
        scale=float(found[1]),
        layer_ms={method: float(one) for method, one in zip(methods, found[2::2], strict=True)},
        pair_ns={method: float(one) for method, one in zip(methods, found[3::2], strict=True)},
        fitted=len(known),
        worst_fit=float(np.abs(table @ found / measured - 1).max()),
    )


def least_squares(features: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The coefficients `[m]`, none below 0 since they are times, with the smallest relative errors on `times [n]`.

    Of every set of columns, the unbounded solution that has no negative coefficient is tried: with so few columns that
    is quick, and exact, for the best bounded one is among these.

    Args:
        features: `[n, m]`; m is at most about 10.
    """
    weighted = features / times[:, None]
    best, least = np.zeros(features.shape[1]), np.inf
    for size in range(1, features.shape[1] + 1):
        for columns in map(list, combinations(range(features.shape[1]), size)):
            found = np.linalg.lstsq(weighted[:, columns], np.ones(len(times)), rcond=None)[0]
            error = float(((weighted[:, columns] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(features.shape[1]), error
                best[columns] = found
    return best
