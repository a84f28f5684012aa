"""Kinds of export that no program here can run: what they say holds for the manifest and for the files beside it."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import yaml
from helpers.bundles import edit
from helpers.errors import refused
from PIL import Image

import ztdeploy
from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.errors import InputError, OutputError
from ztdeploy.core.preprocess_spec import ImageSize, PreprocessSpec
from ztdeploy.jobs import export
from ztdeploy.jobs.export import TARGETS, export_bundle
from ztdeploy.jobs.export.deepstream import FRAMES, INFER, PREPROCESS, SCRIPT, part_of
from ztdeploy.jobs.export.onnx_file import OnnxFile
from ztdeploy.jobs.export.ros2 import package_name
from ztdeploy.target.runtime.parity import golden_pixels, golden_reference
from ztdeploy.target.runtime.preprocess import resize_and_crop


def settings(file: Path) -> configparser.RawConfigParser:
    found = configparser.RawConfigParser()
    found.read_string(file.read_text())
    return found


@pytest.fixture(scope="module")
def deepstream(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deepstream") / "out"
    export_bundle(digits_bundle, out, "deepstream", variant="keep-0.50")
    return out


def test_both_plugins_of_deepstream_say_what_the_manifest_says(digits_bundle: Path, deepstream: Path) -> None:
    manifest = read_bundle(digits_bundle).manifest
    infer, preprocess = settings(deepstream / INFER)["property"], settings(deepstream / PREPROCESS)
    height, width, channels = manifest.preprocess.shape
    batch = max(manifest.profiles["jetson-orin"].batch.sizes)
    assert infer["infer-dims"] == f"{channels};{height};{width}"
    assert preprocess["property"]["network-input-shape"] == f"{batch};{channels};{height};{width}"
    assert infer["batch-size"] == str(batch)
    assert infer["gie-unique-id"] == preprocess["property"]["target-unique-ids"]
    assert infer["input-tensor-from-meta"] == "1", "nvinfer's own scaling knows no crop"
    factors = (infer["net-scale-factor"], preprocess["user-configs"]["pixel-normalization-factor"])
    assert {*map(float, factors)} == {1.0}, "the graph normalises"
    assert (deepstream / infer["labelfile-path"]).read_text() == ";".join("0123456789") + "\n"
    model = ort.InferenceSession(deepstream / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in model.get_outputs()] == [infer["output-blob-names"]]
    assert preprocess["property"]["tensor-name"] == model.get_inputs()[0].name


def test_deepstreams_graph_makes_probabilities_of_raw_pixels(digits_bundle: Path, deepstream: Path) -> None:
    bundle = read_bundle(digits_bundle)
    pixels = golden_pixels(bundle).transpose(0, 3, 1, 2).astype(np.float32)
    session = ort.InferenceSession(deepstream / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": pixels})
    logits = golden_reference(bundle, bundle.variant(name="keep-0.50")).logits
    wanted = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(found, wanted / wanted.sum(1, keepdims=True), atol=5e-3)  # an fp16 graph


def test_the_engine_of_deepstream_is_built_with_the_graphs_types(deepstream: Path, tmp_path: Path) -> None:
    stub = tmp_path / "trtexec"
    stub.write_text('#!/bin/sh\n[ "$1" = --help ] && echo --stronglyTyped || printf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    shell = {"TRTEXEC": str(stub), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["sh", deepstream / SCRIPT], env=shell, capture_output=True, text=True, check=True)
    said = done.stdout.split()
    assert "--stronglyTyped" in said
    assert "--saveEngine=model.engine" in said
    assert settings(deepstream / INFER)["property"]["model-engine-file"] == "model.engine"
    assert "--maxShapes=image:8x3x32x32" in said


SPECS = {
    "crop": PreprocessSpec(image_size=224, resize=256, mean=(0.5,) * 3, std=(0.5,) * 3),
    "squash": PreprocessSpec(image_size=224, resize=224, crop_mode="squash", mean=(0.5,) * 3, std=(0.5,) * 3),
    "squash-crop": PreprocessSpec(
        image_size=ImageSize(96, 128), resize=ImageSize(112, 160), crop_mode="squash", mean=(0.5,) * 3, std=(0.5,) * 3
    ),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("frame", FRAMES)
def test_the_part_of_a_frame_is_what_the_model_sees(spec: PreprocessSpec, frame: tuple[int, int]) -> None:
    waves = np.add.outer(np.sin(np.arange(frame[1]) / 90), np.cos(np.arange(frame[0]) / 70))
    image = Image.fromarray(np.repeat((63 * waves + 127).astype(np.uint8)[..., None], 3, axis=2))
    left, top, width, height = part_of(frame, spec)
    size = (spec.image_size.width, spec.image_size.height)
    found = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    wanted = resize_and_crop(image, spec)
    assert np.abs(np.asarray(found, int) - wanted).mean() < 0.5


def test_what_deepstream_cannot_be_given_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    out, manifest = tmp_path / "out", read_bundle(bundle_copy).manifest
    beyond = manifest.preprocess.model_copy(update={"resize": ImageSize(16, 16)})
    refused(lambda: part_of(FRAMES[0], beyond), "adds no border", kind=InputError)
    original = manifest.preprocess.model_dump(mode="json")
    for changed, words in (
        ({"mean": [0.5] * 4, "std": [0.5] * 4}, "4 channels"),
        ({"resize": 16}, "adds no border"),
    ):
        edit(bundle_copy, lambda found, changed=changed: found.update(preprocess={**original, **changed}))
        refused(lambda: export_bundle(bundle_copy, out, "deepstream"), words, kind=InputError)
    names = bundle_copy / str(manifest.class_names)
    names.write_text(names.read_text().replace("3", "a;b"))
    edit(bundle_copy, lambda found: found.update(preprocess=original))
    refused(lambda: export_bundle(bundle_copy, out, "deepstream"), "'a;b'", "names without it", kind=InputError)
    refused(
        lambda: export_bundle(bundle_copy, out, "deepstream", profile="cpu"), "'cpu'", "jetson-orin", kind=InputError
    )
    assert not out.exists()


def test_vectors_are_attached_and_not_classified(bundle_copy: Path, tmp_path: Path) -> None:
    edit(bundle_copy, lambda manifest: manifest["model"].update(activation="none"))
    export_bundle(bundle_copy, tmp_path / "out", "deepstream", variant="dense")
    said = settings(tmp_path / "out" / INFER)["property"]
    assert (said["network-type"], said["output-tensor-meta"]) == ("100", "1")
    assert "labelfile-path" not in said
    refused(lambda: export_bundle(bundle_copy, tmp_path / "out", "deepstream"), "exists", kind=OutputError)
    (tmp_path / "out" / "model.engine").touch()  # what the script builds
    export_bundle(bundle_copy, tmp_path / "out", "deepstream", force=True)
    (tmp_path / "out" / "mine").touch()
    refused(lambda: export_bundle(bundle_copy, tmp_path / "out", "deepstream", force=True), "'mine'", kind=OutputError)


# -------------------- ROS 2


@pytest.fixture(scope="module")
def package(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ros2") / "out"
    export_bundle(digits_bundle, out, "ros2", variant="keep-0.50", profile="cpu")
    return out


def test_the_package_names_itself_the_same_everywhere(digits_bundle: Path, package: Path) -> None:
    name = package_name(read_bundle(digits_bundle))
    described = ET.parse(package / "package.xml").getroot()
    assert described.findtext("name") == name
    calls = [node for node in ast.walk(ast.parse((package / "setup.py").read_text())) if isinstance(node, ast.Call)]
    (setup,) = [
        {one.arg: one.value for one in call.keywords} for call in calls if getattr(call.func, "id", "") == "setup"
    ]
    assert ast.literal_eval(setup["name"]) == name
    entry = ast.literal_eval(setup["entry_points"])["console_scripts"][0]
    assert entry == f"classifier = {name}.classifier:main"
    assert (package / name / "classifier.py").is_file()
    assert (package / "resource" / name).is_file()
    launch = (package / "launch" / "classifier.launch.py").read_text()
    assert f'package="{name}", executable="classifier"' in launch
    for file in package.rglob("*.py"):
        compile(file.read_text(), str(file), "exec")
        assert "Not run: no ROS 2 was at hand" in file.read_text().splitlines()[0]
    written = configparser.RawConfigParser()
    written.read(package / "setup.cfg")
    assert written["develop"]["script_dir"] == f"$base/lib/{name}"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("DeiT-S.k0.7", "deit_s_k0_7"),
        ("2024", "bundle_2024"),
        ("a", "bundle_a"),
        ("Zürich", "z_rich"),
        ("--", "bundle"),
    ],
)
def test_names_of_packages(folder: str, name: str, bundle_copy: Path) -> None:
    assert package_name(read_bundle(bundle_copy.rename(bundle_copy.with_name(folder)))) == name


def test_the_node_answers_as_the_runner_does(
    digits_bundle: Path, package: Path, digit_images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = yaml.safe_load((package / "config" / "classifier.yaml").read_text())["/**"]["ros__parameters"]
    assert (parameters["bundle"], parameters["variant"]) == (str(digits_bundle), "keep-0.50")
    published, errors = [], []

    class Node:
        def __init__(self, name: str) -> None:
            self.name = name

        def declare_parameter(self, name: str, default: Any) -> Any:
            assert type(parameters[name]) is type(default), "ROS refuses a parameter of another type"
            return SimpleNamespace(value=parameters[name])

        def create_publisher(self, kind: Any, topic: str, depth: int) -> Any:
            return SimpleNamespace(publish=published.append)

        def create_subscription(self, kind: Any, topic: str, callback: Any, profile: Any) -> None:
            self.callback = callback

        def get_logger(self) -> Any:
            return SimpleNamespace(error=lambda text, **_: errors.append(text))

    def message(**fields: Any) -> Any:
        return SimpleNamespace(results=[], **fields)

    stubs: dict[str, dict[str, Any]] = {
        "rclpy": {},
        "rclpy.node": {"Node": Node},
        "rclpy.qos": {"qos_profile_sensor_data": None},
        "sensor_msgs.msg": {"Image": None},
        "vision_msgs.msg": {"Classification": message, "ObjectHypothesis": SimpleNamespace},
    }
    for name, members in stubs.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    code: dict[str, Any] = {"__name__": "classifier"}
    (file,) = package.glob("*/classifier.py")
    exec(compile(file.read_text(), str(file), "exec"), code)
    node = code["Classifier"]()
    rgb = np.asarray(Image.open(digit_images[0]).convert("RGB").resize((45, 37)))
    padding = np.zeros((37, 5), np.uint8)
    alpha = np.full((37, 45, 1), 9, np.uint8)
    bgr = rgb[..., ::-1]
    forms = {"rgb8": rgb, "bgr8": bgr, "rgba8": np.dstack([rgb, alpha]), "bgra8": np.dstack([bgr, alpha])}
    (wanted,) = ztdeploy.load(digits_bundle, variant="keep-0.50", profile="cpu")(rgb)
    for encoding, array in forms.items():
        rows = np.hstack([array.reshape(37, -1), padding])
        image = SimpleNamespace(
            encoding=encoding, height=37, width=45, step=rows.shape[1], data=rows.tobytes(), header="header"
        )
        node.callback(image)
        answer = published[-1]
        assert answer.header == "header"
        assert [(one.class_id, one.score) for one in answer.results] == [
            (label.name, label.probability) for label in wanted.labels
        ], encoding
    grey = SimpleNamespace(encoding="mono8", height=1, width=2, step=2, data=b"\x01\x02")
    np.testing.assert_array_equal(code["pixels_of"](grey)[0], [[1, 1, 1], [2, 2, 2]])
    node.callback(SimpleNamespace(encoding="16UC1"))
    assert "encoding '16UC1'; expected one of: rgb8" in errors[-1]
    node.runner.close()


def test_what_ros_cannot_be_given_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = export_bundle(bundle_copy, out, "ros2", profile="jetson-orin")
    assert "ztdeploy finalize" in report.notes[0], "the engine is built on the robot"
    export_bundle(bundle_copy, out, "ros2", force=True)
    (out / "config" / "mine.yaml").touch()
    refused(lambda: export_bundle(bundle_copy, out, "ros2", force=True), "'config/mine.yaml'", kind=OutputError)
    edit(bundle_copy, lambda manifest: manifest["model"].update(output="embedding"))
    refused(
        lambda: export_bundle(bundle_copy, tmp_path / "x", "ros2"), "gives embedding", "a classifier", kind=InputError
    )


# -------------------- the table


def test_a_kind_of_export_is_a_class_and_a_line(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(OnnxFile):
        title, input_name = "my service", "x"

    monkeypatch.setattr(sys.modules[__name__], "Own", Own, raising=False)
    monkeypatch.setattr(export, "TARGETS", TARGETS | {"own": f"{__name__}:Own"})
    (model,) = export_bundle(digits_bundle, tmp_path / "out", "own").models
    assert model.input.name == "x"


@pytest.mark.parametrize("to", TARGETS)
def test_every_kind_leaves_a_folder_of_others_alone(to: str, digits_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    profile = {"profile": "cpu"} if to != "deepstream" else {}
    if to == "openvino":
        return  # tests/cli/test_cli_openvino.py, with an engine of its own
    refused(lambda: export_bundle(digits_bundle, tmp_path / "out", to, **profile), "exists", kind=OutputError)
    call = lambda: export_bundle(digits_bundle, tmp_path / "out", to, force=True, **profile)  # noqa: E731
    refused(call, "older export", kind=OutputError)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
