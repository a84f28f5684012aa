"""ztdeploy compare"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ztdeploy.cli.help import JUDGE, MEASURING, OUTPUT
from ztdeploy.cli.options import argument, flag, option, options, path, request_of
from ztdeploy.cli.output import answer, print_lines, say, table, warn
from ztdeploy.core.arguments import Numbers

if TYPE_CHECKING:
    from ztdeploy.report.compare.comparison import ReportComparison
    from ztdeploy.target.measure.bench_report import BenchReport
    from ztdeploy.target.measure.sweep_report import SweepReport

PERCENT = Numbers(0, 1000)
_FIELDS = ("model", "image-size", "variant", "batch", "threads", "backend")
#: What is left when something became slower.
REGRESSION = 7


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=JUDGE)(compare)


def compare(
    baseline: Annotated[Path, argument("BEFORE", path, "Earlier report of 'bench' or 'sweep'.")],
    candidate: Annotated[Path, argument("AFTER", path, "Later report of 'bench' or 'sweep'.")],
    max_slowdown: Annotated[
        float,
        option(
            "--max-slowdown PERCENT", PERCENT, MEASURING, "Slower by more, with the whole interval, is a regression."
        ),
    ] = 5.0,
    max_memory_growth: Annotated[
        float | None,
        option(
            "--max-memory-growth PERCENT",
            PERCENT,
            MEASURING,
            "Judge memory and sizes as well. [default: they are noted]",
        ),
    ] = None,
    speedup_only: Annotated[
        bool, flag("--speedup-only", MEASURING, "Judge speed-ups over the baseline, not latencies.")
    ] = False,
    any_machine: Annotated[
        bool, flag("--any-machine", MEASURING, "Compare runs of different machines all the same.")
    ] = False,
    match: Annotated[
        list[str] | None,
        options("--match FIELD", _FIELDS, MEASURING, f"Compare what is alike in {', '.join(_FIELDS)}. [default: all]"),
    ] = None,
    layout: Annotated[
        Literal["text", "md"], option("--format text|md", ("text", "md"), OUTPUT, "md: Markdown for a pull request.")
    ] = "text",
) -> None:
    """Say whether anything became slower between two reports.

    Examples:
        # Compare two reports.
        ztdeploy compare before.json after.json
        # Allow 10 %, and write Markdown for a pull request.
        ztdeploy compare before.json after.json --max-slowdown 10 --format md
    """
    given = locals()
    from ztdeploy.report.compare.comparison import Criteria, compare_reports
    from ztdeploy.report.compare.markdown import markdown
    from ztdeploy.target.measure.sweep_report import read_any_report

    shares = {
        "max_slowdown": max_slowdown / 100,
        "max_memory_growth": None if max_memory_growth is None else max_memory_growth / 100,
        "match": match and [name.replace("-", "_") for name in match],
    }
    criteria = request_of(Criteria, {**given, **shares})
    reports = read_any_report(baseline), read_any_report(candidate)
    comparison = compare_reports(*reports, criteria, names=names_of(baseline, candidate))
    as_markdown = layout == "md"
    answer(comparison, lambda: print_lines(markdown(comparison)) if as_markdown else show(comparison, *reports))
    if comparison.regressed:
        raise SystemExit(REGRESSION)


def names_of(baseline: Path, candidate: Path) -> tuple[str, str]:
    """What tells two files apart: their names, or all of the paths."""
    return (baseline.name, candidate.name) if baseline.name != candidate.name else (str(baseline), str(candidate))


def show(
    comparison: ReportComparison, baseline: BenchReport | SweepReport, candidate: BenchReport | SweepReport
) -> None:
    """What is not alike, the figures, what stands beside them, and the verdict as the last line."""
    from ztdeploy.report.compare.markdown import remarks

    say(f"baseline:  {comparison.baseline}, {_measured_on(baseline)}")
    say(f"candidate: {comparison.candidate}, {_measured_on(candidate)}")
    if comparison.differences:
        say()
        say("Not alike (baseline -> candidate):")
    for one in comparison.differences:
        say(f"  {one}")
    say()
    _show_figures(comparison)
    for text in remarks(comparison):
        say(text)
    for caution in comparison.cautions:
        warn(caution)
    say(comparison.conclusion)


def _measured_on(report: BenchReport | SweepReport) -> str:
    from ztdeploy.core.text import printable
    from ztdeploy.report.compare.entries import bench_runs

    run = bench_runs(report)[0]
    machine = run.machine.board or run.machine.processor
    on = f"board {run.on} ({machine})" if run.on else machine
    return printable(f"{run.bundle.timm_name}, {run.bundle.runtime}, {on}, {run.before.at[:10]}")


def _show_figures(comparison: ReportComparison) -> None:
    from ztdeploy.report.compare.entries import telling_fields
    from ztdeploy.report.compare.markdown import figures

    identities = [pair.setting for pair in comparison.pairs]
    varying = telling_fields(identities, always=("variant",))
    common = str(identities[0].only({"batch", "threads"} - {*varying}).setting)
    headings = ("before", "after", "ratio", "95 %", "speed-up", "95 %")
    table(
        ", ".join(words for words in ("Latency of one call in ms, and speed-up over the baseline", common) if words),
        [("configuration", "left"), *((heading, "right") for heading in headings), ("verdict", "left")],
        [[str(pair.setting.only(varying)), *figures(pair), pair.verdict] for pair in comparison.pairs],
        caption="before, after: medians of the rounds' medians; 95 %: interval of after over before\n"
        f"SLOWER, LESS SPEED-UP: by more than {100 * comparison.criteria.max_slowdown:g} %, with the whole interval",
    )
