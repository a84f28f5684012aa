"""A pruned model that gives logits alone and saves what the model itself would."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from ztdeploy.core.plan import TokenPlan
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.pruning.pruned_model import PrunedModel


class PrunedClassifier(nn.Module, AbstractContextManager["PrunedClassifier"]):
    """Images `[B, C, H, W]` to what the model gives, mostly logits `[B, classes]`.

    The model is changed in place by hooks, and belongs to one such module at a time; a deep copy would share the hooks
    of the original. `state_dict` and `load_state_dict` are the model's own.
    """

    def __init__(self, adapter: ModelAdapter, schedule: PruningSchedule) -> None:
        super().__init__()
        self.pruned = PrunedModel(adapter, schedule)
        device = next(adapter.model.parameters()).device
        for layer in self.pruned.layers:
            layer.to(device)

    @property
    def token_plan(self) -> TokenPlan:
        """How many tokens each block sees."""
        return self.pruned.token_plan

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.pruned(images)[0]
        return output

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return self.pruned.model.state_dict(*arguments, **options)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return self.pruned.model.load_state_dict(state_dict, strict, assign)

    def detach(self) -> None:
        """Leave the model as it was, but for what training changed."""
        self.pruned.detach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()
