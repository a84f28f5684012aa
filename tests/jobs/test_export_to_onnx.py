"""One ONNX file for services of others: what goes in, what comes out, and what is refused before writing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers.bundles import edit
from helpers.errors import refused
from numpy.typing import NDArray

from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.errors import InputError, OutputError, ParityError
from ztdeploy.core.preprocess_spec import ImageSize, PreprocessSpec
from ztdeploy.host.models.hf_processor import processor_of, said_by
from ztdeploy.jobs.export import export_bundle, parts
from ztdeploy.jobs.export.parts import MODEL, PROCESSOR, WEIGHTS, Served, output_of
from ztdeploy.target.runtime.parity import golden_pixels
from ztdeploy.target.runtime.preprocess import normalise
from ztdeploy.target.runtime.runner import load_engine

export_onnx_folder = partial(export_bundle, to="onnx")


def answers(folder: Path, images: NDArray[Any]) -> NDArray[Any]:
    session = ort.InferenceSession(folder / MODEL, providers=["CPUExecutionProvider"])
    (name,) = [one.name for one in session.get_inputs()]
    (found,) = session.run(None, {name: images})
    return found


def test_a_service_gives_what_the_engine_gives(digits_bundle: Path, tmp_path: Path) -> None:
    report = export_onnx_folder(digits_bundle, tmp_path / "service", variant="keep-0.50")
    bundle = read_bundle(digits_bundle)
    given = golden_pixels(bundle)
    with load_engine(bundle, variant="keep-0.50") as engine:
        wanted = engine.infer(given).logits
    values = normalise(given, bundle.manifest.preprocess)
    np.testing.assert_allclose(answers(tmp_path / "service", values), wanted, rtol=1e-4, atol=1e-4)
    (one,) = report.models
    assert (one.input.name, one.input.dtype, one.input.shape[1:]) == ("pixel_values", "float32", (3, 32, 32))
    assert (one.output.name, one.output.shape[1:]) == ("logits", (10,))
    assert one.images == len(given)
    assert one.difference <= one.tolerance
    assert sorted(report.files) == [MODEL, PROCESSOR]
    model = onnx.load(tmp_path / "service" / MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == one.opsets


@pytest.mark.parametrize(
    ("options", "prepared"),
    [
        ({"layout": "nhwc"}, lambda pixels, spec: normalise(pixels, spec).transpose(0, 2, 3, 1)),
        ({"form": "pixels"}, lambda pixels, spec: pixels),
        ({"form": "pixels", "layout": "nchw"}, lambda pixels, spec: pixels.transpose(0, 3, 1, 2)),
    ],
    ids=["values-last", "pixels-last", "pixels-first"],
)
def test_every_form_of_the_input(
    options: dict[str, Any], prepared: Callable[..., Any], digits_bundle: Path, tmp_path: Path
) -> None:
    plain, bundle = tmp_path / "plain", read_bundle(digits_bundle)
    export_onnx_folder(digits_bundle, plain)
    served = Served(input_name="image", output_name="vector", **options)
    (report,) = export_onnx_folder(digits_bundle, tmp_path / "other", served=served).models
    pixels, spec = golden_pixels(bundle), bundle.manifest.preprocess
    wanted = answers(plain, normalise(pixels, spec))
    np.testing.assert_allclose(answers(tmp_path / "other", prepared(pixels, spec)), wanted, rtol=1e-4, atol=1e-4)
    assert (report.input.name, report.output.name) == ("image", "vector")
    said = json.loads((tmp_path / "other" / PROCESSOR).read_text())
    assert said["do_normalize"] is said["do_rescale"] is (report.input.dtype == "float32")


def test_large_weights_lie_beside_the_graph(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "EMBEDDED_BYTES", 1000)
    report = export_onnx_folder(digits_bundle, tmp_path / "large")
    assert report.files[WEIGHTS] > 10 * report.files[MODEL]
    monkeypatch.undo()
    export_onnx_folder(digits_bundle, tmp_path / "large", force=True)
    assert sorted(path.name for path in (tmp_path / "large").iterdir()) == [MODEL, PROCESSOR], (
        "the old weights are gone"
    )


def test_what_differs_is_not_left_there(digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "normalise", lambda pixels, spec: 1.5 * normalise(pixels, spec))
    refused(lambda: export_onnx_folder(digits_bundle, tmp_path / "wrong"), "differs", kind=ParityError)
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_named_as_in_transformers(digits_bundle: Path) -> None:
    manifest = read_bundle(digits_bundle).manifest

    def named(name: str, output: str) -> str:
        model = manifest.model.model_copy(update={"timm_name": name, "output": output})
        return output_of(manifest.model_copy(update={"model": model}))

    assert named("CLIPVisionModelWithProjection", "embedding") == "image_embeds"
    assert named("CLIPVisionModel", "embedding") == named("SiglipVisionModel", "embedding") == "pooler_output"
    assert named("SiglipVisionModel", "features") == "last_hidden_state"
    assert named("ViTForImageClassification", "logits") == "logits"


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ({"variant": "keep-0.33"}, ("keep-0.33", "one of")),
        ({"profile": "mine"}, ("'mine'", "a profile in the bundle")),
        ({"profile": "jetson-orin"}, ("jetson-orin", "for a plain ONNX file", "one of: cpu")),
        ({"served": Served(input_name="pixel values")}, ("'pixel values'", "letters, digits and _")),
        ({"served": Served(input_name="Bild\u00fc")}, ("letters, digits and _",)),
        ({"served": Served(output_name="pixel_values")}, ("both input and output",)),
        ({"served": Served(output_name="scale", form="pixels")}, ("'scale'", "inside the graph")),
    ],
)
def test_what_cannot_be_exported_is_refused(
    options: dict[str, Any], fragments: tuple[str, ...], digits_bundle: Path, tmp_path: Path
) -> None:
    refused(lambda: export_onnx_folder(digits_bundle, tmp_path / "out", **options), *fragments, kind=InputError)
    assert list(tmp_path.iterdir()) == []


def test_engines_that_are_no_graphs_are_refused(bundle_copy: Path, tmp_path: Path) -> None:
    def as_openvino(manifest: Any) -> None:
        manifest["profiles"]["cpu"].update(backend="openvino", fused_attention_from=None)

    edit(bundle_copy, as_openvino)
    for profile in (None, "cpu"):
        call = lambda: export_onnx_folder(bundle_copy, tmp_path / "out", profile=profile)  # noqa: B023, E731
        refused(call, "for a plain ONNX file", "--profile cpu as well", kind=InputError)


def test_nothing_but_an_older_export_is_replaced(digits_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "service"
    export_onnx_folder(digits_bundle, out)
    refused(lambda: export_onnx_folder(digits_bundle, out), "exists", "--force", kind=OutputError)
    (out / "notes.txt").write_text("mine")
    refused(lambda: export_onnx_folder(digits_bundle, out, force=True), "notes.txt", kind=OutputError)
    (out / "notes.txt").unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (out / PROCESSOR).unlink()
    (out / PROCESSOR).symlink_to(elsewhere)
    export_onnx_folder(digits_bundle, out, force=True)
    assert elsewhere.read_text() == "mine", "a link in the folder is replaced, and not followed"
    (tmp_path / "link").symlink_to(out)
    refused(lambda: export_onnx_folder(digits_bundle, tmp_path / "link", force=True), "is a link", kind=OutputError)


SPECS = [
    PreprocessSpec(image_size=224, resize=256, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3), crop_rounding="down"),
    PreprocessSpec(
        image_size=224, resize=224, mean=(0.5,) * 3, std=(0.5,) * 3, crop_mode="squash", crop_rounding="down"
    ),
    PreprocessSpec(
        image_size=ImageSize(96, 384),
        resize=ImageSize(100, 400),
        interpolation="bilinear",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        crop_mode="squash",
        crop_rounding="down",
    ),
]


@pytest.mark.parametrize("spec", SPECS, ids=["crop", "squash", "squash-crop"])
def test_the_processor_means_what_the_bundle_does(spec: PreprocessSpec) -> None:
    said = processor_of(spec, pixels=False)
    assert said is not None
    found = said_by(said, "ViT")
    assert found["image_size"] == tuple(spec.image_size)
    assert [int(side / found["crop_pct"]) for side in found["image_size"]] == list(spec.resize)
    for name in ("mean", "std", "interpolation", "crop_mode", "crop_rounding"):
        assert found[name] == getattr(spec, name)


def test_no_processor_makes_grey_pixels() -> None:
    assert processor_of(PreprocessSpec(image_size=32, resize=32, mean=(0.5,), std=(0.5,)), pixels=False) is None


@pytest.mark.long
def test_neither_pytorch_nor_transformers_is_needed(digits_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'timm', 'transformers', 'onnxscript')));"
        "from pathlib import Path; from ztdeploy.jobs.export import export_bundle;"
        f"export_bundle(Path({str(digits_bundle)!r}), Path({str(tmp_path / 'out')!r}), 'onnx')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "out" / MODEL).is_file()
