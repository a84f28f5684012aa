"""OpenVINO's profiles as people meet them: each verb works, or says in one line why not."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bundles import edit, linked_copy
from helpers.errors import refused
from helpers.processes import run_ztdeploy
from helpers.processors import WITHOUT_BF16, needs_bf16, pretending
from helpers.triton_config import parsed

from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.errors import InputError, OutputError
from ztdeploy.core.processor import onednn_processor
from ztdeploy.jobs.export import export_bundle
from ztdeploy.target.runtime.parity import golden_pixels, golden_reference

PROFILES = ("cpu-openvino", "cpu-openvino-bf16")
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both profiles, dense and one keep ratio; a copy is to be made by who changes it."""
    if find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    folder = tmp_path_factory.mktemp("openvino")
    profiles = [word for name in PROFILES for word in ("--profile", name)]
    done = run_ztdeploy("build", "-m", "vit_digits", *profiles, "--out", "bundle", cwd=folder)
    assert done.code == 0, done
    return folder / "bundle"


@needs_openvino
def test_engines_are_proved_and_hold_no_weights(bundle: Path) -> None:
    opened = read_bundle(bundle)
    for variant in opened.manifest.variants:
        plain, half = (variant.engines[name] for name in PROFILES)
        assert plain.parity is not None
        assert plain.parity.gap_tolerance == 1e-5, "fp32: judged as ONNX Runtime's engines are"
        assert variant.graphs["cpu-openvino-bf16"].drift is not None
        assert (half.parity is not None) == onednn_processor().computes_bf16
        for engine in (plain, half):
            assert engine.weights is None
            assert opened.path(engine.file).stat().st_size < 200
    names = {path.suffix for path in (bundle / "graphs").iterdir()}
    assert names == {".onnx", ".json", ".safetensors"}


@needs_openvino
def test_a_model_server_computes_as_the_engine_does(bundle: Path, tmp_path: Path) -> None:
    from ztdeploy.target.backends.openvino import load_openvino

    out, opened, core = tmp_path / "models", read_bundle(bundle), load_openvino().Core()
    export_bundle(bundle, out, "openvino", profile="cpu-openvino")
    entries = json.loads((out / "config.json").read_text())["model_config_list"]
    assert len(entries) == len(opened.manifest.variants)
    for variant, entry in zip(opened.manifest.variants, entries, strict=True):
        said = entry["config"]
        assert set(said) == {"name", "base_path", "target_device", "plugin_config"}, "keys of the server's schema"
        assert said["plugin_config"]["INFERENCE_PRECISION_HINT"] == "f32", "or it would compute in bf16 where it can"
        model = core.read_model(out / said["base_path"] / "1" / "model.onnx")
        compiled = core.compile_model(model, said["target_device"], said["plugin_config"])
        found = compiled({"image": golden_pixels(opened)})["logits"]
        np.testing.assert_allclose(found, golden_reference(opened, variant).logits, rtol=1e-4, atol=1e-4)
    export_bundle(bundle, out, "openvino", profile="cpu-openvino", variant="dense", force=True)
    assert sorted(path.name for path in out.iterdir()) == ["bundle-dense", "config.json"]
    (out / "bundle-dense" / "mine").touch()
    refused(lambda: export_bundle(bundle, out, "openvino", force=True), "'bundle-dense'", kind=OutputError)


@needs_openvino
def test_triton_does_not_fill_openvinos_batches(bundle: Path, tmp_path: Path) -> None:
    report = export_bundle(bundle, tmp_path / "models", "triton", profile="cpu-openvino", variant="dense")
    (model,) = report.models
    said = parsed((tmp_path / "models" / model.name / "config.pbtxt").read_text())
    assert (said.backend, said.default_model_filename, said.max_batch_size) == ("openvino", "model.onnx", 0)
    assert list(said.input[0].dims) == [-1, 32, 32, 3], "any batch of a client, none of which is joined"
    assert list(said.model_warmup[0].inputs[0].value.dims) == [1, 32, 32, 3]
    assert any("bf16" in note for note in report.notes)

    def by_row(manifest: Any) -> None:
        manifest["profiles"]["cpu-openvino"].update(precision="int8", int8={"activations": "row"})

    copy = edit(linked_copy(bundle, tmp_path / "copy"), by_row)
    call = lambda: export_bundle(copy, tmp_path / "other", "triton", profile="cpu-openvino")  # noqa: E731
    refused(call, "profile 'cpu-openvino'", "for Triton", kind=InputError)


@needs_openvino
@pytest.mark.parametrize(
    "profile", ["cpu-openvino", pytest.param("cpu-openvino-bf16", marks=[needs_bf16, pytest.mark.long])]
)
def test_verifying_running_and_evaluating(bundle: Path, tmp_path: Path, digit_images: list[Path], profile: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    assert run_ztdeploy("verify", copy, "--profile", profile, cwd=tmp_path).code == 0
    done = run_ztdeploy("run", copy, digit_images[0], "--profile", profile, "--json", cwd=tmp_path)
    assert done.code == 0, done
    assert done.json()["images"][0]["labels"][0]["name"] == digit_images[0].stem.rpartition("_")[2]
    done = run_ztdeploy(
        "eval",
        copy,
        "--profile",
        profile,
        "--data",
        digit_images[0].parents[1],
        "--limit",
        "120",
        "--json",
        cwd=tmp_path,
    )
    assert done.code == 0, done
    report = done.json()
    assert {one["top1"]["total"] for one in report["variants"]} == {120}
    assert min(one["top1"]["count"] for one in report["variants"]) > 0.9 * 120
    assert read_bundle(copy).manifest.dense.engines[profile].file.endswith(".openvino.json")


@needs_openvino
def test_finalizing_builds_the_engines_again(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    done = run_ztdeploy("finalize", copy, "--profile", "cpu-openvino", "--json", cwd=tmp_path)
    assert done.code == 0, done
    assert done.json()["rebuilt"] == ["keep-0.80 (cpu-openvino)", "dense (cpu-openvino)"]
    assert run_ztdeploy("verify", copy, "--profile", "cpu-openvino", cwd=tmp_path).code == 0


@needs_openvino
def test_measuring_and_showing(bundle: Path, tmp_path: Path, digit_images: list[Path]) -> None:
    short = ("--rounds", "1", "--iterations", "1", "--warmup", "0")
    done = run_ztdeploy("bench", bundle, "--profile", "cpu-openvino", "--threads", "1", *short, "--json", cwd=tmp_path)
    assert done.code == 0, done
    report = done.json()
    assert report["bundle"]["runtime"].startswith("openvino ")
    assert {one["threads"] for one in report["configurations"]} == {1}
    assert all(one["engine_mb"] < 0.001 < one["shared_weights_mb"] for one in report["configurations"])
    done = run_ztdeploy("show", bundle, digit_images[0], "--profile", "cpu-openvino", "--out", "shown", cwd=tmp_path)
    assert done.code == 0, done


def test_without_openvino_a_build_names_the_extra(tmp_path: Path) -> None:
    done = run_ztdeploy(
        "build", "-m", "vit_digits", "-p", "cpu-openvino", "--out", "out", cwd=tmp_path, hidden="openvino"
    )
    assert done.code == 6, done
    assert "'openvino'" in done.error
    assert done.error.endswith("run: pip install 'ztdeploy[openvino]'")
    assert not (tmp_path / "out").exists()


@needs_openvino
def test_a_processor_without_bf16_is_told_so(bundle: Path, tmp_path: Path, digit_images: list[Path]) -> None:
    for verb in (["run", bundle, digit_images[0]], ["verify", bundle]):
        done = run_ztdeploy(*verb, "--profile", "cpu-openvino-bf16", cwd=tmp_path, first=pretending(WITHOUT_BF16))
        assert done.code == 6, done
        assert "does not compute in bf16" in done.error
        assert "cpu-openvino" in done.error
