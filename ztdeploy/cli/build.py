"""ztdeploy build"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from ztdeploy.cli.output import JsonFlag, note, print_json, progress_bar, warn


def register(app: typer.Typer) -> None:
    app.command(help="Trace, prune, export, build engines, prove them, and write one bundle.")(build)


def build(
    model: Annotated[str, typer.Option("--model", "-m", help="Short name (deit_s) or any timm name.")],
    profile: Annotated[list[str], typer.Option("--profile", "-p", help="Shipped profile or TOML file; repeatable.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write. (default: MODEL-PROFILE)")] = None,
    keep_ratio: Annotated[
        list[float] | None,
        typer.Option("--keep-ratio", "-k", help="Share of patch tokens each layer keeps; repeatable."),
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Pruning method; repeatable. (default: zero-tprune)")] = None,
    preset: Annotated[str, typer.Option(help="Where layers stand: 'default' or 'paper'.")] = "default",
    schedule: Annotated[list[Path] | None, typer.Option(help="Schedule file (TOML, JSON); repeatable.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights from a .safetensors or .pth file.")] = None,
    weights: Annotated[str, typer.Option(help="'pretrained', or 'random' to measure latency only.")] = "pretrained",
    batch: Annotated[int | None, typer.Option(min=1, help="Fix the batch. (default: as the profile says)")] = None,
    image_size: Annotated[int | None, typer.Option(min=8, help="Side of the input. (default: the model's)")] = None,
    crop_pct: Annotated[
        float | None, typer.Option(min=0.1, max=1.0, help="Image size over resize. (default: the model's)")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    json: JsonFlag = False,
) -> None:
    if weights not in ("pretrained", "random"):
        raise typer.BadParameter(f"'{weights}' is neither 'pretrained' nor 'random'", param_hint="--weights")
    if preset not in ("default", "paper"):
        raise typer.BadParameter(f"'{preset}' is neither 'default' nor 'paper'", param_hint="--preset")
    from ztdeploy.pipeline import BuildRequest
    from ztdeploy.pipeline import build as build_bundle
    from ztdeploy.schedule import DEFAULT_METHOD

    request = BuildRequest(
        model=model,
        profiles=tuple(profile),
        out=out or Path(f"{model}-{'-'.join(Path(name).stem for name in profile)}"),
        keep_ratios=tuple(keep_ratio or ()),
        schedules=tuple(schedule or ()),
        methods=tuple(method or (DEFAULT_METHOD,)),
        preset=preset,
        weights=cast(Literal["pretrained", "random"], weights),
        checkpoint=checkpoint,
        image_size=image_size,
        batch=batch,
        crop_pct=crop_pct,
        force=force,
    )
    if weights == "random" and checkpoint is None:
        warn("the weights are random: good for latency, while predictions mean nothing")
    with progress_bar(not json) as progress:
        bundle = build_bundle(request, progress)
    if json:
        print_json(
            {
                "bundle": str(bundle.root),
                **bundle.manifest.model_dump(mode="json", include={"variants", "missing", "weights"}),
            }
        )
        return
    from ztdeploy.cli.inspect import show_bundle

    show_bundle(bundle)
    for line in bundle.manifest.missing:
        warn(line)
    note(f"wrote {bundle.root}; next: ztdeploy run {bundle.root} PHOTO")
