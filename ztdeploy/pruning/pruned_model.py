"""A vision transformer with pruning layers behind some of its blocks, attached from outside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ztdeploy.errors import ModelError
from ztdeploy.models.adapter import ModelAdapter
from ztdeploy.pruning import check_method, pruning_layer
from ztdeploy.pruning.layer import BlockTaps, PruningLayer, Recorder
from ztdeploy.schedule import PruningSchedule, TokenPlan, plan

#: The name under which a pruning layer becomes a child of its block; it shows in the names of the ONNX nodes.
CHILD = "prune"


@dataclass(frozen=True)
class Replay:
    """A forward pass in which another implementation's choices were kept, with what this one would have chosen."""

    output: Tensor
    kept: list[Tensor]  #: per pruning layer `[B, k]`, this implementation's own choice
    records: list[Recorder]


@dataclass
class _Pass:
    """What one forward pass leaves behind, and what it is told."""

    kept: list[Tensor] = field(default_factory=list)
    records: list[Recorder] | None = None
    forced: Sequence[Tensor] | None = None


class _Tap:
    """Holds a block's attention matrix and keys between the moment they are made and the pruning layer."""

    def __init__(self) -> None:
        self.attention: Tensor | None = None
        self.keys: Tensor | None = None

    def take(self) -> BlockTaps:
        taps, self.attention, self.keys = BlockTaps(self.attention, self.keys), None, None
        return taps


class PrunedModel(nn.Module, AbstractContextManager["PrunedModel"]):
    """Images to `(output, kept_1, kept_2, ...)`; an ordinary differentiable module.

    The given model is changed in place by hooks, and only where a pruning layer stands: that block gives up
    fused attention. `detach()`, or leaving a `with` block, undoes all of it. The blocks' own `forward` runs
    untouched, so whatever it does (LayerScale, q/k norms, drop path) stays as it is.
    """

    def __init__(self, adapter: ModelAdapter, schedule: PruningSchedule) -> None:
        super().__init__()
        check_method(schedule.method)
        if any(CHILD in dict(block.named_children()) for block in adapter.blocks):
            raise ModelError(
                "a model that is already pruned", "an untouched model", "detach the other PrunedModel first"
            )
        self.model = adapter.model
        self.token_plan: TokenPlan = plan(schedule, adapter.architecture)
        self.layers: list[PruningLayer] = []
        self._undo: list[Any] = []
        self._pass = _Pass()
        for layer_plan in self.token_plan.layers:
            layer = pruning_layer(schedule.method, layer_plan).eval()
            self._attach(adapter, layer_plan.block, layer)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """`images` as the model takes them, `[B, 3, S, S]`."""
        self._pass = _Pass()
        return (self.model(images), *self._pass.kept)

    def replay(self, images: Tensor, kept: Sequence[Tensor] | None = None) -> Replay:
        """Run with the given choices kept at each layer, recording this implementation's own."""
        self._pass = state = _Pass(records=[], forced=kept)
        with torch.no_grad():
            output = self.model(images)
        self._pass = _Pass()
        return Replay(output=output, kept=state.kept, records=state.records or [])

    def detach(self) -> None:
        """Leave the wrapped model as it was."""
        while self._undo:
            self._undo.pop()()
        self.layers.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _attach(self, adapter: ModelAdapter, index: int, layer: PruningLayer) -> None:
        block, tap = adapter.blocks[index], _Tap()
        self._undo.extend(adapter.tap(index, tap, attention=layer.needs_attention, keys=layer.needs_keys))
        block.add_module(CHILD, layer)
        self._undo.append(lambda: delattr(block, CHILD))
        position = len(self.layers)
        self.layers.append(layer)

        def prune_output(_block: nn.Module, _inputs: Any, x: Tensor) -> Tensor:
            state = self._pass
            record = None if state.records is None else Recorder()
            forced = None if state.forced is None else state.forced[position]
            tokens: Tensor
            tokens, kept = layer(x, tap.take(), record, forced)
            state.kept.append(kept)
            if state.records is not None and record is not None:
                state.records.append(record)
            return tokens

        handle: RemovableHandle = block.register_forward_hook(prune_output)
        self._undo.append(handle.remove)
