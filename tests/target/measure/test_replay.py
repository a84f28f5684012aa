"""Replayed loads: what a load file may say, how seconds are judged, and the process that keeps cores busy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers.errors import refused

from ztdeploy.cli.app import run
from ztdeploy.core.errors import InputError
from ztdeploy.target.adaptive.governor import GovernorDecision
from ztdeploy.target.measure.bench_report import read_report
from ztdeploy.target.measure.co_runner import CoRunner
from ztdeploy.target.measure.replay_report import (
    LoadPhase,
    LoadReplay,
    LoadTimeline,
    ReplayRun,
    judged,
    read_load,
    verdict_of_replay,
)

HALF = LoadTimeline(phase=(LoadPhase(seconds=10), LoadPhase(seconds=10, busy=1), LoadPhase(seconds=10)))


def test_the_shipped_load_keeps_one_core_busy_for_10_of_every_20_seconds_and_ends_idle() -> None:
    load = read_load(None)
    assert load == read_load(Path("one-core"))
    assert [(one.seconds, one.busy) for one in load.phase] == [(10, at % 2) for at in range(len(load.phase))]
    assert load.phase[-1].busy == 0


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["is empty", "[[phase]]"]),
        ("title = 'none'\n", ["'phase'", "[[phase]]"]),
        ("phase = []\n", ["'phase'", "[[phase]]"]),
        ("[[phase]]\nseconds = -1\n", ["'phase.0.seconds'", "greater than 0"]),
        ("[[phase]]\nseconds = 0\n", ["'phase.0.seconds'"]),
        ("[[phase]]\nseconds = nan\n", ["'phase.0.seconds'"]),
        ("[[phase]]\nbusy = 1\n", ["'phase.0.seconds'"]),
        ("[[phase]]\nseconds = 1\nbusy = -1\n", ["'phase.0.busy'"]),
        ("[[phase]]\nseconds = 1\nslowdown = 0.5\n", ["'phase.0.slowdown'"]),
        ("[[phase]]\nseconds = 1\nbussy = 1\n", ["unknown key 'phase.0.bussy'", "did you mean 'busy'?"]),
        ("titel = 'x'\n[[phase]]\nseconds = 1\n", ["unknown key 'titel'", "did you mean 'title'?"]),
        ("[[phase]\n", ["cannot be read"]),
    ],
)
def test_load_files_that_are_none(text: str, fragments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "load.toml"
    file.write_text(text)
    refused(lambda: read_load(file), *fragments, kind=InputError)


def test_a_load_that_is_not_there() -> None:
    refused(lambda: read_load(Path("one-cor")), "did you mean 'one-core'?", kind=InputError)
    refused(lambda: read_load(Path("nowhere.toml")), "nowhere.toml", kind=InputError)


def test_a_timeline_is_cut_off_or_repeated() -> None:
    assert [one.seconds for one in HALF.lasting(12).phase] == [10, 2]
    longer = HALF.lasting(45)
    assert [(one.seconds, one.busy) for one in longer.phase] == [(10, 0), (10, 1), (10, 0), (10, 0), (5, 1)]
    assert longer.changes == (10, 20, 40), "the load does not change between two phases of one kind"


def made(name: str, latency: Any, changes: dict[float, str] | None = None) -> ReplayRun:
    """A run of `HALF` with ten calls a second, whose latency is a function of the time."""
    at = [call / 10 for call in range(300)]
    common = {"target_ms": 30.0, "p95_ms": 40.0, "slowdown": 2.0, "reason": "", "cause": "missed"}
    names = ["dense", *(changes or {}).values()]
    decisions = [
        GovernorDecision(at_s=time_s, before=names[at], after=names[at + 1], **common)
        for at, time_s in enumerate(changes or {})
    ]
    run_ = ReplayRun(
        name=name,
        variants=("dense", "keep-0.50"),
        ended_s=tuple(at),
        latency_ms=tuple(latency(time_s) for time_s in at),
        variant=(0,) * 300,
        decisions=tuple(decisions),
        peak_rss_mb=100,
    )
    return judged(run_, HALF, 30.0)


def replay_of(*runs: ReplayRun) -> LoadReplay:
    return LoadReplay(load=HALF, target_ms=30, min_fidelity=None, batch=1, threads=2, reaction_s=1, runs=runs)


def test_seconds_behind_the_reaction_time_are_judged() -> None:
    governed = made("governor", lambda at: 50 if 10 <= at < 10.9 else 20, {10.4: "keep-0.50", 22.0: "dense"})
    assert governed.held == 1, "the second in which the load came does not count"
    assert governed.changes == (0, 1, 1)
    assert [one.second for one in governed.seconds if not one.counted] == [0, 10, 20]
    slow = made("dense", lambda at: 50 if 10 <= at < 20 else 20)
    assert slow.held == pytest.approx(18 / 27)
    said = verdict_of_replay(replay_of(slow, governed))
    assert said.decision == "deploy"
    assert "100 % of the seconds (dense in 67 %)" in said.sentence
    assert "at most 1 time for each change of the load" in said.sentence


def test_a_governor_that_is_not_needed_or_does_not_hold_is_not_recommended() -> None:
    quiet, governed = made("dense", lambda _at: 20), made("governor", lambda _at: 20, {0.0: "dense"})
    assert verdict_of_replay(replay_of(quiet, governed)).decision == "baseline"
    slow, helpless = made("dense", lambda _at: 90), made("governor", lambda _at: 40, {0.0: "dense"})
    assert verdict_of_replay(replay_of(slow, helpless)).decision == "open"


def test_a_co_runner_is_busy_when_it_is_told_and_dies_with_its_parent() -> None:
    def used(seconds: float) -> float:
        before = cpu_of(pid)
        time.sleep(seconds)
        return (cpu_of(pid) - before) / seconds

    with CoRunner(1) as co_runner:
        (pid,) = (process.pid for process in co_runner._processes)
        assert used(0.1) < 0.05
        co_runner.busy(1)
        assert used(0.3) > 0.05
        co_runner.busy(0)
        time.sleep(0.02)
        assert used(0.1) < 0.05
    assert not Path(f"/proc/{pid}").exists()
    parent = "import os\nfrom ztdeploy.target.measure.co_runner import CoRunner\nones = CoRunner(1)\nones.busy(1)\n"
    parent += "print(ones._processes[0].pid, flush=True)\nos._exit(1)\n"
    left = int(subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=False).stdout)
    assert any(not running(left) or time.sleep(0.02) for _ in range(100)), "it is gone with its parent"


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ("--latency-ms 30", ["without --governor"]),
        ("--load one-core", ["without --governor"]),
        ("--page load.html", ["--page without --governor"]),
        ("--governor", ["--latency-ms"]),
        ("--governor --latency-ms -3", ["above 0"]),
        ("--governor --latency-ms fast", ["fast"]),
        ("--governor --latency-ms 30 --batch 1,2", ["several --batch"]),
        ("--governor --latency-ms 30 --iterations 20", ["--iterations"]),
        ("--governor --latency-ms 30 --load none", ["did you mean"]),
        ("--governor --latency-ms 30 --min-fidelity 0.9", ["none has a recorded evaluation"]),
        ("--governor --latency-ms 30 --batch 4000", ["--batch 4000"]),
    ],
)
def test_options_that_do_not_go_together(
    arguments: str, fragments: list[str], digits_bundle: Path, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["bench", str(digits_bundle), *arguments.split()]) in (2, 3)
    assert all(fragment in capsys.readouterr().err for fragment in fragments)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_load_is_replayed_written_and_drawn(digits_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    load, out, page = (tmp_path / name for name in ("load.json", "bench.json", "load.html"))
    load.write_text(json.dumps({"phase": [{"seconds": 2}, {"seconds": 2, "slowdown": 20}, {"seconds": 1, "busy": 1}]}))
    options = ["--governor", "--latency-ms", "1000", "-k", "0.5", "--warmup", "0.1", "--threads", "1", "--load"]
    assert run(["bench", str(digits_bundle), *options, str(load), "--out", str(out), "--page", str(page)]) == 0
    report = read_report(out)
    assert report.replay is not None
    assert [one.name for one in report.replay.runs] == ["dense", "keep-0.50", "governor"]
    for one in report.replay.runs:
        assert one.ended_s[-1] == pytest.approx(5, abs=1)
        calls = list(zip(one.ended_s, one.latency_ms, one.variant, strict=True))
        quick, slow = (median(ms for at, ms, _ in calls if s <= at < s + 1.5) for s in (0.3, 2.3))
        assert slow > 5 * quick
        assert set(one.variant) <= set(range(len(one.variants)))
    assert [one.cause for one in report.replay.runs[-1].decisions] == ["start"]
    (said,) = report.verdicts
    assert said.sentence in capsys.readouterr().out
    drawn = ElementTree.fromstring(page.read_text().removeprefix("<!DOCTYPE html>"))
    assert said.sentence in "".join(drawn.itertext())
    assert len([one for one in drawn.iter() if one.tag.endswith("svg") and one.get("role") == "img"]) == 4
