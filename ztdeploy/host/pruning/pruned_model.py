"""A vision transformer with pruning layers behind some of its blocks, attached from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ztdeploy.core.errors import InputError, ModelError
from ztdeploy.core.methods import method_named
from ztdeploy.core.names import DISTANCE, PRUNE, pruning_output
from ztdeploy.core.plan import LayerPlan, TokenPlan, Variant
from ztdeploy.core.preprocess_spec import given
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.pruning import layer_class, pruning_layer
from ztdeploy.host.pruning.closeness import Distance
from ztdeploy.host.pruning.layer import BlockTaps, Choice, PruningLayer, Recorder, Reduction
from ztdeploy.host.pruning.restoring import StandIns, WholeGrid, grid_behind
from ztdeploy.host.pruning.trained import trained_parts

_NOT_ONCE = "does not run each of its blocks once for a batch of images"


@dataclass(frozen=True)
class Replay:
    """A forward pass with the choices of another implementation, and the choices that this one would have made."""

    output: Tensor
    choices: list[Choice]  #: this implementation's own choices, one per pruning layer
    records: list[Recorder]


@dataclass(frozen=True)
class Behind:
    """The state of a forward pass behind a pruning layer: whatever later blocks and layers need of earlier ones."""

    reduction: Reduction
    places: Tensor | None
    whole: WholeGrid | None


@dataclass
class _Pass:
    """The state of one forward pass."""

    known: Sequence[Behind] = ()  #: behind the first layers, which are not computed again
    behind: list[Behind] | None = None  #: behind each layer, where somebody wants it
    choices: list[Choice] = field(default_factory=list)
    records: list[Recorder] | None = None
    forced: Sequence[Choice] | None = None
    reduction: Reduction | None = None  #: the last layer's
    places: Tensor | None = None  #: `[B, N]`: the tokens' positions in the image; None: all are there
    whole: WholeGrid | None = None  #: how the tokens become those of all positions; None: all are there
    tokens: Tensor | None = None  #: what the last block gave, `[B, k, D]`
    grid: Tensor | None = None  #: what it handed on instead, `[B, N, D]`


class PrunedModel(nn.Module, AbstractContextManager["PrunedModel"]):
    """From images to `(output, kept_1, kept_2, ...)`; an ordinary differentiable module. Where a method merges, each
    `kept` is followed by its `into`. The output is the model's own, or the features of all patches, as the adapter is
    set.

    Where anything but the head of a classifier reads tokens (`ModelAdapter.reads_grid`), all blocks behind the first
    pruning layer hand on restored tokens, one for each token of the image, and the next block takes those that are
    left instead. So whatever is around the blocks finds a whole grid, and what it does not read is left out of graphs.

    Hooks change the given model in place, and only at pruning layers: a block gives up fused attention if its pruning
    layer reads the attention matrix. Behind a merge, attention gets a bias. `detach()`, or leaving a `with` block,
    undoes all of it. The blocks' own `forward` runs unchanged, with everything in it (LayerScale, q/k norms, drop
    path).
    """

    def __init__(self, adapter: ModelAdapter, pruned: PruningSchedule | Variant) -> None:
        """
        Args:
            pruned: a schedule, or a variant that was resolved for this architecture.

        Raises:
            ModelError: the model is pruned already, or its blocks cannot be reached where the method needs it.
            ScheduleError: the schedule does not fit.
            CheckpointError: the method needs weights that the model's checkpoint does not hold.
        """
        super().__init__()
        if any(PRUNE in dict(block.named_children()) for block in adapter.blocks):
            raise ModelError(
                "a model that is already pruned", "an untouched model", "detach the other PrunedModel first"
            )
        self.model: Any = adapter.whole
        self._gives_maps = adapter.output == "maps"
        #: Gives features; a function, since the model's modules shall have no second name.
        self._features = adapter.model.forward_features if adapter.output == "features" else None
        self._restores = adapter.reads_grid
        self._prefix = adapter.architecture.prefix_tokens
        self._classifies = given(adapter.output, adapter.architecture.num_classes) == "logits"
        variant = pruned if isinstance(pruned, Variant) else Variant.of(pruned, adapter.architecture)
        schedule, self.token_plan = variant.schedule, variant.plan
        self.layers: list[PruningLayer] = []
        self._undo: list[Any] = []
        self._pass = _Pass()
        try:
            self._attach_grids(adapter)
            trained = _trained_parts(adapter, schedule) if self.token_plan.layers else {}
            for layer_plan in self.token_plan.layers:
                part = trained.get(layer_plan.block)
                layer = pruning_layer(schedule.method, layer_plan, schedule.options, part).eval()
                self._attach(adapter, layer_plan, layer)
            if self.layers and method_named(schedule.method).reads_blocks:
                self._attach_end(adapter, self.layers[-1])
            self._attach_bias(adapter)
            self._attach_places(adapter)
        except InputError:
            self.detach()
            raise

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the model on normalised images `[B, C, H, W]`.

        Raises:
            ModelError: the model does something with its blocks that pruning does not allow.
        """
        return self._run(images, _Pass())

    def noted(self, images: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """The same as `forward`, with the notes of pruning layers (`Recorder.note`), named `blocks.2/prune/NOTE`."""
        state = _Pass(records=[])
        outputs = self._run(images, state)
        return outputs, {
            pruning_output(layer.block, note): tensor
            for layer, record in zip(self.token_plan.layers, state.records or [], strict=True)
            for note, tensor in record.notes.items()
        }

    def resumed(self, images: Tensor, known: Sequence[Behind], keep: list[Behind] | None = None) -> Tensor:
        """The output, where the first layers have done their work already.

        Args:
            known: behind each of these layers, which stand behind their blocks: what an earlier pass has kept.
            keep: takes what this pass has behind each of all layers.
        """
        return self._run(images, _Pass(known=known, behind=keep))[0]

    def replay(self, images: Tensor, choices: Sequence[Choice] | None = None) -> Replay:
        """Run with the given choices at each pruning layer, and record this implementation's own choices."""
        state = _Pass(records=[], forced=choices)
        with torch.no_grad():
            output = self._run(images, state)[0]
        return Replay(output=output, choices=state.choices, records=state.records or [])

    def _run(self, images: Tensor, state: _Pass) -> tuple[Tensor, ...]:
        self._pass = state
        output: Tensor
        if self._features is not None:
            output = self._features(images)[:, self._prefix :]
        else:
            output = self.model(images)
            if self._gives_maps and output.dim() == 3:  # of one channel, without an axis for it
                output = output.unsqueeze(1)
        self._pass = _Pass()
        if len(state.choices) != len(self.token_plan.layers):
            raise self._unsound(_NOT_ONCE)
        return (output, *(tensor for choice in state.choices for tensor in choice.tensors))

    def detach(self) -> None:
        """Remove all hooks, which restores the wrapped model."""
        while self._undo:
            self._undo.pop()()
        self.layers.clear()

    def __exit__(self, *_error: object) -> None:
        self.detach()

    def _attach(self, adapter: ModelAdapter, layer_plan: LayerPlan, layer: PruningLayer) -> None:
        index, tap, position = layer_plan.block, BlockTaps(), len(self.layers)
        block = adapter.blocks[index]
        distance = None if self._classifies else Distance(layer_plan)
        stand_ins = StandIns(layer_plan.prefix_tokens, may_drop=layer.may_drop)
        by_keys = (distance is not None and distance.needs_keys) or (self._restores and stand_ins.needs_keys)
        wanted = {"attention": layer.needs_attention, "keys": layer.needs_keys or by_keys}
        wanted |= {"values": layer.needs_values, "queries": layer.needs_queries}
        self._undo.extend(adapter.tap(index, tap, **wanted))
        if distance is not None:
            layer.add_module(DISTANCE, distance)
        if self._restores:
            layer.add_module("restore", stand_ins)
        block.add_module(PRUNE, layer)
        self._undo.append(lambda: delattr(block, PRUNE))
        self.layers.append(layer)

        def reduce(x: Tensor) -> Tensor:
            state = self._pass
            if self._restores and len(state.choices) > position:
                raise self._unsound(_NOT_ONCE)
            if position < len(state.known):
                return self._go_on(state.known[position])
            record = None if state.records is None else Recorder()
            forced = None if state.forced is None else state.forced[position]
            taps = replace(tap, size=self._told("size"), coherence=self._told("coherence"))
            if state.reduction is not None:
                taps.carried = state.reduction.carried
            tap.attention = tap.keys = tap.values = tap.queries = None
            reduction: Reduction = layer(x, taps, record, forced)
            state.reduction = reduction
            state.choices.append(reduction.choice)
            applied = reduction.choice if forced is None else forced
            state.places = applied.kept if state.places is None else state.places.gather(1, applied.kept)
            if self._restores:
                slots = stand_ins(taps.keys, applied, x.shape[1])
                state.whole = grid_behind(state.whole, x, slots, reduction.tokens, merges=layer_plan.averages)
            if state.records is not None and record is not None:
                if distance is not None:
                    record.note(**{DISTANCE: distance(x, taps, applied.kept)})
                state.records.append(record)
            if state.behind is not None:
                state.behind.append(Behind(reduction, state.places, state.whole))
            return reduction.tokens

        if layer_plan.inside:
            self._undo.extend(adapter.between(index, reduce))
        else:
            # ahead of what hands the grid on; otherwise others see the tokens that enter the layer
            hook = block.register_forward_hook(lambda _block, _inputs, x: reduce(x), prepend=self._restores)
            self._undo.append(hook.remove)

    def _go_on(self, known: Behind) -> Tensor:
        """As if a layer had just come to what is known."""
        state = self._pass
        state.reduction, state.places, state.whole = known.reduction, known.places, known.whole
        state.choices.append(known.reduction.choice)
        if state.behind is not None:
            state.behind.append(known)
        return known.reduction.tokens

    def _attach_end(self, adapter: ModelAdapter, layer: PruningLayer) -> None:
        """Let a layer change what the last block hands on."""

        def finish(_block: nn.Module, _inputs: Any, x: Tensor) -> Tensor:
            reduction = self._pass.reduction
            return x if reduction is None else layer.finish(x, reduction.carried)

        self._undo.append(adapter.blocks[-1].register_forward_hook(finish, prepend=self._restores).remove)

    def _told(self, what: str) -> Tensor | None:
        """A field of the last pruning layer's `Reduction`."""
        told: Tensor | None = getattr(self._pass.reduction, what, None)
        return told

    def _attach_grids(self, adapter: ModelAdapter) -> None:
        """Behind the first pruning layer, let blocks hand on whole grids and take the tokens that are left.

        What reads tokens by hooks of its own, as transformers does, comes behind these hooks.
        """
        layers = self.token_plan.layers if self._restores else ()
        first = layers[0].block if layers else len(adapter.blocks)
        for index, block in enumerate(adapter.blocks[first:], first):
            if index > first:
                self._undo.append(block.register_forward_pre_hook(self._take_tokens).remove)
            self._undo.append(block.register_forward_hook(self._hand_on_grid, prepend=True).remove)

    def _take_tokens(self, _block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if not inputs or inputs[0] is not self._pass.grid:
            raise self._unsound("changes tokens between its blocks")
        return (self._pass.tokens, *inputs[1:])

    def _hand_on_grid(self, _block: nn.Module, _inputs: Any, tokens: Tensor) -> Tensor:
        state = self._pass
        state.tokens, state.grid = tokens, tokens if state.whole is None else state.whole.restored(tokens)
        return state.grid

    def _unsound(self, what: str) -> ModelError:
        return ModelError(
            f"a model of class {type(getattr(self.model, 'whole', self.model)).__name__}, which {what}",
            "blocks that run one after the other, each on what the one before gave",
            "choose another model",
        )

    def _attach_bias(self, adapter: ModelAdapter) -> None:
        """Give sizes and coherences to the attention of all blocks behind the first merge."""
        merging = [layer.block for layer in self.token_plan.layers if layer.averages]
        for index in range(min(merging) + 1, len(adapter.blocks)) if merging else ():
            self._undo.extend(adapter.bias(index, lambda: self._told("bias")))
            self._undo.extend(adapter.scale(index, lambda: self._told("scale")))
            self._undo.extend(adapter.update(index, lambda: self._told("update")))

    def _attach_places(self, adapter: ModelAdapter) -> None:
        """Behind the first pruning layer, reduce blocks' inputs per position to the positions that are left."""
        layers = [layer.block for layer in self.token_plan.layers] if adapter.has_positions else []
        for index in range(layers[0] + 1, len(adapter.blocks)) if layers else ():
            self._undo.extend(adapter.follow(index, lambda: self._pass.places))


def _trained_parts(adapter: ModelAdapter, schedule: PruningSchedule) -> dict[int, nn.Module]:
    if method_named(schedule.method).trained is None:
        return {}
    return trained_parts(layer_class(schedule.method), schedule, adapter.architecture, adapter.pruning_weights)


class PrunedClassifier(nn.Module, AbstractContextManager["PrunedClassifier"]):
    """From images `[B, C, H, W]` to the model's output, mostly logits `[B, classes]`; made by `ztdeploy.prune`.

    Hooks change the model in place, so a model belongs to one such module at a time; a deep copy would share the hooks
    of the original. `state_dict` and `load_state_dict` are the model's own.
    """

    def __init__(self, adapter: ModelAdapter, schedule: PruningSchedule, whole: nn.Module) -> None:
        """
        Args:
            whole: what takes the images: the adapter's model, or a module with that model in it.
        """
        super().__init__()
        self.pruned = PrunedModel(adapter, schedule)
        self.pruned.model = whole
        device = next(adapter.model.parameters()).device
        for layer in self.pruned.layers:
            layer.to(device)

    @property
    def token_plan(self) -> TokenPlan:
        """The number of tokens in each block."""
        return self.pruned.token_plan

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.pruned(images)[0]
        return output

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return self.pruned.model.state_dict(*arguments, **options)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return self.pruned.model.load_state_dict(state_dict, strict, assign)

    def detach(self) -> None:
        """Remove all hooks; what training changed stays."""
        self.pruned.detach()

    def __exit__(self, *_error: object) -> None:
        self.detach()
