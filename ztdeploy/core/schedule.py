"""From keep ratios to integer token counts per block, and what they cost in multiply-adds.

A `PruningSchedule` says where pruning layers stand and how much each keeps. `plan()` resolves it for one
architecture into a `TokenPlan`: static integers, fixed before anything is traced.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ztdeploy.core.arguments import number, shown
from ztdeploy.core.data import errors_of, read_settings
from ztdeploy.core.errors import ScheduleError, did_you_mean
from ztdeploy.core.methods import COHERENCE_OPTIONS, SIMILARITY_OPTIONS, Method, check_options, method_named
from ztdeploy.core.methods import DEFAULT_METHOD as DEFAULT_METHOD
from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions, known_range, known_values

MOST_BLOCKS, MOST_TOKENS = 1000, 10**6  #: of any model; what a file asks for beyond is a mistake
#: From so many on, the attention matrices of six heads take more than 15 MB.
MANY_TOKENS = 800
#: Positions as fractions of the depth: behind blocks 3, 6, 9 of 12.
DEFAULT_POSITIONS = (1 / 4, 1 / 2, 3 / 4)
#: The five positions of the paper (CVPR 2024): behind blocks 1, 3, 6, 9, 11 of 12.
PRESETS: dict[str, tuple[float, ...]] = {
    "default": DEFAULT_POSITIONS,
    "paper": (1 / 12, 3 / 12, 6 / 12, 9 / 12, 11 / 12),
}
#: Where the first layer of a late schedule may stand, in twelfths of the depth; another layer follows at each twelfth.
LATE_STARTS = (4, 3, 2, 1)
#: Of the tokens that enter each of these layers; where less would be kept, the first stands earlier (docs/method.md).
LEAST_LATE_RATIO = 0.68


#: How finely a keep ratio is varied until the cost fits.
_RATIO_STEPS = 1 << 14


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Architecture(_Frozen):
    """The sizes of a plain vision transformer that the cost model and the schedule need."""

    depth: int = Field(ge=1, le=2**10)
    embed_dim: int = Field(ge=1, le=2**16)
    num_heads: int = Field(ge=1, le=2**12)
    mlp_dim: int = Field(ge=0, le=2**20)
    patch_tokens: int = Field(ge=1, le=2**24)
    prefix_tokens: int = Field(ge=0, le=2**16)
    class_token: bool
    patch_dim: int = Field(ge=0, le=2**24)  #: multiply-adds per patch and output channel of the patch embedding
    num_classes: int = Field(ge=0, le=2**24)
    #: Rows and columns of patches; None: a square, in bundles of older versions.
    grid: tuple[int, int] | None = None

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """Of the grid of patches; patches count row by row."""
        side = math.isqrt(self.patch_tokens)
        return self.grid or (side, self.patch_tokens // max(1, side))

    @property
    def tokens(self) -> int:
        return self.prefix_tokens + self.patch_tokens


class LayerSpec(_Frozen):
    """One pruning layer as a person writes it; `block` counts from 1."""

    block: int = Field(ge=1, le=MOST_BLOCKS)
    keep_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    drop: int | None = Field(default=None, ge=0, le=MOST_TOKENS)  #: how many tokens go, in place of a keep ratio
    similarity_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    similarity_drop: int | None = Field(default=None, ge=0, le=MOST_TOKENS)  #: explicit `r`; overrides the share
    iterations: int | None = Field(default=None, ge=1, le=1000)  #: None: by position

    @model_validator(mode="after")
    def _either_ratio_or_count(self) -> LayerSpec:
        if (self.keep_ratio is None) == (self.drop is None):
            raise ValueError("either keep_ratio or drop is needed, and not both")
        return self


class PruningSchedule(_Frozen):
    """Where pruning layers stand. No layers at all is the dense model."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    method: str = DEFAULT_METHOD
    keep_ratio: Annotated[float, Field(gt=0, le=1)] | None = None  #: the single number it was made from, if any
    options: MethodOptions = DEFAULT_OPTIONS
    layers: tuple[LayerSpec, ...] = Field(default=(), alias="layer")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class LayerPlan(_Frozen):
    """One pruning layer in integers. It stands behind `block` (counted from 0, as timm does), or inside it."""

    block: int
    tokens_in: int
    tokens_out: int
    prefix_tokens: int
    class_token: bool
    similarity_drop: int  #: tokens dropped by the S-stage
    iterations: int  #: weighted-page-rank iterations of the I-stage
    inside: bool = False  #: between the block's attention and its MLP, which sees `tokens_out` tokens
    merges: bool = False  #: what goes is merged into what stays
    compares_tokens: bool = False  #: who goes depends on the block's own tokens, all of which it then must compute

    @property
    def importance_drop(self) -> int:
        """Tokens dropped by the I-stage."""
        return self.tokens_in - self.tokens_out - self.similarity_drop


class TokenPlan(_Frozen):
    """A schedule resolved for one architecture."""

    layers: tuple[LayerPlan, ...]
    tokens_per_block: tuple[int, ...]  #: tokens that enter each block, and that its attention sees

    @property
    def mlp_tokens_per_block(self) -> tuple[int, ...]:
        """Tokens that each block's MLP sees: fewer where a layer stands inside the block."""
        inside = {layer.block: layer.tokens_out for layer in self.layers if layer.inside}
        return tuple(inside.get(block, tokens) for block, tokens in enumerate(self.tokens_per_block))


def default_schedule(
    keep_ratio: float, architecture: Architecture, *, method: str = DEFAULT_METHOD, preset: str = "default"
) -> PruningSchedule:
    """The schedule that "keep ratio 0.7" alone means, for a method and a model.

    Raises:
        ScheduleError: the ratio is not in (0, 1], or not a number; an unknown method or preset.
    """
    uniform, facts = (
        uniform_schedule(keep_ratio, architecture.depth, method=method, preset=preset),
        method_named(method),
    )
    if facts.every_block:
        return constant_schedule(uniform, architecture)
    return late_schedule(uniform, architecture) if facts.late and preset == "default" else uniform


def constant_schedule(wanted: PruningSchedule, architecture: Architecture) -> PruningSchedule:
    """The same number of tokens gone in every block, at the cost of another schedule, as closely as integers allow.

    Each block loses at most half of its patch tokens. A total that the depth does not divide is spread evenly.
    """
    depth, patches = architecture.depth, architecture.patch_tokens

    def schedule(total: int) -> PruningSchedule:
        layers = []
        left = patches
        for block in range(depth):
            drop = min((block + 1) * total // depth - block * total // depth, left // 2)
            left -= drop
            if drop:
                layers.append(LayerSpec(block=block + 1, drop=drop))
        return wanted.model_copy(update={"layers": tuple(layers)})

    return schedule(_closest_in_cost(wanted, architecture, schedule, depth * patches))


def late_schedule(wanted: PruningSchedule, architecture: Architecture) -> PruningSchedule:
    """One share of the patch tokens kept behind each late block, at the cost of another schedule, as closely as
    integers allow.

    The first layer stands as late as it can with at least `LEAST_LATE_RATIO` kept by each. Behind the last block
    nothing is left to save, so no layer stands there.
    """
    depth, patches = architecture.depth, architecture.patch_tokens
    if not wanted.layers or depth < 2:
        return wanted
    share = wanted.layers[0].similarity_share

    def schedule(blocks: Sequence[int], step: int) -> PruningSchedule:
        layers, left = [], patches
        for position, block in enumerate(blocks, 1):
            kept = max(1, math.ceil(patches * (1 - step / _RATIO_STEPS) ** position))
            if kept < left:
                layers.append(LayerSpec(block=block, drop=left - kept, similarity_share=share))
            left = kept
        return wanted.model_copy(update={"layers": tuple(layers)})

    found = wanted
    for first in LATE_STARTS:
        positions = [twelfth / 12 for twelfth in range(first, 12)]
        candidate = partial(schedule, [block for block in blocks_at(positions, depth) if block < depth])
        step = _closest_in_cost(wanted, architecture, candidate, _RATIO_STEPS)
        found = candidate(step)
        if 1 - step / _RATIO_STEPS >= LEAST_LATE_RATIO:
            break
    return found


def _closest_in_cost(
    wanted: PruningSchedule, architecture: Architecture, schedule: Callable[[int], PruningSchedule], steps: int
) -> int:
    """Of the schedules 0 to `steps` (not included), ever cheaper, the one closest to what the default method costs."""

    def cost(layers: PruningSchedule) -> float:
        return plan_gmacs(architecture, plan(layers, architecture))

    target = cost(wanted.model_copy(update={"method": DEFAULT_METHOD, "options": DEFAULT_OPTIONS}))
    after = bisect_left(range(steps), -target, key=lambda step: -cost(schedule(step)))
    nearest = (min(max(0, step), steps - 1) for step in (after - 1, after))
    return min(nearest, key=lambda step: abs(cost(schedule(step)) - target))


def blocks_at(positions: Sequence[float], depth: int) -> list[int]:
    """The blocks, from 1, at fractions of the depth; half a block rounds up: behind 2, 3 and 5 of 6."""
    return sorted({min(depth, max(1, math.floor(depth * position + 0.5))) for position in positions})


def uniform_schedule(
    keep_ratio: float, depth: int, *, method: str = DEFAULT_METHOD, preset: str = "default"
) -> PruningSchedule:
    """The same keep ratio at each of a preset's positions.

    Raises:
        ScheduleError: the ratio is not in (0, 1], or not a number.
    """
    check_keep_ratio(keep_ratio)
    if keep_ratio == 1:
        return PruningSchedule(name="dense", method=method, keep_ratio=1.0)
    if preset not in PRESETS:
        raise ScheduleError(f"preset '{preset}'", "a known preset", did_you_mean(preset, PRESETS))
    blocks = blocks_at(PRESETS[preset], depth)
    name = f"keep-{keep_ratio:.2f}" if round(keep_ratio, 2) == keep_ratio else f"keep-{keep_ratio:g}"
    if method != DEFAULT_METHOD:
        name = f"{method}-{name}"
    if preset != "default":
        name = f"{name}-{preset}"
    share = 0.5 if {"page-rank", "halves"} <= method_named(method).work else 0.0
    layers = tuple(LayerSpec(block=block, keep_ratio=keep_ratio, similarity_share=share) for block in blocks)
    return PruningSchedule(name=name, method=method, keep_ratio=keep_ratio, layers=layers)


def check_keep_ratio(keep_ratio: object) -> float:
    """The ratio as a plain number.

    Raises:
        ScheduleError: no number, or not in (0, 1].
    """
    ratio = number("keep ratio", keep_ratio, ScheduleError)
    if not 0 < ratio <= 1:
        raise ScheduleError(
            f"keep ratio {shown(keep_ratio)}", "a number in (0, 1]", "give for instance --keep-ratio 0.7"
        )
    return ratio


def read_schedule(path: Path) -> PruningSchedule:
    """Read a schedule from a TOML or JSON file. Its name defaults to the file's stem.

    Raises:
        ScheduleError: unreadable, not TOML or JSON, an unknown key, or a value out of range.
    """
    data = read_settings(path, what="schedule file", error=ScheduleError, expected="a TOML or JSON file")
    return parse_schedule(data, path)


def parse_schedule(data: Any, path: Path) -> PruningSchedule:
    if data == {}:
        raise ScheduleError(f"schedule file '{path}' says nothing", "[[layer]] tables", "give the file that was meant")
    if isinstance(data, dict):
        data = {"name": path.stem.lower().replace(" ", "-"), **data}
    try:
        schedule = PruningSchedule.model_validate(data)
    except ValidationError as error:
        raise _schedule_error(path, errors_of(error)[0]) from error
    if schedule.keep_ratio not in (None, 1) and not schedule.layers:
        raise ScheduleError(
            f"schedule file '{path}' has a keep_ratio and no [[layer]]",
            "where its layers stand",
            "add [[layer]] tables, or leave the file out and give --keep-ratio",
        )
    return schedule


def _schedule_error(path: Path, first: ErrorDetails) -> ScheduleError:
    """What pydantic found first, in words."""
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    if first["loc"][:1] == ("options",) and len(first["loc"]) > 1:
        name, found = str(first["loc"][1]), first["input"]
        value = found if isinstance(found, str) else shown(found)
        if name not in MethodOptions.model_fields:
            hint = did_you_mean(name, MethodOptions.model_fields)
            return ScheduleError(f"schedule file '{path}': unknown option '{name}'", "an option that there is", hint)
        known = [str(value).lower() for value in known_values(name)]
        expected = f"one of {', '.join(known)}" if known else "a number from {:g} to {:g}".format(*known_range(name))
        return ScheduleError(
            f"schedule file '{path}': option {name} = {value}",
            expected,
            did_you_mean(value, known) if known else f"correct {where}",
        )
    return ScheduleError(
        f"schedule file '{path}': {where}: {first['msg']} (got {shown(first['input'])})",
        "[[layer]] tables with block, keep_ratio or drop, perhaps similarity_share, similarity_drop, iterations;"
        " perhaps [options]",
        f"correct {where}",
    )


def plan(schedule: PruningSchedule, architecture: Architecture) -> TokenPlan:
    """Resolve a schedule into static token counts.

    A layer that would drop nothing is left out.

    Raises:
        ScheduleError: a block that the model does not have, blocks out of order, more tokens to go than there are or
            than the method lets go, an unknown method, or one that needs a class token; an option that the method does
            not know, or that would change nothing.
    """
    method = method_named(schedule.method)
    check_options(schedule.method, schedule.options)
    if schedule.layers and method.needs_class_token and not architecture.class_token:
        raise ScheduleError(
            f"method '{schedule.method}' for a model without a class token",
            "a model whose class token ranks the others",
            f"choose another method, such as {DEFAULT_METHOD}",
        )
    patches, prefix = architecture.patch_tokens, architecture.prefix_tokens
    layers: list[LayerPlan] = []
    previous = 0
    for spec in schedule.layers:
        if not previous < spec.block <= architecture.depth:
            raise ScheduleError(
                f"schedule '{schedule.name}' names block {spec.block} after block {previous}",
                f"ascending blocks from 1 to {architecture.depth}",
                "correct the schedule's 'block' values",
            )
        previous = spec.block
        kept = _kept(schedule.name, spec, patches)
        if kept < patches:
            layers.append(_layer_plan(schedule, method, spec, architecture, patches, kept))
        patches = kept
    idle = sorted(schedule.options.changed & SIMILARITY_OPTIONS)
    if idle and layers and not any(layer.similarity_drop for layer in layers):
        raise ScheduleError(
            f"schedule '{schedule.name}': option {', '.join(idle)}",
            "a layer that drops something by similarity; else it changes nothing",
            "raise similarity_share, or remove the option",
        )
    unread = sorted(schedule.options.changed & COHERENCE_OPTIONS)
    if unread and not schedule.options.coherent:
        raise ScheduleError(
            f"schedule '{schedule.name}': option {', '.join(unread)} with coherent = false",
            "coherent = true; else it changes nothing",
            "remove one of the two",
        )
    counts, current = [], prefix + architecture.patch_tokens
    behind = {layer.block: layer.tokens_out for layer in layers}
    for block in range(architecture.depth):
        counts.append(current)
        current = behind.get(block, current)
    return TokenPlan(layers=tuple(layers), tokens_per_block=tuple(counts))


def _kept(name: str, spec: LayerSpec, patches: int) -> int:
    """How many of the patch tokens stay; at least one."""
    if spec.keep_ratio is not None:
        return max(1, math.ceil(round(spec.keep_ratio * patches, 9)))  # 0.07 * 100 is 7.000000000000001
    assert spec.drop is not None
    if spec.drop >= patches:
        raise ScheduleError(
            f"schedule '{name}', block {spec.block}: drop {spec.drop}", f"less than {patches} tokens", "lower drop"
        )
    return patches - spec.drop


def _layer_plan(
    schedule: PruningSchedule,
    method: Method,
    spec: LayerSpec,
    architecture: Architecture,
    patches: int,
    kept: int,
) -> LayerPlan:
    name, dropped, options = schedule.name, patches - kept, schedule.options
    most = options.most_similar(patches, dropped)
    if method.only_by_similarity and dropped > most:
        raise ScheduleError(
            f"schedule '{name}', block {spec.block}: {dropped} of {patches} patch tokens to go",
            f"at most {most}, for {schedule.method} takes each into one of the other half",
            "spread them over more blocks",
        )
    if spec.similarity_drop is not None and spec.similarity_drop > most:
        half = f"half of {patches} patch tokens" if options.order == "similarity-first" else f"the {kept} that stay"
        limit = "" if options.partition == "full" else f"{half}, and "
        raise ScheduleError(
            f"schedule '{name}', block {spec.block}: similarity_drop {spec.similarity_drop}",
            f"at most {most} ({limit}no more than the {dropped} dropped)",
            "lower similarity_drop or keep_ratio",
        )
    explicit = spec.similarity_drop
    # Only one group of tokens can go by similarity; what the share asks beyond it goes by importance.
    drop = min(round(spec.similarity_share * dropped), most) if explicit is None else explicit
    if method.only_by_similarity:
        drop = dropped
    one_stage, tokens = "distances" in method.work, architecture.prefix_tokens + patches
    return LayerPlan(
        block=spec.block - 1,
        tokens_in=tokens,
        tokens_out=architecture.prefix_tokens + kept,
        prefix_tokens=architecture.prefix_tokens,
        class_token=architecture.class_token,
        similarity_drop=0 if one_stage else drop,
        iterations=1 if one_stage else spec.iterations or default_iterations(spec.block, architecture.depth, tokens),
        inside=method.inside,
        merges=method.merges,
        compares_tokens="halves" in method.work and drop > 0 and options.feature == "tokens",
    )


def default_iterations(block: int, depth: int, tokens: int) -> int:
    """Weighted-page-rank iterations by position: 5 in the first quarter, 1 in the last, 3 between; 1 where there are
    very many tokens.

    The ranking itself settles later (30 iterations in the first blocks), but what that changes about the kept tokens
    does not show in the outputs; docs/method.md has the measurements. An iteration reads the whole attention matrix:
    once no cache holds that, five of them are no longer next to nothing.
    """
    return 1 if tokens >= MANY_TOKENS else iterations_by_position(block, depth, (5, 3, 1))


def iterations_by_position(block: int, depth: int, counts: tuple[int, int, int]) -> int:
    """Of three counts the first in the first quarter of the blocks, the last in the last quarter, else the second."""
    position = block / depth
    if position <= 0.25:
        return counts[0]
    return counts[2] if position >= 0.75 else counts[1]


def gmacs(
    architecture: Architecture, tokens_per_block: Sequence[int], mlp_tokens_per_block: Sequence[int] | None = None
) -> float:
    """Multiply-adds of one image through the whole model, in units of 1e9, pruning layers not counted.

    Args:
        architecture: the model's sizes.
        tokens_per_block: that each block's attention sees.
        mlp_tokens_per_block: that its MLP sees; None: the same.
    """
    d = architecture.embed_dim
    ends = architecture.patch_tokens * architecture.patch_dim * d + d * architecture.num_classes
    pairs = zip(tokens_per_block, mlp_tokens_per_block or tokens_per_block, strict=True)
    return sum(block_gmacs(architecture, *pair) for pair in pairs) + ends / 1e9


def whole_block_gmacs(architecture: Architecture, token_plan: TokenPlan) -> float:
    """The same for a plan as papers count and PyTorch computes: a whole block runs before a layer behind it."""
    return gmacs(architecture, token_plan.tokens_per_block, token_plan.mlp_tokens_per_block)


def plan_gmacs(architecture: Architecture, token_plan: TokenPlan) -> float:
    """The same for the graph of a plan, in which dropped tokens go no further than their block's attention.

    From the attention's projection on, the block works on those that stay (`graph.early_rows`), unless its tokens
    decide who that is: less than `whole_block_gmacs`.
    """
    d, mlp = architecture.embed_dim, architecture.mlp_dim
    early = [layer for layer in token_plan.layers if not layer.merges and not layer.compares_tokens]
    unread = sum(layer.tokens_in - layer.tokens_out for layer in early)
    return whole_block_gmacs(architecture, token_plan) - unread * (d * d + 2 * d * mlp) / 1e9


def block_gmacs(architecture: Architecture, tokens: int, mlp_tokens: int | None = None) -> float:
    """Multiply-adds of one block, in units of 1e9, per image.

    At N tokens, and M in the MLP: 4 N D^2 (qkv, proj) + 2 N^2 D (scores, weighted sum) + 2 M D D_mlp.
    """
    n, d, mlp = tokens, architecture.embed_dim, architecture.mlp_dim
    m = n if mlp_tokens is None else mlp_tokens
    return (4 * n * d * d + 2 * n * n * d + 2 * m * d * mlp) / 1e9


def pruning_gmacs(
    architecture: Architecture,
    token_plan: TokenPlan,
    method: str = DEFAULT_METHOD,
    options: MethodOptions = DEFAULT_OPTIONS,
) -> float:
    """Multiply-adds of the pruning layers themselves, in units of 1e9, per image; 0 for methods that score nothing."""
    facts = method_named(method)
    return sum(_layer_macs(architecture, layer, facts, options) for layer in token_plan.layers) / 1e9


def _layer_macs(architecture: Architecture, layer: LayerPlan, method: Method, options: MethodOptions) -> int:
    """H N^2 per weighted-page-rank iteration; |A| |B| f for the similarity of two groups with features of length f,
    (N - k) k f for that of those that go to those that stay; (N - k) k D to merge; N^2 D for the distances of all
    tokens. Distances cost what products do.
    """
    n, work, gone = layer.tokens_in, method.work, layer.tokens_in - layer.tokens_out
    widths = {"keys": architecture.embed_dim // architecture.num_heads, "tokens": architecture.embed_dim}
    widths |= {"queries": widths["keys"], "values": widths["keys"], "all-keys": widths["tokens"]}
    by_similarity = "halves" in work and layer.similarity_drop > 0
    importance_first = by_similarity and options.order == "importance-first"
    total = 0
    if "page-rank" in work:
        total += _iterations(layer, method, options) * architecture.num_heads * n * n
    if by_similarity:
        live = n - layer.importance_drop if importance_first else n
        group_a, group_b = options.groups(live, layer.prefix_tokens)
        total += group_a * group_b * widths[options.feature]
    if "distances" in work:
        total += n * n * architecture.embed_dim
    if "partners" in work:
        total += gone * (layer.tokens_out - layer.prefix_tokens) * widths[options.partner]
    if "merging" in work:
        total += gone * layer.tokens_out * architecture.embed_dim
    return total


def _iterations(layer: LayerPlan, method: Method, options: MethodOptions) -> int:
    """Of weighted page rank, in both stages together; what nothing reads is not computed."""
    by_similarity = "halves" in method.work and layer.similarity_drop > 0
    by_importance = "halves" not in method.work or layer.importance_drop > 0
    by_rank = by_similarity and options.partition != "random"
    if options.order == "importance-first":
        return layer.iterations * int(by_importance or by_rank)
    return int(by_rank) + layer.iterations * int(by_importance)
