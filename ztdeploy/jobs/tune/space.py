"""What a search may choose: where pruning layers stand, how much goes at each of them, and the method's options. Pure.

A `Point` says how what goes is spread over blocks, not how much goes: that follows from the budget, so every trial
costs what it may, and none is wasted on a schedule that is too dear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol, get_args

from ztdeploy.core.keep_ratio import LATE_OFFSETS
from ztdeploy.core.methods import METHODS
from ztdeploy.core.options import DEFAULT_OPTIONS, Feature, MethodOptions, Order, Partition
from ztdeploy.core.plan import iterations_by_position
from ztdeploy.core.records import Record
from ztdeploy.core.schedule import Architecture, LayerSpec, PruningSchedule
from ztdeploy.jobs.tune.cost import Price

#: Trees of a search space that changes must not be mixed in one study.
VERSION = 3
#: Exponents that are searched, each around its default.
POWERS = {
    "importance_power": (0.5, 1.5),
    "size_power": (0.0, 1.5),
    "distance_power": (1.0, 3.0),
    "average_power": (0.0, 1.0),
    "coherence_power": (0.0, 1.2),
    "update_power": (0.0, 1.2),
}
#: Logarithms of how much a layer takes relative to others, at the ends and in the middle.
BEND = 1.5
#: The fastest that tokens may go: each layer keeps a share of `exp(-rate * weight)`.
_FASTEST = 8.0
_HALVINGS = 48
#: Beyond this share of the depth, a search does not look for a first layer.
_SHARE_OF_DEPTH = 0.6
#: What did best where one exponent was changed after the other (docs/explanation/method.md).
LEANING = MethodOptions(size_power=0.7, average_power=0.5, coherence_power=0.6, update_power=0.5)
ITERATIONS = {"default": None, "one": (1, 1, 1), "more": (10, 5, 1), "paper": (30, 10, 1)}


class Chooser(Protocol):
    """The part of Optuna's `Trial` by which a point is chosen."""

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int) -> int: ...
    def suggest_float(self, name: str, low: float, high: float) -> float: ...


class Point(Record):
    """One way to prune, at any cost."""

    method: str
    first: int  #: the block, from 1, behind which the first layer stands
    every: int = 0  #: blocks from one layer to the next; 0: those of late presets, ever further apart
    slope: float = 0.0  #: of the logarithm of what a layer takes, from -slope at the first to +slope at the last
    bend: float = 0.0  #: what is added in the middle
    tail: float = 0.0  #: what is added at the last layer
    weights: tuple[float, ...] = ()  #: what goes behind each block but the last, instead of all of the above
    similarity: float = 0.5  #: share of what goes by the S-stage
    iterations: str = "default"
    options: MethodOptions = DEFAULT_OPTIONS


def choose(trial: Chooser, methods: tuple[str, ...], depth: int, latest: int) -> Point:
    """Ask for a point.

    Args:
        latest: the last block that a first layer may stand behind.
    """
    method = trial.suggest_categorical("method", list(methods)) if len(methods) > 1 else methods[0]
    options: dict[str, Any] = {}
    known = METHODS[method].options
    if "partner" in known:
        options["partner"] = trial.suggest_categorical(f"{method}.partner", list(get_args(Feature)))
    for name, limits in POWERS.items():
        if name in known:
            options[name] = round(trial.suggest_float(f"{method}.{name}", *limits), 3)
    similarity, iterations = 0.5, "default"
    if "partition" in known:
        similarity = trial.suggest_float(f"{method}.similarity", 0.1, 1.0)
        iterations = trial.suggest_categorical(f"{method}.iterations", list(ITERATIONS))
        options["feature"] = trial.suggest_categorical(f"{method}.feature", list(get_args(Feature)))
        options["partition"] = trial.suggest_categorical(f"{method}.partition", list(get_args(Partition)))
        options["order"] = trial.suggest_categorical(f"{method}.order", list(get_args(Order)))
        options["head_filter"] = trial.suggest_categorical(f"{method}.head_filter", [True, False])
    return Point(
        method=method,
        first=trial.suggest_int("first", 1, latest),
        every=trial.suggest_int("every", 0, max(1, depth // 6)),
        slope=trial.suggest_float("slope", -BEND, BEND),
        bend=trial.suggest_float("bend", -BEND, BEND),
        tail=trial.suggest_float("tail", -BEND, BEND),
        similarity=similarity,
        iterations=iterations,
        options=MethodOptions(**options),
    )


def parameters(point: Point, methods: tuple[str, ...]) -> dict[str, Any]:
    """What `choose` asks for, to be answered so that it gives this point."""
    found: dict[str, Any] = {"method": point.method} if len(methods) > 1 else {}
    found |= {name: getattr(point, name) for name in ("first", "every", "slope", "bend", "tail")}
    known, method = METHODS[point.method].options, point.method
    names = [name for name in ("partner", *POWERS) if name in known]
    if "partition" in known:
        found |= {f"{method}.similarity": point.similarity, f"{method}.iterations": point.iterations}
        names += ["feature", "partition", "order", "head_filter"]
    return found | {f"{method}.{name}": getattr(point.options, name) for name in names}


def hints(methods: tuple[str, ...], depth: int, latest: int) -> list[Point]:
    """What a search tries behind the presets: their late layers, with exponents that are likely to do better."""
    able = [method for method in methods if METHODS[method].options >= LEANING.changed]
    return [Point(method=method, first=first, options=LEANING) for method in able for first in _late(depth, latest)[:2]]


def in_every_block(methods: tuple[str, ...], depth: int, latest: int) -> list[Point]:
    """Where an exchange of tokens between blocks begins, beside presets and hints: a layer behind every late block."""
    return [
        Point(
            method=method,
            first=first,
            every=1,
            options=LEANING if METHODS[method].options >= LEANING.changed else DEFAULT_OPTIONS,
        )
        for method in methods
        for first in _late(depth, latest)[:2]
    ]


def _late(depth: int, latest: int) -> list[int]:
    late = [twelfth * depth // 12 for twelfth in (4, 3, 2) if 1 <= twelfth * depth // 12 <= latest] or [latest]
    return list(dict.fromkeys(late))


def starts(methods: tuple[str, ...], depth: int, latest: int) -> list[Point]:
    """Where a search begins: what presets do, late layers and three of them. Methods take turns, each with its own
    default first.
    """
    third = min(latest, max(1, round(depth / 4)))
    by_method = []
    for method in methods:
        by_late = [Point(method=method, first=first) for first in _late(depth, latest)]
        threefold = Point(method=method, first=third, every=max(1, depth // 6))
        by_method.append([*by_late, threefold] if METHODS[method].spread == "late" else [threefold, *by_late])
    return [point for turn in zip(*by_method, strict=True) for point in turn]


def schedule_of(point: Point, architecture: Architecture, rate: float, name: str = "tuned") -> PruningSchedule:
    """The point's schedule where a layer of weight 1 keeps a share of `exp(-rate)`; at least one token stays."""
    counts = ITERATIONS[point.iterations]
    share = {"similarity_share": round(point.similarity, 4)} if "partition" in METHODS[point.method].options else {}
    layers, kept, left = [], 1.0, architecture.patch_tokens
    for block, weight in _weights(point, architecture.depth).items():
        kept *= math.exp(-rate * weight)
        stays = max(1, math.ceil(architecture.patch_tokens * kept))
        if stays < left:
            iterations = counts and iterations_by_position(block, architecture.depth, counts)
            layers.append(LayerSpec(block=block, drop=left - stays, iterations=iterations, **share))
        left = min(left, stays)
    return PruningSchedule(name=name, method=point.method, options=point.options, layers=tuple(layers))


def _weights(point: Point, depth: int) -> dict[int, float]:
    """By block, from 1, the weight of the layer behind it."""
    if point.weights:
        return {block: weight for block, weight in enumerate(point.weights, 1) if weight > 0}
    blocks = _blocks(point, depth)
    numbered = enumerate(blocks.items())
    return {block: times * _weight(point, position, len(blocks)) for position, (block, times) in numbered}


def counts_of(schedule: PruningSchedule, depth: int) -> list[float]:
    """How many tokens go behind each block but the last, by layers that say so."""
    drops = {layer.block: float(layer.drop or 0) for layer in schedule.layers}
    return [drops.get(block, 0.0) for block in range(1, depth)]


def point_like(like: PruningSchedule, counts: Sequence[float], architecture: Architecture) -> Point:
    """The point that gives these counts, rounded, at a rate of 1, and their shape at other rates.

    Args:
        like: a schedule with the point's method and options.
        counts: of tokens that go behind each block but the last.
    """
    weights, left = list[float](), float(architecture.patch_tokens)
    for gone in accumulate(counts):
        # Half a token less, for all counts are rounded up; so not all of them change at the same rate.
        kept = max(architecture.patch_tokens - gone, 1.0) - 0.5 if gone else left
        weights.append(max(0.0, math.log(left / kept)))
        left = min(left, kept)
    share = like.layers[0].similarity_share if like.layers else 0.5
    return Point(method=like.method, first=1, weights=tuple(weights), similarity=share, options=like.options)


def _blocks(point: Point, depth: int) -> dict[int, int]:
    """The blocks, from 1, behind which layers stand, and how many layers' share of tokens goes at each.

    Behind the last block nothing is left to save.
    """
    if point.every:
        return dict.fromkeys(range(point.first, max(depth, point.first + 1), point.every), 1)
    blocks: dict[int, int] = {}
    for offset, before in zip(LATE_OFFSETS, (-1, *LATE_OFFSETS), strict=False):
        block = min(point.first + math.floor(offset * depth / 12 + 0.5), max(depth - 1, point.first))
        blocks[block] = blocks.get(block, 0) + offset - before
    return blocks


def _weight(point: Point, position: int, count: int) -> float:
    across = 2 * position / (count - 1) - 1 if count > 1 else 0.0
    tail = point.tail if count > 1 and position == count - 1 else 0.0
    return math.exp(point.slope * across + point.bend * (1 - across * across) + tail)


def fitted(
    point: Point, architecture: Architecture, price: Price, limit: float, name: str = "tuned"
) -> PruningSchedule | None:
    """The point's schedule that prunes the least of those that cost at most `limit`; None where none does.

    A cost that does not fall with every token gives one that keeps the limit all the same.
    """

    def at(rate: float) -> PruningSchedule:
        return schedule_of(point, architecture, rate, name)

    low, high = 0.0, _FASTEST
    if price(at(low)) <= limit:
        return at(low)
    if price(at(high)) > limit:
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if price(at(middle)) <= limit else (middle, high)
    return at(high)


def latest_first(methods: tuple[str, ...], architecture: Architecture, price: Price, limit: float) -> int:
    """The last block, from 1, behind which a first layer may stand so that the limit can still be kept; 0 if none."""
    blocks = range(1, max(1, round(_SHARE_OF_DEPTH * architecture.depth)) + 1)
    return max((block for block in blocks if least_cost(methods, architecture, price, block) <= limit), default=0)


def least_cost(methods: tuple[str, ...], architecture: Architecture, price: Price, first: int) -> float:
    """The lowest cost that a schedule can have whose first layer stands behind block `first`."""
    return min(price(schedule_of(Point(method=method, first=first), architecture, _FASTEST)) for method in methods)
