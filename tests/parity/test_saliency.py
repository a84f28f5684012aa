"""A trained dense model on a photograph: the whole module through two runtimes, against PyTorch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import ztdeploy
from ztdeploy.core.model_source import ModelSource
from ztdeploy.host.models.loading import load_model
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.runtime.preprocess import load_pixels, normalise

pytestmark = [pytest.mark.realdata, pytest.mark.long]
KEEP_RATIO, SIZE = 0.7, 224


def test_maps_of_a_trained_model_are_those_of_pytorch(realdata: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from benchmarks.saliency_model import saliency_model

    module = saliency_model(realdata, SIZE)
    profiles = ["cpu", *(["cpu-openvino"] if importlib.util.find_spec("openvino") else [])]
    bundle = ztdeploy.build(
        module,
        keep_ratio=KEEP_RATIO,
        profile=profiles,
        example=torch.zeros(1, 3, SIZE, SIZE),
        activation="sigmoid",
        out=tmp_path / "saliency",
    )
    photo = sorted((realdata / "images").iterdir())[7]
    spec = bundle.manifest.preprocess
    images = torch.from_numpy(normalise(load_pixels([photo], spec), spec))
    adapter = load_model(ModelSource(name="mine", image_size=SIZE), module).adapter
    with PrunedModel(adapter, bundle.variant(KEEP_RATIO)) as pruned:
        expected = {KEEP_RATIO: pruned.replay(images).output.numpy()[0]}
    with torch.no_grad():
        expected[1.0] = module(images).numpy()[0]
    for profile in profiles:
        for keep_ratio, wanted in expected.items():
            with ztdeploy.load(bundle, keep_ratio=keep_ratio, profile=profile) as runner:
                (found,) = runner(photo)
            assert found.map.shape == (1, SIZE, SIZE)
            np.testing.assert_allclose(found.map, wanted, rtol=1e-3, atol=2e-3)
    alike = np.mean((expected[1.0] > 0) == (expected[KEEP_RATIO] > 0))
    assert 0.9 < alike < 1, "pruning changes little of what stands out, and something"
    assert 0.02 < np.mean(expected[1.0] > 0) < 0.98
