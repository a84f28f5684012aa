"""ztdeploy sweep"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ztdeploy.cli.boards import Delivery, on_boards, show_beside
from ztdeploy.cli.help import MEASURING, MODEL, OUTPUT, PRUNING, QUALITY, SEARCH, TARGETS
from ztdeploy.cli.options import (
    DATA_HELP,
    METHODS,
    OF_BUILDS,
    PROFILES,
    BatchesOption,
    CacheOption,
    LimitOption,
    PresetOption,
    RoundsOption,
    SignedByOption,
    ThreadsOption,
    WarmupOption,
    demand_signature,
    flag,
    image_size,
    method,
    option,
    options,
    out_path,
    path,
    request_of,
    takes_model,
    word,
)
from ztdeploy.cli.output import answer, complain, note, progress_bar, say, table, warn
from ztdeploy.core.arguments import KEEP_RATIO, SECONDS

if TYPE_CHECKING:
    from ztdeploy.core.model_source import ModelSource
    from ztdeploy.target.measure.sweep_report import Row, SweepReport, SweepRequest

RESUME = "what is built and measured so far is kept: the same command goes on with it"


def register(app: typer.Typer) -> None:
    delivery = Delivery(
        show_sweep,
        check=_check_paths,
        write=_write,
        unasked=_unasked,
        writes=("out",),
        beside=show_beside,
        write_beside=_write_beside,
        named=_of_board,
    )
    app.command(rich_help_panel=SEARCH)(on_boards(delivery)(sweep))


@takes_model(without=("image_size", *OF_BUILDS), required=False)
def sweep(
    model: ModelSource | None,
    bundle: Annotated[
        Path | None,
        option("--bundle BUNDLE", path, MODEL, "Instead of a model: the variants of a bundle. Needs no PyTorch."),
    ] = None,
    profile: Annotated[
        str | None,
        option(
            "-p, --profile NAME", word, TARGETS, "Shipped one or TOML file. [default: the bundle's]", known=PROFILES
        ),
    ] = None,
    keep_ratios: Annotated[
        list[float] | None,
        options(
            "-k, --keep-ratio RATIO",
            KEEP_RATIO,
            PRUNING,
            "Keep ratios. [default: 1,0.9,0.8,0.7,0.6,0.5; of a bundle: all]",
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        options(
            "--method NAME",
            method,
            PRUNING,
            "Pruning methods. [default: novelty-merge; of a bundle: all]",
            known=METHODS,
        ),
    ] = None,
    batches: BatchesOption = None,
    image_sizes: Annotated[
        list[Any] | None,
        options("--image-size PIXELS", image_size, MODEL, "Such as 224,96x384. [default: the model's]"),
    ] = None,
    threads: ThreadsOption = None,
    signed_by: SignedByOption = None,
    preset: PresetOption = "default",
    duration_s: Annotated[
        float, option("--duration SECONDS", SECONDS, MEASURING, "For each configuration, over all rounds.")
    ] = 4.0,
    rounds: RoundsOption = 8,
    warmup_s: WarmupOption = 0.5,
    details: Annotated[
        bool, flag("--details/--no-details", MEASURING, "Measure operators, and blocks by number of tokens.")
    ] = True,
    data: Annotated[
        Path | None, option("-d, --data DIR", path, QUALITY, f"Also evaluate on images: {DATA_HELP}.")
    ] = None,
    limit: LimitOption = None,
    out: Annotated[
        Path | None,
        option(
            "-o, --out DIR", out_path, OUTPUT, "Folder; an earlier sweep in it goes on. [default: sweep-MODEL-PROFILE]"
        ),
    ] = None,
    cache: CacheOption = None,
    fresh: Annotated[bool, flag("--fresh", OUTPUT, "Measure again what an earlier sweep has measured.")] = False,
) -> None:
    """Measure many keep ratios and methods against the baseline.

    Examples:
        # Measure six keep ratios on this machine.
        ztdeploy sweep --model deit_s --profile cpu
        # Measure and judge the variants of a bundle on the device, without PyTorch.
        ztdeploy sweep --bundle quickstart --duration 1 --data photos
    """
    given = locals()
    from ztdeploy.jobs.sweep import sweep as run_sweep
    from ztdeploy.report.sweep.pages import write_pages
    from ztdeploy.target.measure.sweep_report import SweepRequest

    demand_signature(signed_by)
    request = request_of(SweepRequest, {"model": None, **given})
    folder = out or default_out(request)
    try:
        with progress_bar() as progress:
            report = run_sweep(request, folder, cache=cache, fresh=fresh, progress=progress, note=note)
    except KeyboardInterrupt:
        note(RESUME)
        raise
    written = (*write_pages(report, folder), folder)
    answer(report, lambda: show_sweep(report))
    for one in written:
        note(f"wrote {one}")
    _leave(report)


def _unasked(values: Mapping[str, Any]) -> dict[str, Path]:
    from ztdeploy.target.measure.sweep_report import SweepRequest

    return {"out": default_out(request_of(SweepRequest, {"model": None, **values}))}


def _check_paths(paths: Mapping[str, Path]) -> None:
    from ztdeploy.report.sweep_folder import check_sweep_folder

    check_sweep_folder(paths["out"])


def _write(report: SweepReport, paths: Mapping[str, Path]) -> list[Path]:
    """Write what a sweep on a board has found, as one that runs here does."""
    from ztdeploy.report.sweep.pages import write_pages
    from ztdeploy.report.sweep_folder import sweep_folder, write_sweep

    with sweep_folder(paths["out"]):
        write_sweep(report, paths["out"])
        return [*write_pages(report, paths["out"]), paths["out"]]


def _write_beside(reports: Sequence[SweepReport], paths: Mapping[str, Path]) -> Sequence[Path]:
    from ztdeploy.core.files import write
    from ztdeploy.report.compare.boards import boards_page

    page = paths["out"].with_name(f"{paths['out'].name}-boards.html")
    write(page, boards_page(reports))
    return [page]


def _of_board(report: SweepReport, board: str) -> SweepReport:
    return report.model_copy(update={"runs": tuple(run.model_copy(update={"on": board}) for run in report.runs)})


def default_out(request: SweepRequest) -> Path:
    """`sweep-MODEL-PROFILE`, or `sweep-BUNDLE`."""
    if request.bundle is not None:
        return Path(f"sweep-{request.bundle.resolve().name}")
    from ztdeploy.core.model_source import folder_word

    model = folder_word(request.model.name) if request.model else ""
    return Path(f"sweep-{model}-{Path(request.profile or '').stem}".rstrip("-"))


def show_sweep(report: SweepReport) -> None:
    """A table per image size, batch and number of threads, what to deploy, and how far to trust it."""
    from ztdeploy.core.text import printable
    from ztdeploy.report.sweep.panels import images, panels
    from ztdeploy.report.sweep.trust import warned

    for panel in panels(report):
        _show_setting(panel.label, panel.rows)
    if images(report):
        vectors = any(one.fidelity is not None and one.fidelity.agreement is None for one in report.variants)
        maps = any(one.fidelity is not None and one.fidelity.error is not None for one in report.variants)
        near = "Mean IoU and mean error of maps" if maps else "Mean cosine to the baseline"
        what = near if vectors else "Same answer as the baseline, KL from it in nats, top-1"
        say(printable(f"{what}: on {images(report)}"))
    show_verdicts(report)
    for one in warned(report):
        warn(str(one.caution))


def show_verdicts(report: SweepReport, min_agreement: float | None = None) -> None:
    for line in verdict_lines(report, min_agreement):
        say(line)


def verdict_lines(report: SweepReport, min_agreement: float | None = None) -> tuple[str, ...]:
    """What to deploy, setting by setting, in words."""
    from ztdeploy.core.arguments import MIN_AGREEMENT
    from ztdeploy.core.text import printable
    from ztdeploy.report.sweep.verdict import verdicts

    found = verdicts(report, MIN_AGREEMENT if min_agreement is None else min_agreement)
    named = [(f"{one.panel.label}: " if len(found) > 1 else "", one) for one in found]
    details = [printable(" ".join(one.sentences)) for one in found]
    return (*details, *(printable(where + one.verdict.sentence) for where, one in named))


def _show_setting(title: str, rows: Sequence[Row]) -> None:
    from ztdeploy.report.sweep.columns import chosen

    heads = ["keep", "method", "p50 ms", "MAD ms", "images/s", "speed-up", "95 % interval", "less work", "GMACs"]
    if any(row.facts.fidelity for row in rows):  # what images cost stands beside: 80 columns hold no more
        heads = [head for head in heads if head not in ("MAD ms", "images/s", "GMACs")]
    if any(row.cascade for row in rows):
        at = heads.index("p50 ms")
        heads[at : at + 1] = ["mean ms", "p99 ms", "worst ms"]
        heads.remove("less work")
    columns = chosen(rows, *heads)
    cells = zip(*([cell.text for cell in one.cells(rows)] for one in columns), strict=True)
    named = [(row.facts.name, *line[1:]) if line[0] == "-" else line for row, line in zip(rows, cells, strict=True)]
    table(
        f"Latency, and speed-up over the baseline: {title}",
        [(one.head, "left" if one.value is None else "right") for one in columns],
        named,
        caption="speed-up: median of the rounds' ratios over the baseline"
        + ("; less work: its GMACs over the variant's" if "less work" in heads else "; of the cascade, of means"),
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
