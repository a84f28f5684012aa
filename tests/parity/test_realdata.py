"""A trained DeiT-Tiny on photographs, end to end: what tiny random models can't show."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.processes import result_in
from numpy.typing import NDArray

import ztdeploy
from ztdeploy.core.bundle import Bundle
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import ImageSize, PreprocessOptions
from ztdeploy.target.adaptive.opening import load
from ztdeploy.target.evaluate.data import LabelledImage, read_labels
from ztdeploy.target.runtime.parity import GAP_TOLERANCE, LOGIT_TOLERANCE
from ztdeploy.target.runtime.postprocess import divergences
from ztdeploy.target.runtime.preprocess import load_pixels
from ztdeploy.target.runtime.runner import BundleRunner

pytestmark = [pytest.mark.realdata, pytest.mark.long]

CHECKPOINT = "deit_tiny_patch16_224.fp16.safetensors"
CROP_PCT = 0.875
PANDA = "panda__image_0001.jpg"


@pytest.fixture(scope="module")
def bundle(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from ztdeploy.jobs.build import BuildRequest, build

    request = BuildRequest(
        model=ModelSource(
            name="deit_t",
            checkpoint=realdata / CHECKPOINT,
            class_names=Path("imagenet"),
            preprocess=PreprocessOptions(crop_pct=CROP_PCT),
        ),
        profiles=("cpu",),
        keep_ratios=(0.7,),
        methods=("zero-tprune",),
        out=tmp_path_factory.mktemp("realdata") / "deit_t",
    )
    return build(request)


@pytest.fixture(scope="module")
def images(realdata: Path) -> list[LabelledImage]:
    return read_labels(realdata / "labels.json")


@pytest.fixture(scope="module")
def runner(bundle: Bundle) -> Iterator[BundleRunner]:
    with load(bundle, keep_ratio=1, threads=1) as opened:  # more would wait for each other on a busy machine
        yield opened


@pytest.fixture(scope="module")
def pixels(runner: BundleRunner, images: list[LabelledImage]) -> NDArray[np.uint8]:
    """All photographs, resized and cropped."""
    return load_pixels([image.path for image in images], runner.bundle.manifest.preprocess)


@pytest.fixture(scope="module")
def some(images: list[LabelledImage]) -> list[int]:
    """32 photographs of as many classes as possible."""
    return list(range(0, len(images), len(images) // 32))[:32]


@dataclass(frozen=True)
class Logits:
    dense: NDArray[np.float32]
    pruned: NDArray[np.float32]


@pytest.fixture(scope="module")
def logits(bundle: Bundle, pixels: NDArray[np.uint8]) -> Logits:
    """Of both engines on all photographs, side by side."""
    with (
        load(bundle, keep_ratio=1, threads=1) as dense,
        load(bundle, keep_ratio=0.7, threads=1) as pruned,
        ThreadPoolExecutor(2) as pool,
    ):
        return Logits(*pool.map(lambda runner: runner.infer(pixels).logits, (dense, pruned)))


@pytest.fixture(scope="module")
def torch_model(realdata: Path) -> Any:
    """The same weights in PyTorch, loaded once more."""
    from ztdeploy.host.models.loading import load_model

    return load_model(
        ModelSource(name="deit_t", checkpoint=realdata / CHECKPOINT, preprocess=PreprocessOptions(crop_pct=CROP_PCT))
    )


def test_the_bundle_says_where_it_comes_from(bundle: Bundle, torch_model: Any) -> None:
    manifest = bundle.manifest
    assert manifest.preprocess.resize == ImageSize.of(256)
    assert (manifest.preprocess.image_size, manifest.preprocess.interpolation) == ((224, 224), "bicubic")
    assert manifest.preprocess == torch_model.preprocess
    assert (manifest.weights.source, manifest.weights.origin) == ("checkpoint", CHECKPOINT)
    assert manifest.weights.sha256 == torch_model.weights_sha256
    assert [variant.plan.tokens_per_block[-1] for variant in manifest.variants] == [69, 197]


def test_every_engine_has_its_parity_record(bundle: Bundle) -> None:
    for variant in bundle.manifest.variants:
        assert set(variant.engines) == {"cpu"}
        record = variant.engines["cpu"].parity
        assert record is not None
        assert record.images >= 4
        assert record.max_logit_difference <= record.logit_tolerance
        assert record.gap_tolerance == GAP_TOLERANCE
        assert [layer.block for layer in record.layers] == [layer.block for layer in variant.plan.layers]
        assert all(layer.identical + layer.ties == record.images for layer in record.layers)


def correct(logits: NDArray[np.float32], images: list[LabelledImage]) -> int:
    """How many images get an accepted class."""
    return sum(best in image.accepted for best, image in zip(logits.argmax(-1).tolist(), images, strict=True))


def test_dense_accuracy_is_the_published_one(
    logits: Logits, images: list[LabelledImage], pixels: NDArray[np.uint8]
) -> None:
    assert pixels.shape == (440, 224, 224, 3)
    assert len(logits.dense) == 440
    assert abs(correct(logits.dense, images) - 290) <= 2


def test_dense_is_timm_with_its_own_transform(
    realdata: Path, logits: Logits, images: list[LabelledImage], some: list[int]
) -> None:
    """Nothing of ztdeploy on the other side: timm's model, timm's checkpoint loading, timm's transform, PIL."""
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from timm.data import create_transform, resolve_model_data_config

    model = timm.create_model("deit_tiny_patch16_224").eval()
    model.load_state_dict({name: value.float() for name, value in load_file(realdata / CHECKPOINT).items()})
    config = {**resolve_model_data_config(model), "crop_pct": CROP_PCT}
    transform = create_transform(**config, is_training=False)
    batch = torch.stack([transform(Image.open(images[index].path).convert("RGB")) for index in some])
    with torch.no_grad():
        expected = model(batch).numpy()
    actual = logits.dense[some]
    assert np.abs(actual - expected).max() <= LOGIT_TOLERANCE["fp32"] * max(1.0, float(np.abs(expected).max()))
    assert (actual.argmax(-1) == expected.argmax(-1)).all()


@pytest.mark.parametrize("keep_ratio", [1.0, 0.7])
def test_engines_prove_themselves_on_photographs(
    keep_ratio: float, runner: BundleRunner, torch_model: Any, pixels: NDArray[np.uint8], some: list[int]
) -> None:
    """The build's own proof, on images that the build never saw: the engine's choices are replayed in PyTorch."""
    from ztdeploy.host.export import Deployable
    from ztdeploy.host.parity import prove
    from ztdeploy.host.pruning.pruned_model import PrunedModel

    variant = runner.bundle.variant(keep_ratio)
    with PrunedModel(torch_model.adapter, variant.schedule) as pruned:
        module = Deployable(pruned, torch_model.preprocess, "uint8")
        record, drift = prove(runner, variant, pruned, module, pixels[some])
    assert drift is None, "fp32 does not drift"
    assert record.images == len(some) + 1, "a batch, and the first image alone"
    assert record.max_logit_difference <= record.logit_tolerance
    assert [layer.identical + layer.ties for layer in record.layers] == [record.images] * len(variant.plan.layers)
    assert sum(layer.ties for layer in record.layers) <= 2


def test_pruned_engine_equals_torch_left_alone(
    runner: BundleRunner, torch_model: Any, pixels: NDArray[np.uint8], some: list[int]
) -> None:
    """No replay here: PyTorch decides for itself, and only an image with a tie may come out otherwise."""
    import torch

    from ztdeploy.host.export import Deployable
    from ztdeploy.host.pruning.pruned_model import PrunedModel

    variant = runner.bundle.variant(0.7)
    runner.switch(0.7)
    actual = runner.infer(pixels[some])
    with PrunedModel(torch_model.adapter, variant.schedule) as pruned:
        module = Deployable(pruned, torch_model.preprocess, "uint8").eval()
        normalised = module.normalise(torch.from_numpy(pixels[some]))
        replay = pruned.replay(normalised)
        with torch.no_grad():
            plain, *_ = pruned(normalised)
    assert torch.equal(plain, replay.output), "recording changes nothing"
    own = [choice.kept for choice in replay.choices]
    counts = [kept.shape[1] for kept in actual.kept]
    assert counts == [kept.shape[1] for kept in own] == [139, 98, 69]
    same = np.ones(len(some), dtype=bool)
    for kept, expected, record in zip(actual.kept, own, replay.records, strict=True):
        equal = (np.sort(kept, -1) == np.sort(expected.numpy(), -1)).all(-1)
        gaps = np.asarray(record.smallest_gap(len(some)))
        assert (gaps[same & ~equal] <= GAP_TOLERANCE).all(), "it differs where the choice was clear"
        same &= equal
    assert same.sum() >= len(some) - 2, "ties are rare"
    expected_logits = replay.output.numpy()[same]
    difference = np.abs(actual.logits[same] - expected_logits).max()
    assert difference <= LOGIT_TOLERANCE["fp32"] * max(1.0, float(np.abs(expected_logits).max()))
    assert (actual.logits[same].argmax(-1) == expected_logits.argmax(-1)).all()


def test_pruning_hardly_changes_the_answers(logits: Logits, images: list[LabelledImage]) -> None:
    """A third of the tokens at the end; chance would be one in a thousand."""
    assert (logits.pruned.argmax(-1) == logits.dense.argmax(-1)).mean() >= 0.6
    assert correct(logits.pruned, images) >= 0.85 * 290
    assert 0 < divergences(logits.dense, logits.pruned).mean() < 0.5


def test_zero_tprune_keeps_what_matters(
    bundle: Bundle, torch_model: Any, logits: Logits, pixels: NDArray[np.uint8], some: list[int]
) -> None:
    """Dropping as many tokens in raster order changes the answers far more."""
    import torch

    from ztdeploy.host.export import Deployable
    from ztdeploy.host.pruning.pruned_model import PrunedModel

    schedule = bundle.variant(0.7).schedule.model_copy(update={"method": "slice"})
    with PrunedModel(torch_model.adapter, schedule) as sliced, torch.no_grad():
        module = Deployable(sliced, torch_model.preprocess, "uint8").eval()
        output, *_ = module(torch.from_numpy(pixels[some]))
    dense = logits.dense[some].argmax(-1)
    by_slicing = float((output.numpy().argmax(-1) == dense).mean())
    by_zero_tprune = float((logits.pruned[some].argmax(-1) == dense).mean())
    assert by_zero_tprune >= by_slicing + 0.1


def test_the_command_line_recognises_a_panda(bundle: Bundle, realdata: Path, tmp_path: Path) -> None:
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name}
    checkout = str(Path(ztdeploy.__file__).resolve().parents[1])
    for keep_ratio in ("1", "0.7"):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ztdeploy", "run", str(bundle.root), str(realdata / "images" / PANDA)),
                *("--keep-ratio", keep_ratio, "--json"),
            ],
            cwd=tmp_path,
            env={**shell, "PYTHONPATH": checkout},
            capture_output=True,
            text=True,
            check=True,
        )
        (answer,) = result_in(done.stdout)["images"]
        best = answer["labels"][0]
        assert best["index"] == 388
        assert "panda" in best["name"]
        assert best["probability"] > 0.5


def test_eval_counts_what_the_engines_say(bundle: Bundle, realdata: Path, tmp_path: Path) -> None:
    """In fp32, a photograph or so may tip over between machines."""
    report = ztdeploy.evaluate(bundle.root, realdata, cache=tmp_path / "cache")
    dense, pruned = report.variants
    assert dense.top1 is not None
    assert pruned.top1 is not None
    assert (report.data.images, report.data.classes) == (440, 44)
    assert abs(dense.top1.count - 291) <= 1
    assert pruned.against_dense is not None
    change, agreement = pruned.against_dense.change, pruned.against_dense.agreement
    assert change is not None
    assert change.gained - change.lost == pruned.top1.count - dense.top1.count
    assert change.interval.high < 0, "keep ratio 0.7 costs DeiT-Tiny something"
    assert 0.7 < agreement.value < 0.9
