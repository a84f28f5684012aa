"""What runs on a device, with Arm's instructions: the same tokens and answers as on x86, the same bytes in C++."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers import pixel_cases
from helpers.arm_boards import BOARDS, Board
from helpers.processes import CHECKOUT, HANG_S, result_in, run_ztdeploy

from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import PreprocessOptions
from ztdeploy.core.profile import Precision
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.backends.base import MemoryMode
from ztdeploy.target.runtime.parity import DRIFT_FACTOR, DRIFT_OVERLAP, LOGIT_TOLERANCE
from ztdeploy.target.runtime.postprocess import original_tokens
from ztdeploy.target.runtime.preprocess import load_pixels

HERE = Path(__file__).parent
PROFILES = ("raspberry-pi5", "raspberry-pi5-int8", "jetson-orin")
#: An answer is clear that leads by so much of the largest logit.
CLEAR = 0.1
Answers = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def digits(boards: dict[str, Board], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model's bundle, built on x86; keep ratios 0.7, 0.5 and dense, of the default method."""
    folder = tmp_path_factory.mktemp("bundles") / "digits"
    model = ModelSource(name="vit_digits")
    build(BuildRequest(model=model, profiles=PROFILES, keep_ratios=(0.7, 0.5), out=folder))
    return folder


def _pixels(bundle: Path, images: list[Path], folder: Path) -> Path:
    np.save(folder / "pixels.npy", load_pixels(images, read_bundle(bundle).manifest.preprocess))
    return folder / "pixels.npy"


def _x86(bundle: Path, profile: str, pixels: Path, folder: Path) -> Answers:
    command = [sys.executable, HERE / "answers.py", bundle, profile, pixels, folder / "x86.npz", "speed"]
    subprocess.run(command, check=True, cwd=CHECKOUT, timeout=HANG_S)
    return dict(np.load(folder / "x86.npz"))


def _arm(board: Board, bundle: Path, profile: str, pixels: Path, folder: Path, memory: MemoryMode = "speed") -> Answers:
    out = folder / f"{board.folder.name}.npz"
    board.must("python", HERE / "answers.py", bundle, profile, pixels, out, memory, cwd=folder)
    return dict(np.load(out))


def _layers(found: Answers, call: str) -> list[npt.NDArray[np.int32]]:
    """Per pruning layer, the tokens that are left, as indices into all of them."""
    kept = [found[key] for key in found if key.startswith(f"{call}/kept/")]
    return [np.sort(layer, 1) for layer in original_tokens(kept)]


def _share(found: Answers, wanted: Answers, call: str) -> float:
    """Of the tokens that a layer is to keep, those that it keeps; of the worst layer."""
    layers = zip(_layers(found, call), _layers(wanted, call), strict=True)
    return float(
        min([1.0, *(np.mean([np.isin(*pair).mean() for pair in zip(*layer, strict=True)]) for layer in layers)])
    )


def _compare(
    title: str, found: Answers, wanted: Answers, exact: Answers, precision: Precision, seen: list[str]
) -> None:
    """Hold what a board gives for all images against x86: the same in fp32, below it as near to fp32 as x86 is.

    Args:
        wanted: what the same graphs give on x86.
        exact: what fp32 gives on x86.
    """
    assert found.keys() == wanted.keys() == exact.keys()
    images = max(int(key.split("/")[1]) for key in wanted)
    for variant in dict.fromkeys(key.split("/")[0] for key in wanted):
        call = f"{variant}/{images}"
        logits, others, fp32 = (one[f"{call}/logits"] for one in (found, wanted, exact))
        layers = zip(_layers(found, call), _layers(wanted, call), strict=True)
        same = int(np.all([np.ones(images, bool), *((one == other).all(1) for one, other in layers)], 0).sum())
        share, own, theirs = (_share(*pair, call) for pair in ((found, wanted), (found, exact), (wanted, exact)))
        difference, drift, usual = (
            np.abs(one - two).max(1) for one, two in ((logits, others), (logits, fp32), (others, fp32))
        )
        largest = float(np.abs(others).max())
        answers = logits.argmax(1) == others.argmax(1)
        seen.append(
            f"{title}, {variant}: same tokens in all layers {same} of {images} (least share {share:.3f}; of fp32's "
            f"{own:.3f}, on x86 {theirs:.3f}), same answer {answers.sum()}, logits of {largest:.1f} differ by "
            f"{difference.max():.1e}, median {np.median(difference):.1e} (from fp32 {np.median(drift):.1e}, on x86 "
            f"{np.median(usual):.1e})"
        )
        best = np.sort(others, 1)[:, -2:]
        assert answers[best[:, 1] - best[:, 0] > CLEAR * largest].all(), seen[-1]
        if precision == "fp32":
            assert (same, answers.all()) == (images, True), seen[-1]
            assert difference.max() <= LOGIT_TOLERANCE["fp32"] * largest, seen[-1]
        else:  # as `verify` judges an engine below fp32
            assert own >= theirs - DRIFT_OVERLAP, seen[-1]
            explained = LOGIT_TOLERANCE["fp32"] * largest + DRIFT_FACTOR * np.median(usual)
            assert np.median(drift) <= (explained if precision == "int8" else LOGIT_TOLERANCE["fp16"] * largest), seen[
                -1
            ]


@pytest.mark.parametrize(
    ("profile", "precision", "count"),
    [("raspberry-pi5", "fp32", 10), ("raspberry-pi5-int8", "int8", 24), ("jetson-orin", "fp16", 4)],
)
def test_tokens_and_answers_are_those_of_x86(
    boards: dict[str, Board],
    digits: Path,
    digit_images: list[Path],
    profile: str,
    precision: Precision,
    count: int,
    tmp_path: Path,
    seen: list[str],
) -> None:
    """Engines of both Raspberry Pi profiles; of the Jetson's, the plain graphs, in ONNX Runtime."""
    pixels = _pixels(digits, digit_images[:count], tmp_path)
    wanted, exact = (_x86(digits, name, pixels, tmp_path) for name in (profile, "raspberry-pi5"))
    with ThreadPoolExecutor(usable_threads()) as pool:
        several = pool.map(lambda board: _arm(board, digits, profile, pixels, tmp_path), boards.values())
        found = dict(zip(boards, several, strict=True))
    for name, answers in found.items():
        _compare(f"{profile} on {name}", answers, wanted, exact, precision, seen)
    if precision == "int8":  # sums of products are exact with dot products and without
        for key, array in found["raspberry-pi4"].items():
            assert np.array_equal(array, found["raspberry-pi5"][key]), key


def test_extreme_sums_of_products_are_exact(boards: dict[str, Board], tmp_path: Path, seen: list[str]) -> None:
    """Of 8-bit integers, where x86 without dot products adds two in 16 bits."""
    import onnx
    from onnx import TensorProto, helper

    weights = np.where(np.arange(64 * 32).reshape(64, 32) % 3 == 0, 127, -128).astype(np.int8)
    weights[:, :8] = 127
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    ports = [
        helper.make_tensor_value_info(*port)
        for port in (("a", TensorProto.UINT8, [4, 64]), ("y", TensorProto.INT32, [4, 32]))
    ]
    graph = helper.make_graph([node], "sums", ports[:1], ports[1:], [onnx.numpy_helper.from_array(weights, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "sums.onnx")
    run = "; ".join(
        (
            "import onnxruntime as ort, numpy as np",
            "session = ort.InferenceSession('sums.onnx', providers=['CPUExecutionProvider'])",
            "print(session.run(None, {'a': np.full((4, 64), 255, np.uint8)})[0].tolist())",
        )
    )
    exact = (np.full((4, 64), 255) @ weights.astype(np.int64)).tolist()
    for name, board in boards.items():
        assert json.loads(board.must("python", "-c", run, cwd=tmp_path)) == exact, name
    emulator = shutil.which("qemu-x86_64-static")
    if emulator:
        command = [emulator, "-cpu", "Haswell", sys.executable, "-c", run]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=HANG_S)
        wrong = int((np.array(json.loads(done.stdout)) != np.array(exact)).sum())
        seen.append(
            f"extreme sums of 8-bit products: exact on {', '.join(boards)}; on x86 with AVX2 {wrong} of 128 are wrong"
        )


@pytest.mark.parametrize("board", BOARDS)
def test_verify(boards: dict[str, Board], digits: Path, board: str, tmp_path: Path, seen: list[str]) -> None:
    report = result_in(boards[board].must("ztdeploy", "verify", digits, "--json", cwd=tmp_path))
    assert (report["not_run"], len(report["variants"])) == ({}, 6)  # the Jetson's engines are not built yet
    for name, parity in report["variants"].items():
        ties = sum(layer["ties"] for layer in parity["layers"])
        seen.append(f"verify on {board}, {name}: {parity['max_logit_difference']:.1e}, ties {ties}")
        assert ties == 0 or "int8" in name
    slow = [note for note in report["notes"] if "no 8-bit dot products" in note]
    assert bool(slow) == (board == "raspberry-pi4")


def test_run_and_eval_say_what_they_say_on_x86(
    boards: dict[str, Board], digits: Path, digit_images: list[Path], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for image in digit_images[40:52]:
        (photos / image.stem[-1]).mkdir(exist_ok=True)
        shutil.copy(image, photos / image.stem[-1])
    for profile in ("raspberry-pi5", "raspberry-pi5-int8"):
        asked = ("run", digits, digit_images[40], "-p", profile, "--json")
        wanted, found = (
            result_in(run_ztdeploy(*asked, cwd=tmp_path).out),
            result_in(_printed(boards, *asked, cwd=tmp_path)),
        )
        assert _labels(found) == pytest.approx(_labels(wanted), abs=2e-2 if "int8" in profile else 2e-6)
        asked = ("eval", digits, "-d", photos, "-p", profile, "--json")
        wanted, found = (
            result_in(run_ztdeploy(*asked, cwd=tmp_path).out),
            result_in(_printed(boards, *asked, cwd=tmp_path)),
        )
        assert found["data"] == wanted["data"]
        assert [_judged(one) for one in found["variants"]] == [_judged(one) for one in wanted["variants"]]


def _printed(boards: dict[str, Board], *arguments: object, cwd: Path) -> str:
    return boards["raspberry-pi5"].must("ztdeploy", *arguments, cwd=cwd)


def _labels(report: Any) -> dict[str, float]:
    return {label["name"]: label["probability"] for label in report["images"][0]["labels"]}


def _judged(variant: Any) -> Any:
    return variant["variant"], variant["top1"]["count"], (variant["against_dense"] or {"agreement": None})["agreement"]


def test_finalize_builds_the_boards_engines(boards: dict[str, Board], digits: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(digits, tmp_path / "copy"))
    boards["raspberry-pi5"].must("ztdeploy", "finalize", copy, "-p", "raspberry-pi5-int8", cwd=tmp_path)
    refused = boards["jetson-thor"].run("ztdeploy", "finalize", copy, "-p", "jetson-orin", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (6, 1), refused.stderr
    assert "'tensorrt'" in refused.stderr


@pytest.mark.parametrize(
    ("board", "processor", "products", "profile"),
    [
        ("raspberry-pi4", "Cortex-A72", "no 8-bit dot products", "cpu"),
        ("raspberry-pi5", "Cortex-A76", "asimddp", "raspberry-pi5"),
        ("jetson-thor", "Neoverse-V3AE", "asimddp i8mm", "cpu"),  # TensorRT is not there
    ],
)
def test_what_the_machine_is(
    boards: dict[str, Board], board: str, processor: str, products: str, profile: str, tmp_path: Path
) -> None:
    printed = boards[board].must("ztdeploy", "doctor", "--json", cwd=tmp_path)
    found = {one["subject"]: one["found"] for one in result_in(printed)["findings"]}
    assert found["processor"].startswith(f"{processor}, ")
    assert products in found["int8 engines"]
    chosen = "from ztdeploy.target.machine_profile import *; print(profile_for_this_machine().name)"
    assert boards[board].must("python", "-c", chosen, cwd=tmp_path) == f"{profile}\n"


# -------------------- C++


def test_pixels_are_those_of_x86(boards: dict[str, Board], tmp_path: Path) -> None:
    """In Python, whose Pillow was compiled for Arm, and in C++: byte for byte."""
    cases = list(pixel_cases.pixel_cases())
    wanted = b"".join(pixel_cases.answered(*case) for case in cases)
    (tmp_path / "cases").write_bytes(b"".join(pixel_cases.asked(*case) for case in cases))
    boards["raspberry-pi5"].must("python", pixel_cases.__file__, tmp_path / "python", cwd=tmp_path)
    boards["raspberry-pi5"].must("ztdeploy-check", "preprocess", tmp_path / "cases", tmp_path / "cpp", cwd=tmp_path)
    assert (tmp_path / "python").read_bytes() == wanted
    assert (tmp_path / "cpp").read_bytes() == wanted


@pytest.mark.parametrize(
    ("board", "profile", "memory"),
    [
        ("raspberry-pi4", "raspberry-pi5-int8", "speed"),
        ("raspberry-pi5", "raspberry-pi5", "speed"),
        ("raspberry-pi5", "raspberry-pi5", "shared"),  # whose kernels round otherwise
        ("raspberry-pi5", "raspberry-pi5-int8", "speed"),
        ("jetson-thor", "raspberry-pi5", "speed"),
        ("jetson-thor", "raspberry-pi5-int8", "speed"),
    ],
)
def test_cpp_gives_pythons_bytes(
    boards: dict[str, Board],
    digits: Path,
    digit_images: list[Path],
    board: str,
    profile: str,
    memory: MemoryMode,
    tmp_path: Path,
) -> None:
    pixels = _pixels(digits, digit_images[60:63], tmp_path)
    np.load(pixels).tofile(tmp_path / "pixels")
    python = _arm(boards[board], digits, profile, pixels, tmp_path, memory)
    given = (digits, profile, "dense", memory, tmp_path / "pixels", tmp_path / "out")
    boards[board].must("ztdeploy-check", "infer", *given, cwd=tmp_path)
    assert (tmp_path / "out").read_bytes() == b"".join(array.tobytes() for array in python.values())


def test_the_cpp_command_prints_what_pythons_prints(
    boards: dict[str, Board], cascade_bundle: Path, digit_images: list[Path], tmp_path: Path
) -> None:
    """Of a cascade with the paper's method, of PNG and JPEG files; and known inputs give PyTorch's outputs."""
    from PIL import Image

    for image in digit_images[70:76]:
        shutil.copy(image, tmp_path)
        Image.open(image).convert("RGB").resize((97, 61)).save(tmp_path / f"{image.stem}.jpg", quality=90)
    board = boards["raspberry-pi5"]
    images = sorted(path for path in tmp_path.iterdir() if path.suffix in (".png", ".jpg"))
    asked = (cascade_bundle, *images, "--cascade", "--profile", "cpu", "--threads", "1")
    printed = board.must("ztdeploy", "run", *asked, cwd=tmp_path)
    assert len(printed.splitlines()) == len(images)
    assert board.must("ztdeploy-run", *asked, cwd=tmp_path) == printed
    report = result_in(board.must("ztdeploy", "verify", cascade_bundle, "--profile", "cpu", "--json", cwd=tmp_path))
    assert len(report["cascade"]) == 3
    checked = board.must("ztdeploy-run", cascade_bundle, "--check", "--profile", "cpu", cwd=tmp_path)
    assert len(checked.splitlines()) == len(report["variants"])


# -------------------- a trained model


@pytest.mark.realdata
def test_photographs_of_a_trained_model(
    boards: dict[str, Board], realdata: Path, tmp_path: Path, seen: list[str]
) -> None:
    """DeiT-Tiny with its trained weights, the default method at 0.7, and six photographs."""
    source = ModelSource(
        name="deit_t",
        checkpoint=realdata / "deit_tiny_patch16_224.fp16.safetensors",
        class_names=Path("imagenet"),
        preprocess=PreprocessOptions(crop_pct=0.875),
    )
    folder = tmp_path / "deit_t"
    build(BuildRequest(model=source, profiles=PROFILES[:2], keep_ratios=(0.7,), out=folder))
    photos = sorted((realdata / "images").iterdir())[::36][:6]
    pixels = _pixels(folder, photos, tmp_path)
    exact = _x86(folder, "raspberry-pi5", pixels, tmp_path)
    precisions: tuple[tuple[str, Precision], ...] = (("raspberry-pi5", "fp32"), ("raspberry-pi5-int8", "int8"))
    for profile, precision in precisions:
        wanted = _x86(folder, profile, pixels, tmp_path)
        found = _arm(boards["raspberry-pi5"], folder, profile, pixels, tmp_path)
        _compare(f"DeiT-Tiny, {profile} on raspberry-pi5", found, wanted, exact, precision, seen)
    asked = ("run", folder, photos[0], "-p", "raspberry-pi5", "--json")
    wanted, printed = result_in(run_ztdeploy(*asked, cwd=tmp_path).out), _printed(boards, *asked, cwd=tmp_path)
    assert _labels(result_in(printed)) == pytest.approx(_labels(wanted), abs=1e-4)
