"""`ztdeploy tune` as people meet it: what it says, writes, survives and refuses."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import timm
from helpers.errors import refused
from helpers.processes import HANG_S, Done, result_in, run_ztdeploy, started
from optuna.trial import FrozenTrial, TrialState

import ztdeploy
from ztdeploy.cli.app import run
from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.errors import ImageError
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.jobs.tune import latency, results
from ztdeploy.jobs.tune.run import check_enough
from ztdeploy.report.tune.records import TuneReport
from ztdeploy.target.measure import details
from ztdeploy.target.measure.bench_report import BenchReport
from ztdeploy.target.measure.details_worker import DetailsOrder
from ztdeploy.target.measure.sweep_report import Staircase

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
DIGITS = ASSETS / "digits"


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name}
    return started(
        [sys.executable, "-m", "ztdeploy", "tune", "--model", "vit_digits", *map(str, arguments)],
        cwd=cwd,
        # The model is tiny.
        env={**shell, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "ZTDEPLOY_CACHE": str(cwd / "cache")},
    )


def tune(*arguments: str | Path, cwd: Path) -> Done:
    first = "import torch; torch.set_num_threads(1)"  # the model is tiny
    given = ("--model", "vit_digits", "--data", DIGITS, "--limit", "60")
    return run_ztdeploy("tune", *given, *map(str, arguments), cwd=cwd, first=first)


def report_of(folder: Path) -> TuneReport:
    return TuneReport.model_validate_json((folder / "tune.json").read_text())


def test_a_budget_becomes_a_schedule_that_can_be_built(tmp_path: Path) -> None:
    few_layers = ("--method", "zero-tprune")  # whose graph is made in little time
    done = tune("--budget", "reduction=0.4", *few_layers, "--trials", 8, "--max-drop", 50, cwd=tmp_path)
    assert done.code == 0, done
    report = report_of(tmp_path / "vit_digits-tuning")
    found = report.winner
    assert len(report.trials) == 8
    assert found.tuned.cost <= 0.6 * report.dense_cost < 1.05 * found.tuned.cost
    complete = [one.kl for one in report.trials if one.state == "complete" and one.kl is not None]
    assert found.tuned.tuning_kl == pytest.approx(min(complete), rel=1e-4, abs=1e-9)
    assert found.preset.tuning_kl is not None
    assert min(complete) <= found.preset.tuning_kl, "presets are among the trials"
    assert (report.tuning_data.images, report.report_data.images) == (30, 30)
    assert report.tuning_data.digest != report.report_data.digest
    assert f"{found.tuned.kl.value:.4f}" in done.out
    assert "only 30 images to report on" in done.err
    wrote = "wrote vit_digits-tuning; open vit_digits-tuning/tune.html; next: ztdeploy build --model vit_digits "
    assert done.err.splitlines()[-1].startswith(wrote)
    file = tmp_path / "vit_digits-tuning" / "schedules" / f"{found.name}.toml"
    bundle = tmp_path / "bundle"
    arguments = ["--model", "vit_digits", "--profile", "cpu", "--schedule", str(file), "--out", str(bundle)]
    assert run(["build", *arguments]) == 0
    assert read_bundle(bundle).variant(name=found.name).gmacs == pytest.approx(found.tuned.gmacs)
    patched, bundle = tmp_path / "mine.toml", tmp_path / "by-profile"
    patch = (tmp_path / "vit_digits-tuning" / "profile-patch.toml").read_text()
    patched.write_text((CHECKOUT / "profiles" / "cpu.toml").read_text() + patch)
    assert run(["build", "--model", "vit_digits", "--profile", str(patched), "--out", str(bundle)]) == 0
    assert [one.name for one in read_bundle(bundle).manifest.variants] == [found.name, "dense"]


@pytest.mark.long
def test_an_interrupted_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--data", DIGITS, "--limit", 60, "-b", "reduction=0.5", "--trials", 8, "-o", "found")
    process = start(*arguments, cwd=tmp_path)
    assert process.stderr is not None
    while "trial 4" not in (line := process.stderr.readline()):
        assert line, "it has ended before it began"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, err
    assert "the same command goes on from there" in err
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["study.db"]
    before = _done(tmp_path / "found")
    monkeypatch.chdir(tmp_path)
    assert run(["tune", "--model", "vit_digits", *map(str, arguments)]) == 0
    after = _done(tmp_path / "found")
    assert after[: len(before)] == before
    assert len(after) == len(report_of(tmp_path / "found").trials) - (len(_trials(tmp_path / "found")) - 8) == 8


def test_a_study_of_another_budget_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["tune", "--model", "vit_digits", "--data", str(DIGITS), "--limit", "40", "--trials", "2"]
    assert run([*arguments, "-b", "reduction=0.5"]) == 0
    there = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.suffix != ".db"}
    assert run([*arguments, "-b", "reduction=0.4"]) == 3
    assert "made for other budget: 'reduction=0.5', not 'reduction=0.4'" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in there} == there


@pytest.mark.long
def test_a_worker_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    arguments = ("-b", "reduction=0.5", "--trials", 16, "--workers", 2, "-o", "found", "--limit", 60)
    process = start("--data", DIGITS, *arguments, cwd=tmp_path)
    victim = None
    while victim is None:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
        victim = _working(process.pid) if _made(tmp_path / "found" / "study.db") >= 4 else None
    os.kill(victim, signal.SIGKILL)
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, (out, err)
    assert "a worker was killed by SIGKILL" in err
    trials = _trials(tmp_path / "found")
    done = [one for one in trials if one.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(done) == 16
    assert len({str(one.params) for one in done}) == 16, "no trial double"
    for lost in (one for one in trials if one.state == TrialState.FAIL and one.params):
        assert any(lost.params.items() <= one.params.items() for one in done), "nothing lost"


def _trials(folder: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="tune", storage=f"sqlite:///{folder / 'study.db'}").get_trials()


def _done(folder: Path) -> list[dict[str, Any]]:
    """Points of finished trials, in their order."""
    return [one.params for one in _trials(folder) if one.state in (TrialState.COMPLETE, TrialState.PRUNED)]


def _made(file: Path) -> int:
    """How many trials are finished; read without Optuna, which would make a study's tables where they are not yet."""
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            found = database.execute("SELECT count(*) FROM trials WHERE state NOT IN ('RUNNING', 'WAITING')")
            return int(found.fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def _working(parent: int) -> int | None:
    """A child that is a worker."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    return None


def test_without_a_budget_it_is_a_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "vit_digits", "--data", str(DIGITS), "--limit", "40", "--trials", "10", "--json"]
    assert run(["tune", *arguments, "--method", "zero-tprune", "--method", "novelty-merge"]) == 0
    report = TuneReport.model_validate(result_in(capsys.readouterr().out))
    costs = [one.tuned.cost for one in report.compared]
    assert costs == sorted(costs, reverse=True)
    losses = [one.tuned.tuning_kl or 0.0 for one in report.compared]
    assert losses == sorted(losses)
    assert {one.schedule.method for one in report.trials if one.schedule} == {"zero-tprune", "novelty-merge"}


def test_the_first_stage_of_the_cheapest_cascade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "vit_digits", "--data", str(DIGITS), "--method", "zero-tprune", "--trials", "5"]
    assert run(["tune", *arguments, "--limit", "60", "--cascade", "0.9", "--json"]) == 0
    report = TuneReport.model_validate(result_in(capsys.readouterr().out))
    assert report.cascade is not None
    found, preset = report.cascade.tuned, report.cascade.preset
    assert found.schedule == report.winner.tuned.schedule
    assert found.bound < found.agreement.value
    for one in (found, preset):
        trials = [trial for trial in report.trials if trial.schedule and trial.schedule.layers == one.schedule.layers]
        alone = trials[0].cost
        assert alone is not None
        assert alone <= one.mean_gmacs <= one.worst_gmacs < alone + report.dense_cost
        assert one.mean_gmacs == pytest.approx(alone + one.went_on.value * (one.worst_gmacs - alone))
    assert "Cascades of two stages" in (tmp_path / "vit_digits-tuning" / "tune.html").read_text()
    built = "tuned-*.toml" if report.cascade.better else "preset.toml"
    assert list((tmp_path / "vit_digits-tuning" / "schedules").glob(built))


def test_a_cascade_needs_enough_images_to_show_its_agreement() -> None:
    half = SimpleNamespace(pixels=range(148))
    subject: Any = SimpleNamespace(tuning=half, request=SimpleNamespace(cascade=0.98, search="curves"))
    refused(lambda: check_enough(subject), "at least 149", kind=ImageError)
    half.pixels = range(149)
    check_enough(subject)


def test_a_budget_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZTDEPLOY_CACHE", str(tmp_path / "cache"))
    for name, value in {
        "_SHARES": (0.6,),
        "_SECONDS": 0.2,
        "_ROUNDS": 2,
        "_WARM_UP_S": 0.1,
    }.items():
        monkeypatch.setattr(latency, name, value)
    monkeypatch.setattr(details, "_STAIRCASE_S", 0.5)
    monkeypatch.setattr(results, "OTHER_SHARES", ())
    _as_on_a_quiet_machine(monkeypatch)
    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **given: made(name, **{"depth": 4, **given}))
    small = ["--model", "test_vit", "--weights", "random", "--method", "zero-tprune"]  # traced in little time
    arguments = [*small, "--data", str(DIGITS), "--limit", "40", "--trials", "3", "-o", "found"]
    assert run(["tune", *arguments, "--budget", "speedup=1.02", "--profile", "cpu"]) == 0
    report = report_of(tmp_path / "found")
    assert report.cost.kind == "latency"
    assert report.unit == "ms"
    assert report.cost.fitted == 3
    assert report.winner.tuned.cost <= report.dense_cost / 1.02
    assert [one.schedule for one in report.measured] == [report.winner.name]
    assert report.measured[0].measured_ms > 0
    assert len(list((tmp_path / "cache" / "latency").iterdir())) == 1


def _as_on_a_quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is measured, and then a time that follows the work takes its place: a model this small takes a millisecond,
    of which a busy machine makes anything.
    """
    look_into, times = latency.look_into, latency._times

    def steady(order: DetailsOrder) -> Staircase:
        staircase = look_into(order)
        assert isinstance(staircase, Staircase)
        points = tuple(one.model_copy(update={"block_ms": 0.01 * one.tokens}) for one in staircase.points)
        return staircase.model_copy(update={"points": points})

    def by_share(report: BenchReport) -> dict[str, float]:
        """The names of probes and winners end in their share of dense, in %."""
        return {name: 1 + (1 if name == "dense" else int(name.rsplit("-", 1)[1]) / 100) for name in times(report)}

    monkeypatch.setattr(latency, "look_into", steady)
    monkeypatch.setattr(latency, "_times", by_share)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--budget", "gmacs=9"), 3, "which is within it"),
        (("--budget", "reduction=0.99"), 3, "with a single token from block 2 on"),
        (("--budget", "watts=3"), 3, "choose from"),
        (("--budget", "latency_ms=3"), 3, "give --profile cpu"),
        (("--budget", "latency_ms=3", "--profile", "jetson-orin"), 6, "a profile of ONNX Runtime"),
        (("--cascade", "0.98"), 3, "leave out --budget"),
        (("--method", "tome"), 3, "one that has a search space"),
        (("--method", "novelty"), 3, "did you mean 'novelty-merge'"),
        (("--trials", "0"), 3, "from 1 to"),
        (("--workers", "0"), 3, "1 to 64"),
        (("--sampler", "tpa"), 2, "did you mean 'tpe'"),
        (("--limit", "5"), 3, "half of them tune"),
        (("--max-drop", "nan"), 3, "a number from 0 to 100"),
        (("--seed", "-1"), 3, "from 0 to"),
        (("--storage", "nonsense"), 3, "a database's URL"),
        (("--storage", "sqlite:////nowhere/at/all.db"), 6, "a database that answers"),
        (("--out", "diary"), 3, "something else than a search"),
        (("--data", "nowhere"), 3, "does not exist"),
        (("--data", "few"), 3, "one half to tune on"),
        (("--weights", "good"), 2, "not one of 'pretrained', 'random'"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    here: Path,
    digit_images: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "diary").mkdir()
    (here / "diary" / "today.txt").write_text("mine")
    (here / "few").mkdir()
    for image in digit_images[:5]:
        (here / "few" / image.name).symlink_to(image)
    there = sorted(path.name for path in here.rglob("*"))
    given = ["--data", str(DIGITS)] if "--data" not in arguments else []
    given += ["--limit", "40"] if "--limit" not in arguments else []
    given += ["--budget", "reduction=0.4"] if "--budget" not in arguments else []
    assert run(["tune", "--model", "vit_digits", "--trials", "2", *given, *arguments]) == code
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert sorted(path.name for path in here.rglob("*")) == there
