"""ztdeploy quickstart"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ztdeploy.cli.options import path_option
from ztdeploy.cli.output import JsonFlag, note, print_json, progress_bar, table


def register(app: typer.Typer) -> None:
    app.command(help="Build, verify and measure the small model that ships inside the package.")(quickstart)


def quickstart(
    out: Annotated[Path, path_option("--out", "-o", help="Folder to write.")] = Path("quickstart"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    json: JsonFlag = False,
) -> None:
    from ztdeploy.jobs.quickstart import KEEP_RATIOS
    from ztdeploy.jobs.quickstart import quickstart as run_quickstart

    with progress_bar(not json) as progress:
        rows = run_quickstart(out, progress, force=force)
    if json:
        print_json([row.model_dump(mode="json") for row in rows])
        return
    headings = ["keep ratio", "tokens", "GMACs", "right of", "top-1", "agrees with dense", "latency", "speed-up"]
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
            for row in rows
        ],
        caption="Every engine was compared with PyTorch, token by token, before it was written.",
    )
    digit = next(iter(sorted((out / "golden").glob("*.png"))))
    note(f"wrote {out}; next: ztdeploy inspect {out}, or ztdeploy run {out} {digit} --keep-ratio {KEEP_RATIOS[1]}")
