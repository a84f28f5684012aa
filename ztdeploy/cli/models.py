"""ztdeploy models"""

from __future__ import annotations

import typer

from ztdeploy.cli.output import JsonFlag, print_json, table


def register(app: typer.Typer) -> None:
    app.command(help="Models with short names; any timm VisionTransformer works by its own name.")(models)


def models(json: JsonFlag = False) -> None:
    from ztdeploy.models.catalogue import CATALOGUE

    rows = [(name, entry.timm_name, entry.about) for name, entry in CATALOGUE.items()]
    if json:
        print_json([dict(zip(("name", "timm_name", "about"), row, strict=True)) for row in rows])
        return
    caption = "Any other timm VisionTransformer works by its timm name, for instance vit_small_patch14_dinov2."
    table("Models", [("name", "left"), ("timm name", "left"), ("about", "left")], rows, caption=caption)
