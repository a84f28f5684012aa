"""From a schedule to token counts: how many tokens each block of one architecture sees, fixed before any tracing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ztdeploy.core.errors import ScheduleError
from ztdeploy.core.methods import (
    COHERENCE_OPTIONS,
    DEFAULT_METHOD,
    SIMILARITY_OPTIONS,
    Method,
    check_options,
    method_named,
)
from ztdeploy.core.records import FiniteRecord
from ztdeploy.core.schedule import Architecture, LayerSpec, PruningSchedule

#: From this number of tokens on, the attention matrices of six heads take more than 15 MB.
MANY_TOKENS = 800
#: Where distances of so many tokens are compared, it is those of tokens that were folded to this width.
FOLDED_WIDTH = 64


class LayerPlan(FiniteRecord):
    """One pruning layer in integers. It stands behind `block` (counted from 0, as timm does), or inside it."""

    block: int
    tokens_in: int
    tokens_out: int
    prefix_tokens: int
    class_token: bool
    similarity_drop: int  #: tokens that the S-stage drops
    iterations: int  #: weighted-page-rank iterations of the I-stage
    inside: bool = False  #: between the block's attention and its MLP, which sees `tokens_out` tokens
    merges: bool = False  #: tokens that go are merged into tokens that stay
    compares_tokens: bool = False  #: the choice depends on the block's output tokens, so all of them are computed
    drops: bool = False  #: of a method that merges: all tokens that go at this layer are dropped
    position: float = 0.0  #: share of the model's blocks that are in front of the layer's block

    @property
    def averages(self) -> bool:
        """Whether tokens that go are merged into tokens that stay, at this layer."""
        return self.merges and not self.drops

    @property
    def reads_gone(self) -> bool:
        """Whether tokens that go are read where they would leave the block."""
        return self.averages or self.compares_tokens

    @property
    def importance_drop(self) -> int:
        """Tokens that the I-stage drops."""
        return self.tokens_in - self.tokens_out - self.similarity_drop


class TokenPlan(FiniteRecord):
    """The token counts of a schedule for one architecture."""

    layers: tuple[LayerPlan, ...]
    tokens_per_block: tuple[int, ...]  #: tokens that enter each block, and that its attention sees

    @property
    def mlp_tokens_per_block(self) -> tuple[int, ...]:
        """Tokens that each block's MLP sees: fewer where a layer stands inside the block."""
        inside = {layer.block: layer.tokens_out for layer in self.layers if layer.inside}
        return tuple(inside.get(block, tokens) for block, tokens in enumerate(self.tokens_per_block))


class Variant(FiniteRecord):
    """A schedule together with its plan for one architecture; made once, by `Variant.of`, and passed on."""

    schedule: PruningSchedule
    plan: TokenPlan

    @classmethod
    def of(cls, schedule: PruningSchedule, architecture: Architecture) -> Variant:
        """Resolve a schedule.

        Raises:
            ScheduleError: as `plan`.
        """
        return Variant(schedule=schedule, plan=plan(schedule, architecture))

    @property
    def keep_ratio(self) -> float | None:
        """The ratio that selects this variant. It is 1 for the baseline and never 1 for a variant that prunes,
        whatever a schedule file says; None where the schedule was not made from one ratio.
        """
        ratio = self.schedule.keep_ratio
        if self.plan.layers:
            return None if ratio == 1 else ratio
        return 1.0 if ratio is None else ratio

    def __repr_args__(self) -> Iterator[tuple[str, object]]:
        """What a prompt shows."""
        tokens = self.plan.tokens_per_block
        yield "name", self.schedule.name
        yield "keep_ratio", self.keep_ratio
        yield "method", self.schedule.method if self.plan.layers else None
        yield "tokens", (tokens[0], tokens[-1])

    def has_ratio(self, keep_ratio: float) -> bool:
        """Whether a keep ratio selects this variant; also one in NumPy's fp32."""
        return self.keep_ratio is not None and math.isclose(keep_ratio, self.keep_ratio, rel_tol=1e-6)


def plan(schedule: PruningSchedule, architecture: Architecture) -> TokenPlan:
    """Resolve a schedule into static token counts. A layer that would drop nothing is left out.

    Raises:
        ScheduleError: a model of another size than the schedule is for, a block that the model does not have, blocks
            out of order, more tokens to drop than there are or than the method can drop, an unknown method, a method
            that needs a class token where there is none, or an option that the method does not know or that would
            change nothing.
    """
    method = method_named(schedule.method)
    check_options(schedule.method, schedule.options)
    if schedule.layers and method.needs_class_token and not architecture.class_token:
        raise ScheduleError(
            f"method '{schedule.method}' for a model without a class token",
            "a model whose class token ranks the others",
            f"choose another method, such as {DEFAULT_METHOD}",
        )
    if schedule.depth not in (None, architecture.depth) or schedule.tokens not in (None, architecture.tokens):
        asked = ((schedule.depth, "blocks"), (schedule.tokens, "tokens"))
        raise ScheduleError(
            f"schedule '{schedule.name}' for a model of {architecture.depth} blocks and {architecture.tokens} tokens",
            f"one of {' and '.join(f'{count} {what}' for count, what in asked if count is not None)}",
            "choose a schedule of that model, or give a keep ratio",
        )
    layers: list[LayerPlan] = []
    patches, previous = architecture.patch_tokens, 0
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
    _check_effect_of_options(schedule, layers)
    return TokenPlan(layers=tuple(layers), tokens_per_block=tokens_per_block(layers, architecture))


def tokens_per_block(layers: Sequence[LayerPlan], architecture: Architecture) -> tuple[int, ...]:
    """How many tokens enter each block."""
    tokens = [architecture.tokens] * architecture.depth
    for layer in layers:
        tokens[layer.block + 1 :] = [layer.tokens_out] * (architecture.depth - layer.block - 1)
    return tuple(tokens)


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
    schedule: PruningSchedule, method: Method, spec: LayerSpec, architecture: Architecture, patches: int, kept: int
) -> LayerPlan:
    one_stage, prefix = "distances" in method.work, architecture.prefix_tokens
    drop = _similarity_drop(schedule, method, spec, patches, kept)
    by_position = default_iterations(spec.block, architecture.depth, prefix + patches)
    position = (spec.block - 1) / architecture.depth
    return LayerPlan(
        block=spec.block - 1,
        tokens_in=prefix + patches,
        tokens_out=prefix + kept,
        prefix_tokens=prefix,
        class_token=architecture.class_token,
        similarity_drop=0 if one_stage else drop,
        iterations=1 if one_stage else spec.iterations or by_position,
        inside=method.inside,
        merges=method.merges,
        compares_tokens=method.reads_tokens
        or ("halves" in method.work and drop > 0 and schedule.options.feature == "tokens"),
        drops={"early": position < 0.5, "unimportant": drop == 0}.get(method.drops or "", False),
        position=position,
    )


def _similarity_drop(schedule: PruningSchedule, method: Method, spec: LayerSpec, patches: int, kept: int) -> int:
    """How many tokens the S-stage drops: never more than one group holds; the rest of the share goes by importance."""
    dropped, options, where = patches - kept, schedule.options, f"schedule '{schedule.name}', block {spec.block}"
    most = options.most_similar(patches, dropped)
    if method.only_by_similarity and dropped > most:
        raise ScheduleError(
            f"{where}: {dropped} of {patches} patch tokens to drop",
            f"at most {most}, for {schedule.method} merges each into one of the other half",
            "spread them over more blocks",
        )
    if spec.similarity_drop is not None and spec.similarity_drop > most:
        half = f"half of {patches} patch tokens" if options.order == "similarity-first" else f"the {kept} that stay"
        limit = "" if options.partition == "full" else f"{half}, and "
        raise ScheduleError(
            f"{where}: similarity_drop {spec.similarity_drop}",
            f"at most {most} ({limit}no more than the {dropped} dropped)",
            "lower similarity_drop or keep_ratio",
        )
    if method.only_by_similarity:
        return dropped
    return min(round(spec.similarity_share * dropped), most) if spec.similarity_drop is None else spec.similarity_drop


def _check_effect_of_options(schedule: PruningSchedule, layers: Sequence[LayerPlan]) -> None:
    """Refuse options that would change nothing."""
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


def compared_width(tokens: int, width: int) -> int:
    """The width of vectors whose distances stand for those of `tokens` tokens of a width that 64 divides, or not."""
    return FOLDED_WIDTH if tokens >= MANY_TOKENS and width % FOLDED_WIDTH == 0 else width


def default_iterations(block: int, depth: int, tokens: int) -> int:
    """Weighted-page-rank iterations by position: 5 in the first quarter of the blocks, 1 in the last, 3 between; 1
    everywhere for very many tokens.

    The ranking itself converges later (30 iterations in the first blocks), but the kept tokens that this changes make
    no difference in the outputs; docs/explanation/method.md has the measurements. Each iteration reads the whole
    attention matrix: as soon as no cache holds it, five of them are expensive.
    """
    return 1 if tokens >= MANY_TOKENS else iterations_by_position(block, depth, (5, 3, 1))


def iterations_by_position(block: int, depth: int, counts: tuple[int, int, int]) -> int:
    """The first of three counts in the first quarter of the blocks, the last in the last quarter, else the second."""
    position = block / depth
    if position <= 0.25:
        return counts[0]
    return counts[2] if position >= 0.75 else counts[1]
