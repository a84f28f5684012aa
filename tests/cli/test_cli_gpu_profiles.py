"""Profiles of GPUs on the command line of a machine without one: what is built, what is said, what is left out."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import CHECKOUT, Done, run_forked

RTX = pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT-RTX is not installed")
NO_GPU = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
pytestmark = [RTX, NO_GPU]
PAPERS = ("--method", "zero-tprune", "--keep-ratio", "0.7")  # of few layers, so that a trace of one's own takes little


def run(*arguments: str | Path, cwd: Path, first: str = "") -> Done:
    """`ztdeploy ARGUMENTS` in a process of its own, that runs a statement first."""
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name}
    environment = {**shell, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "100"}
    return run_forked(*arguments, cwd=cwd, environment=environment, first=first)


def check_error(done: Done, code: int, *words: str) -> None:
    """One line that says value; expectation; fix."""
    assert done.code == code, done
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.err
    assert done.err.splitlines()[-1] == errors[0]
    assert re.fullmatch(r"error: \S.*; expected \S.*; \S.*", errors[0]), errors[0]
    assert "Traceback" not in done.err
    assert "this is a bug" not in errors[0]
    for word in words:
        assert word in errors[0], errors[0]


def toml(folder: Path, name: str, **changes: str) -> Path:
    """A profile of one's own."""
    lines = {"title": '"Mine"', "backend": '"tensorrt-rtx"', "precision": '"fp16"', "keep_ratios": "[1.0]"}
    top = {**lines, **{key: value for key, value in changes.items() if key != "capabilities"}}
    text = "\n".join(f"{key} = {value}" for key, value in top.items())
    if "capabilities" in changes:
        text += f"\n[tensorrt]\ncompute_capabilities = {changes['capabilities']}"
    path = folder / f"{name}.toml"
    path.write_text(text + "\n")
    return path


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """Three profiles in one command."""
    folder = tmp_path_factory.mktemp("gpu")
    profiles = ("--profile", "cpu", "--profile", "desktop-gpu", "--profile", "jetson-orin")
    arguments = ("-m", "vit_digits", *profiles, "--keep-ratio", "0.7", "--out", "bundle", "--json")
    done = run("build", *arguments, cwd=folder)
    assert done.code == 0, done
    return folder / "bundle", done


@pytest.fixture(scope="module")
def bundle(build: tuple[Path, Done]) -> Path:
    return build[0]


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Any:
    return json.loads((bundle / "manifest.json").read_text())


@pytest.fixture(scope="module")
def gpu_only(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As if only desktop-gpu had been asked for."""
    import shutil

    copy = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("gpu-only") / "bundle"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["profiles"] = {"desktop-gpu": manifest["profiles"]["desktop-gpu"]}
    for variant in manifest["variants"]:
        for kind in ("graphs", "engines"):
            variant[kind] = {"desktop-gpu": variant[kind]["desktop-gpu"]}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_standard_output_is_json_and_nothing_else(build: tuple[Path, Done]) -> None:
    assert build[1].json()
    assert not [line for line in build[1].err.splitlines() if line.startswith(("[W]", "[I]", "Traceback"))], build[
        1
    ].err


def test_graphs_are_named_by_what_tells_them_apart(bundle: Path, manifest: Any) -> None:
    for variant in ("keep-0.70", "dense"):
        (record,) = [one for one in manifest["variants"] if one["name"] == variant]
        files = {name: Path(graph["file"]).name for name, graph in record["graphs"].items()}
        board = Path(files["jetson-orin"])
        assert files == {
            "cpu": f"{variant}.fp32.onnx",
            "desktop-gpu": f"{variant}.fp16-turing.onnx",
            "jetson-orin": board.name,
        }
        assert board.name.startswith(f"{variant}.fp16")
        assert len(set(files.values())) == 3
        assert {name: graph["precision"] for name, graph in record["graphs"].items()} == {
            "cpu": "fp32",
            "desktop-gpu": "fp16",
            "jetson-orin": "fp16",
        }
        plugin_files = {name: graph["plugin_file"] for name, graph in record["graphs"].items()}
        plugins = f"graphs/{board.stem}.plugins.onnx" if variant != "dense" else None
        assert plugin_files == {"cpu": None, "desktop-gpu": None, "jetson-orin": plugins}
        assert sorted(record["engines"]) == ["cpu", "desktop-gpu"]
        assert (bundle / record["engines"]["desktop-gpu"]["file"]).suffix == ".engine"


def test_the_weights_are_there_once_in_each_type(bundle: Path, manifest: Any) -> None:
    assert [path.name for path in bundle.rglob("*.safetensors")] == ["weights.safetensors"]
    size = (bundle / "graphs" / "weights.safetensors").stat().st_size
    (dense,) = [one for one in manifest["variants"] if one["name"] == "dense"]
    both = dense["graphs"]["cpu"]["weights_bytes"] + dense["graphs"]["jetson-orin"]["weights_bytes"]
    assert 0.9 * both < size < 1.1 * both
    assert all(path.stat().st_size < size / 4 for path in (bundle / "graphs").glob("*.onnx"))


def test_what_has_not_been_proved_here_is_said(manifest: Any, bundle: Path) -> None:
    assert {one["profile"]: one["kind"] for one in manifest["missing"]} == {
        "desktop-gpu": "run",
        "jetson-orin": "engines",
    }
    assert run("inspect", bundle, "--json", cwd=bundle.parent).json()["missing"] == manifest["missing"]
    said = run("inspect", bundle, cwd=bundle.parent).out
    assert "ztdeploy verify BUNDLE" in said
    assert "ztdeploy finalize BUNDLE" in said


def test_graphs_of_engines_that_cannot_run_here_are_proved_themselves(manifest: Any) -> None:
    for variant in manifest["variants"]:
        assert variant["engines"]["cpu"]["parity"] is not None
        assert variant["engines"]["desktop-gpu"]["parity"] is None, "it never ran"
        for name in ("desktop-gpu", "jetson-orin"):
            graph = variant["graphs"][name]
            assert graph["parity"]["gap_tolerance"] is None
            assert graph["parity"]["max_logit_difference"] <= graph["parity"]["logit_tolerance"]
            assert graph["drift"] is not None
        assert variant["graphs"]["cpu"]["drift"] is None


def test_verify_checks_what_it_can_and_warns_of_the_rest(bundle: Path) -> None:
    done = run("verify", bundle, cwd=bundle.parent)
    assert done.code == 0, done
    warnings = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "'desktop-gpu' was not run" in warnings[0]
    assert "keep-0.70" in done.out
    report = run("verify", bundle, "--json", cwd=bundle.parent).json()
    assert list(report["not_run"]) == ["desktop-gpu"]
    assert sorted(report["variants"]) == ["dense (cpu)", "keep-0.70 (cpu)"]


def test_run_takes_the_engines_that_work_here(bundle: Path, digit_images: list[Path]) -> None:
    done = run("run", bundle, digit_images[0], "--json", cwd=bundle.parent)
    assert done.code == 0, done
    (answer,) = done.json()["images"]
    assert str(answer["labels"][0]["index"]) == digit_images[0].stem[-1]


@pytest.mark.parametrize("verb", ["run", "verify"])
def test_a_profile_asked_for_by_name_must_run(verb: str, bundle: Path, digit_images: list[Path]) -> None:
    images = [digit_images[0]] if verb == "run" else []
    check_error(run(verb, bundle, *images, "--profile", "desktop-gpu", cwd=bundle.parent), 6)


def test_without_engines_for_this_machine_nothing_runs(gpu_only: Path, digit_images: list[Path]) -> None:
    done = run("run", gpu_only, digit_images[0], cwd=gpu_only.parent)
    check_error(done, 6, "desktop-gpu", "--profile cpu")
    verified = run("verify", gpu_only, cwd=gpu_only.parent)
    assert verified.code == 0
    assert "no engine in the bundle could be run here" in verified.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": '"int8"', "capabilities": '["8.6"]'}, ["int8", "precision fp32 or fp16 or bf16"]),
        ({"capabilities": '["8.66"]'}, ["'8.66'", "did you mean '8.6'?"]),
        ({"capabilities": '["8.7"]'}, ["8.7", "the backend tensorrt"]),
        ({"precision": '"fp32"', "capabilities": '["7.5"]'}, ["fp32", "7.5"]),
        ({"backend": '"onnxruntime"'}, ["fp16", "onnxruntime"]),
        ({"backend": '"tensorrt"', "precision": '"int8"'}, ["int8"]),
    ],
)
def test_profiles_that_ask_for_what_there_is_not(changes: dict[str, str], words: list[str], tmp_path: Path) -> None:
    path = toml(tmp_path, "mine", **changes)
    done = run("build", "-m", "vit_digits", "-p", "cpu", "-p", path, "--out", "out", cwd=tmp_path)
    check_error(done, 3, "'mine'", *words)
    assert [one.name for one in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.long
def test_a_fixed_batch_and_bf16_print_nothing_but_json(tmp_path: Path) -> None:
    """Only the board's graph has twins with plugin nodes; their making is silent."""
    shared = toml(tmp_path, "desktop", capabilities='["8.9"]', precision='"bf16"')
    board = toml(tmp_path, "board", backend='"tensorrt"', precision='"bf16"')
    arguments = ("-p", shared, "-p", board, *PAPERS, "--batch", "2", "--out", "out", "--json")
    done = run("build", "-m", "vit_digits", *arguments, cwd=tmp_path)
    assert done.code == 0, done
    assert done.json()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (variant,) = [one for one in manifest["variants"] if one["name"] != "dense"]
    assert variant["graphs"]["desktop"]["plugin_file"] is None
    board_graph = variant["graphs"]["board"]
    assert board_graph["plugin_file"] == board_graph["file"].replace(".onnx", ".plugins.onnx")
    assert {graph["batch"] for graph in variant["graphs"].values()} == {2}


def test_boards_share_a_graph_and_a_profile_may_be_called_after_a_type(tmp_path: Path) -> None:
    desktop = toml(tmp_path, "desktop", capabilities='["8.9"]')
    board, other = (toml(tmp_path, name, backend='"tensorrt"') for name in ("board", "other"))
    cpu = toml(tmp_path, "fp32", backend='"onnxruntime"', precision='"fp32"')
    arguments = ("-p", desktop, "-p", board, "-p", other, "-p", cpu, "--keep-ratio", "0.7", "--out", "out")
    done = run("build", "-m", "vit_digits", *arguments, cwd=tmp_path)
    assert done.code == 0, done
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (variant,) = [one for one in manifest["variants"] if one["name"] == "keep-0.70"]
    graphs = variant["graphs"]
    assert graphs["board"] == graphs["other"]
    assert graphs["board"]["plugin_file"] == graphs["board"]["file"].replace(".onnx", ".plugins.onnx")
    assert graphs["desktop"]["plugin_file"] is graphs["fp32"]["plugin_file"] is None
    assert variant["graphs"]["fp32"]["file"] != variant["engines"]["fp32"]["file"]
    assert run("verify", tmp_path / "out", cwd=tmp_path).code == 0
