"""How sure a model is of its output for an image, which decides whether a cascade goes on to its next stage.

`docs/explanation/confidence.md` compares the two signals with others.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ztdeploy.core.names import DISTANCE
from ztdeploy.core.plan import Variant
from ztdeploy.core.preprocess_spec import Activation
from ztdeploy.host.models.loading import LoadedModel


def confidence_of(model: LoadedModel, variant: Variant) -> nn.Module | None:
    """From a variant's output, and the notes of its pruning layers by name, to its confidence; None where neither
    tells, as for the baseline's vectors.
    """
    if model.output == "logits":
        return None if model.activation == "none" else Margin(model.activation)
    return Closeness() if variant.plan.layers else None


class Margin(nn.Module):
    """The confidence "margin" of `core.cascade.Signal`: of classes, the difference of the two largest probabilities;
    of outputs that are each a yes or no, the smallest distance of any probability from one half.
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, logits: Tensor, _notes: Mapping[str, Tensor]) -> Tensor:
        """`[B, outputs]` to `[B]`, from 0 to 1."""
        if self.activation == "sigmoid" or logits.shape[-1] < 2:
            smallest: Tensor = (logits.sigmoid() - 0.5).abs().amin(-1)
            return smallest
        best = logits.softmax(-1).topk(2, dim=-1).values
        return best[:, 0] - best[:, 1]


class Closeness(nn.Module):
    """The confidence "closeness" of `core.cascade.Signal`: `1 / (1 + d)`, where d is the sum over all pruning layers of
    the mean distance (1 - cosine) of a token that goes to the nearest one that stays.
    """

    def forward(self, _vectors: Tensor, notes: Mapping[str, Tensor]) -> Tensor:
        """`[B, ...]` to fp32 `[B]`, above 0 and at most 1."""
        distances = [values for name, values in notes.items() if name.endswith(f"/{DISTANCE}")]
        return 1 / (1 + torch.stack(distances, -1).sum(-1))
