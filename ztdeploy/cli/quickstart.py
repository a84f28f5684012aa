"""ztdeploy quickstart"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ztdeploy.cli.options import path_option
from ztdeploy.cli.output import JsonFlag, cell, note, print_json, progress_bar, table


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
        print_json(
            [
                {
                    "variant": row.name,
                    "keep_ratio": row.keep_ratio,
                    "tokens_per_block": row.tokens,
                    "gmacs": row.gmacs,
                    "top1": row.right.value,
                    "agreement": row.fidelity.agreement,
                    "kl": row.fidelity.kl,
                    "median_ms": row.latency.median_ms,
                    "speedup": row.speedup,
                }
                for row in rows
            ]
        )
        return
    headings = ["keep ratio", "tokens", "GMACs", "right of", "top-1", "agrees with dense", "latency", "speed-up"]
    table(
        "Handwritten digits on this CPU, batch 1",
        [(heading, "left" if heading == "tokens" else "right") for heading in headings],
        [
            (
                f"{row.keep_ratio:g}",
                " ".join(str(count) for count in dict.fromkeys(row.tokens)),
                f"{row.gmacs:.4f}",
                f"{row.right.count} / {row.right.total}",
                f"{100 * row.right.value:.1f} %",
                f"{cell(row.fidelity.agreement, '.1f', 100)} %",
                f"{row.latency.median_ms:.2f} ms",
                f"{row.speedup:.2f}x",
            )
            for row in rows
        ],
        caption="Every engine was compared with PyTorch, token by token, before it was written.",
    )
    digit = next(iter(sorted((out / "golden").glob("*.png"))))
    note(f"wrote {out}; next: ztdeploy inspect {out}, or ztdeploy run {out} {digit} --keep-ratio {KEEP_RATIOS[1]}")
