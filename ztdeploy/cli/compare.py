"""ztdeploy compare"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ztdeploy.cli.options import number_option, path_argument, word_option
from ztdeploy.cli.output import answer, print_lines, say, table, warn
from ztdeploy.core.arguments import Numbers

if TYPE_CHECKING:
    from ztdeploy.report.compare.comparison import ReportComparison
    from ztdeploy.target.measure.bench_report import BenchReport
    from ztdeploy.target.measure.sweep_report import SweepReport

PERCENT = Numbers(0, 1000)
#: What is left when something became slower.
REGRESSION = 7


def register(app: typer.Typer) -> None:
    app.command(help="Say whether anything became slower between two reports of bench or sweep; exit code 7 if so.")(
        compare
    )


def compare(
    baseline: Annotated[Path, path_argument("Earlier report of 'bench' or 'sweep'.")],
    candidate: Annotated[Path, path_argument("Later report of 'bench' or 'sweep'.")],
    max_slowdown: Annotated[
        float,
        number_option(
            PERCENT,
            "--max-slowdown",
            metavar="PERCENT",
            help="Slower by more, with the whole interval, is a regression.",
        ),
    ] = 5.0,
    max_memory_growth: Annotated[
        float | None,
        number_option(
            PERCENT,
            "--max-memory-growth",
            metavar="PERCENT",
            help="Judge peak memory and sizes as well. (default: changes are noted)",
        ),
    ] = None,
    speedup_only: Annotated[
        bool, typer.Option("--speedup-only", help="Judge speed-ups over the baseline, not latencies.")
    ] = False,
    any_machine: Annotated[
        bool, typer.Option("--any-machine", help="Compare runs of different machines all the same.")
    ] = False,
    match: Annotated[
        str | None,
        word_option(
            metavar="FIELDS",
            help="What makes two configurations the same. (default: model,image-size,variant,batch,threads,backend)",
        ),
    ] = None,
    layout: Annotated[
        Literal["text", "md"], typer.Option("--format", help="md: Markdown for a pull request.")
    ] = "text",
) -> None:
    from ztdeploy.report.compare.comparison import Criteria, compare_reports
    from ztdeploy.report.compare.entries import FIELDS, parse_match
    from ztdeploy.report.compare.markdown import markdown
    from ztdeploy.target.measure.sweep_report import read_any_report

    criteria = Criteria(
        max_slowdown=max_slowdown / 100,
        max_memory_growth=None if max_memory_growth is None else max_memory_growth / 100,
        speedup_only=speedup_only,
        any_machine=any_machine,
        match=FIELDS if match is None else parse_match(match),
    )
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
    return printable(f"{run.bundle.timm_name}, {run.bundle.runtime}, {run.machine.processor}, {run.before.at[:10]}")


def _show_figures(comparison: ReportComparison) -> None:
    from ztdeploy.report.compare.entries import telling_fields
    from ztdeploy.report.compare.markdown import figures

    identities = [pair.setting for pair in comparison.pairs]
    varying = telling_fields(identities, always=("variant",))
    common = str(identities[0].only({"batch", "threads"} - {*varying}).setting)
    headings = ("before", "after", "ratio", "95 %", "speed-up", "95 %")
    table(
        ", ".join(words for words in ("Latency of one call in ms, and speed-up over dense", common) if words),
        [("configuration", "left"), *((heading, "right") for heading in headings), ("verdict", "left")],
        [[str(pair.setting.only(varying)), *figures(pair), pair.verdict] for pair in comparison.pairs],
        caption="before, after: medians of the rounds' medians; 95 %: interval of after over before\n"
        f"SLOWER, LESS SPEED-UP: by more than {100 * comparison.criteria.max_slowdown:g} %, with the whole interval",
    )
