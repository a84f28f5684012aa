"""How sure a model is of its output for an image, which decides whether a cascade goes on to its next stage."""

from __future__ import annotations

from torch import Tensor, nn

from ztdeploy.core.preprocess_spec import Activation
from ztdeploy.host.models.loading import LoadedModel


def confidence_of(model: LoadedModel) -> nn.Module | None:
    """From a model's output to its confidence; None where the output does not tell."""
    return Margin(model.activation) if model.output == "logits" and model.activation != "none" else None


class Margin(nn.Module):
    """The confidence "margin" of `core.cascade.Signal`: of classes, the difference of the two largest probabilities;
    of outputs that are each a yes or no, the smallest distance of any probability from one half.
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, logits: Tensor) -> Tensor:
        """`[B, outputs]` to `[B]`, from 0 to 1."""
        if self.activation == "sigmoid" or logits.shape[-1] < 2:
            smallest: Tensor = (logits.sigmoid() - 0.5).abs().amin(-1)
            return smallest
        best = logits.softmax(-1).topk(2, dim=-1).values
        return best[:, 0] - best[:, 1]
