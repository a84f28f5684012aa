"""Dense models of the library transformers: the library's maps, whole grids at every tap, the same from a graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.errors import refused
from helpers.families import chained
from helpers.models import PREPROCESS, loaded, randomised
from helpers.sessions import run_graph
from torch import Tensor

from ztdeploy.core.errors import InputError, ModelError
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.schedule import LayerSpec, PruningSchedule
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec
from ztdeploy.host.models import adapt
from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.models.hf_model import HubModel
from ztdeploy.host.models.own_module import surround
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.host.pruning.restoring import WholeGrid
from ztdeploy.jobs.tune.search import Subject
from ztdeploy.report.tune.records import TuneRequest

transformers: Any = pytest.importorskip("transformers")

_SIZES = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96}
_NECK = {"neck_hidden_sizes": [12, 16, 20, 24], "fusion_hidden_size": 16}
_OWN = {**_SIZES, **_NECK, "image_size": 80, "patch_size": 16, "backbone_out_indices": [0, 1, 2, 3], "num_labels": 7}


def _backbone(**more: Any) -> Any:
    taps = {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
    return transformers.Dinov2Config(**{**_SIZES, **taps, "image_size": 70, "patch_size": 14, **more})


#: By name: class, configuration, and the classes or values of each position.
MODELS: dict[str, tuple[str, Callable[[], Any], int]] = {
    "depth-anything": (
        "DepthAnythingForDepthEstimation",
        lambda: transformers.DepthAnythingConfig(
            backbone_config=_backbone(), **_NECK, reassemble_hidden_size=48, head_hidden_size=8
        ),
        1,
    ),
    "dpt-dinov2": (
        "DPTForDepthEstimation",
        lambda: transformers.DPTConfig(backbone_config=_backbone(), is_hybrid=False, **_NECK),
        1,
    ),
    "dpt": ("DPTForDepthEstimation", lambda: transformers.DPTConfig(is_hybrid=False, **_OWN), 1),
    "dpt-classes": (
        "DPTForSemanticSegmentation",
        lambda: transformers.DPTConfig(is_hybrid=False, readout_type="add", **_OWN),
        7,
    ),
    "beit": (
        "BeitForSemanticSegmentation",
        lambda: transformers.BeitConfig(
            **_SIZES,
            image_size=80,
            patch_size=16,
            num_labels=7,
            out_indices=[1, 2, 3, 4],
            use_relative_position_bias=True,
        ),
        7,
    ),
}
each = pytest.mark.parametrize("name", MODELS)
PRUNED = PruningSchedule(
    name="pruned", method="zero-tprune", layers=(LayerSpec(block=2, keep_ratio=0.6), LayerSpec(block=3, keep_ratio=0.6))
)


@cache
def library_model(name: str) -> Any:
    kind, config, _ = MODELS[name]
    return randomised(getattr(transformers, kind)(config()))


def dense(name: str) -> ModelAdapter:
    kind, config, _ = MODELS[name]
    whole = getattr(transformers, kind)(config()).eval()
    whole.load_state_dict(library_model(name).state_dict())
    model = HubModel(whole, None)
    adapter = adapt(model, model.image_size)
    surround(adapter, model)
    return adapter


def images_for(adapter: ModelAdapter, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *adapter.image_size, generator=torch.Generator().manual_seed(1))


def blocks_outputs(adapter: ModelAdapter, run: Callable[[], Any]) -> list[Tensor]:
    """What each block hands on during a run, as the library's own hooks see it."""
    seen: list[Tensor] = []
    with ExitStack() as stack:
        for block in adapter.blocks:
            stack.callback(block.register_forward_hook(lambda _block, _inputs, tokens: seen.append(tokens)).remove)
        with torch.no_grad():
            run()
    return seen


@each
def test_a_folder_gives_the_librarys_maps(name: str, tmp_path: Path) -> None:
    model, (kind, _, channels) = library_model(name), MODELS[name]
    model.save_pretrained(tmp_path)
    found = loaded(f"hf:{tmp_path}")
    images = images_for(found.adapter)
    with torch.no_grad():
        output = model(pixel_values=images)
        expected = output.predicted_depth if channels == 1 else output.logits
        torch.testing.assert_close(found.adapter.whole(images), expected, rtol=1e-4, atol=1e-5)
    assert (found.timm_name, found.output) == (kind, "maps")
    assert found.adapter.map_shape == (channels, *expected.shape[-2:])
    assert found.activation == ("none" if channels == 1 else "softmax")
    assert not [line for line in found.remarks if "channel" in line]
    refused(lambda: loaded(f"hf:{tmp_path}", output="features"), "gives maps", kind=ModelError)
    search = TuneRequest(model=ModelSource(name=f"hf:{tmp_path}"), data=tmp_path)
    refused(lambda: Subject.load(search), "no classes of which one is right (maps)", kind=InputError)


@pytest.mark.parametrize("name", ["depth-anything", "dpt-dinov2", "beit"])
def test_images_as_cameras_give_them(name: str, tmp_path: Path) -> None:
    model, patch = library_model(name), 16 if name == "beit" else 14
    model.save_pretrained(tmp_path)
    found = loaded(f"hf:{tmp_path}", image_size=(6 * patch, 8 * patch))
    images = images_for(found.adapter)
    with torch.no_grad():
        output = model(pixel_values=images, **({"interpolate_pos_encoding": True} if name == "beit" else {}))
        expected = output.logits if name == "beit" else output.predicted_depth
        torch.testing.assert_close(found.adapter.whole(images), expected, rtol=1e-4, atol=1e-5)
    assert found.adapter.architecture.grid == (6, 8)
    refused(lambda: loaded(f"hf:{tmp_path}", image_size=100), "multiple of", kind=ModelError)


def test_an_image_processor_that_keeps_shapes_squashes(tmp_path: Path) -> None:
    model = library_model("depth-anything")
    model.save_pretrained(tmp_path)
    processor = transformers.DPTImageProcessorPil(
        size={"height": 75, "width": 75}, ensure_multiple_of=14, keep_aspect_ratio=True
    )
    processor.save_pretrained(tmp_path)
    found = loaded(f"hf:{tmp_path}")
    assert (found.preprocess.image_size, found.preprocess.crop_mode) == ((70, 70), "squash")
    assert any("squashed" in line for line in found.remarks)


@each
def test_every_tap_finds_a_whole_grid(name: str) -> None:
    """At places that are left it holds what they have if those that went are nobody's to see; others repeat one."""
    adapter = dense(name)
    images, kept = images_for(adapter), list[Tensor]()
    with PrunedModel(adapter, PRUNED) as pruned:
        grids = blocks_outputs(adapter, lambda: kept.extend(pruned(images)[1:]))
    places = chained(kept)
    left = [None, *places, places[-1]]  # behind each block
    tokens = adapter.architecture.tokens
    with ExitStack() as stack:
        for index, present in ((2, places[0]), (3, places[1])):
            mask = torch.full((len(images), tokens), -torch.inf).scatter(1, present, 0.0)[:, None, None]
            for undo in adapter.bias(index, partial(lambda one: one, mask)):
                stack.callback(undo)
        expected = blocks_outputs(adapter, lambda: adapter.whole(images))
    torch.testing.assert_close(grids[0], expected[0])
    for grid, alone, present in zip(grids[1:], expected[1:], left[1:], strict=True):
        assert grid.shape == (len(images), tokens, 48)
        rows = present.unsqueeze(-1).expand(-1, -1, 48)
        torch.testing.assert_close(grid.gather(1, rows), alone.gather(1, rows), rtol=1e-4, atol=1e-4)
        distances = torch.cdist(grid, grid.gather(1, rows), compute_mode="donot_use_mm_for_euclid_dist")
        assert distances.amin(-1).max() == 0
        assert not torch.allclose(grid, alone, atol=1e-2)


@pytest.mark.long
@each
def test_a_graph_gives_the_same_maps(name: str) -> None:
    adapter = dense(name)
    size = PREPROCESS.model_copy(update=dict.fromkeys(("image_size", "resize"), ImageSize.of(adapter.image_size)))
    images = images_for(adapter)
    with PrunedModel(adapter, PRUNED.model_copy(update={"layers": PRUNED.layers[:1]})) as pruned:
        graph = export_onnx(pruned, size, GraphSpec(20, "float32", None))
        replay = pruned.replay(images)
    found, first = run_graph(graph, image=images.numpy()), replay.choices[0]
    np.testing.assert_array_equal(found["blocks.1/prune/kept"], first.kept.numpy())
    np.testing.assert_allclose(found["logits"], replay.output.numpy(), rtol=1e-3, atol=1e-3)
    names = [str(node.name) for node in graph.graph if node.op_type == "GatherND"]
    restores = [name for name in names if name.startswith("blocks.") and name.count("/") == 1]
    assert len(restores) == (3 if name != "beit" else 2)  # BEiT's head reads no tokens behind the last block


def test_a_grid_that_is_off_by_one_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = WholeGrid.restored
    monkeypatch.setattr(WholeGrid, "restored", lambda *given: right(*given).roll(1, 1))
    with pytest.raises(AssertionError, match="not close"):
        test_every_tap_finds_a_whole_grid("depth-anything")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"is_hybrid": True}, "is_hybrid"),
        ({"backbone_config": {"model_type": "swinv2"}}, "windows"),
        ({"backbone_config": {"model_type": "resnet"}}, "backbone of model_type 'resnet'"),
        ({"architectures": ["DPTForNormals"]}, "DPTForNormals"),
    ],
)
def test_other_backbones_are_refused(change: dict[str, Any], fragment: str, tmp_path: Path) -> None:
    import json

    config = {"model_type": "dpt", "architectures": ["DPTForDepthEstimation"], **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(lambda: loaded(f"hf:{tmp_path}", weights="random"), fragment, kind=ModelError)
