"""The stages of a cascade in the making, and where their graphs are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ztdeploy.core.cascade import Signal
from ztdeploy.core.cost import plan_gmacs
from ztdeploy.core.errors import InputError
from ztdeploy.core.methods import method_named
from ztdeploy.core.plan import Variant

if TYPE_CHECKING:
    from ztdeploy.host.models.loading import LoadedModel

PREFIX = "_prefix"


@dataclass(frozen=True)
class Chain:
    """The stages of a cascade, the cheapest first, the baseline last."""

    stages: tuple[Variant, ...]
    signal: Signal

    @property
    def block(self) -> int:
        """The block, from 0, in front of which graphs are cut: the first whose pruning layer not all stages have.

        The baseline has none, so this is the block of the first pruning layer of any stage. That block itself belongs
        to the tails, because a pruning layer needs more of its block than tokens.
        """
        return min(variant.plan.layers[0].block for variant in self.stages[:-1])

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(variant.schedule.name for variant in self.stages)


def chain_of(variants: Sequence[Variant], model: LoadedModel) -> Chain:
    """The cascade of all variants of a build.

    Raises:
        InputError: no variant prunes, or nothing tells how sure a variant is of its output.
    """
    pruned = [variant for variant in variants if variant.plan.layers]
    if not pruned:
        raise InputError("--cascade without a variant that prunes", "a keep ratio below 1", "give for instance -k 0.55")
    if any(variant.schedule.name == "cascade" for variant in pruned):
        raise InputError(
            "--cascade with a variant named 'cascade'",
            "another name: reports call the cascade so",
            "set 'name' in its schedule file",
        )
    by_cost = sorted(pruned, key=lambda variant: plan_gmacs(model.adapter.architecture, variant.plan))
    dense = next(variant for variant in variants if not variant.plan.layers)
    return Chain((*by_cost, dense), _signal_of(model, pruned))


def _signal_of(model: LoadedModel, pruned: Sequence[Variant]) -> Signal:
    """What tells how sure the pruned variants are of their outputs.

    Raises:
        InputError: nothing does.
    """
    if model.output == "maps":
        raise InputError(
            f"--cascade for '{model.name}', which gives maps",
            "classes, yes or no, embeddings or features: of a whole map, nothing says how sure it is",
            "leave out --cascade",
        )
    if model.output == "logits":
        if model.activation == "none":
            raise InputError(
                f"--cascade for '{model.name}', whose outputs are values (activation none)",
                "classes, yes or no, embeddings or features: of a value, nothing says how sure it is",
                "leave out --cascade, or give --output embedding",
            )
        return "margin"
    for method in (variant.schedule.method for variant in pruned):
        if not method_named(method).decides_by_image:
            raise InputError(
                f"--cascade of vectors with method '{method}', which decides nothing by image",
                "a method that decides by image",
                "leave out --method",
            )
    return "closeness"


def tail_name(stage: str) -> str:
    """The name of a stage's piece."""
    return f"_tail.{stage}"
