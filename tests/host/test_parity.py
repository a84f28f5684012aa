"""What PyTorch makes of an engine's choices, without running again what it has run."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.model_source import ModelSource
from ztdeploy.host import parity
from ztdeploy.host.export import Deployable
from ztdeploy.host.models.loading import load_model
from ztdeploy.host.parity import reference_outputs, replayed_reference
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.runtime.interface import Outputs


@pytest.mark.parametrize("method", ["zero-tprune", "zero-tprune-merge"])
def test_only_images_that_an_engine_saw_otherwise_are_run_again(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(ModelSource(name="vit_digits"))
    pixels = np.random.default_rng(0).integers(0, 256, (4, *model.preprocess.shape), dtype=np.uint8)
    with PrunedModel(model.adapter, default_schedule(0.7, model.adapter.architecture, method=method)) as pruned:
        module = Deployable(pruned, model.preprocess, "uint8")
        own = reference_outputs(pruned, module, pixels)
        kept = tuple(layer.copy() for layer in own.kept)
        gone = np.setdiff1d(np.arange(model.adapter.architecture.tokens), kept[0][2])
        kept[0][2, -1] = gone[-1]
        kept[0][2].sort()
        actual = Outputs(own.logits, kept, own.into)
        wanted = reference_outputs(pruned, module, pixels, actual)
        ran: list[int] = []
        run = parity.reference_outputs
        monkeypatch.setattr(
            parity,
            "reference_outputs",
            lambda *given: ran.append(len(given[2])) or run(*given),  # type: ignore[func-returns-value]
        )
        found = replayed_reference(pruned, module, pixels, actual, own)
    assert ran == [1]
    assert found.replayed
    assert not np.allclose(wanted.logits[2], own.logits[2], atol=1e-4), "another token makes a difference"
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-4)
    for layers, others in ((found.kept, wanted.kept), (found.into, wanted.into)):
        assert all((one == other).all() for one, other in zip(layers, others, strict=True))
    np.testing.assert_allclose(np.stack(found.gaps), np.stack(wanted.gaps), atol=1e-4)


def test_large_images_are_run_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(ModelSource(name="vit_digits"))
    pixels = np.random.default_rng(1).integers(0, 256, (5, *model.preprocess.shape), dtype=np.uint8)
    with PrunedModel(model.adapter, default_schedule(0.7, model.adapter.architecture, method="zero-tprune")) as pruned:
        module = Deployable(pruned, model.preprocess, "uint8")
        whole = reference_outputs(pruned, module, pixels)
        monkeypatch.setattr(parity, "TOKENS_AT_ONCE", 2 * model.adapter.architecture.tokens)
        parts = reference_outputs(pruned, module, pixels)
    np.testing.assert_allclose(parts.logits, whole.logits, atol=1e-4)
    assert all((one == other).all() for one, other in zip(parts.kept, whole.kept, strict=True))
