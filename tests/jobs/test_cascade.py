"""Building a cascade: what may be asked for, and what a bundle and the commands say of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.bundles import linked_copy
from helpers.errors import refused

import ztdeploy
from ztdeploy.cli.app import run
from ztdeploy.core.bundle import MANIFEST, Bundle, read_bundle
from ztdeploy.core.cascade import CascadeGoal, CascadeSetting
from ztdeploy.core.errors import PARTLY_BUILT, AccuracyError, InputError
from ztdeploy.core.keep_ratio import uniform_schedule
from ztdeploy.core.manifest import GateLimits
from ztdeploy.core.plan import Variant
from ztdeploy.core.progress import silent
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.jobs.cascade import calibrate_cascade
from ztdeploy.jobs.chain import chain_of
from ztdeploy.jobs.request import Gate
from ztdeploy.target.adaptive.calibrate import StageAnswers, calibrate
from ztdeploy.target.bundle_readme import README
from ztdeploy.target.verdict import verdict_of_build

DIGITS = ("--calib", str(ASSETS / "digits"))


def model(activation: str = "softmax") -> Any:
    """What a chain asks of a loaded model."""
    from helpers.models import variant

    from ztdeploy.host.models.vit import VitAdapter

    adapter = VitAdapter(variant("class-token"), 32)
    return SimpleNamespace(name="tiny", output="logits", activation=activation, adapter=adapter)


def variants(*ratios: float) -> list[Variant]:
    architecture = model().adapter.architecture
    return [Variant.of(uniform_schedule(ratio, 4), architecture) for ratio in ratios]


def test_a_chain_goes_from_the_cheapest_to_the_baseline() -> None:
    chain = chain_of(variants(0.7, 1.0, 0.5), model())
    assert chain.names == ("keep-0.50", "keep-0.70", "dense")
    assert chain.block == min(layer.block for stage in chain.stages[:2] for layer in stage.plan.layers)


def test_without_a_pruned_variant_or_a_confidence_there_is_no_chain() -> None:
    refused(lambda: chain_of(variants(1.0), model()), "-k 0.55", kind=InputError)
    refused(lambda: chain_of(variants(0.5, 1.0), model("none")), "'tiny'", "activation none", kind=InputError)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cascade", "0.98"), "--calib"),
        (("--cascade", "0.98", "--cascade-max-rerun", "0.2", *DIGITS), "one of them"),
        (("--cascade-min-cosine", "0.9", *DIGITS), "--cascade as well"),
        (("--cascade", "0.98", "--max-drop", "1", *DIGITS), "--max-drop"),
        (("--cascade", "0.98", "--precision", "auto", *DIGITS), "--precision auto"),
        (("--cascade", "0.999", *DIGITS), "at least 2995"),
        (("--cascade", "0.9", "-k", "1", *DIGITS), "-k 0.55"),
        (("--cascade", "1.2", *DIGITS), "1.2"),
    ],
)
def test_what_cannot_be_asked_for(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is traced, with one line, and nothing is left behind."""
    out = tmp_path / "bundle"
    assert run(["build", "-m", "vit_digits", "-p", "cpu", *options, "-o", str(out)]) in (2, 3)
    said = capsys.readouterr().err.splitlines()
    assert words in said[-1], said
    assert list(tmp_path.iterdir()) == []


def test_a_goal_that_no_thresholds_reach_says_what_is_best(
    cascade_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first stages are sure of what is wrong, all images go on, which costs more than the baseline."""
    wrong = StageAnswers(np.array([[False] * 100, [False] * 100, [True] * 100]), np.full((2, 100), 0.9, np.float32))
    monkeypatch.setattr(
        "ztdeploy.target.adaptive.calibrate._measure", lambda *_: (wrong, {"data": "digits", "data_sha256": "0"})
    )
    monkeypatch.setattr("ztdeploy.target.adaptive.calibrate._time", lambda *_: (1.0, 2.0, 3.0))
    bundle, goal = read_bundle(cascade_bundle), CascadeGoal(agreement=0.95)
    refused(
        lambda: calibrate(bundle, "cpu", None, goal, lambda *_: None),  # type: ignore[arg-type]
        "100 % of 100 images",
        "the best agrees on 0.0 %, at 0.",
        kind=AccuracyError,
    )


def test_a_profile_whose_cascade_misses_its_goal_keeps_its_engines(
    cascade_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle says so by name, and the exit code is that of a bundle without some of its profiles."""
    folder, missed = linked_copy(cascade_bundle, tmp_path / "bundle"), {"cpu"}
    found, before = settings(folder), (folder / MANIFEST).read_bytes()

    def double(_bundle: Bundle, profile: str, *_: object) -> CascadeSetting:
        if profile in missed:
            raise AccuracyError("100 % of 100 images go on", "less", "ask for less")
        return found[profile]

    monkeypatch.setattr("ztdeploy.jobs.cascade.calibrate", double)
    gate = Gate(cascade_bundle.parent / "some digits", GateLimits())
    request: Any = SimpleNamespace(cascade=CascadeGoal(agreement=0.95), gate=gate)
    calibrate_cascade(folder, request, silent)
    bundle = read_bundle(folder)
    assert list(settings(folder)) == ["jetson-orin"]
    assert [(one.profile, one.part, one.exit_code) for one in bundle.manifest.failed] == [("cpu", "cascade", 8)]
    for said in ((folder / README).read_text(), " ".join(str(bundle).split())):
        assert "profile 'cpu' has no cascade: 100 % of 100 images" in said
    with ztdeploy.load(folder, profile="cpu") as runner:
        assert runner.profile == "cpu"
    refused(lambda: ztdeploy.load(folder, profile="cpu", cascade=True), "'cpu': 100 % of 100 images", kind=InputError)
    monkeypatch.setattr("ztdeploy.jobs.build.build", lambda *_: bundle)
    assert run(["build", "-m", "vit_digits", "-p", "cpu", "-o", str(tmp_path / "unused")]) == PARTLY_BUILT
    assert "has no cascade" in capsys.readouterr().err
    missed.add("jetson-orin")
    other = linked_copy(cascade_bundle, tmp_path / "other")
    refused(lambda: calibrate_cascade(other, request, silent), "100 % of 100 images", kind=AccuracyError)
    assert (other / MANIFEST).read_bytes() == before


def settings(bundle: Path) -> dict[str, CascadeSetting]:
    cascade = read_bundle(bundle).manifest.cascade
    assert cascade is not None
    return cascade.settings


def test_thresholds_of_a_board_come_from_its_graphs(cascade_bundle: Path) -> None:
    """Whose latency nobody knows."""
    found = settings(cascade_bundle)
    assert {name: one.guarantee.by for name, one in found.items()} == {"cpu": "engines", "jetson-orin": "graphs"}
    for one in found.values():
        guarantee = one.guarantee
        assert (guarantee.images, guarantee.asked, guarantee.data) == (100, 0.95, "some digits")
        assert guarantee.agreement >= guarantee.bound >= 0.95
        assert one.shares[0] == 1
        assert 0 < one.gmacs < read_bundle(cascade_bundle).manifest.dense.gmacs
    timed = found["cpu"]
    assert found["jetson-orin"].mean_ms is None
    assert timed.mean_ms is not None
    assert timed.worst_ms is not None
    assert 0 < timed.mean_ms <= timed.worst_ms


def test_people_read_what_is_guaranteed(cascade_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the bundle's README, in Python, at the end of a build and by `inspect`."""
    bundle = read_bundle(cascade_bundle)
    capsys.readouterr()
    assert run(["inspect", str(cascade_bundle)]) == 0
    for text in (
        (cascade_bundle / README).read_text(),
        str(bundle),
        verdict_of_build(bundle).sentence,
        capsys.readouterr().out,
    ):
        said = " ".join(text.split())
        assert "at least 95." in said
        assert "with 95 % confidence; measured" in said
        assert "its graphs ran in ONNX Runtime, its engines did not" in said
        assert "go on to the baseline" in said


def test_an_evaluation_is_on_record_until_engines_change(
    cascade_bundle: Path, digit_images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside those of variants, for the bundle's README, `inspect`, sweeps and verdicts."""
    folder, photos = linked_copy(cascade_bundle, tmp_path / "bundle"), tmp_path / "photos"
    photos.mkdir()
    for image in digit_images[200:230]:
        shutil.copy(image, photos)
    command = ["eval", str(folder), "--data", str(photos), "-p", "cpu", "--cache", str(tmp_path / "cache"), "--json"]
    assert run(command) == 0
    report = json.loads(capsys.readouterr().out)["result"]
    bundle = read_bundle(folder)
    bundle.verify_files()
    cascade, row = bundle.manifest.cascade, report["variants"][-1]
    assert cascade is not None
    found = cascade.evaluations["cpu"]
    assert (found.data, found.images, found.gmacs) == ("photos", 30, row["gmacs"])
    assert found.agreement == row["cascade"]["agreement"]["count"] / 30
    assert found.bound < found.agreement
    assert [30 * share for share in found.shares] == [one["reached"]["count"] for one in row["cascade"]["stages"]]
    said = f"on 30 images of 'photos' it agreed with the baseline on {100 * found.agreement:.1f} %"
    assert said in (folder / README).read_text()
    assert run(["inspect", str(folder)]) == 0
    assert "cpu\tcascade\t30 of photos" in capsys.readouterr().out
    engine = cascade.prefix.engines["cpu"]
    changed = bundle.manifest.with_engines({("_prefix", "cpu"): engine}).cascade
    assert changed is not None
    assert changed.evaluations == {}


def test_run_says_which_stage_answered(
    cascade_bundle: Path, digit_images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(cascade_bundle), *map(str, digit_images[:40]), "--cascade", "--profile", "cpu", "--top", "1"]
    capsys.readouterr()
    assert run(command) == 0
    said = capsys.readouterr()
    lines = [line.split("\t") for line in said.out.splitlines()]
    stages = [cells[1] for cells in lines]
    assert [cells[0] for cells in lines] == [str(image) for image in digit_images[:40]]
    assert set(stages) <= {"keep-0.50", "keep-0.70", "dense"}
    went_on = 40 - stages.count("keep-0.50")
    assert f"{went_on} of 40 images went on from keep-0.50" in said.err
    assert run([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert [one["stage"] for one in result["images"]] == stages
    assert result["variant"] is None
    assert sum(result["cascade"]["answered"].values()) == 40


def test_run_warns_of_unlike_images_in_the_end(
    cascade_bundle: Path, digit_images: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ztdeploy.target.adaptive.cascade.unlike", lambda *_: True)
    images = map(str, digit_images[:40])
    assert run(["run", str(cascade_bundle), *images, "--cascade", "--profile", "cpu"]) == 0
    assert "unlike 'some digits'" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("options", [("-k", "0.5"), ("--variant", "dense")])
def test_run_has_one_who_chooses(
    cascade_bundle: Path, digit_images: list[Path], options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", str(cascade_bundle), str(digit_images[0]), "--cascade", *options]) == 3
    assert "beside a cascade" in capsys.readouterr().err


def test_run_refuses_a_bundle_without_a_cascade(
    digits_bundle: Path, digit_images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", str(digits_bundle), str(digit_images[0]), "--cascade"]) == 3
    assert "has no cascade" in capsys.readouterr().err
