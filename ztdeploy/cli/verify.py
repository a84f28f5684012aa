"""ztdeploy verify, ztdeploy finalize"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ztdeploy.cli.output import JsonFlag, note, print_json, progress_bar, table


def register(app: typer.Typer) -> None:
    app.command(help="Check every hash, the pre-processing, and each engine against its golden outputs.")(verify)
    app.command(help="Rebuild a bundle's engines with the runtime of this machine, and verify them.")(finalize)


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder that 'ztdeploy build' wrote.")],
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="Whose engines.")] = None,
    json: JsonFlag = False,
) -> None:
    from ztdeploy.runtime.verify import verify_bundle

    with progress_bar(not json) as progress:
        report = verify_bundle(bundle, profile, progress)
    if json:
        print_json(report.model_dump(mode="json"))
        return
    rows = [
        (
            name,
            f"{record.images}",
            f"{record.max_logit_difference:.1e}",
            f"{record.logit_tolerance:.1e}",
            ", ".join(f"{layer.identical}/{record.images}" for layer in record.layers) or "-",
            f"{sum(layer.ties for layer in record.layers)}",
        )
        for name, record in report.variants.items()
    ]
    columns = [("variant", "left"), ("images", "right"), ("logit difference", "right"), ("allowed", "right")]
    columns += [("same tokens per layer", "left"), ("ties", "right")]
    title = f"{bundle.resolve().name}: {report.files} files intact, pre-processing identical"
    table(title, columns, rows)
    note("verified" if report.variants else "verified; no engine in the bundle could be run here")


def finalize(
    bundle: Annotated[Path, typer.Argument(help="Folder that 'ztdeploy build' wrote.")],
    json: JsonFlag = False,
) -> None:
    from ztdeploy.runtime.finalize import finalize_bundle

    with progress_bar(not json) as progress:
        rebuilt = finalize_bundle(bundle, progress)
    if json:
        print_json({"bundle": str(bundle), "rebuilt": rebuilt})
    else:
        note(f"rebuilt and verified {len(rebuilt)} engines: {', '.join(rebuilt)}")
