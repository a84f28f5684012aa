"""Bundles of embeddings and of features as people meet them: built with a gate, evaluated, shown, swept, in processes
of their own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import result_in, run_ztdeploy

from ztdeploy.core.bundle import read_bundle
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.target.adaptive.opening import load
from ztdeploy.target.evaluate.eval_report import EvalReport
from ztdeploy.target.runtime.preprocess import load_pixels

DIGITS = ASSETS / "digits"
IMAGES = 48


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per digit under names that say nothing to the model."""
    folder = tmp_path_factory.mktemp("photos")
    for image in sorted((DIGITS / "images").glob("*.png"))[:IMAGES]:
        place = folder / f"thing-{image.stem[-1]}"
        place.mkdir(exist_ok=True)
        shutil.copy(image, place)
    return folder


def built(output: str, photos: Path, folder: Path, least: str, *ratios: str) -> Path:
    done = run_ztdeploy(
        *(
            "build",
            "-m",
            "vit_digits",
            "-p",
            "cpu",
            *("--method", "zero-tprune"),  # of few layers: nothing else has traces of these outputs
            *[word for ratio in ratios for word in ("-k", ratio)],
            "--output",
            output,
            "-o",
            "bundle",
        ),
        *("--calib", photos, "--min-cosine", least),
        cwd=folder,
    )
    assert done.code == 0, done
    return folder / "bundle"


@pytest.fixture(scope="module")
def embeddings(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("embedding", photos, tmp_path_factory.mktemp("embedding"), "0.8", "0.7")


@pytest.fixture(scope="module")
def features(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("features", photos, tmp_path_factory.mktemp("features"), "0.9", "0.7", "0.3")


def outputs_by_hand(bundle: Path, photos: Path, report: EvalReport) -> list[np.ndarray]:
    paths = sorted(photos.rglob("*.png"))
    found = []
    for score in report.variants:
        with load(bundle, variant=score.variant) as runner:
            pixels = load_pixels(paths, runner.bundle.manifest.preprocess)
            vectors = runner.infer(pixels).logits.astype(float)
            found.append(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
    return found


def test_embeddings_are_judged_by_cosine_and_by_what_they_find(embeddings: Path, photos: Path, tmp_path: Path) -> None:
    done = run_ztdeploy("eval", embeddings, "-d", photos, "--out", "report.json", "--page", "page.html", cwd=tmp_path)
    assert done.code == 0, done
    report = EvalReport.model_validate_json((tmp_path / "report.json").read_text())
    assert (report.output, report.data.rule) == ("embedding", "10 folders, by their names")
    dense, pruned = outputs_by_hand(embeddings, photos, report)[:2]
    cosines = (dense * pruned).sum(-1)
    found = report.variants[1].likeness
    assert found is not None
    assert found.mean.value == pytest.approx(cosines.mean(), abs=1e-5)
    assert found.p5.value == pytest.approx(np.percentile(cosines, 5), abs=1e-5)
    assert found.lowest == pytest.approx(cosines.min(), abs=1e-5)
    labels = [path.parent.name for path in sorted(photos.rglob("*.png"))]
    asking = [i for i in range(IMAGES) if labels.count(labels[i]) > 1]
    for one in report.variants[1].recalls:
        likeness = pruned @ (pruned if one.gallery == "own" else dense).T
        np.fill_diagonal(likeness, -2)
        near = np.argsort(-likeness, axis=1)[:, : one.k]
        assert one.recall is not None
        assert one.recall.total == len(asking)
        assert one.recall.count == sum(labels[i] in [labels[j] for j in near[i]] for i in asking)
    assert "Cosine to the baseline's embedding, on 48 images" in done.out
    assert "top-1" not in done.out
    assert f"{found.mean.value:.4f}" in done.out
    page = (tmp_path / "page.html").read_text()
    assert "Recall" in page
    assert repr(found.mean.value) in page
    shown = run_ztdeploy("inspect", embeddings, cwd=tmp_path)
    assert "mean cosine" in shown.out
    assert f"{found.mean.value:.4f}" in shown.out


def test_without_labels_only_dense_is_what_to_find(embeddings: Path, tmp_path: Path) -> None:
    flat = (embeddings, "-d", DIGITS / "images", "--limit", "12", "--no-record")
    done = run_ztdeploy("eval", *flat, "--recall-at", "3", "--json", cwd=tmp_path)
    report = EvalReport.model_validate(result_in(done.out))
    rows = [one for score in report.variants for one in score.recalls]
    assert {one.k for one in rows} == {3}
    assert all(one.recall is None for one in rows)
    assert report.variants[1].recalls[0].overlap is not None
    refused = run_ztdeploy("eval", *flat, "--recall-at", "12", cwd=tmp_path)
    assert (refused.code, refused.out) == (3, "")
    assert "--recall-at 12 with 12 images; expected from 1 to 11" in refused.error


def test_features_are_judged_by_position(features: Path, photos: Path, tmp_path: Path) -> None:
    done = run_ztdeploy("eval", features, "-d", photos, "--out", "report.json", "--page", "page.html", cwd=tmp_path)
    assert done.code == 0, done
    report = EvalReport.model_validate_json((tmp_path / "report.json").read_text())
    dense, pruned = outputs_by_hand(features, photos, report)[:2]
    cosines = (dense * pruned).sum(-1)
    found = report.variants[1].likeness
    assert found is not None
    assert found.positions is not None
    assert found.mean.value == pytest.approx(cosines.mean(), abs=1e-5)
    assert found.p5.value == pytest.approx(np.percentile(cosines, 5), abs=1e-4)
    assert found.positions.mean == pytest.approx(cosines.mean(0), abs=1e-5)
    with load(features, variant=report.variants[1].variant) as runner:
        paths = sorted(photos.rglob("*.png"))
        kept = [one.kept[-1] for one in runner(paths)]
    filled = np.ones(cosines.shape, bool)
    for image, patches in enumerate(kept):
        filled[image, patches] = False
    assert found.positions.filled_share == pytest.approx(filled.mean())
    assert found.positions.kept is not None
    assert found.positions.filled is not None
    assert found.positions.kept.value == pytest.approx(cosines[~filled].mean(), abs=1e-5)
    assert found.positions.filled.value == pytest.approx(cosines[filled].mean(), abs=1e-5)
    assert not report.variants[1].recalls
    assert "Cosine by what stands at a position" in done.out
    page = (tmp_path / "page.html").read_text()
    assert "row 1, column 1" in page
    refused = run_ztdeploy("eval", features, "-d", photos, "--recall-at", "3", cwd=tmp_path)
    assert refused.code == 3
    assert "which gives features" in refused.error


@pytest.mark.parametrize("kind", ["embeddings", "features"])
def test_the_gate_judges_by_cosine(kind: str, request: pytest.FixtureRequest) -> None:
    """Features of keep ratio 0.3 are far below 0.9."""
    manifest = read_bundle(request.getfixturevalue(kind)).manifest
    (gate,) = manifest.gates
    rows = {row.variant: row for row in gate.rows}
    assert {row.cosine is not None and row.agreement is None and row.kl is None for row in gate.rows} == {True}
    least = {"embeddings": 0.8, "features": 0.9}[kind]
    failed = {name for name, row in rows.items() if (row.cosine or 0) < least}
    assert {name for name, row in rows.items() if row.failed} == failed
    assert {variant.name for variant in manifest.variants} == {"dense", *rows} - failed
    if kind == "features":
        assert rows["zero-tprune-keep-0.30"].failed[0].startswith("mean cosine is 0.")


def test_limits_that_say_nothing_of_it_are_refused(photos: Path, tmp_path: Path) -> None:
    build = ("build", "-m", "vit_digits", "-p", "cpu", "-o", "out", "--calib", photos)
    done = run_ztdeploy(*build, "--output", "embedding", "--max-kl", "0.1", cwd=tmp_path)
    assert (done.code, done.out) == (3, "")
    assert "--max-kl 0.1 with a model that gives embeddings; expected a limit on their cosine" in done.error
    done = run_ztdeploy(*build[:-1], DIGITS, "--min-cosine", "0.9", cwd=tmp_path)
    assert done.code == 3
    assert "--min-cosine 0.9 with a model that gives logits" in done.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["embeddings", "features"])
def test_show_says_how_near_it_is(
    kind: str, request: pytest.FixtureRequest, digit_images: list[Path], tmp_path: Path
) -> None:
    bundle = request.getfixturevalue(kind)
    done = run_ztdeploy("show", bundle, digit_images[0], "-o", "shown", "--json", cwd=tmp_path)
    assert done.code == 0, done
    (image,) = done.json()["images"]
    assert image["variants"][0]["labels"] == []
    assert 0 < image["variants"][0]["cosine"] < 1
    assert "cosine to the baseline" in (tmp_path / "shown" / "show.html").read_text()


def test_a_sweep_knows_cosines_and_answers_not(embeddings: Path, photos: Path, tmp_path: Path) -> None:
    done = run_ztdeploy(
        *("sweep", "--bundle", embeddings, "--data", photos, "--limit", "20", "--out", "swept"),
        *("--duration", "0.2", "--warmup", "0", "--rounds", "6", "--no-details"),
        cwd=tmp_path,
    )
    assert done.code == 0, done
    assert "mean cosine" in done.out
    assert "same answer" not in done.out
    found = json.loads((tmp_path / "swept" / "sweep.json").read_text())
    pruned = next(one for one in found["variants"] if one["name"] == "zero-tprune-keep-0.70")
    assert pruned["fidelity"]["agreement"] is None
    assert 0.8 < pruned["fidelity"]["cosine"] < 1
    assert "mean cosine" in (tmp_path / "swept" / "report.html").read_text()
    again = run_ztdeploy("compare", "swept/sweep.json", "swept/sweep.json", cwd=tmp_path)
    assert again.code == 0, again
