"""Modules of somebody's own with a backbone in them: built whole where that is sound, refused where it is not."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.errors import refused
from helpers.models import PREPROCESS, images, randomised, tiny_vit
from helpers.sessions import run_graph
from torch import Tensor, nn
from torch.nn import functional

import ztdeploy
from ztdeploy.core.cost import plan_gmacs
from ztdeploy.core.errors import InputError, ModelError
from ztdeploy.core.keep_ratio import uniform_schedule
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.plan import plan
from ztdeploy.core.schedule import LayerSpec, PruningSchedule
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.models.loading import load_model
from ztdeploy.host.models.own_module import model_of
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.runtime.preprocess import load_pixels, normalise


class Own(nn.Module):
    """A backbone and a head."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.backbone = tiny_vit(**{"num_classes": 0, **arguments})
        self.head = randomised(nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 20), nn.GELU(), nn.Linear(20, 5)))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.backbone(x))


class Normalised(Own):
    def forward(self, x: Tensor) -> Tensor:
        return 30 * self.head(functional.normalize(self.backbone(x), dim=-1))


class OnLogits(Own):
    """The model keeps its own classifier, of 48 classes."""

    def __init__(self) -> None:
        super().__init__(num_classes=48)


class ReadsTokens(Own):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone.forward_features(x)[:, 1:].mean(1))  # type: ignore[no-any-return]


class Scales(Own):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x / 255))  # type: ignore[no-any-return]


class GivesMore(Own):
    def forward(self, x: Tensor) -> Any:
        return {"logits": self.head(self.backbone(x))}


class Mirrors(Own):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x) + self.backbone(x.flip(-1)))  # type: ignore[no-any-return]


class AddsBrightness(Own):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)) + x.mean()  # type: ignore[no-any-return]


class Fails(Own):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("not today")


class Two(Own):
    def __init__(self) -> None:
        super().__init__()
        self.second = tiny_vit()


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            self.inner = timm.create_model("swin_tiny_patch4_window7_224")


@pytest.mark.parametrize("kind", [Own, Normalised, OnLogits])
def test_what_is_behind_the_model_becomes_its_head(kind: type[Own]) -> None:
    module, x = kind().train(), images(3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model, around = model_of(module.half())
    assert around is None
    assert (model.num_classes, model.training) == (5, False)
    with torch.no_grad():
        assert torch.allclose(model(x), module.float().eval()(x), atol=1e-5)
    assert module.state_dict().keys() == before.keys(), "a module that is handed over stays as it was"
    assert model_of(torch.compile(nn.DataParallel(module)))[0].num_classes == 5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "fragments"),
    [
        (ReadsTokens, ["class ReadsTokens", "does not call 'backbone' as a whole", "give backbone='backbone'"]),
        (Scales, ["changes images before 'backbone' sees them", "mean, std"]),
        (GivesMore, ["type dict", "[B, classes]"]),
        (Mirrors, ["calls 'backbone' 2 times"]),
        (AddsBrightness, ["without its own images its answers differ"]),
        (Fails, ["cannot run on images of shape [2, 3, 32, 32] (not today)"]),
        (Two, ["2 models in it (backbone, second)", "give backbone='backbone'"]),
        (Windows, ["a SwinTransformer in it", "windows"]),
        (lambda: nn.Linear(2, 2), ["class Linear", "cannot be pruned"]),
        (lambda: Own(distilled=True), ["several heads"]),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_cannot_be_built_soundly_is_refused_by_name(module: Any, fragments: list[str]) -> None:
    refused(lambda: model_of(module()), *fragments, kind=ModelError)


# -------------------- dense modules


class Taps(nn.Module):
    """Gives what it reads behind two blocks, as a map."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"vit": tiny_vit(reg_tokens=2, num_classes=0)})

    def forward(self, x: Tensor) -> Any:
        read = self.inner["vit"].forward_intermediates(x, indices=[2, 3], intermediates_only=True, norm=True)
        return torch.cat(read, 1)


class OneChannel(Taps):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).mean(1)


class Upsampled(Taps):
    def forward(self, x: Tensor) -> Any:
        return functional.interpolate(super().forward(x)[:, :1], scale_factor=2, mode="bilinear")


class Pooled(Taps):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).mean((2, 3))


class Twice(Taps):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + super().forward(x.flip(-1)).flip(-1)


class Disturbs(Taps):
    def forward(self, x: Tensor) -> Any:
        vit = self.inner["vit"]
        tokens = vit._pos_embed(vit.patch_embed(x))
        for block in vit.blocks:
            tokens = 1.5 * block(tokens)
        return tokens[:, 3:].transpose(1, 2).unflatten(2, (4, 4))


class Early(Taps):
    def forward(self, x: Tensor) -> Any:
        return self.inner["vit"].forward_intermediates(x, indices=[0], intermediates_only=True, stop_early=True)[0]


PRUNED = PruningSchedule(
    name="pruned",
    method="zero-tprune-merge",
    layers=(LayerSpec(block=2, keep_ratio=0.6, similarity_share=1), LayerSpec(block=4, drop=2, similarity_share=1)),
)


def dense_adapter(module: nn.Module, **asked: Any) -> ModelAdapter:
    return load_model(ModelSource(name="mine"), module, **asked).adapter


def test_whatever_reads_tokens_finds_one_for_every_place() -> None:
    """What is read behind a block are the features of the model that ends there, with the same tokens left."""
    module, x = Taps(), images(3)
    adapter = dense_adapter(module)
    assert (adapter.output, adapter.map_shape) == ("maps", (96, 4, 4))
    with PrunedModel(adapter, PRUNED) as pruned:
        replay = pruned.replay(x)
    for depth, read in ((3, replay.output[:, :48]), (4, replay.output[:, 48:])):
        model = deepcopy(module.inner["vit"])
        model.blocks = model.blocks[:depth]
        cut = VitAdapter(model, 32)
        cut.give("features")
        layers = PRUNED.layers[: depth - 2]
        with PrunedModel(cut, PRUNED.model_copy(update={"layers": layers})) as shorter:
            expected = shorter.replay(x, replay.choices[: len(layers)]).output
        torch.testing.assert_close(read.flatten(2).transpose(1, 2), expected)
        assert not torch.allclose(expected, shorter.model.forward_features(x)[:, 3:], atol=1e-2)
    with torch.no_grad():
        assert torch.equal(adapter.whole(x), module(x)), "all hooks are gone"


@pytest.mark.parametrize(
    ("module", "asked", "shape", "activation"),
    [
        (Taps, {}, (96, 4, 4), "softmax"),
        (OneChannel, {}, (1, 4, 4), "none"),
        (Taps, {"backbone": "inner.vit", "size": (40, 64)}, (96, 5, 8), "softmax"),
        (Pooled, {"backbone": "inner.vit"}, None, "softmax"),
    ],
)
def test_what_a_dense_module_gives_is_found_by_running_it(
    module: type[Taps], asked: dict[str, Any], shape: tuple[int, ...] | None, activation: str
) -> None:
    size = asked.pop("size", None)
    found = load_model(ModelSource(name="mine", image_size=size), module().train(), **asked)
    assert (found.adapter.map_shape, found.activation) == (shape, activation)
    assert found.output == ("logits" if shape is None else "maps")
    assert found.adapter.architecture.read_tokens is None
    assert found.preprocess.image_size == (size or (32, 32))
    assert found.adapter.architecture.around_macs == 0, "it only moves what it reads"


def test_the_compute_of_what_is_around_the_blocks_counts() -> None:
    module = Taps()
    around = nn.Sequential(module, nn.Conv2d(96, 10, 3, padding=1))
    plain, found = (dense_adapter(one).architecture for one in (module, around))
    assert found.around_macs == 96 * 10 * 9 * 16
    whole, own = (plan_gmacs(facts, plan(uniform_schedule(1, 4), facts)) for facts in (found, plain))
    assert whole - own == pytest.approx(found.around_macs / 1e9)


@pytest.mark.parametrize(
    ("module", "backbone", "fragments"),
    [
        (Twice, None, ["class Twice", "once"]),
        (Disturbs, None, ["class Disturbs", "changes tokens between its blocks"]),
        (Early, None, ["class Early", "does not run each of its blocks"]),
        (GivesMore, "backbone", ["type dict", "[B, C, h, w]"]),
        (Taps, "inner", ["there is a ModuleDict", "'inner.vit'"]),
        (Taps, "inner.vat", ["there is nothing", "'inner.vit'"]),
    ],
)
def test_a_dense_module_that_cannot_be_pruned_is_refused(module: Any, backbone: Any, fragments: list[str]) -> None:
    refused(lambda: dense_adapter(module(), backbone=backbone), *fragments, kind=ModelError)


def test_a_graph_gives_the_same_maps_and_holds_no_grid_that_nobody_reads() -> None:
    adapter = dense_adapter(Upsampled())
    with PrunedModel(adapter, PRUNED) as pruned:
        model = export_onnx(pruned, PREPROCESS, GraphSpec(20, "float32", None))
        expected = pruned.replay(images(2)).output.numpy()
    found = run_graph(model, image=images(2).numpy())["logits"]
    assert found.shape == (2, 1, 8, 8)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    rows = [node for node in model.graph if node.op_type == "GatherND" and node.name.startswith("blocks.")]
    reads = [node for node in rows if "/prune" not in node.name]
    # Two that the head reads, and what sets merged positions apart: behind each merge, of the grid before it if any.
    assert [node.name.split("/")[0] for node in reads] == ["blocks.1", "blocks.2", "blocks.3", "blocks.3"]
    halves = run_graph(specialise(model, GraphSpec(20, "float32", None, "fp16")), image=images(2).numpy())["logits"]
    assert halves.shape == found.shape
    assert np.isfinite(halves).all()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["decides by values", "counts images"])
def test_code_that_cannot_be_exported_is_refused(kind: str) -> None:
    class Stubborn(OneChannel):
        def forward(self, x: Tensor) -> Any:
            maps = super().forward(x)
            if kind == "counts images":
                return maps.reshape(len(x), 4, 4)
            return maps if maps.sum() > 0 else -maps

    fragment = "fixes the number of images" if kind == "counts images" else "cannot export"
    with PrunedModel(dense_adapter(Stubborn()), uniform_schedule(1, 4)) as pruned:
        refused(lambda: export_onnx(pruned, PREPROCESS, GraphSpec(20, "float32", None)), fragment, kind=ModelError)


def test_arguments_that_make_no_sense_of_a_backbone(here: Path) -> None:
    refused(lambda: ztdeploy.build("vit_digits", backbone="vit"), "without a module", kind=InputError)
    refused(lambda: ztdeploy.build(Taps(), example=torch.zeros(3, 32, 32)), "[3, 32, 32]", kind=InputError)
    both = {"example": torch.zeros(1, 3, 32, 32), "image_size": 64}
    refused(lambda: ztdeploy.build(Taps(), **both), "an example of 32 x 32", kind=InputError)  # type: ignore[arg-type]
    refused(lambda: ztdeploy.build(Taps(), output="features"), "that gives maps", kind=ModelError)
    refused(lambda: ztdeploy.build(Own(), output="maps"), "gives logits", kind=ModelError)


def test_a_dense_module_is_pruned_for_training_as_it_is_built() -> None:
    module, x = OneChannel(), images(2)
    with ztdeploy.prune(module, schedule=PRUNED) as pruned, torch.no_grad():
        output = pruned(x)
        assert pruned.state_dict().keys() == module.state_dict().keys()
    with PrunedModel(dense_adapter(module), PRUNED) as built, torch.no_grad():
        assert torch.equal(output, built(x)[0])


# -------------------- weights, training, engines


def test_pruned_modules_and_other_weights_are_refused(here: Path) -> None:
    module = Own()
    with ztdeploy.prune(module, 0.5):
        refused(lambda: ztdeploy.build(module, out="out"), "already pruned", kind=ModelError)
    for options in ({"weights": "random"}, {"checkpoint": "file.pth"}):
        refused(lambda o=options: ztdeploy.build(module, **o), "class Own", "beside it", kind=InputError)  # type: ignore[misc]
    refused(lambda: ztdeploy.build(module, image_size=64), "image size 64", "made for 32", kind=ModelError)
    refused(lambda: ztdeploy.tune(module, "photos"), "class Own", kind=InputError)  # type: ignore[arg-type]
    assert not list(here.iterdir())


def test_a_module_loads_with_what_timm_says_of_its_model() -> None:
    loaded = load_model(ModelSource(name="mine", class_names=tuple("abcde")), Own())
    assert (loaded.name, loaded.timm_name, loaded.class_names) == ("mine", "VisionTransformer", tuple("abcde"))
    assert loaded.weights_origin == "a module of class Own"
    assert any("pre-processing is assumed" in line for line in loaded.remarks)
    published = timm.create_model("test_vit", num_classes=3)
    assert load_model(ModelSource(name="test_vit"), published).preprocess.image_size == (160, 160)


def test_pruning_for_training_runs_the_whole_module() -> None:
    module, x = Own(), images(2)
    with ztdeploy.prune(module, keep_ratio=0.5) as pruned:
        assert pruned(x).shape == (2, 5)
        pruned(x).square().sum().backward()
        assert pruned.state_dict().keys() == module.state_dict().keys()
    assert all(parameter.grad is not None for parameter in module.head.parameters())


def test_three_lines_from_a_module_to_its_engine(here: Path) -> None:
    module = Normalised(depth=2).eval()
    bundle = ztdeploy.build(module, keep_ratio=0.5, class_names=list("abcde"))
    assert (bundle.root, bundle.manifest.model.name) == (Path("Normalised-cpu"), "Normalised")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    found = ztdeploy.load(bundle, keep_ratio=1)(pixels)
    spec = bundle.manifest.preprocess
    with torch.no_grad():
        expected = module(torch.from_numpy(normalise(load_pixels(list(pixels), spec), spec))).numpy()
    np.testing.assert_allclose(np.stack([one.logits for one in found]), expected, atol=1e-4)
    assert [one.label for one in found] == ["abcde"[index] for index in expected.argmax(1)]
