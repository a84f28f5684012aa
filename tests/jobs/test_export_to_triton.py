"""A model repository of Triton: what its configuration says holds for the files beside it, and for the engines."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from helpers.bundles import edit
from helpers.errors import refused
from helpers.triton_config import DTYPES, parsed

from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.errors import InputError, OutputError
from ztdeploy.jobs.export import export_bundle
from ztdeploy.jobs.export.parts import LABELS, MODEL, Served
from ztdeploy.jobs.export.triton import CONFIGURATION
from ztdeploy.target.runtime.parity import golden_pixels
from ztdeploy.target.runtime.runner import load_engine

export_triton_repository = partial(export_bundle, to="triton")


def served(folder: Path) -> np.ndarray:
    """What Triton would answer to its own warm-up: only what the configuration says is known."""
    said = parsed((folder / CONFIGURATION).read_text())
    (taken,), (given,), (warm_up,) = said.input, said.output, said.model_warmup
    (entry,) = warm_up.inputs
    batch = [warm_up.batch_size] if said.max_batch_size else []
    assert (entry.key, entry.value.data_type, entry.value.dims) == (taken.name, taken.data_type, taken.dims)
    image = np.fromfile(folder / "warmup" / entry.value.input_data_file, DTYPES[taken.data_type])
    session = ort.InferenceSession(folder / "1" / MODEL, providers=["CPUExecutionProvider"])
    (found,) = session.run([given.name], {taken.name: image.reshape([*batch, *taken.dims])})
    assert found.dtype == DTYPES[given.data_type]
    assert list(found.shape) == [*batch, *given.dims]
    return found


def test_every_variant_answers_as_its_engine_does(digits_bundle: Path, tmp_path: Path) -> None:
    report = export_triton_repository(digits_bundle, tmp_path / "models")
    bundle = read_bundle(digits_bundle)
    assert {model.variant for model in report.models} == {one.name for one in bundle.manifest.variants}
    for model in report.models:
        folder = tmp_path / "models" / model.name
        with load_engine(bundle, variant=model.variant) as engine:
            expected = engine.infer(golden_pixels(bundle)[:1]).logits
        np.testing.assert_allclose(served(folder), expected, rtol=1e-4, atol=1e-4)
        said = parsed((folder / CONFIGURATION).read_text())
        assert (said.name, said.backend) == (folder.name, "onnxruntime")
        assert said.max_batch_size == max(bundle.manifest.profiles["cpu"].batch.sizes)
        assert said.HasField("dynamic_batching")
        assert said.output[0].label_filename == LABELS
        assert (folder / LABELS).read_text().splitlines() == list("0123456789")
    assert sum(size for name, size in report.files.items() if name.endswith(MODEL)) > 0


def test_the_official_client_reads_the_configuration(digits_bundle: Path, tmp_path: Path) -> None:
    official = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2",
        reason="tritonclient[grpc] is not installed; it asks for an older protobuf",
    )
    report = export_triton_repository(digits_bundle, tmp_path / "models")
    for model in report.models:
        text = (tmp_path / "models" / model.name / CONFIGURATION).read_text()
        assert text_format.Parse(text, official.ModelConfig()).name == model.name


def test_one_variant_threads_and_names(bundle_copy: Path, tmp_path: Path) -> None:
    edit(bundle_copy, lambda manifest: manifest["profiles"]["cpu"].update(threads=3, batch={"sizes": [1]}))
    out = tmp_path / "models"
    (model,) = export_triton_repository(bundle_copy, out, variant="dense", served=Served("pixels", "scores")).models
    said = parsed((out / model.name / CONFIGURATION).read_text())
    assert (said.input[0].name, said.output[0].name) == ("pixels", "scores")
    assert {one.key: one.value.string_value for one in said.parameters} == {"intra_op_thread_count": "3"}
    assert said.max_batch_size == 1
    assert not said.HasField("dynamic_batching"), "there is nothing to join"
    assert served(out / model.name).shape == (1, 10)


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ({"variant": "keep-0.33"}, ("keep-0.33", "one of")),
        ({"profile": "jetson-orin"}, ("no engine for profile", "ztdeploy finalize")),
        ({"served": Served("two words")}, ("'two words'", "letters, digits and _")),
        ({"served": Served("image", form="pixels")}, ("--pixels for Triton", "leave it out")),
        ({"served": Served("image", layout="nchw")}, ("--layout for Triton", "leave it out")),
    ],
)
def test_what_triton_cannot_be_given_is_refused(
    options: dict[str, Any], fragments: tuple[str, ...], digits_bundle: Path, tmp_path: Path
) -> None:
    refused(lambda: export_triton_repository(digits_bundle, tmp_path / "out", **options), *fragments, kind=InputError)
    assert list(tmp_path.iterdir()) == []


def test_only_our_own_repositories_are_replaced(digits_bundle: Path, tmp_path: Path) -> None:
    out, one = tmp_path / "models", {"variant": "dense"}
    export_triton_repository(digits_bundle, out)
    refused(lambda: export_triton_repository(digits_bundle, out, **one), "exists", "--force", kind=OutputError)
    (model,) = export_triton_repository(digits_bundle, out, **one, force=True).models
    assert [path.name for path in out.iterdir()] == [model.name]
    theirs = out / "theirs"
    theirs.mkdir()
    (theirs / CONFIGURATION).write_text('backend: "python"\n')
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    refused(lambda: export_triton_repository(digits_bundle, out, **one, force=True), "'theirs'", kind=OutputError)
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
