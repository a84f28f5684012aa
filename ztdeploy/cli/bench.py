"""ztdeploy bench"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.options import (
    BATCHES_HELP,
    BundleArgument,
    ProfileOption,
    ThreadsOption,
    VariantsOption,
    WarmupOption,
    counts_option,
    number_option,
    path_option,
    word_option,
)
from ztdeploy.cli.output import JsonFlag, fail, note, print_record, progress_bar, say, table, warn
from ztdeploy.core import arguments

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztdeploy.target.measure.bench_report import BenchReport, ConfigurationReport
    from ztdeploy.target.measure.machine import Machine


def register(app: typer.Typer) -> None:
    app.command(help="Measure latency, throughput, cold start and memory, against the dense model.")(bench)


def bench(
    bundle: BundleArgument,
    keep_ratio: Annotated[
        list[str] | None,
        word_option("--keep-ratio", "-k", help="Which variants, or 'all'; repeatable. (default: the first built)"),
    ] = None,
    variant: VariantsOption = None,
    profile: ProfileOption = None,
    batch: Annotated[str | None, counts_option("--batch", arguments.BATCH, help=BATCHES_HELP)] = None,
    threads: ThreadsOption = None,
    warmup: WarmupOption = 1.0,
    duration: Annotated[
        float | None,
        number_option(
            arguments.SECONDS, "--duration", metavar="SECONDS", help="Per configuration, over all rounds. (default: 10)"
        ),
    ] = None,
    iterations: Annotated[
        int | None, number_option(arguments.CALLS, "--iterations", help="Calls instead of seconds, likewise.")
    ] = None,
    rounds: Annotated[
        int, number_option(arguments.ROUNDS, "--rounds", help="How often the configurations take turns.")
    ] = 10,
    reference: Annotated[bool, typer.Option("--reference/--no-reference", help="Measure dense as well.")] = True,
    out: Annotated[Path | None, path_option("--out", "-o", help="JSON file, written after every round.")] = None,
    json: JsonFlag = False,
) -> None:
    from ztdeploy.target.measure.bench import run_bench
    from ztdeploy.target.measure.bench_report import BenchRequest, check_report_path, write_report
    from ztdeploy.target.measure.plan import parse_counts, parse_keep_ratios

    ratios, every = parse_keep_ratios(keep_ratio or [])
    request = BenchRequest(
        bundle=bundle,
        keep_ratios=ratios,
        variants=tuple(variant or ()),
        all_variants=every,
        profile=profile,
        batches=() if batch is None else parse_counts(batch, "--batch"),
        threads=() if threads is None else parse_counts(threads, "--threads"),
        warmup_s=warmup,
        duration_s=duration,
        iterations=iterations,
        rounds=rounds,
        reference=reference,
    )
    if out is not None:
        check_report_path(out)

    def save(report: BenchReport) -> None:
        if out is not None:
            write_report(report, out)

    with progress_bar(not json) as progress:
        report = run_bench(request, progress=progress, save=save)
    save(report)
    if json:
        print_record(report)
    else:
        show_report(report)
        if out is not None:
            note(f"wrote {out}")
    _leave(report)


def show_report(report: BenchReport) -> None:
    """Tables of what was measured, what it means, and how far to trust it."""
    for line in _about(report):
        say(line)
    say()
    if report.measured:
        _show_latency(report)
        _show_speed(report)
        _show_start(report)
    for comparison in report.comparisons:
        say(comparison.verdict)
    for caution in report.warnings:
        warn(str(caution))


def _about(report: BenchReport) -> list[str]:
    machine, bundle = report.machine, report.bundle
    versions = ", ".join(
        f"{name} {machine.versions[name]}" for name in ("ztdeploy", "numpy") if name in machine.versions
    )
    weights = f"{bundle.weights} weights" if bundle.weights == "random" else bundle.weights
    return [
        f"{Path(bundle.path).resolve().name}: {bundle.timm_name} ({weights}), profile {bundle.profile}",
        f"{_processor(machine)}, {machine.system}",
        f"{bundle.runtime}, {versions}, Python {machine.python}; {report.before.at[:10]}",
    ]


def _processor(machine: Machine) -> str:
    cores = f"{len(machine.usable_cores)} of {machine.cores_online or '?'} cores"
    named = [machine.board, machine.processor, *(gpu.name for gpu in machine.gpus)]
    names = list(dict.fromkeys(name for name in named if name))
    clocks = [f"governor {', '.join(machine.governors)}"] if machine.governors else []
    mode = [f"power mode {machine.jetson.power_mode}"] if machine.jetson and machine.jetson.power_mode else []
    return ", ".join([*names, cores, *clocks, *mode])


def _show_latency(report: BenchReport) -> None:
    keys, cells = _settings(report)
    rows = []
    for one in report.measured:
        assert one.latency is not None
        s = one.latency
        numbers = (s.p50_ms, s.p90_ms, s.p95_ms, s.p99_ms, s.min_ms, s.mean_ms, s.mad_ms)
        rows.append([*cells(one), *map(_three_digits, numbers), f"{s.samples}"])
    headings = ["p50", "p90", "p95", "p99", "min", "mean", "MAD", "calls"]
    table(
        f"Latency of one call in ms{_common(report)}",
        [*keys, *((heading, "right") for heading in headings)],
        rows,
        caption="MAD: median absolute deviation; -: too few calls for that percentile",
    )


def _show_speed(report: BenchReport) -> None:
    keys, cells = _settings(report)
    compared = {(one.variant, one.batch, one.threads): one for one in report.comparisons}
    rows = []
    for one in report.measured:
        found = compared.get((one.variant, one.batch, one.threads))
        row = [*cells(one), _three_digits(one.images_per_s)]
        if found is None:
            rows.append([*row, "", "", "", ""])
            continue
        interval = f"{found.interval.low:.2f} to {found.interval.high:.2f}" if found.interval else "-"
        rows.append([*row, f"{found.speedup:.2f}x", interval, f"{len(found.ratios)}", f"{found.work_ratio:.2f}x"])
    columns = [*keys, ("images/s", "right")]
    if report.comparisons:
        headings = ("speed-up", "95 % interval", "rounds", "less work")
        table(
            f"Throughput, and speed-up over dense{_common(report)}",
            [*columns, *((heading, "right") for heading in headings)],
            rows,
            caption="images/s: batch over mean latency of the calls above\n"
            "speed-up: median of the rounds' ratios; less work: GMACs of dense over its own",
        )
    else:
        caption = "images/s: batch over mean latency of the calls above"
        table(f"Throughput{_common(report)}", columns, [row[:-4] for row in rows], caption=caption)


def _show_start(report: BenchReport) -> None:
    keys, cells = _settings(report)
    rows = []
    for one in report.measured:
        start = one.cold_start
        assert start is not None
        times = (start.process_ms, start.import_ms, start.load_ms, start.first_ms, start.total_ms)
        sizes = (one.peak_rss_mb, one.model_mb, one.engine_mb)
        rows.append([*cells(one), *map(_three_digits, (*times, *sizes))])
    headings = ("start", "import", "load", "first", "sum", "peak", "model", "engine")
    shared = report.measured[0].shared_weights_mb
    table(
        f"Cold start in ms (1 start each), peak memory and sizes in MB{_common(report)}",
        [*keys, *((heading, "right") for heading in headings)],
        rows,
        caption="start: until Python runs; first: first call; peak: resident; model: weights"
        + (f"\nengines read their weights from one shared file of {_three_digits(shared)} MB" if shared else ""),
    )


def _settings(
    report: BenchReport,
) -> tuple[list[tuple[str, str]], Callable[[ConfigurationReport], list[str]]]:
    """Columns that tell configurations apart, and a row's cells in them; what all share is in the title."""
    batch, threads = (len({getattr(one, name) for one in report.measured}) > 1 for name in ("batch", "threads"))
    columns = [
        ("variant", "left"),
        *([("batch", "right")] if batch else []),
        *([("threads", "right")] if threads else []),
    ]

    def cells(one: ConfigurationReport) -> list[str]:
        return [one.variant, *([f"{one.batch}"] if batch else []), *([f"{one.threads}"] if threads else [])]

    return columns, cells


def _common(report: BenchReport) -> str:
    """What all configurations share: ", batch 1, 2 threads"."""
    batches, threads = {one.batch for one in report.measured}, {one.threads for one in report.measured}
    parts = [f", batch {next(iter(batches))}"] if len(batches) == 1 else []
    if len(threads) == 1 and (count := next(iter(threads))) is not None:
        parts.append(f", {count} thread{'s' if count > 1 else ''}")
    return "".join(parts)


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
    for one in report.failures:
        assert one.failure is not None
        fail(one.failure.message)
    if report.progress == "interrupted":
        fail("interrupted")
        raise SystemExit(130)
    if report.failures:
        failure = report.failures[0].failure
        assert failure is not None
        raise SystemExit(failure.exit_code)
