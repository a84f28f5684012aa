"""ztdeploy bench"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ztdeploy.cli.boards import Delivery, on_boards, show_beside
from ztdeploy.cli.help import JUDGE, MEASURING, OUTPUT, PRUNING, QUALITY
from ztdeploy.cli.options import (
    ALL,
    DATA_HELP,
    BatchesOption,
    BundleArgument,
    MinAgreementOption,
    ProfileOption,
    RoundsOption,
    SignedByOption,
    ThreadsOption,
    VariantsOption,
    WarmupOption,
    demand_signature,
    flag,
    option,
    options,
    out_path,
    path,
    path_or_name,
    ratio_or_all,
    request_of,
)
from ztdeploy.cli.output import answer, complain, left, note, progress_bar, right, say, table, warn
from ztdeploy.core.arguments import CALLS, MILLISECONDS, MIN_AGREEMENT, SECONDS, SHARE
from ztdeploy.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ztdeploy.target.measure.bench_report import BenchReport, ConfigurationReport
    from ztdeploy.target.measure.machine import Machine
    from ztdeploy.target.measure.replay_report import LoadReplay


_SPEED_UP = ("speed-up", "95 % interval", "rounds", "less work")


def register(app: typer.Typer) -> None:
    delivery = Delivery(
        show_report, check=_check_paths, write=_write, writes=("out", "page"), named=_of_board, beside=show_beside
    )
    app.command(rich_help_panel=JUDGE)(on_boards(delivery)(bench))


def bench(
    bundle: BundleArgument,
    keep_ratios: Annotated[
        list[Any] | None,
        options("-k, --keep-ratio RATIO", ratio_or_all, PRUNING, "Which variants, or all. [default: the first built]"),
    ] = None,
    variants: VariantsOption = None,
    profile: ProfileOption = None,
    batches: BatchesOption = None,
    threads: ThreadsOption = None,
    signed_by: SignedByOption = None,
    warmup_s: WarmupOption = 1.0,
    duration_s: Annotated[
        float | None, option("--duration SECONDS", SECONDS, MEASURING, "For each configuration. [default: 10]")
    ] = None,
    iterations: Annotated[
        int | None, option("--iterations N", CALLS, MEASURING, "Calls of each configuration, instead of a duration.")
    ] = None,
    rounds: RoundsOption = 10,
    min_agreement: MinAgreementOption = MIN_AGREEMENT,
    cascade: Annotated[
        bool, flag("--cascade", MEASURING, "Also measure the bundle's cascade, on the images of --data.")
    ] = False,
    data: Annotated[Path | None, option("-d, --data DIR", path, QUALITY, f"Images of a cascade: {DATA_HELP}.")] = None,
    reference: Annotated[bool, flag("--reference/--no-reference", MEASURING, "Also measure the baseline.")] = True,
    governor: Annotated[
        bool, flag("--governor", MEASURING, "Replay a load with a governor and with static variants instead.")
    ] = False,
    latency_ms: Annotated[
        float | None,
        option("--latency-ms NUMBER", MILLISECONDS, MEASURING, "The p95 of a call that the governor holds."),
    ] = None,
    load: Annotated[
        Path | None,
        option("--load FILE", path_or_name, MEASURING, "TOML or JSON file. [default: one core, 10 of every 20 s]"),
    ] = None,
    min_fidelity: Annotated[
        float | None, option("--min-fidelity RATIO", SHARE, MEASURING, "Floor on recorded fidelity. [default: none]")
    ] = None,
    page: Annotated[
        Path | None, option("--page FILE", out_path, OUTPUT, "HTML file to write, of a replayed load.")
    ] = None,
    out: Annotated[
        Path | None, option("-o, --out FILE", out_path, OUTPUT, "JSON file, written after every round.")
    ] = None,
) -> None:
    """Measure latency, throughput, cold start and memory.

    Examples:
        # Measure the default variant of a bundle against the baseline.
        ztdeploy bench quickstart
        # Measure all variants at two batches, and keep the figures.
        ztdeploy bench quickstart -k all --batch 1,8 --iterations 50 --out bench.json
        # Hold 30 ms under a load that comes and goes, and draw what happens.
        ztdeploy bench quickstart --governor --latency-ms 30 --page load.html
    """
    given = locals()
    from ztdeploy.target.measure.bench import run_bench
    from ztdeploy.target.measure.bench_report import BenchRequest

    demand_signature(signed_by)
    request = request_of(BenchRequest, {**given, "all_variants": keep_ratios == [ALL]})
    paths = {name: one for name, one in (("out", out), ("page", page)) if one is not None}
    _check_paths(paths)
    if page is not None and not governor:
        raise InputError("--page without --governor", "a load to draw", "add --governor, or leave out --page")

    def save(report: BenchReport) -> None:
        _write(report, {name: one for name, one in paths.items() if name == "out"})

    with progress_bar() as progress:
        report = run_bench(request, progress=progress, save=save)
    files = _write(report, paths)
    answer(report, lambda: show_report(report))
    for file in files:
        note(f"wrote {file}")
    _leave(report)


def _check_paths(paths: Mapping[str, Path]) -> None:
    from ztdeploy.report.evaluate.page import check_page_path
    from ztdeploy.target.measure.bench_report import check_report_path

    if "out" in paths:
        check_report_path(paths["out"])
    if "page" in paths:
        check_page_path(paths["page"], "bench")


def _write(report: BenchReport, paths: Mapping[str, Path]) -> list[Path]:
    """Write the report, and the page of a replayed load, and return their paths."""
    from ztdeploy.core.files import write
    from ztdeploy.report.governor.page import governor_page
    from ztdeploy.target.measure.bench_report import write_report

    if "out" in paths:
        write_report(report, paths["out"])
    if "page" in paths and report.replay is not None:
        write(paths["page"], governor_page(report))
    return [path for name, path in paths.items() if name == "out" or report.replay is not None]


def _of_board(report: BenchReport, board: str) -> BenchReport:
    return report.model_copy(update={"on": board})


def show_report(report: BenchReport) -> None:
    """Tables of what was measured, what it means, and how far to trust it."""
    machine, bundle = report.machine, report.bundle
    versions = [f"{name} {machine.versions[name]}" for name in ("ztdeploy", "numpy") if name in machine.versions]
    weights = f"{bundle.weights} weights" if bundle.weights == "random" else bundle.weights
    say(f"{Path(bundle.path).resolve().name}: {bundle.timm_name} ({weights}), profile {bundle.profile}")
    say(f"{_processor(machine)}, {machine.system}")
    say(f"{', '.join([bundle.runtime, *versions, f'Python {machine.python}'])}; {report.before.at[:10]}")
    say()
    if report.replay is not None:
        _show_replay(report.replay)
    if report.measured:
        _show_latency(report)
        _show_speed(report)
        _show_cascade(report)
        _show_start(report)
    for comparison in report.comparisons:
        say(comparison.verdict)
    for same in report.same_latency:
        say(same.sentence)
    for caution in report.warnings:
        warn(str(caution))
    for verdict in report.verdicts:
        say(f"{verdict.setting}: {verdict.sentence}" if verdict.setting else verdict.sentence)


def _show_replay(replay: LoadReplay) -> None:
    from ztdeploy.core.setting import Setting
    from ztdeploy.target.measure.replay_report import ROW_HEADS, runs_as_rows

    at = Setting(None, replay.batch, replay.threads)
    table(
        f"{replay.load.title or 'The load'}: p95 within {replay.target_ms:g} ms, {at}",
        [*left(*ROW_HEADS[:1]), *right(*ROW_HEADS[1:6]), *left(ROW_HEADS[6]), *right(ROW_HEADS[7])],
        runs_as_rows(replay.runs),
        caption=f"seconds held: whose p95 is within the target, {replay.reaction_s:g} s behind each change of the "
        "load left out; MB: peak memory",
    )
    for decision in (decision for run in replay.runs for decision in run.decisions):
        say(f"{max(0.0, decision.at_s):6.1f} s  {decision.change}: {decision.reason}")
    if replay.runs:
        say()


def _processor(machine: Machine) -> str:
    named = [machine.board, machine.processor, *(gpu.name for gpu in machine.gpus)]
    parts = list(dict.fromkeys(name for name in named if name))
    parts.append(f"{len(machine.usable_cores)} of {machine.cores_online or '?'} cores")
    if machine.governors:
        parts.append(f"governor {', '.join(machine.governors)}")
    if machine.jetson and machine.jetson.power_mode:
        parts.append(f"power mode {machine.jetson.power_mode}")
    return ", ".join(parts)


def _show_latency(report: BenchReport) -> None:
    def cells(one: ConfigurationReport) -> list[str]:
        found = one.latency
        assert found is not None
        percentiles = (found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms)
        numbers = (*percentiles, found.min_ms, found.mean_ms, found.mad_ms)
        return [*map(_three_digits, numbers), f"{found.samples}"]

    _table(
        report,
        "Latency of one call in ms",
        ("p50", "p90", "p95", "p99", "min", "mean", "MAD", "calls"),
        cells,
        caption="MAD: median absolute deviation; -: too few calls for that percentile",
    )


def _show_speed(report: BenchReport) -> None:
    def cells(one: ConfigurationReport) -> list[str]:
        speed, found = _three_digits(one.images_per_s), report.comparison_of(one)
        if found is None:
            return [speed, *("" for _ in _SPEED_UP if report.comparisons)]
        interval = f"{found.interval:.2f}" if found.interval else "-"
        return [speed, f"{found.speedup:.2f}x", interval, f"{len(found.ratios)}", f"{found.work_ratio:.2f}x"]

    title, headings = "Throughput", ["images/s"]
    caption = "images/s: batch over mean latency of the calls above"
    if report.comparisons:
        title, headings = f"{title}, and speed-up over the baseline", [*headings, *_SPEED_UP]
        caption += "\nspeed-up: median of the rounds' ratios; less work: GMACs of the baseline over the variant's"
        if report.cascade:
            caption += "\nthe cascade is compared by means, static variants by medians"
    _table(report, title, headings, cells, caption=caption)


def _show_cascade(report: BenchReport) -> None:
    facts = report.cascade
    if facts is None:
        return

    def cells(one: ConfigurationReport) -> list[str]:
        found, answered = one.latency, one.answered
        assert found is not None
        shares = [f"{100 * count / sum(answered):.1f} %" for count in answered] or [""] * len(facts.stages)
        return [*map(_three_digits, (found.mean_ms, found.p50_ms, found.p99_ms, found.max_ms)), *shares]

    expected = [after - before for after, before in zip(facts.shares, (*facts.shares[1:], 0.0), strict=True)]
    _table(
        report,
        "Latency of one call in ms, and images that each stage answered",
        ("mean", "p50", "p99", "worst", *facts.stages),
        cells,
        caption=f"cascade: on {facts.images} images of '{facts.data}'; expected, from its calibration: "
        + ", ".join(f"{name} {100 * share:.1f} %" for name, share in zip(facts.stages, expected, strict=True)),
    )


def _show_start(report: BenchReport) -> None:
    def cells(one: ConfigurationReport) -> list[str]:
        start = one.cold_start
        assert start is not None
        times = (start.process_ms, start.import_ms, start.load_ms, start.first_ms, start.total_ms)
        return [*map(_three_digits, (*times, one.peak_rss_mb, one.model_mb, one.engine_mb))]

    shared = report.measured[0].shared_weights_mb
    _table(
        report,
        "Cold start in ms (1 start each), peak memory and sizes in MB",
        ("start", "import", "load", "first", "sum", "peak", "model", "engine"),
        cells,
        caption="start: until Python runs; first: first call; peak: resident; model: weights"
        + (f"\nengines read their weights from one shared file of {_three_digits(shared)} MB" if shared else ""),
    )


def _table(
    report: BenchReport,
    title: str,
    headings: Sequence[str],
    cells_of: Callable[[ConfigurationReport], list[str]],
    caption: str,
) -> None:
    """A row per configuration that was measured. Columns tell configurations apart; what all share is in the title."""
    varying = [name for name in ("batch", "threads") if len({getattr(one, name) for one in report.measured}) > 1]
    shared = str(report.measured[0].setting._replace(**dict.fromkeys(varying)))
    table(
        f"{title}, {shared}" if shared else title,
        [("variant", "left"), *((heading, "right") for heading in (*varying, *headings))],
        [[one.variant, *(f"{getattr(one, name)}" for name in varying), *cells_of(one)] for one in report.measured],
        caption=caption,
    )


def _three_digits(value: float | None) -> str:
    """Three digits, or all that stand before the point; a dash for what is not known."""
    if value is None:
        return "-"
    decimals = next((digits for limit, digits in ((1, 3), (10, 2), (100, 1)) if abs(value) < limit), 0)
    return f"{value:.{decimals}f}"


def _leave(report: BenchReport) -> None:
    """Say what went wrong, behind what was measured all the same, and leave with its exit code.

    Raises:
        SystemExit: something did.
    """
    failures = [one.failure for one in report.configurations if one.failure is not None]
    for failure in failures:
        complain(failure.message)
    if report.progress == "interrupted":
        complain("interrupted")
        raise SystemExit(130)
    if failures:
        raise SystemExit(failures[0].exit_code)
