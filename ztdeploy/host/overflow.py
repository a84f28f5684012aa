"""Check that the values of a variant fit into fp16: the largest magnitudes per block, from PyTorch on real images.

Overflow happens in a few channels of a few tokens, for some photographs only, so random and golden images miss it.
LayerNorm, the pruning layers and the normalisation of the image stay fp32 in an fp16 graph (`graph/precision.py`), so
they are left out. bf16 has the range of fp32 and needs no check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ztdeploy.core.errors import ModelError
from ztdeploy.core.manifest import BlockRange, RangeRecord
from ztdeploy.core.names import ATTENTIONS, PRUNE
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.models.loading import LoadedModel
from ztdeploy.host.pruning.layer import BlockTaps
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.runtime.preprocess import normalise

LARGEST = float(np.finfo(np.float16).max)  #: 65504
BATCH = 16
WORDS = {"residual": "the residual stream", "attention": "a linear layer of attention"}
WORDS |= {"logits": "an attention logit", "mlp": "a value inside the MLP"}


def probe(
    model: LoadedModel, schedules: Iterable[PruningSchedule], pixels: NDArray[np.uint8], data: str
) -> dict[str, RangeRecord]:
    """The largest magnitudes per block, by variant.

    Args:
        pixels: uint8 `[n, H, W, C]`, resized and cropped.
        data: the name of these images.
    """
    found = {}
    for schedule in schedules:
        with PrunedModel(model.adapter, schedule) as pruned:
            blocks = magnitudes(model.adapter, pruned, _batches(pixels, model))
        found[schedule.name] = RangeRecord(data=data, images=len(pixels), blocks=tuple(blocks))
    return found


def check_range(found: dict[str, RangeRecord], profiles: Sequence[HardwareProfile]) -> None:
    """
    Raises:
        ModelError: a value does not fit into fp16; the first block with such a value is named.
    """
    asking = next((profile.name for profile in profiles if profile.precision == "fp16"), None)
    for variant, record in found.items() if asking is not None else ():
        for block in record.blocks:
            values = block.model_dump(exclude={"block"})
            kind = max(values, key=lambda name: float(values[name]))
            if values[kind] > LARGEST:
                raise ModelError(
                    f"profile '{asking}' asks for fp16, which '{variant}' overflows in block {block.block}: "
                    f"{WORDS[kind]} reaches {values[kind]:.4g} on images of '{record.data}'",
                    f"values up to {LARGEST:g}",
                    "choose a profile of precision bf16, or fp32",
                )


def magnitudes(adapter: ModelAdapter, model: nn.Module, batches: Iterable[Tensor]) -> list[BlockRange]:
    """The largest magnitudes per block over batches `[B, C, H, W]`, without pruning layers.

    Args:
        model: the adapter's model, or the pruned one.
    """
    watches = [_Watch() for _ in adapter.blocks]
    with ExitStack() as stack, torch.inference_mode():
        for index, watch in enumerate(watches):
            for undo in watch.attach(adapter, index):
                stack.callback(undo)
        for batch in batches:
            model(batch)
    return [BlockRange(block=index, **watch.largest) for index, watch in enumerate(watches)]


class _Watch:
    """Watches the values of one block; holds its queries and keys until the block ends."""

    def __init__(self) -> None:
        self.largest, self.taps = dict.fromkeys(WORDS, 0.0), BlockTaps()

    def attach(self, adapter: ModelAdapter, index: int) -> list[Callable[[], None]]:
        """Attach the hooks; returns their handles."""
        block = adapter.blocks[index]
        undo = adapter.tap(index, self.taps, attention=False, keys=True, values=False, queries=True)
        # Ahead of the pruning layer's own hook, since tokens that it drops pass here as well.
        undo.append(block.register_forward_hook(self._end, prepend=True).remove)
        for name, child in block.named_children():
            if "norm" in name:  # behind hooks that replace the input
                undo.append(child.register_forward_pre_hook(lambda _norm, x: self._see("residual", x[0])).remove)
            elif name != PRUNE:
                see = self._see_attention if name in ATTENTIONS else self._see_mlp
                linear = [module for module in child.modules() if isinstance(module, nn.Linear)]
                undo.extend(module.register_forward_hook(see).remove for module in linear)
        return undo

    def _see(self, kind: str, value: Tensor) -> None:
        largest = float(value.abs().max())
        self.largest[kind] = max(self.largest[kind], math.inf if math.isnan(largest) else largest)

    def _see_attention(self, _linear: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._see("attention", output)

    def _see_mlp(self, _linear: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._see("mlp", inputs[0])
        self._see("mlp", output)

    def _end(self, _block: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._see("residual", output)
        queries, keys = self.taps.queries, self.taps.keys
        if queries is not None and keys is not None:
            scaled = queries * keys.shape[-1] ** -0.5  # ahead of the product, like the graph
            self._see("logits", scaled @ keys.transpose(-2, -1))
        self.taps.queries = self.taps.keys = None


def _batches(pixels: NDArray[np.uint8], model: LoadedModel) -> Iterable[Tensor]:
    for start in range(0, len(pixels), BATCH):
        yield torch.from_numpy(normalise(pixels[start : start + BATCH], model.preprocess))
