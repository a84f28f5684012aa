"""Modules of somebody's own with a timm model in them: built whole where that is sound, refused where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.errors import refused
from helpers.models import images, randomised, tiny_vit
from torch import Tensor, nn
from torch.nn import functional

import ztdeploy
from ztdeploy.core.errors import InputError, ModelError
from ztdeploy.core.model_source import ModelSource
from ztdeploy.host.models.loading import load_model
from ztdeploy.host.models.own_module import model_of
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
    model = model_of(module.half())
    assert (model.num_classes, model.training) == (5, False)
    with torch.no_grad():
        assert torch.allclose(model(x), module.float().eval()(x), atol=1e-5)
    assert module.state_dict().keys() == before.keys(), "a module that is handed over stays as it was"
    assert model_of(torch.compile(nn.DataParallel(module))).num_classes == 5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "fragments"),
    [
        (ReadsTokens, ["class ReadsTokens", "does not call 'backbone' as a whole", "head(self.backbone(images))"]),
        (Scales, ["changes images before 'backbone' sees them", "mean, std"]),
        (GivesMore, ["type dict", "[B, classes]"]),
        (Mirrors, ["calls 'backbone' 2 times"]),
        (AddsBrightness, ["without its own images its answers differ"]),
        (Fails, ["cannot run on images of shape [2, 3, 32, 32] (not today)"]),
        (Two, ["2 models in it (backbone, second)", "module.backbone"]),
        (Windows, ["a SwinTransformer in it", "windows"]),
        (lambda: nn.Linear(2, 2), ["class Linear", "cannot be pruned"]),
        (lambda: Own(distilled=True), ["several heads"]),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_cannot_be_built_soundly_is_refused_by_name(module: Any, fragments: list[str]) -> None:
    refused(lambda: model_of(module()), *fragments, kind=ModelError)


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
