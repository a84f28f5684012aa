"""Running a bundle: the same answer whatever the images come as, in whatever batches, on whatever graph."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from helpers.errors import refused
from PIL import Image

import ztdeploy
from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.errors import BundleError, ImageError, InputError
from ztdeploy.core.model_source import ModelSource
from ztdeploy.target.adaptive import opening
from ztdeploy.target.adaptive.opening import load
from ztdeploy.target.backends.onnxruntime import OnnxRuntimeRunner
from ztdeploy.target.runtime.preprocess import load_pixels

PROFILES = {
    "uint8-two": "[batch]\ndynamic = false\nsizes = [2]\n",
    "float32-any": "image_input = 'float32'\n",
}


@pytest.fixture(scope="module")
def runner(digits_bundle):
    with load(digits_bundle, keep_ratio=0.7, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def pixels(runner, digit_images):
    """uint8 `[20, S, S, 3]`."""
    return load_pixels(digit_images[:20], runner.bundle.manifest.preprocess)


@pytest.fixture(scope="module")
def one_by_one(runner, pixels):
    """Logits `[20, classes]` and kept tokens of each layer, from batches of one."""
    return gather([runner.infer(pixels[index : index + 1]) for index in range(len(pixels))])


@pytest.fixture(scope="module")
def other_graphs(tmp_path_factory):
    """A bundle whose two profiles ask for a fixed batch of two, and for images that are normalised outside."""
    from ztdeploy.jobs.build import BuildRequest, build

    folder = tmp_path_factory.mktemp("graphs")
    head = 'title = "A test"\nbackend = "onnxruntime"\n'
    for name, text in PROFILES.items():
        (folder / f"{name}.toml").write_text(head + text)
    profiles = tuple(str(folder / f"{name}.toml") for name in PROFILES)
    build(
        BuildRequest(
            model=ModelSource(name="vit_digits"),
            profiles=profiles,
            keep_ratios=(0.5,),
            methods=("zero-tprune",),
            out=folder / "bundle",
        )
    )
    return folder / "bundle"


def gather(outputs):
    layers = range(len(outputs[0].kept))
    logits = np.concatenate([part.logits for part in outputs])
    return logits, [np.concatenate([part.kept[layer] for part in outputs]) for layer in layers]


def assert_same(actual, logits, kept):
    np.testing.assert_allclose(actual.logits, logits, atol=1e-4)
    assert len(actual.kept) == len(kept)
    for ours, theirs in zip(actual.kept, kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# -------------------- images


def test_it_does_not_matter_how_an_image_comes(runner, digit_images):
    path = digit_images[3]
    image = Image.open(path).convert("RGB")
    sources = {
        "Path": path,
        "str": str(path),
        "PIL": image,
        "grey PIL": image.convert("L"),
        "array": np.asarray(image),
        "grey array": np.asarray(image.convert("L")),
        "list": [path],
        "tuple": (image,),
        "generator": (one for one in [path]),
    }
    (expected,) = runner(path)
    for kind, source in sources.items():
        (prediction,) = runner(source)
        np.testing.assert_array_equal(prediction.logits, expected.logits, err_msg=kind)
        assert prediction.labels == expected.labels, kind


def test_many_images_are_answered_in_their_order(runner, digit_images):
    predictions = runner(digit_images[:11])
    for path, prediction in zip(digit_images[:11], predictions, strict=True):
        np.testing.assert_allclose(prediction.logits, runner(path)[0].logits, atol=1e-4)


def test_the_digits_are_recognised(runner, digit_images):
    """The label is the end of the file's name; the model gets 98.6 % of all of them right, dense."""
    predictions = runner(digit_images[::4])
    right = [
        prediction.labels[0].name == path.stem.rpartition("_")[2]
        for path, prediction in zip(digit_images[::4], predictions, strict=True)
    ]
    assert len(right) > 50
    assert np.mean(right) > 0.9


def test_no_images_give_no_predictions(runner):
    assert runner([]) == []


@pytest.mark.parametrize(("top", "count"), [(1, 1), (3, 3), (10, 10), (99, 10)])
def test_the_best_classes_with_their_names(runner, digit_images, top, count):
    (prediction,) = runner(digit_images[0], top=top)
    assert len(prediction.labels) == count
    probabilities = [label.probability for label in prediction.labels]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) <= 1 + 1e-9
    assert all(label.name == str(label.index) for label in prediction.labels)
    assert prediction.labels[0].index == prediction.logits.argmax()


def test_an_image_that_cannot_be_read_is_named(runner, digit_images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    refused(lambda: runner([digit_images[0], tmp_path / "broken.png"]), "broken.png", kind=ImageError)
    refused(lambda: runner("nowhere.png"), "nowhere.png", kind=ImageError)


@pytest.mark.parametrize("keep_ratio", [0.7, 0.5])
def test_kept_patches_lie_on_the_grid_and_inside_the_layer_before(digits_bundle, digit_images, keep_ratio):
    with load(digits_bundle, keep_ratio=keep_ratio, threads=1) as runner:
        predictions = runner(digit_images[:9])
        layers = runner.variant.plan.layers
    assert len(layers) == 3
    for prediction in predictions:
        before = set(range(64))
        for layer, kept in zip(layers, prediction.kept, strict=True):
            assert len(kept) == layer.tokens_out - layer.prefix_tokens
            assert len(set(kept.tolist())) == len(kept)
            assert set(kept.tolist()) <= before
            before = set(kept.tolist())


def test_different_images_keep_different_patches(runner, digit_images):
    first, second = (prediction.kept[0].tolist() for prediction in runner([digit_images[0], digit_images[7]]))
    assert first != second


def test_the_dense_model_drops_nothing(digits_bundle, digit_images):
    with load(digits_bundle, keep_ratio=1, threads=1) as runner:
        assert runner(digit_images[0])[0].kept == ()


# -------------------- batches


@pytest.mark.parametrize("count", range(1, 21))
def test_any_batch_gives_what_its_images_give_alone(runner, pixels, one_by_one, count):
    logits, kept = one_by_one
    assert_same(runner.infer(pixels[:count]), logits[:count], [layer[:count] for layer in kept])


def test_inference_leaves_its_input_alone(runner, pixels):
    before = pixels.copy()
    runner.infer(pixels)
    np.testing.assert_array_equal(pixels, before)


def test_pixels_need_not_lie_in_one_piece(runner, pixels, one_by_one):
    logits, kept = one_by_one
    assert_same(runner.infer(pixels[::-3]), logits[::-3], [layer[::-3] for layer in kept])
    read_only = pixels[:3].copy()
    read_only.flags.writeable = False
    assert_same(runner.infer(read_only), logits[:3], [layer[:3] for layer in kept])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 32, 32, 3), np.float32),
        ((1, 32, 32, 3), np.int64),
        ((1, 32, 32, 3), np.int8),
        ((32, 32, 3), np.uint8),
        ((1, 3, 32, 32), np.uint8),
        ((1, 32, 32, 4), np.uint8),
        ((1, 32, 33, 3), np.uint8),
        ((1, 224, 224, 3), np.uint8),
        ((1, 1, 32, 32, 3), np.uint8),
        ((0, 32, 32, 3), np.uint8),
    ],
)
def test_pixels_of_another_kind_are_refused(runner, shape, dtype):
    refused(lambda: runner.infer(np.zeros(shape, dtype)), str(list(shape)), "[B, 32, 32, 3]", kind=ImageError)


@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("keep_ratio", [0.5, 1])
def test_other_graphs_of_the_model_give_the_same(digits_bundle, other_graphs, pixels, profile, keep_ratio, count):
    """A fixed batch is filled up and cut, and normalising outside the graph is no other model."""
    options = {"keep_ratio": keep_ratio, "threads": 1}
    with load(digits_bundle, **options) as one, load(other_graphs, profile=profile, **options) as other:
        expected = one.infer(pixels[:count])
        assert_same(other.infer(pixels[:count]), expected.logits, expected.kept)


def test_the_profiles_made_the_graphs_they_asked_for(other_graphs):
    bundle = read_bundle(other_graphs)
    fixed, floats = (bundle.variant(0.5).graphs[name] for name in PROFILES)
    assert (fixed.batch, fixed.image_input) == (2, "uint8")
    assert (floats.batch, floats.image_input) == (None, "float32")
    assert fixed.file != floats.file


def test_a_fixed_batch_never_sees_another(other_graphs, pixels, monkeypatch):
    batches, infer = [], OnnxRuntimeRunner.infer

    def counting(self, feeds):
        batches.append(len(feeds["image"]))
        return infer(self, feeds)

    monkeypatch.setattr(OnnxRuntimeRunner, "infer", counting)
    with load(other_graphs, profile="uint8-two", threads=1) as runner:
        runner.infer(pixels[:5])
    assert batches == [2, 2, 2]


# -------------------- variants


def test_the_first_variant_asked_for_is_the_default(digits_bundle):
    with load(digits_bundle, threads=1) as runner:
        assert (runner.keep_ratio, runner.variant.name, runner.profile) == (0.7, "keep-0.70", "cpu")


@pytest.mark.parametrize("memory", ["speed", "shared"])
def test_switching_gives_what_loading_gives(digits_bundle, pixels, memory):
    with load(digits_bundle, memory=memory, threads=1) as runner:
        for keep_ratio in (0.5, 1, 0.7, 0.5):
            runner.switch(keep_ratio)
            assert runner.keep_ratio == keep_ratio
            with load(digits_bundle, keep_ratio=keep_ratio, threads=1) as fresh:
                expected = fresh.infer(pixels[:2])
            assert_same(runner.infer(pixels[:2]), expected.logits, expected.kept)
        runner.switch(variant="dense")
        assert runner.keep_ratio == 1


@pytest.mark.parametrize("memory", ["speed", "shared"])
@pytest.mark.parametrize("why", ["unknown", "damaged", "missing"])
def test_a_failed_switch_leaves_the_runner_as_it_was(bundle_copy, pixels, memory, why):
    with load(bundle_copy, keep_ratio=0.7, memory=memory, threads=1) as runner:
        before = runner.infer(pixels[:2])
        if why == "damaged":
            (bundle_copy / "graphs" / "dense.cpu.onnx").write_bytes(b"damaged")
        elif why == "missing":
            (bundle_copy / "graphs" / "dense.cpu.onnx").unlink()
        unknown = why == "unknown"
        refused(lambda: runner.switch(0.123 if unknown else 1), kind=InputError if unknown else BundleError)
        assert runner.keep_ratio == 0.7
        np.testing.assert_array_equal(runner.infer(pixels[:2]).logits, before.logits)
        runner.switch(0.5)
        assert runner.infer(pixels[:2]).kept[0].shape != before.kept[0].shape


def test_an_unknown_keep_ratio_lists_those_there_are(digits_bundle):
    refused(lambda: load(digits_bundle, keep_ratio=0.6), "keep ratio 0.6", "0.7, 0.5, 1", kind=InputError)
    refused(lambda: load(digits_bundle, variant="sparse"), "'sparse'", "0.7, 0.5, 1", kind=InputError)


def test_a_profile_without_engines_says_why(digits_bundle):
    refused(
        lambda: load(digits_bundle, profile="jetson-orin"),
        "jetson-orin",
        "on the device",
        "ztdeploy finalize",
        kind=InputError,
    )


def test_a_profile_that_is_not_there_names_the_nearest(digits_bundle):
    refused(lambda: load(digits_bundle, profile="jetson-orim"), "did you mean 'jetson-orin'?", kind=InputError)


@pytest.mark.parametrize("root", ["nowhere", "."])
def test_what_is_no_bundle_is_refused(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    refused(lambda: load(root), "manifest.json", "ztdeploy build", kind=InputError)


def test_a_bundle_is_found_by_text_by_path_and_when_opened(digits_bundle):
    for bundle in (str(digits_bundle), digits_bundle, read_bundle(digits_bundle)):
        with ztdeploy.load(bundle, threads=1) as runner:
            assert runner.keep_ratio == 0.7


# -------------------- class names


def test_damaged_class_names_are_refused_even_unhashed(bundle_copy):
    (bundle_copy / "classes.txt").write_text("zero\none\n")
    refused(lambda: load(bundle_copy, verify=False), "names 2 classes", "10")


def test_class_names_that_are_not_text_are_refused(bundle_copy):
    (bundle_copy / "classes.txt").write_bytes(b"\xff\n" * 10)
    refused(lambda: load(bundle_copy, verify=False), "classes.txt")


# -------------------- closing


@pytest.fixture
def closed(monkeypatch):
    """The engines that were closed."""
    engines, close = [], OnnxRuntimeRunner.close

    def recording(self):
        engines.append(self)
        close(self)

    monkeypatch.setattr(OnnxRuntimeRunner, "close", recording)
    return engines


@pytest.mark.parametrize(("memory", "at_the_end"), [("speed", 1), ("shared", 2)])
def test_leaving_the_block_closes_every_engine(digits_bundle, closed, memory, at_the_end):
    with load(digits_bundle, memory=memory, threads=1) as runner:
        runner.switch(1)
        before = len(closed)
    assert len(closed) - before == at_the_end
    assert len(closed) == 2


def test_an_error_inside_the_block_closes_it_and_comes_out(digits_bundle, closed):
    with pytest.raises(KeyError, match="mine"), load(digits_bundle, threads=1):
        raise KeyError("mine")
    assert len(closed) == 1


def test_a_closed_runner_runs_again_after_a_switch(digits_bundle, pixels):
    runner = load(digits_bundle, threads=1)
    before = runner.infer(pixels[:1])
    runner.close()
    runner.close()
    runner.switch(0.7)
    np.testing.assert_array_equal(runner.infer(pixels[:1]).logits, before.logits)
    runner.close()


def test_the_package_offers_load_without_importing_it_first():
    assert ztdeploy.load is opening.load
    assert ztdeploy.BundleRunner.__name__ == "BundleRunner"
    with pytest.raises(AttributeError, match="nothing"):
        _ = ztdeploy.nothing


def test_a_keep_ratio_in_fp32_is_that_of_the_bundle(digits_bundle):
    with load(digits_bundle, keep_ratio=np.float32(0.7), threads=1) as runner:
        assert runner.keep_ratio == 0.7


def test_a_bundle_in_a_folder_whose_name_is_not_utf8(digits_bundle, digit_images, tmp_path):
    folder = tmp_path / os.fsdecode(b"b\xff\x1b[31m")
    shutil.copytree(digits_bundle, folder)
    with ztdeploy.load(folder, threads=1) as runner, ztdeploy.load(digits_bundle, threads=1) as plain:
        assert runner(digit_images[0])[0].labels == plain(digit_images[0])[0].labels
