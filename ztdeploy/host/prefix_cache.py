"""Many schedules on the same images: blocks in front of the first pruning layer are computed only once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from ztdeploy.core.plan import TokenPlan, Variant
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.pruning.layer import Choice
from ztdeploy.host.pruning.pruned_model import Behind, PrunedModel


def first_block(plan: TokenPlan) -> int:
    """The block, from 0, of the first pruning layer; the depth where there is none."""
    return plan.layers[0].block if plan.layers else len(plan.tokens_per_block)


class DensePrefix:
    """One batch of images, and the tokens that enter some of the unpruned model's blocks.

    A schedule starts from the last stored tokens in front of its first pruning layer, and gives bit for bit the output
    of a whole `PrunedModel`, since the same operators run on the same tokens. Only the patch embedding, which is no
    block, is computed each time.
    """

    def __init__(self, adapter: ModelAdapter, images: Tensor, blocks: Collection[int] | None = None) -> None:
        """Run the unpruned model once.

        Args:
            adapter: adapter of a model that is not pruned.
            images: as the model takes them, `[B, C, H, W]`.
            blocks: blocks (from 0) whose input is stored; None: all, which is `depth * B * N * D` numbers.
        """
        self._adapter, self.images = adapter, images
        depth = adapter.architecture.depth
        self._tokens: dict[int, Tensor] = {}
        wanted = sorted({block for block in (range(depth) if blocks is None else blocks) if 0 < block < depth})
        handles = [adapter.blocks[block].register_forward_pre_hook(partial(self._keep, block)) for block in wanted]
        try:
            with torch.inference_mode():
                self.dense: Tensor = adapter.model(images)  #: the unpruned model's output
        finally:
            for handle in handles:
                handle.remove()
        self._kept = sorted(self._tokens)
        self._base: Variant | None = None
        self._behind: list[Behind] = []

    def _keep(self, block: int, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._tokens[block] = inputs[0]

    def output(self, schedule: PruningSchedule, choices: Sequence[Choice] = ()) -> Tensor:
        """The pruned model's output for the images.

        Args:
            choices: choices to apply at the pruning layers instead of the method's own.

        Raises:
            ModelError: the model is pruned already.
            ScheduleError: the schedule does not fit.
        """
        variant = Variant.of(schedule, self._adapter.architecture)
        if not variant.plan.layers:
            return self.dense
        if not choices and (known := self._known(variant)):
            return self._from(variant, known)
        resumed = self._resumed(first_block(variant.plan))
        with resumed, PrunedModel(self._adapter, variant) as pruned, torch.inference_mode():
            output: Tensor = pruned.replay(self.images, choices).output if choices else pruned(self.images)[0]
            return output

    def keep_layers(self, schedule: PruningSchedule) -> Tensor:
        """The output as of `output`; what each layer gives is stored, so that schedules that begin with the same layers
        go on behind them. What was stored of another schedule is forgotten.

        Raises:
            ModelError, ScheduleError: as `output`.
        """
        variant = Variant.of(schedule, self._adapter.architecture)
        behind: list[Behind] = []
        output = self._from(variant, self._known(variant), behind) if variant.plan.layers else self.dense
        self._base, self._behind = variant, behind
        return output

    def _known(self, variant: Variant) -> list[Behind]:
        """What is stored behind the layers that the schedule has in common with the stored one."""
        base = self._base
        if base is None or (base.schedule.method, base.schedule.options) != (
            variant.schedule.method,
            variant.schedule.options,
        ):
            return []
        pairs = zip(self._behind, base.plan.layers, variant.plan.layers, strict=False)
        return [one for one, _, _ in takewhile(lambda pair: pair[1] == pair[2] and not pair[1].inside, pairs)]

    def _from(self, variant: Variant, known: list[Behind], keep: list[Behind] | None = None) -> Tensor:
        """The output of a schedule that prunes, where what its first layers give is known."""
        if not known:
            resumed = self._resumed(first_block(variant.plan))
        else:
            resumed = self._skipping(variant.plan.layers[len(known) - 1].block + 1)
        with resumed, PrunedModel(self._adapter, variant) as pruned, torch.inference_mode():
            return pruned.resumed(self.images, known, keep)

    @contextmanager
    def _skipping(self, blocks: int) -> Iterator[None]:
        """Within this context the first blocks return what they are given."""
        skipped = list(self._adapter.blocks[:blocks])
        try:
            for block in skipped:
                vars(block)["forward"] = lambda x, *_arguments, **_named: x
            yield
        finally:
            for block in skipped:
                vars(block).pop("forward", None)

    @contextmanager
    def _resumed(self, first: int) -> Iterator[None]:
        """Within this context the blocks before the stored tokens do nothing, and the last of them returns these
        tokens."""
        place = bisect_right(self._kept, first)
        start = self._kept[place - 1] if place else 0
        with self._skipping(start):
            if start:
                vars(self._adapter.blocks[start - 1])["forward"] = lambda *_arguments, **_named: self._tokens[start]
            yield
