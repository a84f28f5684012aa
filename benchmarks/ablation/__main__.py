"""Which options of the method matter for a model and images, in PyTorch: python -m benchmarks.ablation --help"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from benchmarks.ablation.topic_names import TOPICS
from ztdeploy.cli.help import OUTPUT, PRUNING
from ztdeploy.cli.options import (
    OF_BUILDS,
    DataOption,
    LimitOption,
    PresetOption,
    SeedOption,
    option,
    options,
    path,
    request_of,
    takes_model,
)
from ztdeploy.cli.output import answer, note, progress_bar, say, table, warn
from ztdeploy.core.arguments import KEEP_RATIO, SHARE

if TYPE_CHECKING:
    from benchmarks.ablation.report import AblateReport, Table
    from ztdeploy.core.model_source import ModelSource


@takes_model(without=OF_BUILDS)
def ablate(
    model: ModelSource,
    data: DataOption,
    out: Annotated[
        Path | None, option("-o, --out DIR", path, OUTPUT, "Folder to write. [default: MODEL-ablation]")
    ] = None,
    saved: Annotated[
        float | None,
        option("--saved RATIO", SHARE, PRUNING, "Share of dense's multiply-adds that all rows save. [default: 0.35]"),
    ] = None,
    keep_ratio: Annotated[
        float | None,
        option("-k, --keep-ratio RATIO", KEEP_RATIO, PRUNING, "Instead: what this keep ratio saves by default."),
    ] = None,
    preset: PresetOption = "default",
    only: Annotated[
        list[str] | None,
        options("--only NAME", TOPICS, OUTPUT, "Some tables alone: contribution, partition, feature, ..."),
    ] = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
) -> None:
    """Compare the options of the pruning method on images, at equal compute."""
    given = locals()
    from benchmarks.ablation.pages import check_folder, write_ablation
    from benchmarks.ablation.request import AblateRequest, check_request

    request = request_of(AblateRequest, given)
    folder = out or Path(f"{model.name}-ablation")
    check_request(request)
    check_folder(folder)
    from benchmarks.ablation.run import ablate as run

    with progress_bar() as progress:
        report = run(request, progress)
    page, *_ = write_ablation(report, folder)
    answer(report, lambda: show_ablation(report))
    note(f"wrote {folder}; open {page}")


def show_ablation(report: AblateReport) -> None:
    """What was found, in words and tables."""
    from benchmarks.ablation.findings import summary
    from benchmarks.ablation.words import HOST_HALF, cautions, subtitle, title

    say(title(report))
    say(subtitle(report))
    say(HOST_HALF)
    say()
    for one in report.tables:
        _show_table(one)
    if report.convergence is not None:
        for sentence in report.convergence.findings:
            say(sentence)
        say()
    for sentence in summary(report):
        say(sentence)
    for line in cautions(report):
        warn(line[:1].lower() + line[1:].rstrip("."))


def _show_table(one: Table) -> None:
    from benchmarks.ablation.pages import columns

    found = columns(one)
    cells = zip(*([cell.text for cell in column.cells(one.rows)] for column in found), strict=True)
    table(one.title, [(column.head, "left" if column.value is None else "right") for column in found], list(cells))


def main(arguments: Sequence[str]) -> int:
    """Run the study as a verb of the command line, whose errors and exit codes it shares."""
    from ztdeploy.cli.app import application, run

    with_the_study = application()
    with_the_study.command("benchmarks.ablation")(ablate)
    return run(["benchmarks.ablation", *arguments], "python -m", with_the_study)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
