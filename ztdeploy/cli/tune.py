"""ztdeploy tune"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ztdeploy.cli.help import OUTPUT, PRUNING, QUALITY, SEARCH, TARGETS
from ztdeploy.cli.options import (
    OF_BUILDS,
    PROFILES,
    CacheOption,
    DataOption,
    LimitOption,
    SeedOption,
    method,
    option,
    options,
    path,
    request_of,
    takes_model,
    word,
)
from ztdeploy.cli.output import answer, note, progress_bar, say, table, warn
from ztdeploy.core.arguments import KEEP_RATIO, POINTS, TRIALS, WORKERS

if TYPE_CHECKING:
    from ztdeploy.core.model_source import ModelSource
    from ztdeploy.report.tune.records import TuneReport


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=SEARCH)(tune)


@takes_model(without=OF_BUILDS)
def tune(
    model: ModelSource,
    data: DataOption,
    budget: Annotated[
        str | None,
        option(
            "-b, --budget NAME=N",
            word,
            PRUNING,
            "gmacs=G, reduction=SHARE, latency_ms=T or speedup=X. [default: a front]",
        ),
    ] = None,
    cascade: Annotated[
        float | None,
        option("--cascade RATIO", KEEP_RATIO, PRUNING, "Find the cheapest cascade with this agreement."),
    ] = None,
    profile: Annotated[
        str | None,
        option("-p, --profile NAME", word, TARGETS, "Profile whose engines measure a budget in time.", known=PROFILES),
    ] = None,
    out: Annotated[
        Path | None, option("-o, --out DIR", path, OUTPUT, "Folder to write. [default: MODEL-tuning]")
    ] = None,
    methods: Annotated[
        list[str] | None,
        options(
            "--method NAME",
            method,
            PRUNING,
            "Pruning methods to search. [default: novelty-merge]",
            known="ztdeploy.report.tune.records:TUNABLE",
        ),
    ] = None,
    search: Annotated[
        Literal["curves", "counts"],
        option(
            "--search curves|counts",
            ("curves", "counts"),
            PRUNING,
            "curves: where layers stand, and options; counts: one for each block.",
        ),
    ] = "curves",
    trials: Annotated[
        int, option("--trials N", TRIALS, PRUNING, "Trials in all, those of an interrupted search included.")
    ] = 100,
    sampler: Annotated[
        Literal["tpe", "random", "nsga2"] | None,
        option(
            "--sampler tpe|random|nsga2",
            ("tpe", "random", "nsga2"),
            PRUNING,
            "How trials are chosen. [default: tpe; nsga2 for a front]",
        ),
    ] = None,
    workers: Annotated[
        int, option("--workers N", WORKERS, PRUNING, "Processes that make trials at the same time.")
    ] = 1,
    storage: Annotated[
        str | None,
        option("--storage URL", word, OUTPUT, "Database that machines can share. [default: SQLite in --out]"),
    ] = None,
    study: Annotated[str, option("--study NAME", word, OUTPUT, "The study's name in the storage.")] = "tune",
    max_drop: Annotated[
        float | None, option("--max-drop NUMBER", POINTS, QUALITY, "Points of top-1 that may be lost on tuning images.")
    ] = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    cache: CacheOption = None,
) -> None:
    """Search for the best schedule under a budget.

    Examples:
        # Find the schedule that keeps most of the answers at 35 % less compute.
        ztdeploy tune --model deit_t --data photos --budget reduction=0.35
        # Find one that is 1.5 times as fast on this machine.
        ztdeploy tune -m deit_t -d photos -b speedup=1.5 -p cpu --trials 200
        # Learn how many tokens go behind each block.
        ztdeploy tune -m deit_t -d photos -b reduction=0.35 --search counts
    """
    given = locals()
    from ztdeploy.jobs.request import default_folder
    from ztdeploy.jobs.tune import tune_into
    from ztdeploy.jobs.tune.request import parse_budget
    from ztdeploy.report.tune.records import TuneRequest

    request = request_of(TuneRequest, {**given, "budget": None if budget is None else parse_budget(budget)})
    folder = out or default_folder(model.name, ("tuning",))
    try:
        with progress_bar() as progress:
            report, (page, schedule, *_) = tune_into(request, folder, cache=cache, progress=progress)
    except KeyboardInterrupt:
        where = "the storage" if storage else str(folder)
        note(f"the study in {where} keeps what is finished; the same command goes on from there")
        raise
    answer(report, lambda: show_tuning(report))
    unsure = "" if cascade is None else f" --cascade {cascade:g} --calib {data}"
    note(f"wrote {folder}; open {page}; next: ztdeploy build --model {model.name} --schedule {schedule}{unsure}")


def show_tuning(report: TuneReport) -> None:
    """What was found, in words and tables."""
    from ztdeploy.report.tune.words import cautions, conclusion, findings, subtitle, title

    say(title(report))
    say(subtitle(report))
    say()
    for sentence in findings(report):
        say(sentence)
    say()
    heads = [("", "left")]
    heads += [
        (name, "right") for name in ("GMACs", "of the baseline", "KL", "of ToMe's", "of the preset's", "same answers")
    ]
    rows = [
        (
            one.name,
            f"{one.tuned.gmacs:.4g}",
            f"{100 * one.share:.1f} %",
            f"{one.tuned.kl.value:.4f}",
            f"{one.to_tome.value:.2f}",
            f"{one.to_preset.value:.2f}",
            f"{100 * one.tuned.agreement.value:.1f} %",
        )
        for one in report.compared
    ]
    table("Schedules found, on the report half", heads, rows)
    for one in report.measured:
        say(f"{one.schedule}: predicted {one.predicted_ms:.2f} ms, measured {one.measured_ms:.2f} ms")
    for line in cautions(report):
        warn(line[:1].lower() + line[1:].rstrip("."))
    say(conclusion(report).sentence)
