"""Pruning layers with weights of their own: what of a checkpoint reaches them, and models run as their papers say.

No trained predictors are at hand: weights are random, and the twins are written from the papers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.architectures import DEIT_TINY
from helpers.errors import refused
from helpers.models import adapted, images, loaded, schedule, tiny_vit
from helpers.reference_trained import (
    Stage,
    State,
    by_hand,
    dynamic_stage,
    halting_answers,
    packing_stage,
    predictors,
    squeezing_stage,
)
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from ztdeploy.core.cost import pruning_gmacs
from ztdeploy.core.errors import CheckpointError
from ztdeploy.core.keep_ratio import default_schedule, uniform_schedule
from ztdeploy.core.methods import METHODS
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.options import MethodOptions
from ztdeploy.core.plan import plan
from ztdeploy.core.schedule import LayerSpec
from ztdeploy.host.models.loading import LoadedModel
from ztdeploy.host.pruning import layer_class
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.jobs.build import build, variants_of
from ztdeploy.jobs.request import BuildRequest

#: Of 64 patches of the shipped model, behind its blocks 3, 6 and 9.
PATCHES, BLOCKS, RATIO = 64, (2, 5, 8), 0.7
TRAINED = [method for method in METHODS if METHODS[method].trained]
#: By method, from the weights of a checkpoint, the stage (from 0) and how many stay to what happens there.
TWINS: dict[str, Callable[[State, int, int], Stage]] = {
    "dynamicvit": dynamic_stage,
    "dtps": squeezing_stage,
    "sp-vit": partial(packing_stage, by_probability=False),
    "heatvit": partial(packing_stage, by_probability=True),
}


def checkpoint(folder: Path, beside: dict[str, torch.Tensor]) -> ModelSource:
    """The shipped model's own weights, with others beside them."""
    own = loaded("vit_digits").adapter.model.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in {**own, **beside}.items()}, folder / "tuned.safetensors")
    return ModelSource(name="vit_digits", checkpoint=folder / "tuned.safetensors")


def opened(source: ModelSource) -> LoadedModel:
    from ztdeploy.host.models.loading import load_model

    return load_model(source)


def pruned(model: LoadedModel, method: str, **asked: Any) -> PrunedModel:
    adapter = model.adapter
    return PrunedModel(adapter, default_schedule(RATIO, adapter.architecture, method=method, **asked))


@pytest.mark.parametrize("method", TRAINED)
class TestCheckpoint:
    def test_a_model_with_the_weights_of_a_file_answers_as_the_paper_says(self, method: str, tmp_path: Path) -> None:
        weights, digits = predictors(method), images(3)
        model = opened(checkpoint(tmp_path, weights))
        with pruned(model, method) as wrapped, torch.no_grad():
            output = wrapped(digits)[0]
        stages = {
            block: TWINS[method](weights, stage, int(PATCHES * RATIO ** (stage + 1)))
            for stage, block in enumerate(BLOCKS)
        }
        np.testing.assert_allclose(output, by_hand(model.adapter.model, digits, stages), rtol=1e-3, atol=1e-3)
        assert any(method in remark for remark in model.remarks)
        assert not any("not the network's" in remark for remark in model.remarks)

    def test_what_does_not_fit_is_refused(self, method: str, tmp_path: Path) -> None:
        names, weights = METHODS[method].trained.names.format(stage=0), predictors(method)
        first = next(iter(weights))
        cases: dict[str, tuple[dict[str, torch.Tensor], tuple[str, ...]]] = {
            "none": ({}, (f"'{method}'", names, "--checkpoint")),
            "fewer stages": (predictors(method, 2), ("3, 6, 9", "2 layers", "--schedule")),
            "one is missing": ({name: weights[name] for name in weights if name != first}, (f"'{first}'", "no such")),
            "another shape": ({**weights, first: torch.zeros(7)}, (f"'{first}'", "[7]", "--model")),
        }
        for beside, fragments in cases.values():
            model = opened(checkpoint(tmp_path, beside))
            before = list(model.adapter.model.state_dict())
            refused(lambda model=model: pruned(model, method), *fragments, kind=CheckpointError)  # type: ignore[misc]
            assert list(model.adapter.model.state_dict()) == before
            assert pruned(model, "zero-tprune").layers, "nothing half-attached is left"
        broken = {**weights, first: torch.full_like(weights[first], torch.nan)}
        refused(lambda: opened(checkpoint(tmp_path, broken)), first, "NaN", kind=CheckpointError)

    def test_a_schedule_of_other_layers_is_refused(self, method: str, tmp_path: Path) -> None:
        model = opened(checkpoint(tmp_path, predictors(method)))
        refused(lambda: pruned(model, method, preset="paper"), "1, 3, 6, 9, 11", kind=CheckpointError)

    def test_a_model_with_random_weights_has_random_predictors_always_the_same(self, method: str) -> None:
        outputs = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            with pruned(loaded("vit_digits", weights="random"), method) as wrapped, torch.no_grad():
                outputs.append(wrapped(images(2)))
        assert all(torch.equal(*pair) for pair in zip(*outputs, strict=True))

    def test_compute_is_that_of_the_products(self, method: str) -> None:
        architecture = DEIT_TINY
        token_plan = plan(uniform_schedule(RATIO, architecture.depth, method=method), architecture)
        macs = 0.0
        for layer in token_plan.layers:
            part = layer_class(method).untrained(architecture.embed_dim, architecture.num_heads)
            patches = torch.randn(1, layer.tokens_in - layer.prefix_tokens, architecture.embed_dim)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                part(patches)
            macs += counter.get_total_flops() / 2
            gone, patches_out = layer.tokens_in - layer.tokens_out, layer.tokens_out - layer.prefix_tokens
            partners = patches_out if "partners" in METHODS[method].work else 0
            merging = layer.tokens_out if "merging" in METHODS[method].work else 0
            macs += gone * (partners + merging) * architecture.embed_dim
        assert pruning_gmacs(architecture, token_plan, method) == pytest.approx(macs / 1e9)


@pytest.mark.parametrize(("depth", "blocks"), [(12, (3, 6, 9)), (16, (4, 8, 12)), (20, (5, 10, 15))])
@pytest.mark.parametrize("method", TRAINED)
def test_a_build_without_a_schedule_takes_the_layers_and_counts_that_were_trained(
    method: str, depth: int, blocks: tuple[int, ...]
) -> None:
    """Of DeiT, and of LV-ViT-S and LV-ViT-M."""
    architecture = DEIT_TINY.model_copy(update={"depth": depth})
    request = BuildRequest(ModelSource(name="deit_t"), profiles=("cpu",), methods=(method,), out=Path("bundle"))
    first, *others = variants_of(request, request.read_profiles(), architecture)
    assert first.keep_ratio == 0.7
    packages = 1 if METHODS[method].fuses else 0
    assert [(layer.block + 1, layer.tokens_out - 1) for layer in first.plan.layers] == [
        (block, int(196 * 0.7**stage) + packages * stage) for stage, block in enumerate(blocks, 1)
    ]
    assert [one.schedule.name for one in others] == ["dense"]


def test_a_bundle_is_built_from_a_file_and_proved(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, predictors("dynamicvit"))
    bundle = build(BuildRequest(source, profiles=("cpu",), methods=("dynamicvit",), out=tmp_path / "bundle"))
    variant = bundle.variant(keep_ratio=0.7)
    assert variant.plan.tokens_per_block == (65,) * 3 + (45,) * 3 + (32,) * 3 + (22,) * 3
    parity = variant.engines["cpu"].parity
    assert parity is not None
    assert parity.images > 0


@pytest.mark.parametrize(("scale", "center"), [(10.0, 30.0), (2.0, 3.0), (1.0, 0.5)])
def test_a_vit_answers_by_the_class_token_of_all_blocks(scale: float, center: float) -> None:
    """Also where it halts early; every fifth patch or so goes behind each block."""
    counts = [13, 11, 9, 7]
    model, x = tiny_vit(), images(4)
    layers = [
        LayerSpec(block=block, drop=before - after) for block, (before, after) in enumerate(pairwise([16, *counts]), 1)
    ]
    options = MethodOptions(halting_scale=scale, halting_center=center)
    wanted = schedule("a-vit", *layers).model_copy(update={"options": options})
    with PrunedModel(adapted(model), wanted) as wrapped, torch.no_grad():
        output = wrapped(x)[0]
    np.testing.assert_allclose(output, halting_answers(model, x, counts, scale, center), rtol=1e-4, atol=1e-4)
