"""`ztdeploy sweep` as people meet it: what it prints and writes, and how it goes on after Ctrl-C or a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ztdeploy
from ztdeploy.measure.sweep_folder import REPORT, read_previous
from ztdeploy.measure.sweep_report import SweepReport, rows
from ztdeploy.report.verdict import verdicts

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
PAGES = ("report.html", "sweep.csv", "report.md")
QUICK = ("--threads", "1", "--warmup", "0", "--duration", "0.2", "--rounds", "6", "--no-details")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "ztdeploy", "sweep", *map(str, arguments)]


def environment(cache: Path) -> dict[str, str]:
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name}
    return {**shell, "PYTHONPATH": str(CHECKOUT), "ZTDEPLOY_CACHE": str(cache)}


def sweep(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    cache = cwd / "cache"
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(cache), capture_output=True, text=True, timeout=120
    )


def report_in(folder: Path) -> SweepReport | None:
    return read_previous(folder)[0]


def test_tables_and_a_report(digits_bundle: Path, tmp_path: Path) -> None:
    done = sweep("--bundle", digits_bundle, *QUICK, "--batches", "1,2", "--keep-ratios", "0.5", cwd=tmp_path)
    assert done.returncode == 0, done
    out = tmp_path / f"sweep-{digits_bundle.name}"
    report = report_in(out)
    assert report is not None
    assert (report.progress, report.planned, len(report.runs)) == ("complete", 4, 2)
    for batch in (1, 2):
        assert f"Latency, and speed-up over dense: 32 px, batch {batch}, 1 thread" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    for row in rows(report):
        name = "dense" if row.dense else row.facts.method
        assert row.measured.latency is not None
        p50 = f"{row.measured.latency.p50_ms:.3g}"
        (line,) = [line for line in lines if line[:3] == [f"{row.facts.keep_ratio:.2f}", name, p50]]
        if row.comparison is not None:
            assert f"{row.comparison.speedup:.2f}x" in line
            assert f"{row.comparison.work_ratio:.2f}x" in line
    assert "1 of 4, about " in done.stderr
    assert done.stderr.splitlines()[-1] == f"wrote {out.name}"
    assert [path.name for path in tmp_path.iterdir()] == [out.name], "a bundle needs no cache"
    assert {path.name for path in out.iterdir()} == {REPORT, *PAGES}
    for verdict in verdicts(report):
        assert f"{verdict.panel.label}: {verdict.headline}" in done.stdout


def test_json(digits_bundle: Path, tmp_path: Path) -> None:
    done = sweep("--bundle", digits_bundle, *QUICK, "--keep-ratios", "1.0", "--out", "dense", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    report = SweepReport.model_validate_json(done.stdout)
    assert report == report_in(tmp_path / "dense")
    assert [one.variant for run in report.runs for one in run.configurations] == ["dense"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 3, ["neither a model nor a bundle"]),
        (("-m", "vit_digits"), 3, ["no profile"]),
        (("-m", "vit_digits", "-p", "cpu", "--keep-ratios", "all"), 3, ["--keep-ratios 'all'"]),
        (("-m", "vit_digits", "-p", "cpu", "--keep-ratios", "0.7,x"), 3, ["'x'"]),
        (("-m", "vit_digits", "-p", "cpu", "--keep-ratios", "2"), 3, ["keep ratio 2"]),
        (("-m", "vit_digits", "-p", "cpu", "--batches", "1,x"), 3, ["--batches '1,x'"]),
        (("-m", "vit_digits", "-p", "cpu", "--methods", ","), 3, ["--methods ','"]),
        (("-m", "vit_digits", "-p", "cpu", "--methods", "slize"), 3, ["did you mean 'slice'?"]),
        (("-m", "vit_digits", "-p", "cpu", "--out", "thesis"), 3, ["something else than a sweep"]),
        (("--bundle", "thesis"), 4, ["manifest.json"]),
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


# What is left of one that was stopped, and how it goes on.


def wait(until: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(cwd / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def in_second_group(folder: Path) -> bool:
    """Whether the first group is complete, and the second has rounds."""
    report = report_in(folder)
    return report is not None and len(report.runs) == 2 and bool(report.runs[1].measured)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_goes_on(stop: signal.Signals, digits_bundle: Path, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole group, as from a terminal; a kill to the sweep alone, whose workers then end."""
    arguments = ("--bundle", digits_bundle, *QUICK, "--batches", "1,2", "--duration", "0.6", "--out", "out")
    out = tmp_path / "out"
    child = start(*arguments, cwd=tmp_path)
    wait(lambda: in_second_group(out), child)
    if stop == signal.SIGINT:
        os.killpg(child.pid, stop)
    else:
        child.kill()
    printed, said = child.communicate(timeout=60)
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
    assert done.returncode == 0, done
    assert "kept from before: 1 of 2 groups" in done.stderr
    assert "batch 2, 1 thread: loading keep-0.70" in done.stderr
    assert "batch 1, 1 thread: loading" not in done.stderr, "the first group is not measured again"
    report = report_in(out)
    assert report is not None
    assert (report.progress, len(report.runs)) == ("complete", 2)
    assert report.runs[0] == stopped.runs[0]
    assert all(len(one.turns) == 6 for run in report.runs for one in run.configurations)
    assert {path.name for path in out.iterdir()} == {REPORT, *PAGES}


def test_killed_while_it_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was traced is not traced again, and nothing half is left."""
    from ztdeploy import assembly
    from ztdeploy.bundle_cache import cached_bundle
    from ztdeploy.pipeline import BuildRequest, silent

    cache = tmp_path / "cache"
    arguments = ("-m", "vit_digits", "-p", "cpu", "--keep-ratios", "1.0", *QUICK, "--out", "out")
    child = start(*arguments, cwd=tmp_path)
    wait(lambda: len(list((cache / "traces").glob("*.json"))) == 1, child)
    child.kill()
    child.communicate(timeout=60)
    assert not (tmp_path / "out" / REPORT).exists()
    assert not list((cache / "bundles").glob("*/manifest.json"))
    monkeypatch.setattr(assembly, "export_onnx", lambda *_: pytest.fail("it is traced again"))
    request = BuildRequest(model="vit_digits", profiles=("cpu",), keep_ratios=(1.0,), out=Path())
    bundle = cached_bundle(request, cache, silent)
    assert [one.name for one in bundle.manifest.variants] == ["dense"]
    bundle.verify_files()
    assert [path for path in bundle.root.parent.iterdir() if path.is_dir()] == [bundle.root]
