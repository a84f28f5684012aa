"""ztdeploy models"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.options import SIZE, parse_image_size, word_argument, word_option
from ztdeploy.cli.output import JsonFlag, print_json, say, table

if TYPE_CHECKING:
    from ztdeploy.core.preprocess_spec import ImageSize
    from ztdeploy.host.models.loading import ModelCheck


def register(app: typer.Typer) -> None:
    app.command(help="Models that can be pruned, by family; and whether one can, with the reason.")(models)


def models(
    search: Annotated[str | None, word_argument("Part of a name or description.")] = None,
    check: Annotated[
        str | None, word_option(help="Say what can be done with a model: any name that timm knows.")
    ] = None,
    image_size: Annotated[
        str | None, word_option(metavar=SIZE, help="With --check: side of the input, or HEIGHTxWIDTH.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    size = parse_image_size(image_size)
    if check is not None:
        _check(check, size, json=json)
        return
    rows = _listed(search or "")
    if json:
        print_json([dict(zip(("family", "name", "timm_name", "about"), row, strict=True)) for row in rows])
        return
    columns = [("name", "left"), ("timm name", "left"), ("about", "left")]
    families = list(dict.fromkeys(row[0] for row in rows))
    caption = (
        "Most models of timm's modules vision_transformer, deit, eva and beit work by their timm names:"
        " 'ztdeploy models PART' searches them, 'ztdeploy models --check NAME' says what is possible."
    )
    for family in families:
        found = [row[1:] for row in rows if row[0] == family]
        table(f"Models of the family '{family}'", columns, found, caption=caption if family == families[-1] else "")
    if not families:
        say(f"no model's name has '{search}' in it")


def _listed(search: str) -> list[tuple[str, str, str, str]]:
    """Short names; where something is searched for, timm's as well."""
    from ztdeploy.host.models import families
    from ztdeploy.host.models.catalogue import CATALOGUE

    rows = [(entry.family, name, entry.timm_name, entry.about) for name, entry in CATALOGUE.items()]
    if search and find_spec("timm") is not None:
        import timm

        known = {entry.timm_name for entry in CATALOGUE.values()}
        for family in families():
            names = [name for module in family.timm_modules for name in timm.list_models(module=module)]
            rows += [(family.family, name, name, "") for name in names if name not in known]
    order = list(dict.fromkeys(row[0] for row in rows))
    found = [row for row in rows if search.lower() in " ".join(row).lower()]
    return sorted(found, key=lambda row: order.index(row[0]))


def _check(name: str, image_size: ImageSize | None, *, json: bool) -> None:
    """
    Raises:
        ModelError: it can't be pruned; printed as JSON first where that was asked for.
    """
    from ztdeploy.core.errors import ModelError
    from ztdeploy.host.models.loading import check_model

    try:
        found = check_model(name, image_size)
    except ModelError as error:
        if not json:
            raise
        print_json({"name": name, "supported": False, "reason": error.given, "fix": error.fix})
        raise typer.Exit(error.exit_code) from error
    if json:
        print_json({"supported": True, **found.model_dump(mode="json")})
        return
    table(f"{name} can be pruned", [("", "left"), ("", "left")], _facts(found))


def _facts(found: ModelCheck) -> list[tuple[str, str]]:
    from ztdeploy.core.methods import METHODS

    sizes, dense, pruned = found.architecture, found.gmacs, found.pruned_gmacs
    kind = "class token among them" if sizes.class_token else "no class token that the head reads"
    prefix = f"{sizes.prefix_tokens} prefix tokens, {kind}" if sizes.prefix_tokens else "no prefix tokens"
    others = [method for method in METHODS if method not in found.methods]
    output = f"{sizes.num_classes} numbers" if sizes.num_classes else f"an embedding of {sizes.embed_dim} numbers"
    return [
        ("family", found.family),
        ("timm name", found.timm_name),
        ("image", f"{found.image_size.in_full} pixels"),
        ("tokens", f"{sizes.tokens}: {sizes.patch_tokens} patches, {prefix}"),
        ("blocks", f"{sizes.depth}, {sizes.embed_dim} wide, {sizes.num_heads} heads; layers can stand behind each"),
        ("keep ratio 0.7", f"prunes behind blocks {', '.join(map(str, found.layers))}"),
        ("GMACs", f"{dense:.2f} dense, {pruned:.2f} at keep ratio 0.7 ({pruned / dense - 1:+.0%})"),
        ("output", output),
        ("methods", "all" if not others else f"all but {', '.join(others)}"),
    ]
