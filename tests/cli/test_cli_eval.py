"""`ztdeploy eval` as people meet it: what it prints, writes, records and refuses, and how it goes on when stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.bundles import edit
from helpers.processes import HANG_S, Done, result_in, run_ztdeploy, started, wait_for

import ztdeploy
from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.errors import ParityError
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.target.evaluate.eval_report import EvalReport

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
DIGITS = ASSETS / "digits"


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name}
    return started(
        [sys.executable, "-m", "ztdeploy", "eval", *map(str, arguments)],
        cwd=cwd,
        env={**shell, "PYTHONPATH": str(CHECKOUT), "ZTDEPLOY_CACHE": str(cwd / "cache")},
    )


def evaluate(*arguments: str | Path, cwd: Path) -> Done:
    return run_ztdeploy("eval", *arguments, cwd=cwd)


@pytest.fixture
def folders(tmp_path: Path, digit_images: list[Path]) -> Path:
    """A folder per digit, with some of the held-out ones; a file's name ends in its label."""
    for image in digit_images[:40]:
        folder = tmp_path / "digits" / image.stem.rpartition("_")[2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder)
    return tmp_path / "digits"


def test_tables_a_file_and_a_record(bundle_copy: Path, tmp_path: Path) -> None:
    done = evaluate(bundle_copy, "--data", DIGITS, "--out", "report.json", cwd=tmp_path)
    assert done.code == 0, done
    report = EvalReport.model_validate_json((tmp_path / "report.json").read_text())
    assert [one.variant for one in report.variants] == ["dense", "keep-0.70", "keep-0.50"]
    assert (report.data.images, report.data.classes, report.data.rule) == (360, 10, "listed in labels.json")
    assert "Accuracy on 360 images of 10 classes, in %" in done.out
    for one in report.variants:
        assert one.top1 is not None
        assert re.search(rf"^{one.variant}\t{100 * one.top1.value:.1f} \(", done.out, re.MULTILINE), done.out
        if one.against_dense is not None:
            assert one.against_dense.change is not None
            assert f"{100 * one.against_dense.change.value:+.1f}" in done.out
            assert f"{one.against_dense.kl.value:.4f}" in done.out
            assert one.against_dense.worst[0].image in done.out
    assert done.err.splitlines()[-1] == "wrote report.json"
    bundle = read_bundle(bundle_copy)
    bundle.verify_files()
    for variant, score in zip(sorted(bundle.manifest.variants, key=lambda one: one.gmacs), report.variants[::-1]):  # noqa: B905
        found = bundle.fidelity(variant, "cpu")
        assert found is not None
        assert score.top1 is not None
        assert (found.top1, found.images, found.data_sha256) == (score.top1.value, 360, report.data.digest)
    shown = run_ztdeploy("inspect", bundle_copy, cwd=tmp_path)
    assert "Evaluated on images" in shown.out
    assert f"360 of digits ({report.data.digest[:8]})" in shown.out


def test_figures_are_those_of_the_engines_run_by_hand(digits_bundle: Path, tmp_path: Path) -> None:
    """Counted from a runner's own labels, one image at a time."""
    report = ztdeploy.evaluate(digits_bundle, DIGITS, limit=60, keep_ratio=0.5, cache=tmp_path / "cache", threads=2)
    images = {one["file"]: one["indices"] for one in json.loads((DIGITS / "labels.json").read_text())}
    again = ztdeploy.evaluate(digits_bundle, DIGITS, limit=60, keep_ratio=0.5, cache=tmp_path / "cache", threads=2)
    assert again.variants == report.variants
    dense, pruned = report.variants
    assert dense.against_dense is None
    assert dense.top1 is not None
    assert pruned.top1 is not None
    assert pruned.against_dense is not None
    assert (dense.top1.total, pruned.top1.total) == (60, 60)
    assert dense.top1.count >= 54
    worst = pruned.against_dense.worst[0]
    path = DIGITS / "images" / worst.image
    with ztdeploy.load(digits_bundle, keep_ratio=1, threads=1) as runner:
        said = runner(path)[0].labels[0]
        runner.switch(0.5)
        pruned_said = runner(path)[0].labels[0]
    assert (said.index, pruned_said.index) == (worst.dense.index, worst.variant.index)
    assert pruned_said.probability == pytest.approx(worst.variant.probability, abs=1e-4)
    assert worst.labels == tuple(map(str, images[worst.image]))
    change = pruned.against_dense.change
    assert change is not None
    assert change.gained - change.lost == pruned.top1.count - dense.top1.count


def test_class_folders_json_and_no_record(digits_bundle: Path, folders: Path, tmp_path: Path) -> None:
    before = (digits_bundle / "manifest.json").read_bytes()
    done = evaluate(digits_bundle, "-d", folders, "-k", "0.7", "--limit", "20", "--no-record", "--json", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    report = EvalReport.model_validate(result_in(done.out))
    assert report.data.rule == "10 folders, by class names"
    assert (report.data.found, report.data.images, report.data.classes) == (40, 20, 10)
    assert [one.variant for one in report.variants] == ["dense", "keep-0.70"]
    assert (digits_bundle / "manifest.json").read_bytes() == before


def test_a_flat_folder_gives_agreement_only(digits_bundle: Path, tmp_path: Path) -> None:
    done = evaluate(digits_bundle, "-d", DIGITS / "images", "--limit", "30", "--no-record", cwd=tmp_path)
    assert done.code == 0, done
    assert "no labels" in done.out
    assert "Accuracy" not in done.out
    assert "Compared with the baseline, on 30 images" in done.out


def test_images_that_cannot_be_read(digits_bundle: Path, folders: Path, tmp_path: Path) -> None:
    (folders / "3" / "0_torn.png").write_bytes((DIGITS / "images" / "0021_1.png").read_bytes()[:60])
    (folders / "5" / "zero.jpg").write_bytes(b"")
    (folders / "5" / "notes.txt").write_bytes(b"")
    arguments = (digits_bundle, "-d", folders, "--no-record")
    done = evaluate(*arguments, "--out", "report.json", cwd=tmp_path)
    assert done.code == 0, done
    report = EvalReport.model_validate_json((tmp_path / "report.json").read_text())
    assert [one.image for one in report.data.unreadable] == ["3/0_torn.png", "5/zero.jpg"]
    assert (report.data.found, report.data.images, report.data.ignored) == (42, 40, 1)
    assert done.err.count("warning: not counted: image ") == 2
    strict = evaluate(*arguments, "--strict", "--out", "strict.json", cwd=tmp_path)
    assert (strict.code, strict.out) == (3, "")
    assert "0_torn.png" in strict.error
    assert "--strict" in strict.error
    assert not (tmp_path / "strict.json").exists()
    shutil.rmtree(folders)
    (folders / "5").mkdir(parents=True)
    (folders / "5" / "zero.jpg").write_bytes(b"")
    none = evaluate(*arguments, cwd=tmp_path)
    assert none.code == 3
    assert "none of 1 images" in none.error


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("-d", "nowhere"), 3, ["'nowhere' does not exist"]),
        (("-d", "thesis"), 3, ["holds no images"]),
        (("-d", "good", "--limit", "0"), 3, ["--limit 0"]),
        (("-d", "good", "-k", "2"), 3, ["--keep-ratio 2"]),
        (("-d", "good", "-k", "0.6"), 3, ["keep ratio 0.6"]),
        (("-d", "good", "--profile", "jetson-orin"), 3, ["no engine for profile 'jetson-orin'"]),
        (("-d", "good", "--batch", "9"), 3, ["--batch 9"]),
        (("-d", "good", "--threads", "0"), 3, ["--threads 0"]),
        (("-d", "good", "--out", "thesis"), 3, ["is a folder"]),
        (("-d", "good", "--out", "thesis/chapter.json"), 3, ["is no report of 'ztdeploy eval'"]),
        (("-d", "good", "--cache", "thesis/chapter.json"), 3, ["cache"]),
        (("-d", "many"), 3, ["11 class folders", "10 outputs"]),
    ],
)
def test_refusals(
    arguments: tuple[str, ...],
    code: int,
    words: list[str],
    digits_bundle: Path,
    digit_images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, since nothing is started. Nothing is written, not even into the cache."""
    from ztdeploy.cli.app import run

    for folder in ("thesis", "good", *(f"many/{index}" for index in range(11))):
        (tmp_path / folder).mkdir(parents=True)
        if folder != "thesis":
            shutil.copy(digit_images[0], tmp_path / folder)
    (tmp_path / "thesis" / "chapter.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZTDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZTDEPLOY_DEBUG", raising=False)
    found = run(["eval", str(digits_bundle), "--no-record", "--json", *arguments])
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert found == code, line
    assert result_in(out)["exit_code"] == code
    assert re.fullmatch(r"error: \S.*; expected \S.*; \S.*", line), line
    assert all(word in line for word in words), line
    assert sorted(tmp_path.rglob("*")) == before


def test_an_engine_that_changed_is_refused_and_an_old_record_not_shown(bundle_copy: Path, tmp_path: Path) -> None:
    assert evaluate(bundle_copy, "-d", DIGITS, "--limit", "20", cwd=tmp_path).code == 0
    bundle = read_bundle(bundle_copy)
    engine = bundle.manifest.dense.engines["cpu"]
    with bundle.path(engine.file).open("ab") as file:
        file.write(b"\0")
    done = evaluate(bundle_copy, "-d", DIGITS, "--limit", "20", cwd=tmp_path)
    assert done.code == 4
    assert "has changed since the build" in done.error
    edit(bundle_copy, lambda manifest: manifest["files"][engine.file].update(sha256="0" * 64))
    changed = read_bundle(bundle_copy)
    assert all(changed.fidelity(variant, "cpu") is None for variant in changed.manifest.variants)


def test_an_engine_that_gives_no_numbers_is_an_error(digits_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image is named."""
    import numpy as np

    from ztdeploy.target.backends.onnxruntime import OnnxRuntimeRunner
    from ztdeploy.target.evaluate import engines

    bundle = read_bundle(digits_bundle)
    variants = tuple(bundle.variant(name=name) for name in ("dense", "keep-0.50"))
    work = engines.Workload(bundle, variants, "cpu", 2, 1)
    images = [DIGITS / "images" / name for name in ("0021_1.png", "0481_6.png")]
    with engines.open_engines(work) as answer:
        assert answer(images).readable.tolist() == [True, True]
        good = OnnxRuntimeRunner.infer

        def second_is_no_number(self, feeds):
            given = good(self, feeds)
            given["logits"][1:] = np.nan
            return given

        monkeypatch.setattr(OnnxRuntimeRunner, "infer", second_is_no_number)
        with pytest.raises(ParityError, match=r"'dense' gives infinities or NaN for '.*0481_6\.png'"):
            answer(images)


# What is left of one that was stopped, and how it goes on.


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_a_stopped_evaluation_goes_on(
    stop: signal.Signals, bundle_copy: Path, slow_images: Path, tmp_path: Path
) -> None:
    arguments = (bundle_copy, "-d", slow_images, "--threads", "1", "--out", "report.json")
    manifest = (bundle_copy / "manifest.json").read_bytes()
    child = start(*arguments, cwd=tmp_path)
    kept = tmp_path / "cache" / "evaluations"
    wait_for(lambda: bool(list(kept.glob("*.npz"))), child)
    child.send_signal(stop)
    _, said = child.communicate(timeout=HANG_S)
    assert child.returncode == (130 if stop == signal.SIGINT else -9)
    if stop == signal.SIGINT:
        assert said.splitlines()[-2:] == [
            "what is evaluated so far is kept: the same command goes on with it",
            "error: interrupted",
        ]
        assert "Traceback" not in said
    assert not (tmp_path / "report.json").exists()
    assert (bundle_copy / "manifest.json").read_bytes() == manifest
    parts = len(list(kept.glob("*.npz")))
    assert 1 <= parts < 4
    done = evaluate(*arguments, cwd=tmp_path)
    assert done.code == 0, done
    assert f"kept from before: {16 * parts} of 64 images" in done.err
    report = EvalReport.model_validate_json((tmp_path / "report.json").read_text())
    assert report.data.images == 64
    assert len(list(kept.iterdir())) == 4
