"""What a keep ratio alone means: the schedule that "keep ratio 0.7" stands for, by method and model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from ztdeploy.core.arguments import number, shown
from ztdeploy.core.cost import nearest_step, schedule_gmacs
from ztdeploy.core.errors import ScheduleError, did_you_mean
from ztdeploy.core.methods import DEFAULT_METHOD, PAPER_METHOD, method_named
from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import plan
from ztdeploy.core.schedule import Architecture, LayerSpec, PruningSchedule

#: Positions of pruning layers as fractions of the depth. Default: behind blocks 3, 6 and 9 of 12. The five of the paper
#: (CVPR 2024): behind blocks 1, 3, 6, 9 and 11 of 12.
PRESETS: dict[str, tuple[float, ...]] = {
    "default": (1 / 4, 1 / 2, 3 / 4),
    "paper": (1 / 12, 3 / 12, 6 / 12, 9 / 12, 11 / 12),
}
#: Where the first layer of a late schedule may stand, and where its layers stand behind it, in twelfths of the depth.
LATE_STARTS, LATE_OFFSETS = (4, 3, 2, 1), (0, 1, 3, 6)
#: What a late schedule keeps per twelfth at least; else its first layer stands earlier (docs/explanation/method.md).
LEAST_LATE_RATIO = 0.68
#: Where the layers of a schedule for whole grids stand, in twelfths of the depth, and options of the default method:
#: what is alike goes, important or not, since every position is read (docs/explanation/method.md).
GRID_PLACES, GRID_OPTIONS = (2, 4, 6, 8, 10), MethodOptions(importance_power=0.0, size_power=0.5)
#: Patch tokens of 196 that DiffRate found for DeiT-S at 2.9 GMACs (ICCV 2023): what pruning and then merging leave in
#: blocks 1 to 12. The last block's count is not used.
CURVE_PATCHES = 196
CURVE = (
    *((196, 196), (195, 193), (189, 175), (167, 155), (149, 140), (138, 132)),
    *((128, 120), (116, 106), (98, 87), (77, 63), (57, 55), (2, 2)),
)
#: In how many steps a keep ratio, or a power of the curve up to the largest, is varied until the cost fits.
_RATIO_STEPS, _CURVE_STEPS, _MOST_POWER = 1 << 14, 1 << 9, 32


def check_keep_ratio(keep_ratio: object) -> float:
    """The ratio as a plain number.

    Raises:
        ScheduleError: it is no number, or not in (0, 1].
    """
    ratio = number("keep ratio", keep_ratio, ScheduleError)
    if not 0 < ratio <= 1:
        raise ScheduleError(
            f"keep ratio {shown(keep_ratio)}", "a number in (0, 1]", "give for instance --keep-ratio 0.7"
        )
    return ratio


def default_schedule(
    keep_ratio: float, architecture: Architecture, *, method: str = DEFAULT_METHOD, preset: str = "default"
) -> PruningSchedule:
    """The schedule that a keep ratio alone means, for a method and a model.

    Raises:
        ScheduleError: the ratio is not in (0, 1], or not a number; an unknown method or preset.
    """
    uniform = uniform_schedule(keep_ratio, architecture.depth, method=method, preset=preset)
    facts, every = method_named(method), range(1, architecture.depth + 1)
    if facts.trained is not None:
        return trained_schedule(uniform, architecture)
    spread = facts.spread
    if spread == "count":
        return constant_schedule(uniform, architecture, every)
    if spread == "count-from-2":
        return constant_schedule(uniform, architecture, every[1:] or every)
    if spread == "count-in-thirds":
        return constant_schedule(uniform, architecture, [layer.block for layer in uniform.layers])
    if spread == "share":
        return share_schedule(uniform, architecture)
    if spread == "curve":
        return curve_schedule(uniform, architecture)
    if spread == "thirds" or preset != "default":
        return uniform
    return grid_schedule(uniform, architecture) if architecture.reads_grid else late_schedule(uniform, architecture)


def uniform_schedule(
    keep_ratio: float, depth: int, *, method: str = DEFAULT_METHOD, preset: str = "default"
) -> PruningSchedule:
    """The same keep ratio at each of a preset's positions.

    Raises:
        ScheduleError: the ratio is not in (0, 1], or not a number; an unknown method or preset.
    """
    check_keep_ratio(keep_ratio)
    if keep_ratio == 1:
        return PruningSchedule(name="dense", method=method, keep_ratio=1.0)
    if preset not in PRESETS:
        raise ScheduleError(f"preset '{preset}'", "a known preset", did_you_mean(preset, PRESETS))
    name = f"keep-{keep_ratio:.2f}" if round(keep_ratio, 2) == keep_ratio else f"keep-{keep_ratio:g}"
    if method != DEFAULT_METHOD:
        name = f"{method}-{name}"
    if preset != "default":
        name = f"{name}-{preset}"
    share = 0.5 if {"page-rank", "halves"} <= method_named(method).work else 0.0
    blocks = blocks_at(PRESETS[preset], depth)
    layers = tuple(LayerSpec(block=block, keep_ratio=keep_ratio, similarity_share=share) for block in blocks)
    return PruningSchedule(name=name, method=method, keep_ratio=keep_ratio, layers=layers)


def blocks_at(positions: Sequence[float], depth: int) -> list[int]:
    """The blocks, from 1, at fractions of the depth; half a block rounds up: behind 2, 3 and 5 of 6."""
    return sorted({min(depth, max(1, math.floor(depth * position + 0.5))) for position in positions})


def trained_schedule(wanted: PruningSchedule, architecture: Architecture) -> PruningSchedule:
    """The same layers with the counts that models with trained predictors run with: behind the n-th layer stays the
    n-th power of the ratio, of all patch tokens, rounded down; and n tokens more where each layer adds one."""
    layers, left, adds = [], architecture.patch_tokens, method_named(wanted.method).fuses
    for stage, spec in enumerate(wanted.layers, 1):
        assert wanted.keep_ratio is not None
        kept = max(1, int(architecture.patch_tokens * wanted.keep_ratio**stage)) + (stage if adds else 0)
        kept = min(left, kept)
        layers.append(LayerSpec(block=spec.block, drop=left - kept))
        left = kept
    return wanted.model_copy(update={"layers": tuple(layers)})


def constant_schedule(wanted: PruningSchedule, architecture: Architecture, blocks: Sequence[int]) -> PruningSchedule:
    """The schedule that drops the same number of tokens in each of some blocks and costs nearest to another schedule.

    Each block drops at most half of its patch tokens. A total that does not divide is spread evenly.
    """

    def schedule(total: int) -> PruningSchedule:
        share = [place * total // len(blocks) for place in range(len(blocks) + 1)]
        return _dropping(wanted, architecture, dict(zip(blocks, (b - a for a, b in pairwise(share)), strict=True)))

    if not wanted.layers:
        return wanted
    return schedule(_nearest_in_cost(wanted, architecture, schedule, len(blocks) * architecture.patch_tokens))


def share_schedule(wanted: PruningSchedule, architecture: Architecture) -> PruningSchedule:
    """The schedule by which every block keeps the same share of its patch tokens, at least half, and that costs nearest
    to another schedule."""

    def schedule(step: int) -> PruningSchedule:
        ratio, drops, left = 1 - step / _RATIO_STEPS, dict[int, int](), architecture.patch_tokens
        for block in range(1, architecture.depth + 1):
            drops[block] = left - max(1, math.ceil(architecture.patch_tokens * ratio**block))
            left -= drops[block]
        return _dropping(wanted, architecture, drops)

    if not wanted.layers:
        return wanted
    return schedule(_nearest_in_cost(wanted, architecture, schedule, _RATIO_STEPS // 2 + 1))


def curve_schedule(wanted: PruningSchedule, architecture: Architecture) -> PruningSchedule:
    """The schedule of the shape of `CURVE` that costs nearest to another schedule: shares are raised to one power.

    No layer stands behind the last block, where nothing is left to save.
    """
    depth, patches = architecture.depth, architecture.patch_tokens

    def schedule(step: int) -> PruningSchedule:
        layers, left = list[LayerSpec](), patches
        for block in range(1, depth):
            shares = _on_curve(block / depth)
            unpruned, kept = (max(1, round(patches * share ** (step / _CURVE_STEPS))) for share in shares)
            kept = min(left, kept)
            if kept < left:
                merged = min(unpruned, left) - kept
                layers.append(LayerSpec(block=block, drop=left - kept, similarity_drop=min(merged, left // 2)))
            left = kept
        return wanted.model_copy(update={"layers": tuple(layers)})

    if not wanted.layers or depth < 2:
        return wanted
    return schedule(_nearest_in_cost(wanted, architecture, schedule, _MOST_POWER * _CURVE_STEPS))


def _on_curve(position: float) -> tuple[float, float]:
    """Shares of the patch tokens that are left by pruning and then by merging, at a fraction of the depth."""
    place = position * len(CURVE)
    before = math.floor(place)
    rest, points = place - before, [(1.0, 1.0), *((p / CURVE_PATCHES, m / CURVE_PATCHES) for p, m in CURVE)]
    here, there = points[before], points[min(before + 1, len(CURVE))]
    pruned, merged = (a + rest * (b - a) for a, b in zip(here, there, strict=True))
    return pruned, merged


def _dropping(wanted: PruningSchedule, architecture: Architecture, drops: Mapping[int, int]) -> PruningSchedule:
    """A schedule that drops so many tokens at each block, at most half of those that are left."""
    layers, left = [], architecture.patch_tokens
    for block, count in drops.items():
        drop = min(count, left // 2)
        left -= drop
        if drop:
            layers.append(LayerSpec(block=block, drop=drop))
    return wanted.model_copy(update={"layers": tuple(layers)})


def late_schedule(wanted: PruningSchedule, architecture: Architecture) -> PruningSchedule:
    """The schedule of a few late layers that costs nearest to another one; patch tokens become fewer at a steady rate.

    The first layer stands as late as it can with a ratio per twelfth of at least `LEAST_LATE_RATIO`.
    """
    found = wanted
    for first in LATE_STARTS:
        places = [first + offset for offset in LATE_OFFSETS]
        found, ratio = _steady_schedule(wanted, architecture, places)
        if ratio >= LEAST_LATE_RATIO:
            break
    return found


def grid_schedule(wanted: PruningSchedule, architecture: Architecture) -> PruningSchedule:
    """The schedule for a model whose tokens are all read that costs nearest to another one: layers all over the depth,
    by which patch tokens become fewer at a steady rate."""
    found, _ = _steady_schedule(wanted, architecture, GRID_PLACES)
    if found.layers and GRID_OPTIONS.changed <= method_named(found.method).options:
        return found.model_copy(update={"options": GRID_OPTIONS})
    return found


def _steady_schedule(
    wanted: PruningSchedule, architecture: Architecture, places: Sequence[int]
) -> tuple[PruningSchedule, float]:
    """A schedule with layers at places in twelfths of the depth, and the ratio that it keeps per twelfth.

    After `n` twelfths, from the one in front of the first layer on, a layer keeps `ratio ** n` of all patch tokens. No
    layer stands behind the last block, where nothing is left to save.
    """
    depth, patches = architecture.depth, architecture.patch_tokens
    if not wanted.layers or depth < 2:
        return wanted, 1.0
    share = wanted.layers[0].similarity_share

    def schedule(step: int) -> PruningSchedule:
        ratio = 1 - step / _RATIO_STEPS
        counts: dict[int, int] = {}  # several twelfths of a shallow model are one block
        for place in places:
            (block,) = blocks_at([place / 12], depth)
            counts[min(block, depth - 1)] = max(1, math.ceil(patches * ratio ** (place - places[0] + 1)))
        layers, left = [], patches
        for block, kept in counts.items():
            if kept < left:
                layers.append(LayerSpec(block=block, drop=left - kept, similarity_share=share))
            left = kept
        return wanted.model_copy(update={"layers": tuple(layers)})

    step = _nearest_in_cost(wanted, architecture, schedule, _RATIO_STEPS)
    return schedule(step), 1 - step / _RATIO_STEPS


def _nearest_in_cost(
    wanted: PruningSchedule, architecture: Architecture, schedule: Callable[[int], PruningSchedule], steps: int
) -> int:
    """Which of the schedules 0 to `steps - 1`, ever cheaper, costs nearest to the wanted one by the paper's method."""

    def saving(layers: PruningSchedule) -> float:
        return -schedule_gmacs(architecture, plan(layers, architecture))

    target = saving(wanted.model_copy(update={"method": PAPER_METHOD, "options": DEFAULT_OPTIONS}))
    return nearest_step(range(steps), target, lambda step: saving(schedule(step)))
