"""`ztdeploy sweep` as people meet it: what it prints and writes, and how it goes on after Ctrl-C or a kill."""

from __future__ import annotations

import csv
import html
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.processes import HANG_S, Done, result_in, run_ztdeploy, started, wait_for

import ztdeploy
from ztdeploy.core.model_source import ModelSource
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.report.kit.numbers import times
from ztdeploy.report.sweep.verdict import verdicts
from ztdeploy.report.sweep_folder import REPORT, read_previous
from ztdeploy.target.measure.sweep_report import SweepReport, rows

DIGITS = ASSETS / "digits"
CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
PAGES = ("report.html", "sweep.csv", "report.md")
QUICK = ("--threads", "1", "--warmup", "0", "--duration", "0.2", "--rounds", "6", "--no-details")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "ztdeploy", "sweep", *map(str, arguments)]


def environment(cache: Path) -> dict[str, str]:
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name}
    return {**shell, "PYTHONPATH": str(CHECKOUT), "ZTDEPLOY_CACHE": str(cache)}


def sweep(*arguments: str | Path, cwd: Path) -> Done:
    return run_ztdeploy("sweep", *arguments, cwd=cwd)


def report_in(folder: Path) -> SweepReport | None:
    return read_previous(folder)[0]


def test_tables_and_a_report(digits_bundle: Path, tmp_path: Path) -> None:
    done = sweep("--bundle", digits_bundle, *QUICK, "--batch", "1,2", "--keep-ratio", "0.5", cwd=tmp_path)
    assert done.code == 0, done
    out = tmp_path / f"sweep-{digits_bundle.name}"
    report = report_in(out)
    assert report is not None
    assert (report.progress, report.planned, len(report.runs)) == ("complete", 4, 2)
    for batch in (1, 2):
        assert f"Latency, and speed-up over the baseline: 32 px, batch {batch}, 1 thread" in done.out
    lines = [line.split() for line in done.out.splitlines()]
    for row in rows(report):
        name = "baseline" if row.dense else row.facts.method
        assert row.measured.latency is not None
        p50 = pytest.approx(row.measured.latency.p50_ms, rel=0.006)
        named = [line for line in lines if line[:2] == [f"{row.facts.keep_ratio:.2f}", name]]
        (line,) = [line for line in named if float(line[2]) == p50]
        if row.comparison is not None:
            assert times(row.comparison.speedup, row.comparison.interval) in line
            assert f"{row.comparison.work_ratio:.2f}x" in line
    assert "1 of 4: " in done.err
    assert done.err.splitlines()[-1] == f"wrote {out.name}"
    assert [path.name for path in tmp_path.iterdir()] == [out.name], "a bundle needs no cache"
    assert {path.name for path in out.iterdir()} == {REPORT, *PAGES}
    for verdict in verdicts(report):
        assert f"{verdict.panel.label}: {verdict.verdict.sentence}" in done.out
    assert report.verdicts == tuple(one.verdict for one in verdicts(report))


def test_json(digits_bundle: Path, tmp_path: Path) -> None:
    done = sweep("--bundle", digits_bundle, *QUICK, "--keep-ratio", "1.0", "--out", "dense", "--json", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    report = SweepReport.model_validate(result_in(done.out))
    assert report == report_in(tmp_path / "dense")
    assert [one.variant for run in report.runs for one in run.configurations] == ["dense"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 3, ["neither a model nor a bundle"]),
        (("-m", "vit_digits"), 3, ["no profile"]),
        (("-m", "vit_digits", "-p", "cpu", "--keep-ratio", "all"), 3, ["--keep-ratio all"]),
        (("-m", "vit_digits", "-p", "cpu", "--keep-ratio", "0.7,x"), 3, ["--keep-ratio x"]),
        (("-m", "vit_digits", "-p", "cpu", "--keep-ratio", "2"), 3, ["--keep-ratio 2"]),
        (("-m", "vit_digits", "-p", "cpu", "--batch", "1,x"), 3, ["--batch x"]),
        (("-m", "vit_digits", "-p", "cpu", "--method", ","), 3, ["--method", "''"]),
        (("-m", "vit_digits", "-p", "cpu", "--method", "slize"), 3, ["did you mean 'slice'?"]),
        (("-m", "vit_digits", "-p", "cpu", "--out", "thesis"), 3, ["something else than a sweep"]),
        (("--bundle", "thesis"), 3, ["manifest.json"]),
        (("--bundle", "thesis", "--weights", "random"), 3, ["--weights without a model"]),
        (("--bundle", "thesis", "--mean", "0.5"), 3, ["--mean without a model"]),
        (("-m", "vit_digits", "-p", "cpu", "--data", "nowhere"), 3, ["'nowhere' does not exist"]),
        (("-m", "vit_digits", "-p", "cpu", "--data", "thesis", "--limit", "0"), 3, ["--limit 0"]),
        (("-m", "vit_digits", "-p", "cpu", "--limit", "5"), 3, ["--limit 5 without --data"]),
    ],
)
def test_refusals(
    arguments: tuple[str, ...],
    code: int,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, since nothing is started."""
    from ztdeploy.cli.app import run

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZTDEPLOY_DEBUG", raising=False)
    found = run(["sweep", *arguments])
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert (found, out) == (code, "")
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


# Images.


def test_images_as_eval_takes_them(digits_bundle: Path, tmp_path: Path) -> None:
    """The report's figures are those of `eval` on the same images; a second run takes all of it from what is there."""
    arguments = ("--bundle", digits_bundle, *QUICK, "--keep-ratio", "0.5", "--out", "out")
    done = sweep(*arguments, "--data", DIGITS, "--limit", "60", cwd=tmp_path)
    assert done.code == 0, done
    report = report_in(tmp_path / "out")
    assert report is not None
    evaluated = ztdeploy.evaluate(digits_bundle, DIGITS, limit=60, keep_ratio=0.5, cache=tmp_path / "another")
    assert [one.name for one in report.variants] == ["dense", "keep-0.50"]
    for facts, score in zip(report.variants, evaluated.variants, strict=True):
        found, against = facts.fidelity, score.against_dense
        assert found is not None
        assert score.top1 is not None
        assert evaluated.dense.top1 is not None
        assert (found.images, found.data_sha256, found.data) == (60, evaluated.data.digest, "digits")
        assert (found.top1, found.dense_top1) == (score.top1.value, evaluated.dense.top1.value)
        assert (found.agreement, found.kl) == ((against.agreement.value, against.kl.value) if against else (1.0, 0.0))
        if against is not None:
            assert against.change is not None
            assert found.change == (against.change.interval.low, against.change.interval.high)
    _check_pages(report, tmp_path / "out", done.out)
    again = sweep(*arguments, "--data", DIGITS, "--limit", "60", cwd=tmp_path)
    assert "kept from before: 60 of 60 images" in again.err
    assert "kept from before: 1 of 1 groups" in again.err
    plain = sweep(*arguments, cwd=tmp_path)
    assert "kept from before: 1 of 1 groups" in plain.err, "images are no reason to measure again"
    last = report_in(tmp_path / "out")
    assert last is not None
    assert last.variants == report.variants, "what is known of the same engines stays"
    assert last.runs == report.runs


def _check_pages(report: SweepReport, out: Path, printed: str) -> None:
    """Every page shows the figures, and the verdict goes by them, once pruning pays, which no test can make it."""
    pruned = report.variants[1].fidelity
    assert pruned is not None
    assert pruned.top1 is not None
    agreement, top1 = f"{100 * pruned.agreement:.1f} %", f"{100 * pruned.top1:.1f} %"
    images = f"60 images of 'digits' (sha256 {pruned.data_sha256[:8]})"
    for text in (printed, (out / "report.md").read_text(), html.unescape((out / "report.html").read_text())):
        assert all(word in text for word in (agreement, top1, images))
    page = (out / "report.html").read_text()
    for cost in ("disagreement", "kl", "top-1"):
        assert f"Latency against fidelity ({cost})" in page
    with (out / "sweep.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["fidelity_agreement"] for line in lines] == ["1.0", repr(pruned.agreement)]
    assert [line["fidelity_top1"] for line in lines] == [repr(pruned.dense_top1), repr(pruned.top1)]
    (run,) = report.runs
    pays = tuple(one.model_copy(update={"outcome": "faster"}) for one in run.comparisons)
    paying = report.model_copy(update={"runs": (run.model_copy(update={"comparisons": pays}),)})
    assert [one.verdict.decision for one in verdicts(paying, pruned.agreement - 0.2)] == ["deploy"]
    assert [one.verdict.decision for one in verdicts(paying, pruned.agreement)] == ["open"]


def test_images_that_do_not_fit_are_refused_before_anything_is_measured(
    digits_bundle: Path, digit_images: list[Path], tmp_path: Path
) -> None:
    for index in range(11):
        (tmp_path / "many" / f"{index}").mkdir(parents=True)
        shutil.copy(digit_images[0], tmp_path / "many" / f"{index}")
    done = sweep("--bundle", digits_bundle, *QUICK, "--data", "many", "--out", "out", cwd=tmp_path)
    assert done.code == 3
    (line,) = done.err.splitlines()
    assert re.fullmatch(r"error: 11 class folders, .*10 outputs.*; expected .*", line)
    assert not (tmp_path / "out").exists()


def test_stopped_while_it_evaluates(digits_bundle: Path, slow_images: Path, tmp_path: Path) -> None:
    arguments = ("--bundle", digits_bundle, *QUICK, "--keep-ratio", "0.5", "--data", slow_images, "--out", "out")
    child, kept = start(*arguments, cwd=tmp_path), tmp_path / "cache" / "evaluations"
    wait_for(lambda: bool(list(kept.glob("*.npz"))), child)
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=HANG_S)
    assert child.returncode == 130
    assert said.splitlines()[-2:] == [
        "what is built and measured so far is kept: the same command goes on with it",
        "error: interrupted",
    ]
    assert not (tmp_path / "out").exists()
    parts = len(list(kept.glob("*.npz")))
    assert 1 <= parts < 4
    done = sweep(*arguments, cwd=tmp_path)
    assert done.code == 0, done
    assert f"kept from before: {16 * parts} of 64 images" in done.err
    report = report_in(tmp_path / "out")
    assert report is not None
    assert all(one.fidelity is not None and one.fidelity.images == 64 for one in report.variants)
    assert all(one.fidelity is not None and one.fidelity.top1 is None for one in report.variants)


# What is left of one that was stopped, and how it goes on.


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    return started(command(*arguments), cwd=cwd, env=environment(cwd / "cache"))


def in_second_group(folder: Path) -> bool:
    """Whether the first group is complete, and the second has rounds."""
    report = report_in(folder)
    return report is not None and len(report.runs) == 2 and bool(report.runs[1].measured)


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_a_stopped_sweep_goes_on(stop: signal.Signals, digits_bundle: Path, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole group, as from a terminal; a kill to the sweep alone, whose workers then end."""
    arguments = ("--bundle", digits_bundle, *QUICK, "--batch", "1,2", "--duration", "0.6", "--out", "out")
    out = tmp_path / "out"
    child = start(*arguments, cwd=tmp_path)
    wait_for(lambda: in_second_group(out), child)
    if stop == signal.SIGINT:
        os.killpg(child.pid, stop)
    else:
        child.kill()
    printed, said = child.communicate(timeout=HANG_S)
    stopped = report_in(out)
    assert stopped is not None
    assert stopped.runs[0].progress == "complete"
    if stop == signal.SIGINT:
        assert (child.returncode, stopped.progress, stopped.runs[1].progress) == (130, "interrupted", "interrupted")
        assert said.splitlines()[-2:] == [
            "what is built and measured so far is kept: the same command goes on with it",
            "error: interrupted",
        ]
        assert "Traceback" not in said
        assert "keep" in printed, "what was measured is shown"
        assert "The sweep was interrupted" in (out / "report.html").read_text()
    else:
        assert (child.returncode, stopped.progress, stopped.runs[1].progress) == (-9, "running", "running")
    done = sweep(*arguments, cwd=tmp_path)
    assert done.code == 0, done
    assert "kept from before: 1 of 2 groups" in done.err
    assert "batch 2, 1 thread: loading keep-0.70" in done.err
    assert "batch 1, 1 thread: loading" not in done.err, "the first group is not measured again"
    report = report_in(out)
    assert report is not None
    assert (report.progress, len(report.runs)) == ("complete", 2)
    assert report.runs[0] == stopped.runs[0]
    assert all(len(one.turns) == 6 for run in report.runs for one in run.configurations)
    assert {path.name for path in out.iterdir()} == {REPORT, *PAGES}


@pytest.mark.long
def test_killed_while_it_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was traced is not traced again, and nothing half is left."""
    from ztdeploy.core.progress import silent
    from ztdeploy.jobs.build import BuildRequest
    from ztdeploy.jobs.bundle_cache import cached_bundle

    cache = tmp_path / "cache"
    arguments = ("-m", "vit_digits", "-p", "cpu", "--keep-ratio", "1.0", *QUICK, "--out", "out")
    child = start(*arguments, cwd=tmp_path)
    wait_for(lambda: len(list((cache / "traces").glob("*.json"))) == 1, child)
    child.kill()
    child.communicate(timeout=HANG_S)
    assert not (tmp_path / "out" / REPORT).exists()
    assert not list((cache / "bundles").glob("*/manifest.json"))
    monkeypatch.setattr("ztdeploy.host.tracing.export_onnx", lambda *_: pytest.fail("it is traced again"))
    request = BuildRequest(model=ModelSource(name="vit_digits"), profiles=("cpu",), keep_ratios=(1.0,), out=Path())
    bundle = cached_bundle(request, cache, silent)
    assert [one.name for one in bundle.manifest.variants] == ["dense"]
    bundle.verify_files()
    assert [path for path in bundle.root.parent.iterdir() if path.is_dir()] == [bundle.root]
