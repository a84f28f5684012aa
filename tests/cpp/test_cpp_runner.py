"""The C++ runner, built with sanitizers, against the Python runner: the same bytes, the same exit codes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.processes import CHECKOUT, HANG_S
from PIL import Image

from ztdeploy.core.bundle import read_bundle, sha256_of
from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.keep_ratio import uniform_schedule
from ztdeploy.core.manifest import SCHEMA_VERSION
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import ImageSize, PreprocessSpec
from ztdeploy.core.profile import read_profile
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.runtime.preprocess import normalise, resize_and_crop
from ztdeploy.target.runtime.runner import load_engine

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not os.environ.get("ZTDEPLOY_CPP"),
        reason="ZTDEPLOY_CPP is not set: only the build has passed; one pixel of an enlarged image differs, "
        "and outputs and broken bundles were never run here",
    ),
]

SOURCES = CHECKOUT / "cpp"
#: Every warning is an error, and the first fault of memory or arithmetic ends the program.
FLAGS = "-Werror -Wall -Wextra -O0 -fsanitize=address,undefined -fno-sanitize-recover=all"
#: The profiles of each runtime: in fp32, in int8, and one that takes normalised pixels.
PROFILES = {"onnxruntime": ("cpu", "cpu-int8", "floats"), "openvino": ("cpu-openvino",)}
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
Manifest = dict[str, Any]


def _where(runtime: str) -> str:
    """The option that says where a runtime's headers and library are."""
    if runtime == "onnxruntime":
        root = os.environ.get("ONNXRUNTIME_ROOT")
        if not root:
            pytest.skip("ONNXRUNTIME_ROOT is not set: ONNX Runtime's wheel has no headers for C++")
        return f"-DONNXRUNTIME_ROOT={root}"
    from openvino.utils import get_cmake_path

    return f"-DOpenVINO_DIR={get_cmake_path()}"


def _json_folder() -> Path:
    """Where nlohmann/json.hpp lies: in the Python package that repackages it, or installed for all."""
    found = importlib.util.find_spec("nlohmann_json")
    folders = [Path(str(found.origin)).parent / "include"] if found else []
    for folder in [*folders, Path("/usr/include"), Path("/usr/local/include")]:
        if (folder / "nlohmann" / "json.hpp").is_file():
            return folder
    pytest.skip("no nlohmann/json.hpp here")


@pytest.fixture(scope="module", params=sorted(PROFILES))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A runtime, and the program `ztdeploy-check` with it."""
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    if not Path("/usr/include/openssl/evp.h").is_file():
        pytest.skip("no headers of OpenSSL here")
    options = [_where(request.param), f"-DNLOHMANN_JSON_INCLUDE_DIR={_json_folder()}", f"-DCMAKE_CXX_FLAGS={FLAGS}"]
    options += [f"-DZTDEPLOY_RUNTIME={request.param}", "-DZTDEPLOY_TOOLS=OFF", "-DZTDEPLOY_TESTS=ON"]
    folder = tmp_path_factory.mktemp(request.param)
    for command in (
        ["cmake", "-S", str(SOURCES), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Debug", *options],
        ["cmake", "--build", str(folder)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return request.param, folder / "ztdeploy-check"


def _check(program: Path, *arguments: object) -> str:
    """What the program prints. A sanitizer that finds anything ends it, or says so on standard error."""
    # Runtimes keep what they loaded until the process ends.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=HANG_S)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode()


@pytest.fixture(scope="module")
def bundle(built: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with a dropping and a merging variant, for the profiles of the runtime."""
    folder = tmp_path_factory.mktemp("bundle") / "digits"
    merging = uniform_schedule(0.6, 12, method="novelty-merge").model_copy(update={"name": "merging"})
    floats = read_profile("cpu").model_copy(update={"name": "floats", "image_input": "float32"})
    profiles = tuple(floats if name == "floats" else name for name in PROFILES[built[0]])
    schedules = (uniform_schedule(0.7, 12, method="zero-tprune"), merging)
    build(BuildRequest(model=ModelSource(name="vit_digits"), profiles=profiles, schedules=schedules, out=folder))
    return folder


@pytest.fixture(scope="module")
def embedding(built: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "embedding"
    model = ModelSource(name="vit_digits", output="embedding")
    build(BuildRequest(model=model, profiles=PROFILES[built[0]][:1], keep_ratios=(0.7,), out=folder))
    return folder


def test_versions_are_one() -> None:
    header = (SOURCES / "include" / "ztdeploy" / "ztdeploy.h").read_text()
    assert re.findall(r"schema_version = (\d+);", header) == [str(SCHEMA_VERSION)]
    assert f"VERSION {SCHEMA_VERSION}.0 " in (SOURCES / "CMakeLists.txt").read_text()


# -------------------- pre-processing


def _cases() -> Iterator[tuple[PreprocessSpec, np.ndarray]]:
    random = np.random.default_rng(23)
    sides = [1, 2, 3, 7, 31, 32, 33, 64, 97, 128, 200, 257]
    for index in range(240):
        channels = int(random.choice([1, 3, 3, 3, 2, 5]))
        height, width, crop, resize = (int(side) for side in random.choice(sides, 4))
        square = bool(random.integers(2))
        spec = PreprocessSpec(
            image_size=ImageSize(crop, crop if square else int(random.choice(sides))),
            resize=ImageSize(resize, resize if square else int(random.choice(sides))),
            interpolation=FILTERS[index % 4],
            crop_mode="squash" if random.integers(3) == 0 else "center",
            crop_rounding="down" if random.integers(2) else "even",
            mean=tuple(0.485 - 0.03 * channel for channel in range(channels)),
            std=tuple(0.229 + 0.01 * channel for channel in range(channels)),
        )
        extreme = random.integers(2) * 255  # sums beyond 0 and 255 must be cut off
        pixels = random.integers(0, 256, (height, width, channels), np.uint8)
        yield spec, np.where(pixels > 127, 255, 0).astype(np.uint8) if extreme else pixels


def test_pixels_are_those_of_python(built: tuple[str, Path], tmp_path: Path) -> None:
    wanted = []
    with (tmp_path / "cases").open("wb") as file:
        for spec, image in _cases():
            height, width, channels = image.shape
            numbers = [FILTERS.index(spec.interpolation), spec.crop_mode == "squash", spec.crop_rounding == "down"]
            numbers += [*spec.image_size, *spec.resize, channels, height, width]
            scales = struct.pack(f"{2 * channels}d", *spec.mean, *spec.std)
            file.write(struct.pack("10i", *numbers) + scales + image.tobytes())
            bands = [Image.fromarray(image[..., channel].copy()) for channel in range(channels)]
            whole = bands[0] if channels == 1 else Image.fromarray(image) if channels == 3 else bands
            pixels = resize_and_crop(whole, spec)
            wanted.append((spec, image.shape, pixels.tobytes() + normalise(pixels[None], spec).tobytes()))
    _check(built[1], "preprocess", tmp_path / "cases", tmp_path / "out")
    found, at = (tmp_path / "out").read_bytes(), 0
    for spec, shape, exact in wanted:
        assert found[at : at + len(exact)] == exact, (spec, shape)
        at += len(exact)
    assert at == len(found)


# -------------------- inference


def _golden(folder: Path, tmp_path: Path) -> np.ndarray:
    pixels = np.load(folder / read_bundle(folder).manifest.golden.pixels)
    pixels.tofile(tmp_path / "pixels")
    return pixels


def _by_python(folder: Path, profile: str, pixels: np.ndarray) -> bytes:
    raw = b""
    with load_engine(folder, profile=profile, threads=1) as runner:
        for variant in runner.bundle.manifest.variants:
            runner.switch(variant=variant.name)
            for count in (len(pixels), 1):
                found = runner.infer(pixels[:count])
                raw += b"".join(one.tobytes() for one in (found.logits, *found.kept, *found.into))
    return raw


def test_outputs_are_those_of_python(built: tuple[str, Path], bundle: Path, embedding: Path, tmp_path: Path) -> None:
    runtime, program = built
    for folder, profiles in ((bundle, PROFILES[runtime]), (embedding, PROFILES[runtime][:1])):
        pixels = _golden(folder, tmp_path)
        for profile in profiles:
            wanted = _by_python(folder, profile, pixels)
            for memory in ("speed", "shared"):
                _check(program, "infer", folder, profile, memory, tmp_path / "pixels", tmp_path / "out")
                assert (tmp_path / "out").read_bytes() == wanted, (folder.name, profile, memory)


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
}


def _damaged(bundle: Path, folder: Path, damage: Damage) -> Path:
    """A copy of a bundle, of links to the same files, with a damage."""
    shutil.copytree(bundle, folder, copy_function=os.link)
    text = (bundle / "manifest.json").read_text()
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(text)
    manifest = json.loads(text)
    damage(folder, manifest)
    if manifest and (folder / "manifest.json").exists():
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return folder


def _code_of_python(folder: Path) -> int:
    try:
        with load_engine(folder) as runner:
            runner.infer(np.zeros((1, *runner.bundle.manifest.preprocess.shape), np.uint8))
    except ZtdeployError as error:
        return error.exit_code
    return 0


def test_broken_bundles_are_refused_as_in_python(built: tuple[str, Path], bundle: Path, tmp_path: Path) -> None:
    """In one line each, with the same exit code."""
    folders = {
        name: _damaged(bundle, tmp_path / str(index), damage) for index, (name, damage) in enumerate(DAMAGES.items())
    }
    (tmp_path / "list").write_text("".join(f"{folder}\n" for folder in folders.values()))
    lines = _check(built[1], "open", tmp_path / "list").splitlines()
    assert len(lines) == len(folders)
    found = {name: line.split("\t") for name, line in zip(folders, lines, strict=True)}
    wanted = {name: _code_of_python(folder) for name, folder in folders.items()}
    assert {name: int(code) for name, (code, _) in found.items()} == wanted
    assert wanted["nothing"] == wanted["link to the same"] == 0
    for name, (code, message) in found.items():
        assert code == "0" or (message.count("; ") >= 2 and "expected " in message), (name, message)
