"""`ztdeploy bench` as people meet it: what it prints, writes and refuses, and what Ctrl-C and a kill leave."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.bundles import edit
from helpers.processes import HANG_S, Done, result_in, run_ztdeploy, started, wait_for

import ztdeploy
from ztdeploy.target.measure.bench_report import BenchReport, read_report
from ztdeploy.target.measure.statistics import summarise

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
QUICK = ("--threads", "1", "--warmup", "0", "--iterations", "6", "--rounds", "6")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "ztdeploy", "bench", *map(str, arguments)]


def environment() -> dict[str, str]:
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name}
    return {**shell, "PYTHONPATH": str(CHECKOUT)}


def bench(*arguments: str | Path, cwd: Path) -> Done:
    return run_ztdeploy("bench", *arguments, cwd=cwd)


def refused(done: Done, code: int, *words: str) -> None:
    """One line that says value; expectation; fix."""
    assert (done.code, done.out) == (code, ""), done
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(r"error: \S.*; expected \S.*; \S.*", line), line
    assert "this is a bug" not in line
    assert all(word in line for word in words), line


def test_tables_a_verdict_and_a_file(digits_bundle: Path, tmp_path: Path) -> None:
    done = bench(digits_bundle, *QUICK, "--out", "report.json", cwd=tmp_path)
    assert done.code == 0, done
    report = read_report(tmp_path / "report.json")
    assert report.progress == "complete"
    for heading in (
        "Latency of one call in ms, batch 1, 1 thread",
        "Throughput, and speed-up over the baseline",
        "Cold start in ms",
    ):
        assert heading in done.out
    for word in (
        "p50",
        "p90",
        "p95",
        "p99",
        "min",
        "mean",
        "MAD",
        "calls",
        "images/s",
        "95 % interval",
        "peak",
        "engine",
    ):
        assert word in done.out
    (comparison,) = report.comparisons
    assert done.out.splitlines()[-2:] == [comparison.verdict, report.verdicts[0].sentence]
    assert done.err.splitlines()[-1] == "wrote report.json"
    for caution in report.warnings:
        assert f"warning: {caution.message}; {caution.remedy}" in done.err
    assert re.search(r"^dense\t\d", done.out, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_json(digits_bundle: Path, tmp_path: Path) -> None:
    done = bench(digits_bundle, *QUICK, "-k", "all", "--batch", "2", "--no-reference", "--json", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    report = BenchReport.model_validate(result_in(done.out))
    assert [one.variant for one in report.configurations] == ["dense", "keep-0.70", "keep-0.50"]
    assert all(one.batch == 2 for one in report.configurations)
    assert all(len(one.turns) == 6 for one in report.configurations)
    assert report.comparisons == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--batch", "1,x"), 3, ["--batch x"]),
        (("--batch", "9"), 3, ["--batch 9", "at most 8"]),
        (("--threads", "0"), 3, ["--threads 0"]),
        (("-k", "most"), 3, ["most", "'all'"]),
        (("-k", "0.6"), 3, ["keep ratio 0.6", "0.7, 0.5, 1"]),
        (("--variant", "sparse"), 3, ["'sparse'"]),
        (("--duration", "1", "--iterations", "9"), 3, ["both a duration of 1 s and 9 iterations"]),
        (("--rounds", "0"), 3, ["--rounds 0"]),
        (("--profile", "jetson-orin"), 3, ["no engine for profile 'jetson-orin'"]),
        (("--out", "."), 3, ["is a folder"]),
        (("--out", "thesis.json"), 3, ["'thesis.json' exists and is no report"]),
    ],
)
def test_refusals(
    arguments: tuple[str, ...],
    code: int,
    words: list[str],
    digits_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, since nothing is started."""
    from ztdeploy.cli.app import run

    (tmp_path / "thesis.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZTDEPLOY_DEBUG", raising=False)
    found = run(["bench", str(digits_bundle), *arguments])
    out, err = capsys.readouterr()
    refused(Done(found, out, err), code, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.json"]


def test_an_engine_that_does_not_load_is_said_behind_the_others(bundle_copy: Path, tmp_path: Path) -> None:
    def age(manifest):  # type: ignore[no-untyped-def]
        manifest["variants"][0]["engines"]["cpu"]["fingerprint"]["runtime_version"] = "0.1"

    edit(bundle_copy, age)
    done = bench(bundle_copy, *QUICK, "--json", cwd=tmp_path)
    assert done.code == 6
    dense, broken = BenchReport.model_validate(result_in(done.out)).configurations
    assert (dense.latency is not None, broken.latency) == (True, None)
    assert broken.failure is not None
    assert done.err == f"error: {broken.failure.message}\n"


# What it looks like.


def matrix() -> BenchReport:
    """Two variants at two batches and two numbers of threads, with figures as wide as a board's."""
    report = read_report(Path(__file__).parents[1] / "target" / "measure" / "bench_report_v1.json")
    settings = [{"batch": batch, "threads": threads} for batch in (1, 16) for threads in (1, 2)]
    slow = {"latency": summarise([4321.0 + call for call in range(120)]), "peak_rss_mb": 1234.0, "model_mb": 345.6}
    return report.model_copy(
        update={
            "configurations": tuple(
                one.model_copy(update={**slow, **setting}) for setting in settings for one in report.configurations
            ),
            "comparisons": tuple(one.model_copy(update=setting) for setting in settings for one in report.comparisons),
        }
    )


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_a_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ztdeploy.cli.bench import show_report

    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    report = matrix()
    show_report(report)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns
    for variant in ("dense", "keep-0.70"):
        rows = [line.split() for line in lines if line.startswith(f"{variant} ")]
        assert sum(row[1:3] == ["16", "2"] for row in rows) == 3, "each row is one line in each of three tables"
    text = " ".join(" ".join(lines).split())
    assert "4380 4428 4434 4439 4321 4380 30.0 120" in text
    for comparison in report.comparisons:
        assert comparison.verdict in text


def test_what_all_configurations_share_is_in_the_title(capsys: pytest.CaptureFixture[str]) -> None:
    from ztdeploy.cli.bench import show_report

    report = matrix()
    show_report(report.model_copy(update={"configurations": report.configurations[2:4], "comparisons": ()}))
    out = capsys.readouterr().out
    assert "Throughput, batch 1, 2 threads" in out
    assert "speed-up" not in out
    on_gpu = [one.model_copy(update={"threads": None}) for one in report.configurations[::4]]
    show_report(report.model_copy(update={"configurations": tuple(on_gpu), "comparisons": ()}))
    out = capsys.readouterr().out
    assert "Latency of one call in ms\n" in out
    assert "thread" not in out


# What is left of one that was stopped.


def rounds_in(path: Path) -> int:
    """How many rounds a report holds by now."""
    return min(len(one.turns) for one in read_report(path).configurations) if path.exists() else 0


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("json_", [False, True], ids=["text", "json"])
def test_ctrl_c(json_: bool, digits_bundle: Path, tmp_path: Path) -> None:
    """Sent to the whole group, as a terminal does; workers must not die of it noisily."""
    out = tmp_path / "report.json"
    arguments = ("--threads", "1", "--warmup", "0", "--duration", "100", "--rounds", "1000", "--out", out)
    arguments = (*arguments, *(["--json"] if json_ else []))
    child = started(command(digits_bundle, *arguments), cwd=tmp_path, env=environment())
    wait_for(lambda: rounds_in(out) >= 2, child)
    os.killpg(child.pid, signal.SIGINT)
    printed, said = child.communicate(timeout=HANG_S)
    assert child.returncode == 130
    assert said.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in said
    report = read_report(out)
    assert report.progress == "interrupted"
    assert rounds_in(out) >= 2
    if json_:
        assert BenchReport.model_validate(result_in(printed)) == report
    else:
        assert report.comparisons[0].verdict in printed
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


def test_killed(digits_bundle: Path, tmp_path: Path) -> None:
    """By the kernel, for its memory, say: the file holds every round that ended; the workers end by themselves."""
    out = tmp_path / "report.json"
    arguments = ("--threads", "1", "--warmup", "0", "--duration", "100", "--rounds", "1000", "--out", out)
    child = started(command(digits_bundle, *arguments), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    wait_for(lambda: rounds_in(out) >= 1, child)
    child.kill()
    child.communicate(timeout=HANG_S)
    report = read_report(out)
    assert report.progress == "running"
    assert all(one.latency is not None for one in report.configurations)
    assert json.loads(out.read_text())["configurations"][0]["turns"][0]["samples_ms"]
    deadline = time.monotonic() + HANG_S
    while group_lives(child.pid):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
