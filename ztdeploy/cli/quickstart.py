"""ztdeploy quickstart"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.help import DEPLOY, OUTPUT
from ztdeploy.cli.options import flag, option, path
from ztdeploy.cli.output import answer, note, progress_bar, table

if TYPE_CHECKING:
    from ztdeploy.jobs.quickstart import Quickstart


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=DEPLOY)(quickstart)


def quickstart(
    out: Annotated[Path, option("-o, --out DIR", path, OUTPUT, "Folder to write.")] = Path("quickstart"),
    force: Annotated[bool, flag("--force", OUTPUT, "Replace an existing bundle.")] = False,
) -> None:
    """Build and measure the small model inside the package.

    Examples:
        ztdeploy quickstart
        ztdeploy quickstart --out first --force
    """
    from ztdeploy.jobs.quickstart import quickstart as run_quickstart

    with progress_bar() as progress:
        found = run_quickstart(out, progress, force=force)
    answer(found, lambda: _show(found))


def _show(found: Quickstart) -> None:
    from ztdeploy.jobs.quickstart import KEEP_RATIOS

    out = Path(found.bundle)
    headings = ["keep ratio", "tokens", "GMACs", "right of", "top-1", "same answer", "latency", "speed-up"]
    table(
        "Handwritten digits on this CPU, batch 1",
        [(heading, "left" if heading == "tokens" else "right") for heading in headings],
        [
            (
                f"{row.keep_ratio:g}",
                " ".join(map(str, dict.fromkeys(row.tokens_per_block))),
                f"{row.gmacs:.4f}",
                f"{round(row.top1 * row.images)} / {row.images}",
                f"{100 * row.top1:.1f} %",
                f"{100 * row.agreement:.1f} %",
                f"{row.median_ms:.2f} ms",
                f"{row.speedup:.2f}x",
            )
            for row in found.variants
        ],
        caption="Every engine was compared with PyTorch, token by token, before it was written.",
    )
    digit = next(iter(sorted((out / "golden").glob("*.png"))))
    note(f"wrote {out}; next: ztdeploy inspect {out}, or ztdeploy run {out} {digit} --keep-ratio {KEEP_RATIOS[1]}")
