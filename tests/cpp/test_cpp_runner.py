"""The C++ runner, built with sanitizers, against the Python runner: the same bytes, the same exit codes."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.bundles import edit, linked_copy, rewrite
from helpers.models import Salient
from helpers.pixel_cases import answered, asked, pixel_cases
from helpers.processes import CHECKOUT, HANG_S, run_ztdeploy
from helpers.signing import key_pair, signed
from PIL import Image

import ztdeploy
from ztdeploy.core.bundle import read_bundle, sha256_of
from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.keep_ratio import uniform_schedule
from ztdeploy.core.manifest import SCHEMA_VERSION
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.profile import read_profile
from ztdeploy.core.signature import VARIABLE, demanding
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.adaptive.cascade import CascadeRunner
from ztdeploy.target.backends.base import MemoryMode
from ztdeploy.target.runtime.runner import load_engine

SOURCES = CHECKOUT / "cpp"
#: Every warning is an error, and the first fault of memory or arithmetic ends the program.
FLAGS = "-Werror -Wall -Wextra -O0 -fsanitize=address,undefined -fno-sanitize-recover=all"
#: What our own code leaves behind is a fault; runtimes keep what they loaded until the process ends.
NOT_OURS = ("libonnxruntime", "libopenvino", "libtbb", "libcrypto", "libhwloc")
#: The variants of the shared bundle, in its order.
CHAIN = ["keep-0.70", "keep-0.50", "dense"]
Manifest = dict[str, Any]
Pixels = npt.NDArray[np.uint8]


def _where(runtime: str) -> str:
    """The option that says where a runtime is: both come with their Python wheels."""
    if runtime == "openvino":
        from openvino.utils import get_cmake_path

        return f"-DOpenVINO_DIR={get_cmake_path()}"
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent
    if not list((folder / "capi").glob("libonnxruntime.so*")):
        pytest.skip("this wheel of ONNX Runtime holds no libonnxruntime.so")
    return f"-DONNXRUNTIME_ROOT={folder}"


def _json_folder() -> Path:
    """Where nlohmann/json.hpp lies: in the Python package that repackages it, or installed for all."""
    found = importlib.util.find_spec("nlohmann_json")
    folders = [Path(str(found.origin)).parent / "include"] if found else []
    for folder in [*folders, Path("/usr/include"), Path("/usr/local/include")]:
        if (folder / "nlohmann" / "json.hpp").is_file():
            return folder
    pytest.skip("no nlohmann/json.hpp here")


def _built(runtime: str, folder: Path) -> Path:
    """The program `ztdeploy-check` for a runtime; nothing is fetched."""
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    if not Path("/usr/include/openssl/evp.h").is_file():
        pytest.skip("no headers of OpenSSL here")
    options = [_where(runtime), f"-DNLOHMANN_JSON_INCLUDE_DIR={_json_folder()}", f"-DCMAKE_CXX_FLAGS={FLAGS}"]
    options += [f"-DZTDEPLOY_RUNTIME={runtime}", "-DZTDEPLOY_TOOLS=OFF", "-DZTDEPLOY_TESTS=ON"]
    for command in (
        ["cmake", "-S", str(SOURCES), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Debug", *options],
        ["cmake", "--build", str(folder), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "ztdeploy-check"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ONNX Runtime."""
    return _built("onnxruntime", tmp_path_factory.mktemp("onnxruntime"))


def _check(program: Path, *arguments: object) -> str:
    """What the program prints. A sanitizer that finds anything ends it, or says so on standard error."""
    suppressions = program.with_name("leaks")
    suppressions.write_text("".join(f"leak:{name}\n" for name in NOT_OURS))
    environment = {
        **os.environ,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "LSAN_OPTIONS": f"suppressions={suppressions}:print_suppressions=0",
    }
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=HANG_S)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode()


def test_versions_are_one() -> None:
    header = (SOURCES / "include" / "ztdeploy" / "ztdeploy.h").read_text()
    assert re.findall(r"schema_version = (\d+);", header) == [str(SCHEMA_VERSION)]
    assert f"VERSION {SCHEMA_VERSION}.0 " in (SOURCES / "CMakeLists.txt").read_text()


# -------------------- pre-processing


def test_pixels_are_those_of_python(program: Path, tmp_path: Path) -> None:
    cases = list(pixel_cases())
    (tmp_path / "cases").write_bytes(b"".join(asked(*case) for case in cases))
    _check(program, "preprocess", tmp_path / "cases", tmp_path / "out")
    found, at = (tmp_path / "out").read_bytes(), 0
    for spec, image in cases:
        exact = answered(spec, image)
        assert found[at : at + len(exact)] == exact, (spec, image.shape)
        at += len(exact)
    assert at == len(found)


# -------------------- inference


def _compare(program: Path, folder: Path, profile: str, memory: MemoryMode, tmp_path: Path) -> None:
    """Every variant gives the same bytes as in Python: of all golden images together, and of the first alone."""
    pixels = np.load(folder / read_bundle(folder).manifest.golden.pixels)
    pixels.tofile(tmp_path / "pixels")
    wanted = b""
    with load_engine(folder, profile=profile, threads=1, memory=memory) as runner:
        default = runner.variant.name
        for variant in runner.bundle.manifest.variants:
            runner.switch(variant=variant.name)
            for count in (len(pixels), 1):
                found = runner.infer(pixels[:count])
                wanted += b"".join(one.tobytes() for one in (found.logits, *found.kept, *found.into))
    _check(program, "infer", folder, profile, default, memory, tmp_path / "pixels", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == wanted, (folder.name, profile, memory)


@pytest.mark.parametrize("memory", ["speed", "shared"])
def test_outputs_are_those_of_python(program: Path, cascade_bundle: Path, memory: MemoryMode, tmp_path: Path) -> None:
    _compare(program, cascade_bundle, "cpu", memory, tmp_path)


def _set_thresholds(manifest: Manifest) -> None:
    """Between them, some of the held-out digits end at each stage."""
    manifest["cascade"]["settings"]["cpu"]["thresholds"] = [0.8, 0.75]


def _lines_of(found: ztdeploy.Prediction) -> str:
    labels = [f"{one.name} {one.value if one.probability is None else one.probability:.9f}" for one in found.labels]
    kept = ["".join(f"{patch} " for patch in layer.tolist()) for layer in found.kept]
    return "\t".join([str(-1 if found.stage is None else found.stage), *labels, *kept])


@pytest.mark.parametrize("variant", ["keep-0.50", "cascade"])
def test_predictions_are_those_of_python(
    program: Path, cascade_bundle: Path, digit_images: list[Path], variant: str, tmp_path: Path
) -> None:
    """Stages, labels, probabilities and kept patches of images of any size; the warning of unlike images at the end."""
    bundle = edit(linked_copy(cascade_bundle, tmp_path / "bundle"), _set_thresholds)
    random = np.random.default_rng(5)
    digits = [np.asarray(Image.open(image).convert("RGB")) for image in digit_images[100:130]]
    noise = [random.integers(0, 256, (*size, 3), np.uint8) for size in ((9, 200), (150, 31), (1, 1))] * 4
    with (tmp_path / "cases").open("wb") as file:
        for image in [*digits, *noise]:
            file.write(struct.pack("3i", *image.shape) + image.tobytes())
    options: dict[str, Any] = {"cascade": True} if variant == "cascade" else {"variant": variant}
    with ztdeploy.load(bundle, profile="cpu", threads=1, **options) as runner:
        wanted = [_lines_of(runner(image, top=3)[0]) for image in [*digits, *noise]]
        if isinstance(runner, CascadeRunner):
            wanted += [str(count) for count in runner.counts]
            assert all(runner.counts)
        wanted.append((runner.warning if isinstance(runner, CascadeRunner) else None) or "")
    found = _check(program, "predict", bundle, "cpu", variant, tmp_path / "cases")
    assert found.splitlines() == wanted


def test_a_cascade_regroups_images_as_python_does(program: Path, cascade_bundle: Path, tmp_path: Path) -> None:
    bundle = read_bundle(cascade_bundle)
    pixels: Pixels = np.load(cascade_bundle / bundle.manifest.golden.pixels)
    pixels.tofile(tmp_path / "pixels")
    wanted = b""
    with ztdeploy.load(bundle, cascade=True, profile="cpu", threads=1) as runner:
        for count in (len(pixels), 1):
            found = runner.infer(pixels[:count])
            wanted += found.logits.tobytes() + found.stage.astype(np.int32).tobytes()
    _check(program, "infer", cascade_bundle, "cpu", "cascade", "speed", tmp_path / "pixels", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == wanted


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of all kinds of outputs and precisions: of the shipped model, of its embeddings, and of maps."""
    folder = tmp_path_factory.mktemp("bundle")
    merging = uniform_schedule(0.6, 12, method="novelty-merge").model_copy(update={"name": "merging"})
    floats = read_profile("cpu").model_copy(update={"name": "floats", "image_input": "float32"})
    profiles = ("cpu-int8", floats, "cpu-openvino", "cpu-openvino-int8", "cpu-openvino-int8-rows")
    for name, model, own in (
        ("digits", ModelSource(name="vit_digits"), profiles),
        ("embedding", ModelSource(name="vit_digits", output="embedding"), ("cpu",)),
    ):
        build(BuildRequest(model=model, profiles=own, schedules=(merging,), out=folder / name))
    ztdeploy.build(Salient().eval(), profile="cpu", keep_ratio=0.6, activation="sigmoid", out=folder / "maps")
    return {one.name: one for one in folder.iterdir()}


@pytest.mark.long
@pytest.mark.parametrize("memory", ["speed", "shared"])
def test_other_outputs_and_precisions_are_those_of_python(
    program: Path, bundles: dict[str, Path], memory: MemoryMode, tmp_path: Path
) -> None:
    for name, profile in (("digits", "cpu-int8"), ("digits", "floats"), ("embedding", "cpu"), ("maps", "cpu")):
        _compare(program, bundles[name], profile, memory, tmp_path)


# -------------------- the command and the other runtime


def _pictures(folder: Path) -> list[Path]:
    """Files of every kind that both read: bit depths, palettes, alpha, orientations, extreme shapes."""
    random = np.random.default_rng(11)
    colour = random.integers(0, 256, (40, 30, 3), np.uint8)
    grey, deep = colour[..., 0], random.integers(0x4000, 0x10000, (33, 47)).astype(np.uint16)
    deep[0, 0] = 0xFFFF
    made = {
        "colour": Image.fromarray(colour),
        "grey": Image.fromarray(grey),
        "deep": Image.fromarray(deep),
        "palette": Image.fromarray(colour).quantize(17),
        "bits": Image.fromarray(grey > 127),
        "alpha": Image.fromarray(np.dstack([colour, grey])),
        "grey-alpha": Image.fromarray(np.dstack([grey, grey]), mode="LA"),
        "tall": Image.fromarray(random.integers(0, 256, (900, 7, 3), np.uint8)),
        "wide": Image.fromarray(random.integers(0, 256, (5, 801, 3), np.uint8)),
        "tiny": Image.fromarray(colour[:1, :1]),
    }
    for name, image in made.items():
        image.save(folder / f"{name}.png")
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        made["colour"].save(folder / f"turn-{turn}.png", exif=exif)
        made["colour"].resize((64, 48)).save(folder / f"photo-{turn}.jpg", exif=exif, quality=90)
    made["colour"].save(folder / "plain.ppm")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def command(program: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`ztdeploy-run ARGUMENTS`."""
    if not all(Path("/usr/include", name).is_file() for name in ("png.h", "jpeglib.h")):
        pytest.skip("no headers of libpng and libjpeg here")
    for step in (["cmake", str(program.parent), "-DZTDEPLOY_TOOLS=ON"], ["cmake", "--build", str(program.parent)]):
        subprocess.run(step, check=True, capture_output=True, timeout=HANG_S)
    own = program.with_name("ztdeploy-run")
    return lambda *arguments: subprocess.run([own, *arguments], capture_output=True, text=True, timeout=HANG_S)


@pytest.mark.long
def test_known_inputs_are_held_against_pytorch(
    command: Callable[..., subprocess.CompletedProcess[str]],
    cascade_bundle: Path,
    bundles: dict[str, Path],
    tmp_path: Path,
) -> None:
    """Of all kinds of outputs; and outputs of PyTorch that are others are noticed."""
    digits = bundles["digits"]
    for folder, profile in (
        (cascade_bundle, "cpu"),
        (digits, "cpu-int8"),
        (digits, "floats"),
        (bundles["maps"], "cpu"),
    ):
        done = command(folder, "--check", "--profile", profile)
        names = [variant.name for variant in read_bundle(folder).manifest.variants]
        assert ([line.split("\t")[0] for line in done.stdout.splitlines()], done.returncode) == (names, 0), done.stderr
    copy = linked_copy(cascade_bundle, tmp_path / "copy")
    name = read_bundle(copy).manifest.golden.outputs["keep-0.50"]
    with np.load(copy / name) as golden:
        arrays = dict(golden)
    for key in ("logits", next(key for key in arrays if key.startswith("kept"))):
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **{**arrays, key: arrays[key] + arrays[key].dtype.type(1)})
        rewrite(copy, name, content.getvalue())
        done = command(copy, "--check", "--profile", "cpu")
        assert (done.returncode, done.stderr.count("\n"), len(done.stdout.splitlines())) == (5, 1, 1), done.stderr


@pytest.mark.long
def test_the_command_prints_what_pythons_prints(
    command: Callable[..., subprocess.CompletedProcess[str]], cascade_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    pictures = _pictures(tmp_path / "pictures")
    (tmp_path / "broken.png").write_bytes(pictures[0].read_bytes()[:50])
    for options in (["--threads", "1"], ["--variant", "dense", "--top", "2"], ["--cascade"]):
        arguments = [str(cascade_bundle), str(tmp_path / "pictures"), *options]
        wanted = run_ztdeploy("run", *arguments, cwd=tmp_path)
        found = command(*arguments)
        assert (found.returncode, found.stdout.splitlines()) == (0, wanted.out.splitlines())
    image, absent = str(pictures[0]), str(tmp_path / "absent")
    broken = str(tmp_path / "broken.png")
    for wrong in ([], [image, "--threads", "no"], [image, "--profile", "none"], [broken], [absent]):
        done = command(str(cascade_bundle), *wrong)
        code = run_ztdeploy("run", cascade_bundle, *wrong, cwd=tmp_path).code
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr


@pytest.mark.long
def test_the_command_demands_signatures(
    command: Callable[..., subprocess.CompletedProcess[str]],
    cascade_bundle: Path,
    digit_images: list[Path],
    tmp_path: Path,
) -> None:
    fleet, old = key_pair(tmp_path, "fleet"), key_pair(tmp_path, "old")
    signed(linked_copy(cascade_bundle, tmp_path / "bundle"), fleet)
    for keys, code in (([old, fleet], 0), ([old], 4)):
        demanded = [word for key in keys for word in ("--signed-by", str(key.public))]
        done = command(tmp_path / "bundle", digit_images[0], *demanded, "--no-verify")
        assert (done.returncode, done.stderr.count("\n")) == (code, 1 if code else 0), done.stderr


PROGRAM = """
cmake_minimum_required(VERSION 3.22)
project(program LANGUAGES CXX)
find_package(ztdeploy REQUIRED)
add_executable(program main.cpp)
target_link_libraries(program PRIVATE ztdeploy::ztdeploy)
"""
MAIN = """
#include <ztdeploy/ztdeploy.h>
#include <cstdio>
int main(int, char** values) { std::puts(ztdeploy::Runner(values[1]).variant().c_str()); }
"""


@pytest.mark.long
def test_a_program_finds_what_is_installed(program: Path, cascade_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(PROGRAM)
    (tmp_path / "main.cpp").write_text(MAIN)
    options = [_where("onnxruntime"), f"-DCMAKE_PREFIX_PATH={tmp_path / 'installed'}", f"-DCMAKE_CXX_FLAGS={FLAGS}"]
    for command in (
        ["cmake", "--install", str(program.parent), "--prefix", str(tmp_path / "installed")],
        ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build"), *options],
        ["cmake", "--build", str(tmp_path / "build")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert _check(tmp_path / "build" / "program", cascade_bundle) == f"{CHAIN[0]}\n"


@pytest.mark.long
def test_openvino_gives_what_it_gives_in_python(
    bundles: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("openvino")
    program = _built("openvino", tmp_path_factory.mktemp("openvino"))
    for profile in ("cpu-openvino", "cpu-openvino-int8", "cpu-openvino-int8-rows"):
        _compare(program, bundles["digits"], profile, "speed", tmp_path)


def test_tensorrts_file_compiles_against_declarations() -> None:
    """No machine of CI has its headers; `stubs` declares what is used of them."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    includes = [f"-I{Path(__file__).parent / 'stubs'}", f"-I{SOURCES / 'include'}"]
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *includes]
    done = subprocess.run([*command, SOURCES / "src" / "tensorrt.cpp"], capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stderr) == (0, "")


# -------------------- broken bundles

Damage = Callable[[Path, Manifest], object]


def _set(path: str, value: object) -> Damage:
    """Give a value of the manifest another one; `...` takes it away."""

    def change(folder: Path, manifest: Manifest) -> None:
        *above, last = path.split("/")
        table: Any = manifest
        for name in above:
            table = table[int(name) if isinstance(table, list) else name]
        if value is ...:
            del table[last]
        else:
            table[int(last) if isinstance(table, list) else last] = value

    return change


def _text(change: Callable[[str], str]) -> Damage:
    """Change the manifest's text."""

    def damage(folder: Path, manifest: Manifest) -> None:
        (folder / "manifest.json").write_text(change((folder / "manifest.json").read_text()))
        manifest.clear()

    return damage


def _file(which: Callable[[Manifest], str], content: bytes | None, *, listed: bool = False) -> Damage:
    """Replace a file's content, or take it away; `listed` writes its new hash into the manifest."""

    def damage(folder: Path, manifest: Manifest) -> None:
        path = folder / which(manifest)
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        if listed:
            manifest["files"][which(manifest)] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}

    return damage


def _default(manifest: Manifest) -> Any:
    return next(one for one in manifest["variants"] if one["name"] == manifest["default_variant"])


def _engine(manifest: Manifest) -> str:
    return str(next(iter(_default(manifest)["engines"].values()))["file"])


def _graph(manifest: Manifest) -> str:
    return str(next(iter(_default(manifest)["graphs"].values()))["file"])


def _weights(manifest: Manifest) -> str:
    return "graphs/weights.safetensors"


def _fifo(folder: Path, manifest: Manifest) -> None:
    (folder / _weights(manifest)).unlink()
    os.mkfifo(folder / _weights(manifest))


def _link(same: bool) -> Damage:
    def damage(folder: Path, manifest: Manifest) -> None:
        path = folder / _weights(manifest)
        outside = folder.parent / f"{folder.name}.outside"
        outside.write_bytes(path.read_bytes() if same else b"something else")
        path.unlink()
        path.symlink_to(outside)

    return damage


def _other_runtime(folder: Path, manifest: Manifest) -> None:
    for engine in _default(manifest)["engines"].values():
        engine["fingerprint"]["runtime_version"] = "1.2.3"


def _without_engines(folder: Path, manifest: Manifest) -> None:
    for variant in manifest["variants"]:
        variant["engines"] = {}


def _elsewhere(folder: Path, manifest: Manifest) -> None:
    """The graph's weights lie in a file that the manifest does not list."""
    content = (folder / _graph(manifest)).read_bytes()
    other = content.replace(b"weights.safetensors", b"../weights.safetens")
    _file(_graph, other, listed=True)(folder, manifest)


DAMAGES: dict[str, Damage] = {
    "nothing": lambda folder, manifest: None,
    "link to the same": _link(True),
    "link to another": _link(False),
    "no manifest": _file(lambda _: "manifest.json", None),
    "manifest of zeros": _text(lambda text: "\0" * len(text)),
    "manifest with a comment": _text(lambda text: text.replace("{", "{ // hello\n", 1)),
    "nested": _text(lambda text: "[" * 100_000),
    "a list": _text(lambda text: "[]"),
    "twice": _text(lambda text: text.replace("{", '{"model": 1, "model": 2,', 1)),
    "infinite": _text(lambda text: text.replace('"depth": ', '"depth": 1e999, "d": ', 1)),
    "no number": _text(lambda text: text.replace('"depth": ', '"depth": NaN, "d": ', 1)),
    "long number": _text(lambda text: text.replace('"depth": ', f'"depth": {10**400}, "d": ', 1)),
    **{
        f"cut at {part} %": _text(lambda text, part=part: text[: len(text) * part // 100]) for part in range(0, 100, 12)
    },
    "version as text": _set("schema_version", str(SCHEMA_VERSION)),
    "version as truth": _set("schema_version", True),
    "too new": _set("schema_version", SCHEMA_VERSION + 1),
    "too old": _set("schema_version", SCHEMA_VERSION - 1),
    **{f"no {name}": _set(name, ...) for name in ("model", "preprocess", "profiles", "default_variant", "variants")},
    "no files": _set("files", {}),
    "files as a list": _set("files", []),
    "variants as a table": _set("variants", {}),
    "no variants": _set("variants", []),
    "unknown default": _set("default_variant", "nobody"),
    "default that is no name": _set("default_variant", "../x"),
    "depth as a fraction": _set("model/architecture/depth", 12.0),
    "depth as truth": _set("model/architecture/depth", True),
    "huge depth": _set("model/architecture/depth", 2**70),
    "negative tokens": _set("model/architecture/patch_tokens", -1),
    "other classes": _set("model/architecture/num_classes", 11),
    "unknown output": _set("model/output", "poetry"),
    "no output": _set("model/output", None),
    "no size": _set("preprocess/image_size", 0),
    "huge size": _set("preprocess/image_size", 99999),
    "odd size": _set("preprocess/image_size", "8x"),
    "other size": _set("preprocess/image_size", "32x40"),
    "unknown filter": _set("preprocess/interpolation", "box"),
    "no channels": _set("preprocess/mean", []),
    "channels as text": _set("preprocess/mean", "0.5"),
    "std of zero": _set("preprocess/std", [0, 0, 0]),
    "std of more channels": _set("preprocess/std", [0.5] * 4),
    "a twin": lambda folder, manifest: manifest["variants"].append(manifest["variants"][0]),
    "layers in disorder": lambda folder, manifest: _default(manifest)["plan"]["layers"].reverse(),
    "layers of more tokens": lambda folder, manifest: _default(manifest)["plan"]["layers"][0].update(tokens_out=10**6),
    "path above": lambda folder, manifest: manifest["files"].update({"../x": manifest["files"][_weights(manifest)]}),
    "engine above": lambda folder, manifest: next(iter(_default(manifest)["engines"].values())).update(file="../x"),
    "engine of the system": lambda folder, manifest: next(iter(_default(manifest)["engines"].values())).update(
        file="/etc/passwd"
    ),
    "engine of two slashes": lambda folder, manifest: next(iter(_default(manifest)["engines"].values())).update(
        file=_engine(manifest).replace("/", "//")
    ),
    "engine that is not listed": lambda folder, manifest: manifest["files"].pop(_engine(manifest)),
    "hash that is none": lambda folder, manifest: manifest["files"][_weights(manifest)].update(sha256="x" * 64),
    "another hash": lambda folder, manifest: manifest["files"][_weights(manifest)].update(sha256="0" * 64),
    "negative bytes": lambda folder, manifest: manifest["files"][_weights(manifest)].update(bytes=-1),
    "no weights": _file(_weights, None),
    "other weights": _file(_weights, b"something else"),
    "no engine": _file(_engine, None),
    "other engine": _file(_engine, b"something else"),
    "listed garbage as engine": _file(_engine, b"\x08\x01something else", listed=True),
    "empty engine": _file(_engine, b"", listed=True),
    "listed garbage as graph": _file(_graph, b"\x08\x01something else", listed=True),
    "graph with other weights": _elsewhere,
    "fifo": _fifo,
    "other classes file": _file(lambda manifest: str(manifest["class_names"]), b"one\ntwo\n", listed=True),
    "other runtime": _other_runtime,
    "no engines": _without_engines,
    "a cascade of strangers": _set("cascade/stages/0/variant", "nobody"),
    "a cascade without a baseline": lambda folder, manifest: manifest["cascade"]["stages"].pop(),
    "a cascade cut elsewhere": _set("cascade/block", 0),
    "a cascade of closeness": _set("cascade/signal", "closeness"),
    "a stage named as a variant": _set("cascade/stages/0/name", "keep-0.50"),
    "a threshold above all": _set("cascade/settings/cpu/thresholds/0", 3),
    "a threshold as text": _set("cascade/settings/cpu/thresholds/0", "0.5"),
    "a threshold too many": lambda folder, manifest: manifest["cascade"]["settings"]["cpu"]["thresholds"].append(0.5),
    "quantiles that fall": lambda folder, manifest: manifest["cascade"]["settings"]["cpu"]["quantiles"].reverse(),
    "shares that rise": _set("cascade/settings/cpu/shares/0", 0),
    "no calibration images": _set("cascade/settings/cpu/guarantee/images", 0),
    "another piece": _file(lambda manifest: str(manifest["cascade"]["prefix"]["engines"]["cpu"]["file"]), b"x"),
    "no piece": _file(lambda manifest: str(manifest["cascade"]["stages"][1]["engines"]["cpu"]["file"]), None),
}


def _damaged(bundle: Path, folder: Path, damage: Damage) -> Path:
    """A copy of a bundle, of links to the same files, with a damage."""
    linked_copy(bundle, folder)
    text = (bundle / "manifest.json").read_text()
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(text)
    manifest = json.loads(text)
    damage(folder, manifest)
    if manifest and (folder / "manifest.json").exists():
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return folder


def _code_of_python(folder: Path) -> int:
    """Of opening its default variant, then its cascade, and running an image through each."""
    try:
        for options in ({}, {"cascade": True}):
            with ztdeploy.load(folder, **options) as runner:  # type: ignore[call-overload]
                runner.infer(np.zeros((1, *runner.bundle.manifest.preprocess.shape), np.uint8))
    except ZtdeployError as error:
        return error.exit_code
    return 0


def test_a_demanded_signature_is_checked_as_in_python(
    program: Path, cascade_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right, wrong and missing ones, whether the program or the environment demands them, also without `verify`."""
    fleet, old = key_pair(tmp_path, "fleet"), key_pair(tmp_path, "old")
    good = signed(linked_copy(cascade_bundle, tmp_path / "good"), fleet)

    def changed(name: str, change: Callable[[Path], object]) -> Path:
        folder = linked_copy(good, tmp_path / name)
        for file in ("manifest.json", "manifest.json.minisig"):  # the others' are links to the same
            content = (folder / file).read_bytes()
            (folder / file).unlink()
            (folder / file).write_bytes(content)
        change(folder)
        return folder

    signature = (good / "manifest.json.minisig").read_text()
    lines = signature.splitlines()

    def with_signature(text: str) -> Callable[[Path], object]:
        return lambda folder: (folder / "manifest.json.minisig").write_text(text)

    def older(folder: Path) -> None:
        data = base64.b64decode(lines[1])
        (folder / "manifest.json.minisig").write_text(
            signature.replace(lines[1], base64.b64encode(b"Ed" + data[2:]).decode())
        )

    (tmp_path / "link").symlink_to("good")
    folders = {
        good: 0,
        tmp_path / "link": 0,
        changed("no signature", lambda folder: (folder / "manifest.json.minisig").unlink()): 4,
        changed("empty", with_signature("")): 4,
        changed("large", with_signature(signature + "\n" * 20_000)): 4,
        changed("older kind", older): 4,
        changed("other comment", with_signature(signature.replace("model:", "Model:"))): 4,
        changed(
            "a bit", with_signature(signature.replace(lines[3], "A" + lines[3][1:] + "==" * (lines[3][0] == "A")))
        ): 4,
        changed("longer", with_signature(signature.replace(lines[1], lines[1] + "AAAA"))): 4,
        changed("stranger", lambda folder: signed(folder, key_pair(tmp_path, "stranger"))): 4,
        changed("manifest", lambda folder: (folder / "manifest.json").open("a").write("\n")): 4,
        changed("no JSON", lambda folder: (folder / "manifest.json").write_text("{")): 4,
        changed("classes", lambda folder: rewrite(folder, "classes.txt", b"zero\n" * 10)): 4,
        changed("other weights", lambda folder: _file(_weights, b"x")(folder, {})): 4,
        changed("other classes", lambda folder: _file(lambda _: "classes.txt", b"zero\n" * 10)(folder, {})): 4,
    }
    (tmp_path / "list").write_text("".join(f"{folder}\n" for folder in folders))

    def found(*given: object) -> list[list[str]]:
        return [line.split("\t") for line in _check(program, "open", tmp_path / "list", *given).splitlines()]

    for demanded in ((fleet.public,), (fleet.line,), (old.line, fleet.public)):
        assert [int(code) for code, _ in found(*demanded)] == list(folders.values())
    with demanding([old.line, fleet.line]):
        by_environment = found()
        assert [int(code) for code, _ in by_environment] == list(folders.values())
        for folder, (code, message) in zip(folders, by_environment, strict=True):
            if code != "0":
                with pytest.raises(ZtdeployError) as refused:
                    ztdeploy.load(folder)
                assert (str(refused.value.exit_code), str(refused.value)) == (code, message)
    assert {code for code, _ in found(old.public)} == {"4"}
    assert {code for code, _ in found(fleet.secret)} == {code for code, _ in found(tmp_path / "none")} == {"3"}
    for named in ("", ":", "none"):
        monkeypatch.setenv(VARIABLE, named)
        assert {code for code, _ in found()} == {"3"}


def test_broken_bundles_are_refused_as_in_python(program: Path, cascade_bundle: Path, tmp_path: Path) -> None:
    """In one line each, with the same exit code."""
    folders = {
        name: _damaged(cascade_bundle, tmp_path / str(index), damage)
        for index, (name, damage) in enumerate(DAMAGES.items())
    }
    (tmp_path / "list").write_text("".join(f"{folder}\n" for folder in folders.values()))
    lines = _check(program, "open", tmp_path / "list").splitlines()
    assert len(lines) == len(folders)
    found = {name: line.split("\t") for name, line in zip(folders, lines, strict=True)}
    wanted = {name: _code_of_python(folder) for name, folder in folders.items()}
    assert {name: int(code) for name, (code, _) in found.items()} == wanted
    assert wanted["nothing"] == wanted["link to the same"] == 0
    assert "upgrade this ztdeploy library" in found["too new"][1]
    for name, (code, message) in found.items():
        assert code == "0" or (message.count("; ") >= 2 and "expected " in message), (name, message)
