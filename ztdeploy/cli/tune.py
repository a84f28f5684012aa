"""ztdeploy tune"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from ztdeploy.cli.options import (
    OF_BUILDS,
    CacheOption,
    LimitOption,
    SeedOption,
    number_option,
    path_option,
    takes_model,
    word_option,
)
from ztdeploy.cli.output import answer, note, progress_bar, say, table, warn
from ztdeploy.core import arguments

if TYPE_CHECKING:
    from ztdeploy.core.model_source import ModelSource
    from ztdeploy.report.tune.records import SamplerName, TuneReport


def register(app: typer.Typer) -> None:
    app.command(help="Search for the schedule nearest to the baseline under a budget of compute or time.")(tune)


@takes_model(without=OF_BUILDS)
def tune(
    model: ModelSource,
    data: Annotated[Path, path_option("--data", "-d", help="Images: the search uses one half, the report the other.")],
    budget: Annotated[
        str | None,
        word_option("--budget", "-b", help="gmacs=G, reduction=SHARE, latency_ms=T or speedup=X. (default: a front)"),
    ] = None,
    profile: Annotated[
        str | None, word_option("--profile", "-p", help="Profile whose engines a budget in time is measured with.")
    ] = None,
    out: Annotated[Path | None, path_option("--out", "-o", help="Folder to write. (default: MODEL-tuning)")] = None,
    method: Annotated[
        list[str] | None, word_option(help="Pruning method to search; repeatable. (default: novelty-merge)")
    ] = None,
    trials: Annotated[
        int,
        number_option(
            arguments.TRIALS, "--trials", help="Trials of the whole study, those of an interrupted search included."
        ),
    ] = 100,
    sampler: Annotated[
        str | None, word_option(help="'tpe', 'random' or 'nsga2'. (default: tpe; nsga2 for a front)")
    ] = None,
    workers: Annotated[
        int, number_option(arguments.WORKERS, "--workers", help="Processes that make trials at the same time.")
    ] = 1,
    storage: Annotated[
        str | None, word_option(help="Database URL, which machines can share. (default: SQLite in --out)")
    ] = None,
    study: Annotated[str, word_option(help="The study's name in the storage.")] = "tune",
    max_drop: Annotated[
        float | None,
        number_option(arguments.POINTS, "--max-drop", help="Points of top-1 that may be lost on tuning images."),
    ] = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    cache: CacheOption = None,
) -> None:
    from ztdeploy.jobs.request import default_folder
    from ztdeploy.jobs.tune import tune_into
    from ztdeploy.jobs.tune.request import parse_budget
    from ztdeploy.report.tune.records import TUNABLE, TuneRequest

    request = TuneRequest(
        model=model,
        data=data,
        budget=None if budget is None else parse_budget(budget),
        profile=profile,
        methods=tuple(dict.fromkeys(method or TUNABLE[:1])),
        trials=trials,
        sampler=_sampler(sampler),
        workers=workers,
        storage=storage,
        study=study,
        max_drop=max_drop,
        limit=limit,
        seed=seed,
    )
    folder = out or default_folder(model.name, ("tuning",))
    try:
        with progress_bar() as progress:
            report, (page, winner, *_) = tune_into(request, folder, cache=cache, progress=progress)
    except KeyboardInterrupt:
        where = "the storage" if storage else str(folder)
        note(f"the study in {where} keeps what is finished; the same command goes on from there")
        raise
    answer(report, lambda: show_tuning(report))
    note(f"wrote {folder}; open {page}; next: ztdeploy build --model {model.name} --schedule {winner} --profile NAME")


def _sampler(name: str | None) -> SamplerName | None:
    """
    Raises:
        InputError: no such sampler.
    """
    from ztdeploy.report.tune.records import SamplerName

    return None if name is None else cast("SamplerName", arguments.one_of("--sampler", name, get_args(SamplerName)))


def show_tuning(report: TuneReport) -> None:
    """What was found, in words and tables."""
    from ztdeploy.report.tune.words import cautions, findings, subtitle, title

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
