"""A dense model's bundle as people meet it: built with a gate, evaluated, run and shown; others have no maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.models import Salient
from helpers.pages import check_inert
from helpers.processes import result_in
from PIL import Image

import ztdeploy
from ztdeploy.cli.app import run
from ztdeploy.core.bundle import read_bundle
from ztdeploy.target.adaptive.opening import load
from ztdeploy.target.evaluate.eval_report import EvalReport
from ztdeploy.target.runtime.images import read_image

IMAGES = 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for place in range(IMAGES):
        pixels = random.integers(0, 256, (5, 6 + place, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((60 + 10 * place, 50)).save(folder / f"{place}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "salient"
    ztdeploy.build(
        Salient().eval(), profile="cpu", keep_ratio=0.6, activation="sigmoid", out=out, calib=photos, max_error=0.9
    )
    return out


@pytest.mark.long
def test_maps_are_evaluated_judged_and_drawn(bundle: Path, photos: Path, tmp_path: Path) -> None:
    page, worst, out = tmp_path / "page.html", tmp_path / "worst", tmp_path / "report.json"
    options = ["--threshold", "0.4", "--min-iou", "0.01", "--max-error", "0.9"]
    files = ["--page", str(page), "--maps", str(worst), "--out", str(out), "--cache", str(tmp_path / "cache")]
    assert run(["eval", str(bundle), "-d", str(photos), *options, *files]) == 0
    report = EvalReport.model_validate_json(out.read_text())
    maps = {}
    for variant in ("dense", "keep-0.60"):
        with load(bundle, variant=variant) as runner:
            logits = np.stack([one.map for one in runner(sorted(photos.iterdir()))]).astype(float)
            maps[variant] = 1 / (1 + np.exp(-logits))
    dense, own = maps.values()
    score = report.variants[1].maps
    assert score is not None
    assert score.iou is not None
    assert score.error.value == pytest.approx(np.abs(dense - own).mean(), abs=1e-6)
    both, either = ((how(dense > 0.4, own > 0.4)).sum((1, 2, 3)) for how in (np.logical_and, np.logical_or))
    assert score.iou.value == pytest.approx((both / either).mean(), abs=1e-6)
    assert [one.iou for one in score.furthest] == pytest.approx(sorted(both / either))
    assert report.verdict is not None
    assert "mean IoU" in report.verdict.sentence
    check_inert(page)
    assert page.read_text().count("difference; ") >= IMAGES
    assert {one.name for one in worst.iterdir()} == {f"{place}-keep-0-60.map.png" for place in range(IMAGES)}
    manifest = read_bundle(bundle).manifest
    kept = read_bundle(bundle).variant(name="keep-0.60").engines["cpu"].fidelity
    assert kept is not None
    assert (kept.error, kept.iou, kept.cosine) == (score.error.value, score.iou.value, None)
    assert (manifest.gates[0].limits.max_error, manifest.gates[0].rows[0].failed) == (0.9, ())
    assert "mean IoU" in repr(report)


@pytest.mark.long
def test_run_writes_maps_in_the_place_of_their_images(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps"
    assert run(["run", str(bundle), str(photos), "--maps", str(out), "--threshold", "0.4", "--json"]) == 0
    found = result_in(capsys.readouterr().out)
    for image in found["images"]:
        file = out / f"{Path(image['image']).stem}.map.png"
        assert image["files"] == [str(file.with_suffix(".npy")), str(file)]
        assert Image.open(file).size == read_image(image["image"]).size
        numbers = 1 / (1 + np.exp(-np.load(file.with_suffix(".npy"))))
        assert image["shape"] == list(numbers.shape) == [1, 8, 8]
        facts = image["map"]
        assert (facts["low"], facts["high"]) == (pytest.approx(numbers.min()), pytest.approx(numbers.max()))
        assert facts["above"] == pytest.approx((numbers > 0.4).mean())


@pytest.mark.long
def test_show_draws_both_maps(bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", str(bundle), str(photos / "0.png"), "--out", str(tmp_path), "--json"]) == 0
    (shown,) = result_in(capsys.readouterr().out)["images"][0]["variants"]
    assert 0 <= shown["map"]["error"] <= 1
    check_inert(tmp_path / "show.html")
    assert "difference; " in (tmp_path / "show.html").read_text()
    assert json.loads((bundle / "manifest.json").read_text())["model"]["map_shape"] == [1, 8, 8]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("eval", "--data", "PHOTOS", "--min-iou", "0.9"), "--min-iou 0.9"),
        (("eval", "--data", "PHOTOS", "--maps", "OUT"), "--maps"),
        (("run", "PHOTOS", "--maps", "OUT"), "which gives logits"),
    ],
)
def test_maps_of_a_classifier_are_refused_before_anything_runs(
    options: tuple[str, ...],
    words: str,
    digits_bundle: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"PHOTOS": str(photos), "OUT": str(tmp_path / "out")}
    verb, *rest = (places.get(one, one) for one in options)
    assert run([verb, str(digits_bundle), *rest]) == 3
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
