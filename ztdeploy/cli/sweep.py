"""ztdeploy sweep"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.options import (
    BATCHES_HELP,
    OF_BUILDS,
    CacheOption,
    LimitOption,
    PresetOption,
    RoundsOption,
    ThreadsOption,
    WarmupOption,
    counts_option,
    number_option,
    path_option,
    takes_model,
    word_option,
)
from ztdeploy.cli.output import answer, complain, note, progress_bar, say, table, warn
from ztdeploy.core import arguments

if TYPE_CHECKING:
    from ztdeploy.core.model_source import ModelSource
    from ztdeploy.target.measure.sweep_report import Row, SweepReport, SweepRequest

RESUME = "what is built and measured so far is kept: the same command goes on with it"


def register(app: typer.Typer) -> None:
    app.command(
        help="Build and measure many keep ratios, methods and batches against the baseline; can be stopped any time."
    )(sweep)


@takes_model(without=("image_size", *OF_BUILDS), required=False)
def sweep(
    model: ModelSource | None,
    bundle: Annotated[
        Path | None, path_option(help="Instead of a model: the variants of a bundle. Needs no PyTorch.")
    ] = None,
    profile: Annotated[
        str | None, word_option("--profile", "-p", help="Shipped profile or TOML file. (default: the bundle's)")
    ] = None,
    keep_ratios: Annotated[
        str | None, word_option(help="Such as 1.0,0.7,0.5. (default: 1.0,0.9,0.8,0.7,0.6,0.5, or all of a bundle)")
    ] = None,
    methods: Annotated[
        str | None, word_option(help="Such as zero-tprune,slice. (default: zero-tprune, or all of a bundle)")
    ] = None,
    batches: Annotated[str | None, counts_option("--batches", arguments.BATCH, help=BATCHES_HELP)] = None,
    image_sizes: Annotated[
        str | None, word_option(help="Sides of the input: 224,96x384. (default: the model's)")
    ] = None,
    threads: ThreadsOption = None,
    preset: PresetOption = "default",
    duration: Annotated[
        float,
        number_option(arguments.SECONDS, "--duration", metavar="SECONDS", help="Per configuration, over all rounds."),
    ] = 4.0,
    rounds: RoundsOption = 8,
    warmup: WarmupOption = 0.5,
    details: Annotated[
        bool, typer.Option("--details/--no-details", help="Measure where time goes: operators, the token staircase.")
    ] = True,
    data: Annotated[
        Path | None,
        path_option("--data", "-d", help="Also evaluate on images: labels.json, a folder per class, a flat folder."),
    ] = None,
    limit: LimitOption = None,
    out: Annotated[
        Path | None, path_option("--out", "-o", help="Folder; an earlier sweep in it goes on. (default: sweep-...)")
    ] = None,
    cache: CacheOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what an earlier sweep has measured.")] = False,
) -> None:
    from ztdeploy.jobs.sweep import sweep as run_sweep
    from ztdeploy.report.sweep.pages import write_pages
    from ztdeploy.target.measure.plan import parse_counts, parse_image_sizes
    from ztdeploy.target.measure.sweep_report import SweepRequest

    request = SweepRequest(
        model=model,
        bundle=bundle,
        profile=profile,
        keep_ratios=parse_ratios(keep_ratios),
        methods=() if methods is None else parse_names(methods),
        batches=() if batches is None else parse_counts(batches, "--batches"),
        image_sizes=() if image_sizes is None else parse_image_sizes(image_sizes, "--image-sizes"),
        threads=() if threads is None else parse_counts(threads, "--threads"),
        preset=preset,
        duration_s=duration,
        rounds=rounds,
        warmup_s=warmup,
        details=details,
        data=data,
        limit=limit,
    )
    folder = out or default_out(request)
    try:
        with progress_bar() as progress:
            report = run_sweep(request, folder, cache=cache, fresh=fresh, progress=progress, note=note)
    except KeyboardInterrupt:
        note(RESUME)
        raise
    written = (*write_pages(report, folder), folder)
    answer(report, lambda: show_sweep(report))
    for path in written:
        note(f"wrote {path}")
    _leave(report)


def default_out(request: SweepRequest) -> Path:
    """`sweep-MODEL-PROFILE`, or `sweep-BUNDLE`."""
    if request.bundle is not None:
        return Path(f"sweep-{request.bundle.resolve().name}")
    from ztdeploy.core.model_source import folder_word

    model = folder_word(request.model.name) if request.model else ""
    return Path(f"sweep-{model}-{Path(request.profile or '').stem}".rstrip("-"))


def parse_ratios(text: str | None) -> tuple[float, ...]:
    """Keep ratios as typed, such as "1.0,0.7".

    Raises:
        InputError: something else than numbers in (0, 1].
    """
    from ztdeploy.core.errors import InputError
    from ztdeploy.target.measure.plan import parse_keep_ratios

    if text is None:
        return ()
    ratios, every = parse_keep_ratios([text])
    if every or not ratios:
        raise InputError(f"--keep-ratios {text!r}", "numbers", "give for instance --keep-ratios 1.0,0.7")
    return tuple(dict.fromkeys(ratios))


def parse_names(text: str) -> tuple[str, ...]:
    """Names as typed, each once.

    Raises:
        InputError: there is none.
    """
    from ztdeploy.core.errors import InputError

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise InputError(f"--methods {text!r}", "one or more", "give for instance --methods zero-tprune,slice")
    return names


def show_sweep(report: SweepReport) -> None:
    """A table per image size, batch and number of threads, what to deploy, and how far to trust it."""
    from ztdeploy.core.text import printable
    from ztdeploy.report.sweep.panels import images, panels
    from ztdeploy.report.sweep.trust import warned

    for panel in panels(report):
        _show_setting(panel.label, panel.rows)
    if images(report):
        vectors = any(one.fidelity is not None and one.fidelity.agreement is None for one in report.variants)
        what = "Mean cosine to dense" if vectors else "Agreement with dense's answer, KL from dense in nats, top-1"
        say(printable(f"{what}: on {images(report)}"))
    show_verdicts(report)
    for one in warned(report):
        warn(str(one.caution))


def show_verdicts(report: SweepReport, least_agreement: float | None = None) -> None:
    for line in verdict_lines(report, least_agreement):
        say(line)


def verdict_lines(report: SweepReport, least_agreement: float | None = None) -> tuple[str, ...]:
    """What to deploy, setting by setting, in words."""
    from ztdeploy.core.text import printable
    from ztdeploy.report.sweep.verdict import LEAST_AGREEMENT, verdicts

    found = verdicts(report, LEAST_AGREEMENT if least_agreement is None else least_agreement)
    named = [(f"{one.panel.label}: " if len(found) > 1 else "", one) for one in found]
    return tuple(printable(" ".join([where + one.headline, *one.sentences])) for where, one in named)


def _show_setting(title: str, rows: Sequence[Row]) -> None:
    from ztdeploy.report.sweep.columns import chosen

    heads = ("keep", "method", "p50 ms", "MAD ms", "images/s", "speed-up", "95 % interval", "less work", "GMACs")
    columns = chosen(rows, *heads)
    cells = zip(*([cell.text for cell in one.cells(rows)] for one in columns), strict=True)
    named = [(row.facts.name, *line[1:]) if line[0] == "-" else line for row, line in zip(rows, cells, strict=True)]
    table(
        f"Latency, and speed-up over dense: {title}",
        [(one.head, "left" if one.value is None else "right") for one in columns],
        named,
        caption="speed-up: median of the rounds' ratios over dense; less work: GMACs of dense over its own",
    )


def _leave(report: SweepReport) -> None:
    """Say what went wrong, behind what was measured all the same, and leave with its exit code."""
    dead = [one.failure for run in report.runs for one in run.configurations if one.failure is not None]
    failures = [*report.failures, *dead]
    for failure in failures:
        complain(failure.message)
    if report.progress == "interrupted":
        note(RESUME)
        complain("interrupted")
        raise SystemExit(130)
    if failures:
        raise SystemExit(failures[0].exit_code)
