"""`ztdeploy.prune`: a pruned model that can be trained, saved and built."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.models import images, tiny_vit
from safetensors.torch import save_file

import ztdeploy
from ztdeploy.core.errors import ModelError, ScheduleError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.schedule import LayerSpec, PruningSchedule
from ztdeploy.host.models.loading import load_model
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning.pruned_model import PrunedModel

LABELS = torch.tensor([0, 3, 6, 1])


@pytest.mark.parametrize("method", ["zero-tprune", "zero-tprune-merge", "tome", "evit"])
class TestTraining:
    def test_gives_the_logits_that_a_bundle_is_built_from(self, method: str) -> None:
        model, x = tiny_vit(), images(4)
        adapter = VitAdapter(model, 32)
        with PrunedModel(adapter, default_schedule(0.5, adapter.architecture, method=method)) as plain:
            expected = plain(x)[0]
        with ztdeploy.prune(model, 0.5, method=method) as pruned:
            assert torch.equal(pruned(x), expected)
            counts = pruned.token_plan.tokens_per_block
            assert counts[-1] < counts[0]
            assert all(later <= earlier for earlier, later in pairwise(counts))

    def test_a_step_changes_every_parameter_and_lowers_the_loss(self, method: str) -> None:
        model, x = tiny_vit(), images(4)
        with ztdeploy.prune(model, 0.5, method=method) as pruned:
            pruned.train()
            optimizer = torch.optim.SGD(pruned.parameters(), lr=1e-3)
            before = {name: value.detach().clone() for name, value in model.named_parameters()}
            loss = F.cross_entropy(pruned(x), LABELS)
            loss.backward()
            optimizer.step()
            assert F.cross_entropy(pruned(x), LABELS) < loss
        same = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
        assert same == []

    def test_gradients_are_those_of_finite_differences(self, method: str) -> None:
        """Along one direction in the space of all parameters, in fp64, too short a step to change any choice."""
        model, x = tiny_vit().double(), images(4).double()
        with ztdeploy.prune(model, 0.5, method=method) as pruned:
            F.cross_entropy(pruned(x), LABELS).backward()
            generator = torch.Generator().manual_seed(0)
            along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]
            slope = sum(float((p.grad * d).sum()) for p, d in zip(model.parameters(), along, strict=True))
            step, losses = 1e-6, []
            for sign in (1, -2):
                with torch.no_grad():
                    for parameter, direction in zip(model.parameters(), along, strict=True):
                        parameter.add_(sign * step * direction)
                    losses.append(float(F.cross_entropy(pruned(x), LABELS)))
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize(
    ("method", "all_of_them"), [("zero-tprune", False), ("ats", False), ("zero-tprune-merge", True), ("evit", True)]
)
def test_gradients_reach_the_tokens_that_stay_and_those_that_are_merged(method: str, all_of_them: bool) -> None:
    """At the pruning layer's own input: a token that is dropped there has no part in the loss any more."""
    model, x, seen = tiny_vit(), images(4), list[torch.Tensor]()

    def keep_gradient(_block: object, _inputs: object, tokens: torch.Tensor) -> None:
        tokens.retain_grad()
        seen.append(tokens)

    model.blocks[1].register_forward_hook(keep_gradient)  # runs before the layer's own
    schedule = PruningSchedule(name="one", method=method, layer=(LayerSpec(block=2, drop=6),))
    with ztdeploy.prune(model, schedule=schedule) as pruned:
        logits, kept, *_ = pruned.pruned(x)
        F.cross_entropy(logits, LABELS).backward()
    (tokens,) = seen
    assert tokens.grad is not None
    expected = torch.ones(4, 17, dtype=torch.bool)
    if not all_of_them:
        expected = torch.zeros(4, 17, dtype=torch.bool).scatter(1, kept, True)
        assert expected.sum() == 4 * 11
    assert torch.equal(tokens.grad.abs().amax(-1) > 0, expected)


class TestModel:
    def test_saves_and_loads_what_the_model_itself_would(self) -> None:
        model, other, x = tiny_vit(0), tiny_vit(1), images(2)
        names = list(model.state_dict())
        with ztdeploy.prune(model, 0.7) as pruned, torch.no_grad():
            assert list(pruned.state_dict()) == names
            pruned.load_state_dict(other.state_dict())
            loaded = pruned(x)
        with ztdeploy.prune(other, 0.7) as pruned, torch.no_grad():
            assert torch.equal(pruned(x), loaded)

    def test_detach_leaves_the_model_as_it_was(self) -> None:
        model, x = tiny_vit(), images(2)
        with torch.no_grad():
            expected = model(x)
            pruned = ztdeploy.prune(model, 0.5)
            assert not torch.allclose(model(x), expected)
            pruned.detach()
            assert torch.equal(model(x), expected)
        assert not any("prune" in name for name, _ in model.named_modules())

    def test_takes_an_adapter_and_a_schedule(self) -> None:
        schedule = PruningSchedule(name="one", layer=(LayerSpec(block=2, drop=6),))
        with ztdeploy.prune(VitAdapter(tiny_vit(), 32), schedule=schedule) as pruned:
            assert pruned.token_plan.tokens_per_block == (17, 17, 11, 11)
            assert pruned(images(3)).shape == (3, 7)

    def test_what_cannot_be_pruned_is_refused(self) -> None:
        with pytest.raises(ModelError, match="of class Linear"):
            ztdeploy.prune(torch.nn.Linear(2, 2), 0.7)
        with pytest.raises(ScheduleError, match=r"keep ratio 1\.5"):
            ztdeploy.prune(tiny_vit(), 1.5)
        model = tiny_vit()
        with ztdeploy.prune(model, 0.7), pytest.raises(ModelError, match="already pruned"):
            ztdeploy.prune(model, 0.7)


def test_a_trained_checkpoint_loads_like_any_other(tmp_path: Path) -> None:
    """As `build --checkpoint` reads it: by the model's own names, strictly."""
    loaded = load_model(ModelSource(name="vit_digits"))
    model: Any = loaded.adapter.model
    with ztdeploy.prune(loaded.adapter, 0.5) as pruned:
        x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
        F.cross_entropy(pruned(x), torch.tensor([1, 2])).backward()
        optimizer.step()
        save_file(pruned.state_dict(), tmp_path / "tuned.safetensors")
        again = load_model(ModelSource(name="vit_digits", checkpoint=tmp_path / "tuned.safetensors"))
        with ztdeploy.prune(again.adapter, 0.5) as second, torch.no_grad():
            assert torch.equal(second(x), pruned(x))
    assert again.weights_sha256 != loaded.weights_sha256
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.adapter.model.parameters(), strict=True))
