"""A cascade that is open: which stage answers which image, and that it answers as its variants do."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.bundles import edit, linked_copy, rewrite
from helpers.errors import refused
from numpy.typing import NDArray

import ztdeploy
from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.errors import BundleError, InputError, ParityError, ZtdeployError
from ztdeploy.core.manifest import PartRecord
from ztdeploy.core.progress import silent
from ztdeploy.target.adaptive.cascade import CascadeRunner, Staged, Stages
from ztdeploy.target.adaptive.guarantee import quantiles
from ztdeploy.target.adaptive.pieces import engine_opener
from ztdeploy.target.backends.base import Array, Runner, Signature
from ztdeploy.target.runtime.preprocess import load_pixels
from ztdeploy.target.verify import verify_bundle

CHAIN = ["keep-0.50", "keep-0.70", "dense"]
#: Of the two stages that may send an image on: all three kinds of ways through the chain occur among the digits.
THRESHOLDS = (0.8, 0.85)
MANY, NONE = math.inf, -math.inf


class Padded:
    """An engine that takes no other batch than its own."""

    def __init__(self, runner: Runner, batch: int) -> None:
        self.runner, self.batch, self.signature = runner, batch, runner.signature

    def infer(self, feeds: Any) -> dict[str, Array]:
        (feed,) = feeds.values()
        assert len(feed) == self.batch
        return self.runner.infer(feeds)

    def close(self) -> None:
        self.runner.close()


def unchanged(_part: PartRecord, runner: Runner) -> Runner:
    return runner


def opened_stages(bundle: Bundle, change: Callable[[PartRecord, Runner], Runner] = unchanged) -> Stages:
    opened = engine_opener(bundle, "cpu", 1)
    return Stages(bundle, "cpu", lambda part: change(part, opened(part)))


@pytest.fixture(scope="module")
def bundle(cascade_bundle: Path) -> Bundle:
    return read_bundle(cascade_bundle)


@pytest.fixture(scope="module")
def stages(bundle: Bundle) -> Iterator[Stages]:
    found = opened_stages(bundle)
    yield found
    found.close()


@pytest.fixture(scope="module")
def pixels(bundle: Bundle, digit_images: list[Path]) -> NDArray[np.uint8]:
    return load_pixels(digit_images[100:140], bundle.manifest.preprocess)


@pytest.fixture(scope="module")
def whole(bundle: Bundle, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """What each variant of the chain gives."""
    with ztdeploy.load(bundle, variant="dense", profile="cpu", threads=1) as runner:
        found = []
        for name in CHAIN:
            runner.switch(variant=name)
            found.append(runner.infer(pixels).logits)
    return found


def run(stages: Stages, pixels: NDArray[np.uint8], thresholds: Sequence[float] = THRESHOLDS) -> Staged:
    return stages.run(pixels, [""] * len(pixels), thresholds)


@pytest.fixture
def copy(cascade_bundle: Path, tmp_path: Path) -> Path:
    return linked_copy(cascade_bundle, tmp_path / "bundle")


# -------------------- stages


def test_each_image_gets_the_answer_of_the_stage_that_it_ends_at(
    stages: Stages, pixels: NDArray[np.uint8], whole: list[NDArray[np.float32]]
) -> None:
    """Regrouped, all images are answered in their order as one at a time; NaN where a stage did not run."""
    found = run(stages, pixels)
    assert set(found.stage.tolist()) == {0, 1, 2}
    np.testing.assert_allclose(
        found.logits, [whole[stage][image] for image, stage in enumerate(found.stage)], rtol=1e-4, atol=1e-4
    )
    for image in range(len(pixels)):
        alone, stage = run(stages, pixels[image : image + 1]), int(found.stage[image])
        assert alone.stage.tolist() == [stage]
        sure = found.confidence[:, image]
        np.testing.assert_allclose(alone.confidence[:, 0], sure, atol=1e-5)
        assert [not math.isnan(one) for one in sure] == [earlier <= stage for earlier in range(2)]
        assert all(one < limit for one, limit in zip(sure[:stage], THRESHOLDS, strict=False))
    for answered in found.answers:
        layers = [layer.tokens_out for layer in stages.variants[answered.stage or 0].plan.layers]
        assert [kept.shape for kept in answered.outputs.kept] == [(len(answered.places), count) for count in layers]


@pytest.mark.parametrize(("thresholds", "stage"), [((NONE, NONE), 0), ((MANY, NONE), 1), ((MANY, MANY), 2)])
def test_infinite_thresholds_send_all_images_on_or_none(
    stages: Stages, pixels: NDArray[np.uint8], thresholds: tuple[float, float], stage: int
) -> None:
    assert run(stages, pixels[:3], thresholds).stage.tolist() == [stage] * 3


def test_a_fixed_batch_is_filled_up_at_every_stage(bundle: Bundle, stages: Stages, pixels: NDArray[np.uint8]) -> None:
    """With engines that refuse any other batch than three."""

    def fixed(part: Any) -> Any:
        graphs = {name: graph.model_copy(update={"batch": 3}) for name, graph in part.graphs.items()}
        return part.model_copy(update={"graphs": graphs})

    cascade = bundle.manifest.cascade
    assert cascade is not None
    pieces = {"prefix": fixed(cascade.prefix), "stages": tuple(map(fixed, cascade.stages))}
    manifest = bundle.manifest.model_copy(update={"cascade": cascade.model_copy(update=pieces)})
    padded = opened_stages(Bundle(bundle.root, manifest), lambda _part, runner: Padded(runner, 3))
    found, wanted = run(padded, pixels[:11]), run(stages, pixels[:11])
    padded.close()
    assert found.stage.tolist() == wanted.stage.tolist()
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-5)


class Told(Padded):
    """An engine that says of itself what it is told to, or gives other confidences."""

    def __init__(self, runner: Runner, signature: Signature | None = None, confidence: float | None = None) -> None:
        self.runner, self.signature, self.confidence = runner, signature or runner.signature, confidence

    def infer(self, feeds: Any) -> dict[str, Array]:
        found = self.runner.infer(feeds)
        if self.confidence is not None and "confidence" in found:
            found["confidence"] = np.full_like(found["confidence"], self.confidence)
        return found


def test_pieces_that_take_or_give_something_else_are_refused(bundle: Bundle, pixels: NDArray[np.uint8]) -> None:
    def silent_tail(part: PartRecord, runner: Runner) -> Runner:
        kept = tuple(one for one in runner.signature.outputs if one.name != "confidence")
        return Told(runner, Signature(runner.signature.inputs, kept))

    def images(part: PartRecord, runner: Runner) -> Runner:
        return Told(runner, Signature(runner.signature.inputs, runner.signature.inputs))

    refused(lambda: opened_stages(bundle, silent_tail), "does not say how confident it is")
    refused(lambda: opened_stages(bundle, images), "'image'", "'tokens' float32 [any, 65, ")
    found = opened_stages(bundle, lambda _part, runner: Told(runner, confidence=math.nan))
    refused(lambda: run(found, pixels[:2]), "how confident", "a finite number")
    found.close()


# -------------------- the runner


def test_a_runner_says_which_stage_answered_and_counts(
    cascade_bundle: Path, digit_images: list[Path], whole: list[NDArray[np.float32]]
) -> None:
    """From several threads at once, and opened again after it was closed."""
    images = digit_images[100:140]
    with ztdeploy.load(cascade_bundle, profile="cpu", cascade=True, threads=1) as runner:
        runner.setting = runner.setting.model_copy(update={"thresholds": THRESHOLDS})
        first = runner(images)
        assert [Path(one.image or "") for one in first] == images
        for image, one in enumerate(first):
            np.testing.assert_allclose(one.logits, whole[one.stage or 0][image], rtol=1e-4, atol=1e-4)
        once = runner.counts
        assert sum(once) == 40
        assert min(once) > 0
        runner.close()
        with ThreadPoolExecutor(4) as pool:
            again = list(pool.map(runner, [images] * 4))
        assert all([one.stage for one in found] == [one.stage for one in first] for found in again)
        assert runner.counts == tuple(5 * count for count in once)
        assert repr(runner) == "CascadeRunner('cascade', 'keep-0.50, keep-0.70, dense', profile='cpu')"


def looking(runner: CascadeRunner, confidence: NDArray[np.float32]) -> bool:
    """Whether a runner calls images of such confidence unlike its own, after calls of 7 images."""
    for start in range(0, len(confidence), 7):
        runner._look_at(confidence[start : start + 7])
    return runner.unlike


def test_it_warns_of_images_unlike_those_of_the_calibration(
    cascade_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of less confident ones soon; of like ones in at most a twentieth of the runs, however long they are."""
    random = np.random.default_rng(0)
    alarms = 0
    with ztdeploy.load(cascade_bundle, profile="cpu", cascade=True) as runner:

        def fresh() -> CascadeRunner:
            runner._seen, runner._rounds, runner.unlike = [], 1, False
            known = quantiles(random.beta(5, 1, 500).astype(np.float32))
            guarantee = runner.setting.guarantee.model_copy(update={"images": 500})
            runner.setting = runner.setting.model_copy(update={"quantiles": known, "guarantee": guarantee})
            return runner

        for _ in range(60):
            alarms += looking(fresh(), random.beta(5, 1, 4000).astype(np.float32))
        assert alarms <= 3
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert looking(fresh(), random.beta(3, 1, 256).astype(np.float32))
        assert runner.warning in [record.getMessage() for record in caplog.records]
        assert "unlike 'some digits'" in str(runner.warning)


def test_a_bundle_without_a_cascade_or_thresholds_is_refused(digits_bundle: Path, copy: Path) -> None:
    refused(lambda: ztdeploy.load(digits_bundle, cascade=True), "has no cascade", "--cascade 0.99", kind=InputError)
    edit(copy, lambda manifest: manifest["cascade"]["settings"].pop("cpu"))
    call = lambda: ztdeploy.load(copy, profile="cpu", cascade=True)  # noqa: E731
    refused(call, "no thresholds for profile 'cpu'", "jetson-orin", kind=InputError)


# -------------------- verify


def test_verify_holds_the_pieces_against_whole_engines(cascade_bundle: Path) -> None:
    report = verify_bundle(cascade_bundle, "cpu", silent)
    assert list(report.cascade) == [f"tail.{name}" for name in CHAIN]
    assert all(parity.judged < 1e-5 for parity in report.cascade.values())


def swap(bundle: Path) -> None:
    """The tail of one stage in place of another's, with the hashes of the manifest."""
    names = [f"graphs/_tail.{name}.cpu.onnx" for name in CHAIN[:2]]
    contents = [(bundle / name).read_bytes() for name in names]
    for name, content in zip(names, reversed(contents), strict=True):
        rewrite(bundle, name, content)


def other_prefix(bundle: Path) -> None:
    """A prefix of the same shapes that hands over other tokens, with the hashes of the manifest."""
    path = "graphs/_prefix.cpu.onnx"
    model = onnx.load(bundle / path, load_external_data=False)
    (output,) = model.graph.output
    last = next(node for node in model.graph.node if output.name in node.output)
    last.output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Neg", ["before"], [output.name]))
    rewrite(bundle, path, model.SerializeToString())


def damage(bundle: Path) -> None:
    path = bundle / "graphs/_prefix.cpu.onnx"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])


@pytest.mark.parametrize(
    ("harm", "said", "kind"),
    [
        (swap, "'keep-0.50'", BundleError),
        (damage, "_prefix.cpu", BundleError),
        (other_prefix, "cut in front of block", ParityError),
    ],
)
def test_verify_refuses_damaged_and_swapped_pieces(
    copy: Path, harm: Callable[[Path], None], said: str, kind: type[ZtdeployError]
) -> None:
    harm(copy)
    refused(lambda: verify_bundle(copy, "cpu", silent), said, kind=kind)


def test_verify_refuses_a_confidence_that_is_not_of_the_outputs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ztdeploy.target.adaptive.cascade.margins", lambda logits, _activation: np.zeros(len(logits)))
    refused(
        lambda: verify_bundle(bundle.root, "cpu", silent), "confidence in the golden images differs", kind=ParityError
    )


def promises(setting: Any) -> None:
    setting["guarantee"]["bound"] = 1 - setting["guarantee"]["failures"] / setting["guarantee"]["images"]


def costs_less(setting: Any) -> None:
    setting["gmacs"] /= 2


@pytest.mark.parametrize(("profile", "change"), [("cpu", promises), ("jetson-orin", costs_less)])
def test_verify_refuses_promises_that_no_count_makes(
    copy: Path, profile: str, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the engines cannot run."""
    monkeypatch.setattr("ztdeploy.target.verify._check_engines", lambda *_: pytest.fail("engines run first"))
    edit(copy, lambda manifest: change(manifest["cascade"]["settings"][profile]))
    refused(lambda: verify_bundle(copy, None, silent), f"the cascade ({profile})")


def of_other_stages(cascade: Any) -> None:
    cascade["stages"][0]["variant"] = "keep-0.60"


def cut_earlier(cascade: Any) -> None:
    cascade["block"] -= 1


def of_another_signal(cascade: Any) -> None:
    cascade["signal"] = "closeness"


@pytest.mark.parametrize("change", [of_other_stages, cut_earlier, of_another_signal])
def test_a_manifest_with_another_cascade_than_was_built_is_refused(copy: Path, change: Callable[[Any], None]) -> None:
    edit(copy, lambda manifest: change(manifest["cascade"]))
    refused(lambda: read_bundle(copy), "manifest.json", "has a cascade")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("thresholds", [-0.1, 0.5]),
        ("thresholds", [0.5, 7]),
        ("thresholds", [0.5]),
        ("quantiles", [0.5, 0.4]),
        ("quantiles", []),
        ("quantiles", [0.5, 3]),
        ("shares", [1, 0.2, 0.3]),
        ("shares", [0.9, 0.2, 0.1]),
        ("shares", [1, 0.999, 0.999]),
        ("stage_ms", [-1, 2, 3]),
        ("guarantee", {"bound": 1.0, "failures": 1}),
        ("guarantee", {"asked": 0.999}),
        ("guarantee", {"min_cosine": 0.9}),
    ],
)
def test_a_manifest_whose_cascade_cannot_be_right_is_refused(copy: Path, field: str, value: Any) -> None:
    def change(manifest: Any) -> None:
        setting = manifest["cascade"]["settings"]["cpu"]
        setting[field] = {**setting[field], **value} if isinstance(value, dict) else value

    edit(copy, change)
    refused(lambda: read_bundle(copy), "manifest.json")
