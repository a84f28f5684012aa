"""A vision transformer with pruning layers behind some of its blocks, attached from outside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ztdeploy.core.errors import ModelError
from ztdeploy.core.names import PRUNE, pruning_output
from ztdeploy.core.plan import LayerPlan, TokenPlan, plan
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.pruning import check_method, pruning_layer
from ztdeploy.host.pruning.layer import BlockTaps, Choice, PruningLayer, Recorder, Reduction
from ztdeploy.host.pruning.restoring import StandIns, restored

#: The name under which a pruning layer becomes a child of its block; it shows in the names of the ONNX nodes.


@dataclass(frozen=True)
class Replay:
    """A forward pass in which another implementation's choices were kept, with what this one would have chosen."""

    output: Tensor
    choices: list[Choice]  #: per pruning layer, this implementation's own
    records: list[Recorder]


@dataclass
class _Pass:
    """What one forward pass leaves behind, and what it is told."""

    choices: list[Choice] = field(default_factory=list)
    records: list[Recorder] | None = None
    forced: Sequence[Choice] | None = None
    size: Tensor | None = None  #: `[B, N]`: how many tokens each of the present ones stands for
    bias: Tensor | None = None  #: `[B, 1, 1, N]`: what attention adds to its logits for it
    coherence: Tensor | None = None  #: `[B, N]`: how much of their parts' length averaged tokens have kept
    scale: Tensor | None = None  #: `[B, N, 1]`: what attention multiplies its input with for it
    update: Tensor | None = None  #: `[B, N, 1]`: what blocks multiply with it all that they add
    places: Tensor | None = None  #: `[B, N]`: which of the image's tokens the present ones are; None: all of them
    stand_ins: Tensor | None = None  #: `[B, N]`: for each of the image's tokens, the present one that stands for it


class _Tap:
    """Holds what a block shows between the moment it is made and the pruning layer."""

    def __init__(self) -> None:
        self.attention: Tensor | None = None
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.queries: Tensor | None = None

    def take(self, size: Tensor | None, coherence: Tensor | None) -> BlockTaps:
        taps = BlockTaps(self.attention, self.keys, self.values, size, self.queries, coherence)
        self.attention = self.keys = self.values = self.queries = None
        return taps


class PrunedModel(nn.Module, AbstractContextManager["PrunedModel"]):
    """Images to `(output, kept_1, kept_2, ...)`; an ordinary differentiable module. Where a method merges, each `kept`
    is followed by its `into`. The output is the model's; or features of all patches, where the adapter was told so.

    The given model is changed in place by hooks, and only where a pruning layer stands: that block gives up
    fused attention if the layer reads its attention matrix. Behind a merge, attention gets a bias. `detach()`, or
    leaving a `with` block, undoes all of it. The blocks' own `forward` runs untouched, so whatever it does
    (LayerScale, q/k norms, drop path) stays as it is.
    """

    def __init__(self, adapter: ModelAdapter, schedule: PruningSchedule) -> None:
        super().__init__()
        check_method(schedule.method)
        if any(PRUNE in dict(block.named_children()) for block in adapter.blocks):
            raise ModelError(
                "a model that is already pruned", "an untouched model", "detach the other PrunedModel first"
            )
        self.model = adapter.model
        self._restores, self._prefix = adapter.output == "features", adapter.architecture.prefix_tokens
        self.token_plan: TokenPlan = plan(schedule, adapter.architecture)
        self.layers: list[PruningLayer] = []
        self._undo: list[Any] = []
        self._pass = _Pass()
        try:
            for layer_plan in self.token_plan.layers:
                layer = pruning_layer(schedule.method, layer_plan, schedule.options).eval()
                self._attach(adapter, layer_plan, layer)
            self._attach_bias(adapter)
            self._attach_places(adapter)
        except ModelError:
            self.detach()
            raise

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """`images` as the model takes them, `[B, C, H, W]`."""
        self._pass = _Pass()
        output = self._output(images)
        return (output, *(tensor for choice in self._pass.choices for tensor in choice.tensors))

    def noted(self, images: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """The same as `forward`, and what the layers note on the way (`Recorder.note`), as `blocks.2/prune/NOTE`."""
        self._pass = state = _Pass(records=[])
        output = self._output(images)
        outputs = (output, *(tensor for choice in state.choices for tensor in choice.tensors))
        self._pass = _Pass()
        return outputs, {
            pruning_output(layer.block, note): tensor
            for layer, record in zip(self.token_plan.layers, state.records or [], strict=True)
            for note, tensor in record.notes.items()
        }

    def replay(self, images: Tensor, choices: Sequence[Choice] | None = None) -> Replay:
        """Run with the given choices applied at each layer, recording this implementation's own."""
        self._pass = state = _Pass(records=[], forced=choices)
        with torch.no_grad():
            output = self._output(images)
        self._pass = _Pass()
        return Replay(output=output, choices=state.choices, records=state.records or [])

    def _output(self, images: Tensor) -> Tensor:
        if not self._restores:
            output: Tensor = self.model(images)
            return output
        model: Any = self.model
        return restored(model.forward_features(images), self._pass.stand_ins, self._prefix)

    def detach(self) -> None:
        """Leave the wrapped model as it was."""
        while self._undo:
            self._undo.pop()()
        self.layers.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _attach(self, adapter: ModelAdapter, layer_plan: LayerPlan, layer: PruningLayer) -> None:
        index, tap, position = layer_plan.block, _Tap(), len(self.layers)
        block = adapter.blocks[index]
        wanted = {"attention": layer.needs_attention, "keys": layer.needs_keys or self._restores}
        wanted |= {"values": layer.needs_values, "queries": layer.needs_queries}
        self._undo.extend(adapter.tap(index, tap, **wanted))
        stand_ins = StandIns(layer_plan.prefix_tokens)
        if self._restores:
            layer.add_module("restore", stand_ins)
        block.add_module(PRUNE, layer)
        self._undo.append(lambda: delattr(block, PRUNE))
        self.layers.append(layer)

        def reduce(x: Tensor) -> Tensor:
            state = self._pass
            record = None if state.records is None else Recorder()
            forced = None if state.forced is None else state.forced[position]
            taps = tap.take(state.size, state.coherence)
            reduction: Reduction = layer(x, taps, record, forced)
            state.choices.append(reduction.choice)
            state.size, state.bias = reduction.size, reduction.bias
            state.coherence, state.scale, state.update = reduction.coherence, reduction.scale, reduction.update
            applied = reduction.choice if forced is None else forced
            state.places = applied.kept if state.places is None else state.places.gather(1, applied.kept)
            if self._restores:
                assert taps.keys is not None
                slots = stand_ins(taps.keys, applied)
                state.stand_ins = slots if state.stand_ins is None else slots.gather(1, state.stand_ins)
            if state.records is not None and record is not None:
                state.records.append(record)
            return reduction.tokens

        if layer_plan.inside:
            self._undo.extend(adapter.between(index, reduce))
        else:
            self._undo.append(block.register_forward_hook(lambda _block, _inputs, x: reduce(x)).remove)

    def _attach_bias(self, adapter: ModelAdapter) -> None:
        """Behind the first merge, every attention must know how much each token stands for, and how well."""
        merging = [layer.block for layer in self.token_plan.layers if layer.merges]
        for index in range(min(merging) + 1, len(adapter.blocks)) if merging else ():
            self._undo.extend(adapter.bias(index, lambda: self._pass.bias))
            self._undo.extend(adapter.scale(index, lambda: self._pass.scale))
            self._undo.extend(adapter.update(index, lambda: self._pass.update))

    def _attach_places(self, adapter: ModelAdapter) -> None:
        """Behind the first layer, what blocks are given for each place must be given for the places that are left."""
        layers = [layer.block for layer in self.token_plan.layers] if adapter.has_positions else []
        for index in range(layers[0] + 1, len(adapter.blocks)) if layers else ():
            self._undo.extend(adapter.follow(index, lambda: self._pass.places))
