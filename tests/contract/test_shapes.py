"""Models of other shapes than a square of colours, from checkpoint to `show`, against PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.errors import refused
from helpers.models import loaded, randomised
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import ztdeploy
from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.errors import CheckpointError, InputError
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import ImageSize, PreprocessSpec
from ztdeploy.host.models.loading import LoadedModel
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.report.show.drawing import draw
from ztdeploy.report.show.page import sheet_paths, write_show
from ztdeploy.target.adaptive.opening import load
from ztdeploy.target.evaluate.explain import explain_bundle
from ztdeploy.target.runtime.images import read_bands
from ztdeploy.target.runtime.postprocess import divergences
from ztdeploy.target.runtime.preprocess import normalise, resize_and_crop
from ztdeploy.target.verify import verify_bundle

NAME = "deit_tiny_patch16_224"
SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 3, "num_classes": 5}


@pytest.fixture(scope="module", autouse=True)
def small_deit() -> Iterator[None]:
    """timm's DeiT-Tiny with three narrow blocks: names, filters and options are timm's, and it is made in no time."""
    made = timm.create_model

    def small(name: str, **arguments: Any) -> Any:
        return made(name, **{**SMALL, **arguments} if name == NAME else arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", small)
        yield


def trained(**arguments: Any) -> VisionTransformer:
    return randomised(timm.create_model(NAME, **arguments))


def saved(model: VisionTransformer, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


#: What somebody trained, and the image size to give besides, where the checkpoint does not say.
SHAPES: dict[str, tuple[dict[str, Any], ImageSize | None]] = {
    "grey": ({"in_chans": 1}, None),
    "two channels": ({"in_chans": 2, "img_size": 64}, None),
    "four channels": ({"in_chans": 4, "img_size": 64}, None),
    "seven channels, wide": ({"in_chans": 7, "img_size": (32, 96)}, ImageSize(32, 96)),
    "wide": ({"img_size": (48, 96)}, ImageSize(48, 96)),
    "tall": ({"img_size": (96, 32)}, ImageSize(96, 32)),
    "as many patches as a square": ({"img_size": (32, 128)}, ImageSize(32, 128)),
    "a square of another size": ({"img_size": 64}, None),
    "pooled": ({"global_pool": "avg", "img_size": 64}, None),
    "pooled, no class token": ({"global_pool": "avg", "class_token": False, "img_size": 64}, None),
    "grey, wide, pooled": ({"in_chans": 1, "img_size": (32, 64), "global_pool": "avg"}, ImageSize(32, 64)),
}
shapes = pytest.mark.parametrize("name", SHAPES)


@shapes
def test_a_checkpoint_gives_the_trained_modules_logits_bit_for_bit(name: str, tmp_path: Path) -> None:
    arguments, size = SHAPES[name]
    model = trained(**arguments)
    found = loaded(NAME, checkpoint=saved(model, tmp_path / "c.pth"), image_size=size)
    images = torch.randn(2, arguments.get("in_chans", 3), *model.patch_embed.img_size)
    with torch.no_grad():
        assert torch.equal(found.adapter.model(images), model(images))
    assert found.preprocess.image_size == model.patch_embed.img_size
    assert found.adapter.architecture.grid == model.patch_embed.grid_size
    assert found.adapter.architecture.class_token == (model.global_pool == "token")


@pytest.mark.parametrize(
    ("trained_at", "asked", "words"),
    [
        ((32, 128), None, ["16 patches", "4 x 4", "image size 64", "--image-size"]),
        ((64, 64), ImageSize(32, 96), ["16 patches", "4 x 4", "resampled to 2 x 6"]),
    ],
)
def test_a_grid_that_is_assumed_is_told(
    trained_at: tuple[int, int], asked: ImageSize | None, words: list[str], tmp_path: Path
) -> None:
    found = loaded(NAME, checkpoint=saved(trained(img_size=trained_at), tmp_path / "c.pth"), image_size=asked)
    assert any(all(word in remark for word in words) for remark in found.remarks), found.remarks


@pytest.mark.parametrize("asked", [None, ImageSize(64, 64), ImageSize(96, 48)])
def test_a_grid_that_is_no_square_has_to_be_given(asked: ImageSize | None, tmp_path: Path) -> None:
    path = saved(trained(img_size=(32, 96)), tmp_path / "c.pth")
    refused(
        lambda: loaded(NAME, checkpoint=path, image_size=asked),
        *("12 patches", "no square grid", "--image-size", "48x64"),
        kind=CheckpointError,
    )


def test_statistics_of_other_channels_are_averages_and_told(tmp_path: Path) -> None:
    found = loaded(NAME, checkpoint=saved(trained(in_chans=1, img_size=32), tmp_path / "c.pth"))
    assert found.preprocess.mean == pytest.approx([0.449], abs=1e-3)
    assert found.preprocess.std == pytest.approx([0.226], abs=1e-3)
    assert any("mean 0.449" in remark for remark in found.remarks)


def picture(spec: PreprocessSpec, path: Path, *, turned: bool = False) -> Path:
    """A file of just the size and channels of a model's input, so that nothing is resampled."""
    height, width, channels = spec.shape
    size = (round(height / 0.9), round(width / 0.9))
    pixels = np.random.default_rng(7).integers(0, 256, (*size, channels), np.uint8)
    if channels in (1, 2, 3, 4):
        path = path.with_suffix(".png")
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path)
        return path
    np.save(path.with_suffix(".npy"), pixels)
    return path.with_suffix(".npy")


def module_inputs(found: LoadedModel, path: Path) -> Tensor:
    """What the module is given, by other means than the runner's: Pillow's, channel by channel."""
    spec = found.preprocess
    pixels = resize_and_crop(read_bands(path, spec), spec)
    return torch.from_numpy(normalise(pixels[None], spec))


END_TO_END = ["four channels", "seven channels, wide", "tall", "grey, wide, pooled"]


def built(folder: Path, **source: Any) -> Bundle:
    request = BuildRequest(ModelSource(name=NAME, **source), ("cpu",), folder / "bundle", keep_ratios=(0.6,))
    return build(request)


@pytest.mark.parametrize("name", END_TO_END)
@pytest.mark.short("four channels")
def test_from_build_to_show(name: str, tmp_path: Path) -> None:
    arguments, size = SHAPES[name]
    checkpoint = saved(trained(**arguments), tmp_path / "c.pth")
    bundle = built(tmp_path, checkpoint=checkpoint, image_size=size)
    assert verify_bundle(bundle.root, None, lambda *_: None).variants.keys() == {"dense", "keep-0.60"}
    found = loaded(NAME, checkpoint=checkpoint, image_size=size)
    data = tmp_path / "images"
    data.mkdir()
    path = picture(bundle.manifest.preprocess, data / "one")
    variant = bundle.variant(0.6)
    with load(bundle.root, keep_ratio=0.6) as runner, PrunedModel(found.adapter, variant.schedule) as pruned:
        (prediction,) = runner(path)
        with torch.no_grad():
            replay = pruned.replay(module_inputs(found, path))
    np.testing.assert_allclose(prediction.logits, replay.output[0].numpy(), atol=2e-4)
    prefix, tokens = variant.plan.layers[0].prefix_tokens, np.arange(found.adapter.architecture.tokens)
    for ours, choice in zip(prediction.kept, replay.choices, strict=True):
        tokens = tokens[choice.kept[0].numpy()]
        assert ours.tolist() == (tokens[prefix:] - prefix).tolist()
    (shown,) = explain_bundle(bundle, [path])
    drawing, (rows, columns) = draw(shown, bundle.manifest), found.adapter.architecture.rows_and_columns
    assert (drawing.grid.rows, drawing.grid.columns) == (rows, columns)
    tall, wide = drawing.plain.height / rows, drawing.plain.width / columns
    assert tall == wide >= 4
    report = ztdeploy.evaluate(bundle.root, data)
    assert report.data.images == 1


@pytest.mark.parametrize(
    ("outputs", "asked", "activation", "source"),
    [
        (5, None, "softmax", "default"),
        (5, "sigmoid", "sigmoid", "--activation"),
        (5, "none", "none", "--activation"),
        (1, None, "sigmoid", "one output"),
        (1, "none", "none", "--activation"),
    ],
)
def test_what_a_heads_numbers_mean(outputs: int, asked: Any, activation: str, source: str, tmp_path: Path) -> None:
    path = saved(trained(num_classes=outputs, img_size=32), tmp_path / "c.pth")
    found = loaded(NAME, checkpoint=path, activation=asked)
    assert (found.activation, source in found.activation_source) == (activation, True)
    assert any("one output" in remark for remark in found.remarks) == (outputs == 1 and asked is None)


@pytest.mark.parametrize(
    ("outputs", "output", "asked", "words"),
    [
        (1, "logits", "softmax", ["one output", "--activation sigmoid"]),
        (5, "embedding", "sigmoid", ["without a head", "leave --activation out"]),
    ],
)
def test_an_activation_that_says_nothing_is_refused(
    outputs: int, output: Any, asked: Any, words: list[str], tmp_path: Path
) -> None:
    path = saved(trained(num_classes=outputs, img_size=32), tmp_path / "c.pth")
    refused(lambda: loaded(NAME, checkpoint=path, activation=asked, output=output), *words, kind=InputError)


@pytest.mark.parametrize(("outputs", "activation"), [(1, "sigmoid"), (5, "sigmoid"), (1, "none")])
def test_a_bundle_says_what_its_outputs_mean(outputs: int, activation: Any, tmp_path: Path) -> None:
    """From the manifest to `run`, `show` and `eval`."""
    path = saved(trained(num_classes=outputs, img_size=32), tmp_path / "c.pth")
    bundle = built(tmp_path, checkpoint=path, activation=activation)
    assert read_bundle(bundle.root).manifest.model.activation == activation
    photos = [folder / "one" for folder in (tmp_path / "data" / "0", tmp_path / "data" / "1")]
    for photo in photos:
        photo.parent.mkdir(parents=True)
    photos = [picture(bundle.manifest.preprocess, photo) for photo in photos]
    with load(bundle.root) as runner:
        (found,) = runner(photos[0])
        chances = None if activation == "none" else 1 / (1 + np.exp(-found.logits.astype(float)))
        assert [label.value for label in found.labels] == sorted(found.logits.tolist(), reverse=True)
        for label in found.labels:
            assert label.probability == (None if chances is None else pytest.approx(chances[label.index]))
        if chances is None:
            refused(lambda: runner(photos[0], threshold=0.5), "no probabilities", kind=InputError)
        else:
            likely = runner(photos[0], threshold=0.5)[0].labels
            assert {label.index for label in likely} == set(np.flatnonzero(chances >= 0.5))
    out = tmp_path / "shown"
    ((shown, _),) = write_show(bundle, explain_bundle(bundle, photos[:1]), sheet_paths(photos[:1], out), out)
    assert "100 %" not in (out / "show.html").read_text()
    assert (shown.dense_labels[0].probability is None) == (chances is None)
    if activation == "none":
        refused(lambda: ztdeploy.evaluate(bundle.root, tmp_path / "data"), "no probabilities", kind=InputError)
        return
    report = ztdeploy.evaluate(bundle.root, tmp_path / "data")
    assert report.data.labelled == (outputs > 1), "no and yes are no classes of one output"
    assert report.activation == "sigmoid"
    with load(bundle.root, variant="dense") as dense, load(bundle.root, keep_ratio=0.6) as pruned:
        both = [np.stack([one.logits for one in runner(photos)]) for runner in (dense, pruned)]
    against = report.variants[1].against_dense
    assert against is not None
    assert against.kl.value == pytest.approx(divergences(*both, "sigmoid").mean())
    assert against.agreement.value == ((both[0] > 0) == (both[1] > 0)).all(-1).mean()
