"""The page of a replayed load: what `bench --governor --page` writes. Names come from files, so all pass `element`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from ztdeploy.core.setting import Setting
from ztdeploy.report.kit.document import document
from ztdeploy.report.kit.figure import Figure, beside, legend, notes, plots, section, swatch, trust, verdict
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.numbers import decimals
from ztdeploy.report.kit.plots.frame import (
    BOTTOM,
    HEIGHT,
    TOP,
    Frame,
    box,
    dot,
    level,
    path,
    rows_plot,
    x_range,
    y_range,
)
from ztdeploy.report.kit.plots.scale import Scale, linear
from ztdeploy.report.kit.sheet import Column, table
from ztdeploy.target.adaptive.governor import GovernorDecision
from ztdeploy.target.measure.bench_report import BenchReport
from ztdeploy.target.measure.replay_report import ROW_HEADS, LoadPhase, LoadReplay, ReplayRun, runs_as_rows
from ztdeploy.version import __version__

#: Seconds that took longer than so many targets are drawn at the top of a plot.
_HIGHEST = 3.0
#: Cores that others kept busy before anything was started, from which on the page says so.
_BUSY = 0.2
_NOTES = {
    "p95": "95 of 100 calls took at most so long. Every point is the p95 of the calls that ended within one second.",
    "Seconds held": "The share of the seconds whose p95 is within the target. Those right behind a change of the load "
    "(the reaction time) do not count, for any run.",
    "Load": "Threads of another process that compute all the time, or calls that are made longer, as on a processor "
    "that has slowed itself down.",
    "Slowdown": "The p95 of the latest calls over what the same variant, on as many threads, took when the runner was "
    "loaded.",
    "Memory": "A governor keeps the engines of all its variants open, so it takes more than one engine alone.",
}


def governor_page(report: BenchReport) -> str:
    """The whole document, which is well-formed XML as well."""
    replay = report.replay
    assert replay is not None
    title = f"Holding {replay.target_ms:g} ms under load: {Path(report.bundle.path).resolve().name}"
    setting = Setting(report.bundle.image_size, replay.batch, replay.threads)
    facts = f"{report.bundle.timm_name}, profile {report.bundle.profile}, {report.bundle.runtime}; {setting}"
    load = replay.load.title or f"{len(replay.load.phase)} phases"
    return document(
        title,
        element("header", element("h1", title), element("p", f"{facts}; load: {load}", class_="lead")),
        [verdict(one.decision, one.sentence) for one in report.verdicts],
        trust(_limits(report)),
        section(
            "Latency under load", _legend(), plots(*_latencies(replay)), table("Runs", _RUNS, runs_as_rows(replay.runs))
        ),
        [_decisions(run, replay) for run in replay.runs if run.governed],
        notes(_NOTES),
        element("footer", f"Written by ztdeploy {__version__}; measured on {report.machine.processor}."),
    )


def _limits(report: BenchReport) -> list[str]:
    """What limits how far the figures can be believed."""
    lines = [] if report.progress == "complete" else [f"The measurement is {report.progress}."]
    if (report.quiet_cores or 0) > _BUSY:
        lines.append(f"Other processes kept {report.quiet_cores:.1f} cores busy before anything was started.")
    if report.bundle.weights == "random":
        lines.append("The weights are random: latencies are right, answers mean nothing.")
    return lines


def _cell(at: int) -> Column[tuple[str, ...]]:
    if at in (0, 6):
        return Column(ROW_HEADS[at] or "run", lambda row: row[at], kind="heading" if at == 0 else "")
    return Column(ROW_HEADS[at], lambda row: row[at], lambda row: _number(row[at]))


def _number(text: str) -> float | None:
    return None if text == "-" else float(text.removesuffix(" %"))


_RUNS = [_cell(at) for at in range(len(ROW_HEADS))]


def _legend() -> Markup:
    keys = [("dot c0", "p95 within the target"), ("dot c1", "above the target"), ("band cd", "load")]
    return legend([(swatch(kind), text) for kind, text in keys])


def _latencies(replay: LoadReplay) -> Iterator[Figure]:
    """A figure for each run, the governor's first, all with the same axes."""
    seconds = replay.load.seconds
    highest = max((one.p95_ms for run in replay.runs for one in run.seconds), default=replay.target_ms)
    x = _seconds(seconds, *x_range())
    y = linear([0.0, replay.target_ms, min(highest, _HIGHEST * replay.target_ms)], *y_range())
    for run in sorted(replay.runs, key=lambda run: not run.governed):
        points = [(x(min(one.second + 0.5, seconds)), y(min(one.p95_ms, y.high))) for one in run.seconds]
        marks = [*_shades(replay, x, TOP, HEIGHT - BOTTOM - TOP), path(points, "line front")]
        for (across, down), one in zip(points, run.seconds, strict=True):
            kind = "dot c0" if one.p95_ms <= replay.target_ms else "dot c1"
            text = f"second {one.second}: p95 {one.p95_ms:.1f} ms, {one.calls} calls, {one.variant}"
            marks.append(dot(across, down, 2.8, kind, text))
        marks += level(x, y(replay.target_ms), f"target {replay.target_ms:g} ms")
        drawn = Frame(x, y, "seconds", "p95 of each second, ms").draw(f"p95 of {run.name} over time", marks)
        held = "-" if run.held is None else f"{100 * run.held:.0f} %"
        words = "switches between variants and numbers of threads" if run.governed else "all the time"
        yield Figure(f"{run.name}: {held} of the seconds held", f"{run.name} {words}.", drawn, f"latency-{run.name}")


def _shades(replay: LoadReplay, x: Scale, top: float, height: float) -> list[Markup]:
    loaded = [(start, one) for start, one in zip(replay.load.starts, replay.load.phase, strict=True) if _loads(one)]
    return [
        box(x(start), top, x(start + one.seconds) - x(start), height, "band cd", _words(one)) for start, one in loaded
    ]


def _loads(phase: LoadPhase) -> bool:
    return bool(phase.busy) or phase.slowdown > 1


def _words(phase: LoadPhase) -> str:
    busy = f"{phase.busy} busy thread{'' if phase.busy == 1 else 's'}" if phase.busy else ""
    slow = f"calls {phase.slowdown:g} times longer" if phase.slowdown > 1 else ""
    return ", ".join(part for part in (busy, slow) if part)


def _seconds(seconds: float, start: float, end: float) -> Scale:
    scale = linear([0.0, seconds], start, end)
    ticks = tuple(tick for tick in scale.ticks if tick <= seconds)
    return Scale(0.0, seconds, start, end, ticks)


def _decisions(run: ReplayRun, replay: LoadReplay) -> Markup:
    columns: list[Column[GovernorDecision]] = [
        Column("second", value=lambda one: max(0.0, one.at_s), show=decimals(1)),
        Column("variant", lambda one: one.change.replace("->", "→")),
        Column("reason", lambda one: one.reason, kind="prose"),
        Column("slowdown", value=lambda one: one.slowdown, show=decimals(2)),
    ]
    listed = table("Decisions", columns, run.decisions)
    return section("What the governor decided", beside(_variants(run, replay), listed))


def _variants(run: ReplayRun, replay: LoadReplay) -> Markup | None:
    """A row per variant with the times at which it ran, below the load."""
    spans = list(_spans(run))

    def draw(name: str, x: Scale, middle: float) -> Sequence[Markup]:
        own = [(begin, end) for variant, begin, end in spans if variant == name]
        return [
            box(x(begin), middle - 6, max(1.0, x(end) - x(begin)), 12, "dot c0", f"{name}: {begin:.1f} to {end:.1f} s")
            for begin, end in own
        ]

    rows = [("load", lambda x, middle: _shades(replay, x, middle - 6, 12))]
    rows += [(name, lambda x, middle, name=name: draw(name, x, middle)) for name in run.variants]  # type: ignore[misc]
    drawn = rows_plot("Which variant ran when", "seconds", [0.0, replay.load.seconds], rows)
    words = "Which variant the calls ran on, and on how many threads."
    return Figure("Variant over time", words, drawn, "variants").draw() if drawn else None


def _spans(run: ReplayRun) -> Iterator[tuple[str, float, float]]:
    """Variant, beginning and end of calls on one variant, in seconds."""
    begin = 0.0
    for variant, calls in groupby(zip(run.variant, run.ended_s, strict=True), key=lambda call: call[0]):
        *_, (_, end) = calls
        yield run.variants[variant], begin, end
        begin = end
