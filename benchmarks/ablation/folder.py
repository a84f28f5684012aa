"""The folder that an ablation writes: JSON, Markdown, a page, plots."""

from __future__ import annotations

from pathlib import Path

from benchmarks.ablation.figures import CONVERGENCE, figures
from benchmarks.ablation.markdown import markdown
from benchmarks.ablation.page import page
from benchmarks.ablation.report import KIND, AblateReport
from benchmarks.ablation.topic_names import TOPICS
from ztdeploy.core.files import remove, write
from ztdeploy.core.records import to_json
from ztdeploy.target.measure.report_file import check_report_folder, holds_kind

REPORT, PAGE, MARKDOWN = "ablation.json", "ablation.html", "ablation.md"


def check_folder(out: Path) -> None:
    """
    Raises:
        OutputError: a file, or a folder with something else than an ablation in it.
    """
    check_report_folder(out, "an ablation", lambda: holds_kind(out / REPORT, KIND))


def write_ablation(report: AblateReport, out: Path) -> list[Path]:
    """Write everything, each file whole or not at all, in place of earlier ones; the report itself comes first.

    Returns:
        The files' paths, the page first.

    Raises:
        OutputError: see `check_folder`; or a file cannot be written.
    """
    check_folder(out)
    drawn = figures(report)
    texts = {
        REPORT: to_json(report, indent=1) + "\n",
        PAGE: page(report),
        MARKDOWN: markdown(report),
        **{one.file: one.document() for one in drawn},
    }
    for topic in (*TOPICS, *CONVERGENCE):  # of an earlier ablation that had more of them
        for name in (f"{topic}.svg", f"{topic}-difference.svg"):
            if name not in texts:
                remove(out / name)
    for name, text in texts.items():
        write(out / name, text)
    return [out / PAGE, *(out / name for name in texts if name != PAGE)]
