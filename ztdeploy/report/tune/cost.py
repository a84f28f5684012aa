"""What a schedule costs: multiply-adds, counted; or time, predicted from what was measured once. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from ztdeploy.core.cost import plan_gmacs
from ztdeploy.core.plan import TokenPlan, plan
from ztdeploy.core.records import Record
from ztdeploy.core.schedule import Architecture, PruningSchedule
from ztdeploy.target.measure.sweep_report import Staircase


class GmacsCost(Record):
    """Exact, for any machine."""

    kind: Literal["gmacs"] = "gmacs"

    @property
    def unit(self) -> str:
        return "GMACs"

    def of(self, schedule: PruningSchedule, architecture: Architecture) -> float:
        return plan_gmacs(architecture, plan(schedule, architecture))


class LatencyCost(Record):
    """A call in milliseconds, of one machine, one profile and one precision.

    `ends + scale * (sum over blocks of block(tokens)) + sum over pruning layers of (layer + pair * N^2)`. `block` is
    the staircase's, of a few blocks alone; the rest is fitted to whole engines.
    """

    kind: Literal["latency"] = "latency"
    staircase: Staircase
    ends_ms: float  #: in front of the first block and behind the last
    scale: float = 1.0  #: of a block in a whole engine to one alone
    layer_ms: dict[str, float] = Field(default_factory=dict)  #: by method: of a pruning layer, whatever its size
    pair_ns: dict[str, float] = Field(default_factory=dict)  #: by method: of each pair of the tokens that enter it
    fitted: int = 0  #: engines that these rest on
    worst_fit: float = 0.0  #: the largest relative error on those

    @property
    def unit(self) -> str:
        return "ms"

    def of(self, schedule: PruningSchedule, architecture: Architecture) -> float:
        found = plan(schedule, architecture)
        blocks, layers, pairs = features(found, self.staircase)
        own = self.layer_ms.get(schedule.method, 0.0) * layers
        own += self.pair_ns.get(schedule.method, 0.0) * 1e-6 * pairs
        return self.ends_ms + self.scale * blocks + own


#: Of a block's time, what lies behind its attention: about two thirds.
_BEHIND_ATTENTION = 2 / 3


def features(found: TokenPlan, staircase: Staircase) -> tuple[float, float, float]:
    """What a call's time is made of: its blocks alone in ms, pruning layers, pairs of tokens that enter those."""
    early = {
        layer.block: layer.tokens_out
        for layer in found.layers
        if layer.inside or not (layer.merges or layer.compares_tokens)  # as `plan_gmacs` has it
    }
    blocks = 0.0
    for block, tokens in enumerate(found.tokens_per_block):
        behind = early.get(block, tokens)
        blocks += (1 - _BEHIND_ATTENTION) * block_ms(staircase, tokens)
        blocks += _BEHIND_ATTENTION * block_ms(staircase, behind)
    return blocks, float(len(found.layers)), float(sum(layer.tokens_in**2 for layer in found.layers))


Cost: TypeAlias = Annotated[GmacsCost | LatencyCost, Field(discriminator="kind")]


def block_ms(staircase: Staircase, tokens: float) -> float:
    """A block's time at any number of tokens: measured, in proportion between two that were, and below all of them."""
    counts = [point.tokens for point in staircase.points]
    times = smooth([point.block_ms for point in staircase.points])
    if tokens <= counts[0]:
        return times[0] * _below(tokens / counts[0])
    place = min(bisect_left(counts, tokens), len(counts) - 1)
    low, high = counts[place - 1], counts[place]
    return times[place - 1] + (times[place] - times[place - 1]) * (tokens - low) / (high - low)


def _below(share: float) -> float:
    """A block never costs nothing: some of it is calling its operators."""
    return 0.15 + 0.85 * share


def smooth(values: Sequence[float]) -> list[float]:
    """Never falling: a higher count that was measured as faster lends its time to the lower ones."""
    found = list(values)
    for place in range(len(found) - 2, -1, -1):
        found[place] = min(found[place], found[place + 1])
    return found
