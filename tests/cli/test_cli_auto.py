"""`build --precision auto` as people meet it: what ships, the table, and what is left of what does not ship."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import Done, run_ztdeploy
from helpers.processors import WITHOUT_DOT_PRODUCTS, pretending
from PIL import Image
from safetensors.torch import load_file, save_file

import ztdeploy.host.proof
from ztdeploy.cli.app import run
from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.errors import ParityError
from ztdeploy.core.manifest import GateLimits
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.processor import onednn_processor
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.jobs.auto_precision import build_fastest
from ztdeploy.jobs.build import BuildRequest
from ztdeploy.jobs.gate import Gate

DIGITS = ASSETS / "digits"
CANDIDATES = ("cpu", "cpu-openvino", "cpu-openvino-bf16", "cpu-int8", "cpu-openvino-int8")
BUILD = ("build", "-m", "vit_digits", "-k", "0.7", "--out", "out")


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Builds what must be refused, in this process and the test's folder, where nothing may be left; the message."""

    def refuse(*arguments: str | Path, words: str) -> str:
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.iterdir())
        assert run([*BUILD, *map(str, arguments)]) == 3
        said = capsys.readouterr().err.splitlines()[-1]
        assert words in said
        assert sorted(tmp_path.iterdir()) == before
        return said

    return refuse


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labelled digits."""
    folder = tmp_path_factory.mktemp("calibration") / "photos"
    (folder / "images").mkdir(parents=True)
    labels = json.loads((DIGITS / "labels.json").read_text())[:40]
    (folder / "labels.json").write_text(json.dumps(labels))
    for label in labels:
        shutil.copy(DIGITS / "images" / label["file"], folder / "images")
    return folder


@pytest.fixture(scope="module")
def done(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    folder = tmp_path_factory.mktemp("auto")
    arguments = (*BUILD, "-p", "cpu", "--precision", "auto", "--calib", photos)
    done = run_ztdeploy(*arguments, cwd=folder)
    assert done.code == 0, done
    return done, folder


@pytest.fixture(scope="module")
def bundle(done: tuple[Done, Path]) -> Bundle:
    return read_bundle(done[1] / "out")


def test_the_table_lists_every_candidate_and_what_it_takes(bundle: Bundle) -> None:
    (choice,) = bundle.manifest.choices
    assert (choice.asked, choice.variant, choice.batch, choice.images) == ("cpu", "keep-0.70", 1, 40)
    assert [one.profile for one in choice.candidates] == list(CANDIDATES)
    able = {
        "cpu": True,
        "cpu-openvino": find_spec("openvino") is not None,
        "cpu-openvino-bf16": find_spec("openvino") is not None and onednn_processor().computes_bf16,
        "cpu-int8": True,
        "cpu-openvino-int8": find_spec("openvino") is not None,
    }
    for one in choice.candidates:
        assert (one.timing is not None) == able[one.profile], one
        assert (one.reason is None) == (one.profile == choice.shipped)
        expected = {"dense", "keep-0.70"} - ({"dense"} if one.profile == "cpu" else set())
        assert {row.variant for row in one.rows} == (expected if able[one.profile] else set())


def test_what_ships_beats_all_that_is_safer(bundle: Bundle) -> None:
    """Whichever that is on this machine and in this minute."""
    (choice,) = bundle.manifest.choices
    (shipped,) = [one for one in choice.candidates if one.reason is None]
    assert shipped.timing is not None
    if shipped.profile != "cpu":
        assert shipped.timing.speedup_interval[0] > 1
    (row,) = [row for row in shipped.rows if row.variant == "keep-0.70"]
    (asked,) = choice.candidates[0].rows
    assert asked.agreement - row.agreement <= 0.02


def test_nothing_of_the_others_is_left(bundle: Bundle, done: tuple[Done, Path]) -> None:
    manifest = bundle.manifest
    shipped = manifest.choices[0].shipped
    assert list(manifest.profiles) == [shipped]
    on_disk = {path.relative_to(bundle.root).as_posix() for path in bundle.root.rglob("*") if path.is_file()}
    assert on_disk == {*manifest.files, "manifest.json"}
    assert {file for file in on_disk if any(f".{name}." in file for name in CANDIDATES)} == {
        file for variant in manifest.variants for file in variant.engines[shipped].files
    }
    assert [path.name for path in done[1].iterdir()] == ["out"]
    assert [gate.profile for gate in manifest.gates] == [shipped]
    assert run_ztdeploy("verify", bundle.root, cwd=done[1]).code == 0


def test_build_and_inspect_show_it(bundle: Bundle, done: tuple[Done, Path]) -> None:
    shipped = bundle.manifest.choices[0].shipped
    for said in (done[0].out, run_ztdeploy("inspect", bundle.root, cwd=done[1]).out):
        assert f"Candidates for 'cpu': '{shipped}' is in the bundle" in said
        (line,) = [line for line in said.splitlines() if line.startswith(f"{shipped}\t") and "ships" in line]
        assert "x (" in line


@pytest.mark.long
def test_what_is_missing_is_said_and_the_next_best_taken(photos: Path, tmp_path: Path) -> None:
    """No OpenVINO and no 8-bit dot products: int8 is tried all the same, with weights of 7 bits."""
    arguments = (*BUILD, "-p", "cpu", "--precision", "auto", "--calib", photos, "--max-drop", "50", "--json")
    first = pretending(WITHOUT_DOT_PRODUCTS)
    done = run_ztdeploy(*arguments, cwd=tmp_path, first=first, hidden="openvino")
    assert done.code == 0, done
    (choice,) = done.json()["choices"]
    assert choice["shipped"] in ("cpu", "cpu-int8"), "whichever is faster here and now"
    assert [one["profile"] for one in done.json()["adapted"]] == ["cpu-int8"] * (choice["shipped"] == "cpu-int8")
    reasons = {one["profile"]: one["reason"] for one in choice["candidates"]}
    for name in ("cpu-openvino", "cpu-openvino-bf16", "cpu-openvino-int8"):
        assert "'openvino', which is not installed" in reasons[name]
    assert {one["profile"] for one in choice["candidates"] if one["timing"] is not None} == {"cpu", "cpu-int8"}
    assert choice["limits"]["max_drop"] == 50
    assert done.json()["calibration"]["cautions"] == []


@pytest.mark.long
def test_a_candidate_whose_engine_is_wrong_is_left_out(
    photos: Path, common: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> None:
        raise ParityError("integer products on this CPU are not exact", "exact ones", "set weight_bits = 7")

    monkeypatch.setattr(ztdeploy.host.proof, "prove_products", wrong)
    own = tmp_path / "mine.toml"
    own.write_text('title = "T"\nbackend = "onnxruntime"\ncandidates = ["cpu-int8"]\n[batch]\nsizes = [1, 8]\n')
    request = BuildRequest(
        model=ModelSource(name="vit_digits"), profiles=(str(own),), keep_ratios=(0.7,), out=tmp_path / "out"
    )
    bundle = build_fastest(replace(request, gate=Gate(photos, GateLimits()), cache=common / "traces"))
    (choice,) = bundle.manifest.choices
    reasons = {one.profile: one.reason for one in choice.candidates}
    assert reasons == {"mine": None, "cpu-int8": "integer products on this CPU are not exact"}
    assert list(bundle.manifest.profiles) == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-p", "cpu"), "--precision auto without --calib"),
        (("-p", "raspberry-pi5", "--calib", DIGITS), "raspberry-pi5, which has no candidates"),
        (("-p", "cpu", "--calib", "nowhere"), "'nowhere' does not exist"),
    ],
)
def test_refusals(arguments: tuple[str | Path, ...], words: str, refused: Refused) -> None:
    refused("--precision", "auto", *arguments, words=words)


def test_an_overflow_of_fp16_leaves_nothing(photos: Path, tmp_path: Path, refused: Refused) -> None:
    state = {name: tensor.float() for name, tensor in load_file(DIGITS / "model.safetensors").items()}
    state["blocks.3.mlp.fc1.weight"][5] *= 60000 / state["blocks.3.mlp.fc1.weight"][5].abs().max()
    state["blocks.3.mlp.fc2.weight"][:, 5] = 0
    save_file(state, tmp_path / "big.safetensors")
    arguments = ("-p", "jetson-orin", "--checkpoint", "big.safetensors", "--calib", photos)
    said = refused(*arguments, words="'keep-0.70' overflows in block 3: a value inside the MLP reaches")
    assert "bf16" in said


def test_the_range_is_in_the_bundle_and_one_image_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "one" / "a.png")
    done = run_ztdeploy(*BUILD, "-p", "jetson-orin", "--calib", "one", cwd=tmp_path)
    assert done.code == 0, done
    assert "warning: 'one' holds a single image" in done.err
    assert "keep-0.70: largest magnitudes, of which fp16 holds 65504" in done.out
    manifest = read_bundle(tmp_path / "out").manifest
    for variant in manifest.variants:
        assert variant.fp16_range is not None
        assert len(variant.fp16_range.blocks) == manifest.model.architecture.depth


def test_images_of_one_colour_are_refused(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "grey").mkdir()
    for value in (10, 200):
        Image.new("RGB", (64, 64), (value,) * 3).save(tmp_path / "grey" / f"{value}.png")
    refused("-p", "cpu", "--calib", "grey", words="each of 2 images of 'grey' is of one colour")
