"""ztdeploy models"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ztdeploy.cli.help import LOOK_UP, MODEL
from ztdeploy.cli.options import MODELS, argument, option, word
from ztdeploy.cli.options import image_size as size_of
from ztdeploy.cli.output import answer, say, table

if TYPE_CHECKING:
    from ztdeploy.core.preprocess_spec import ImageSize
    from ztdeploy.host.models.listing import ListedModel
    from ztdeploy.host.models.loading import ModelCheck


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=LOOK_UP)(models)


def models(
    search: Annotated[str | None, argument("WORD", word, "Part of a name or description.")] = None,
    check: Annotated[
        str | None, option("--check NAME", word, MODEL, "Say what can be done with a model.", known=MODELS)
    ] = None,
    image_size: Annotated[
        Any, option("--image-size PIXELS", size_of, MODEL, "With --check: such as 224 or 96x384.")
    ] = None,
) -> None:
    """List the models that can be pruned, or say why one cannot.

    Examples:
        # List the short names, or all names with a word in them.
        ztdeploy models
        ztdeploy models dinov2
        # Say what can be done with a model.
        ztdeploy models --check deit_s
    """
    if check is not None:
        _check(check, image_size)
        return
    from ztdeploy.host.models.listing import Models, listed

    found = listed(search or "")
    answer(Models(models=found), lambda: _show(found, search or ""))


def _show(models: Sequence[ListedModel], search: str) -> None:
    columns = [("name", "left"), ("timm name", "left"), ("about", "left")]
    families = list(dict.fromkeys(one.family for one in models))
    caption = (
        "Most models of timm's modules vision_transformer, deit, eva and beit work by their timm names:"
        " 'ztdeploy models PART' searches them, 'ztdeploy models --check NAME' says what is possible."
    )
    for family in families:
        rows = [(one.name, one.timm_name, one.about) for one in models if one.family == family]
        table(f"Models of the family '{family}'", columns, rows, caption=caption if family == families[-1] else "")
    if not families:
        say(f"no model's name has '{search}' in it")


def _check(name: str, image_size: ImageSize | None) -> None:
    from ztdeploy.host.models.listing import Models
    from ztdeploy.host.models.loading import check_model

    found = check_model(name, image_size)
    title = f"{name} can be pruned"
    answer(Models(check=found), lambda: table(title, [("", "left"), ("", "left")], _facts(found)))


def _facts(found: ModelCheck) -> list[tuple[str, str]]:
    from ztdeploy.core.methods import METHODS

    sizes, dense, pruned = found.architecture, found.gmacs, found.pruned_gmacs
    kind = "class token among them" if sizes.class_token else "no class token that the head reads"
    prefix = f"{sizes.prefix_tokens} prefix tokens, {kind}" if sizes.prefix_tokens else "no prefix tokens"
    others = [method for method in METHODS if method not in found.methods]
    methods = "all" if not others else f"all but {', '.join(others)}"
    trained = [method for method in found.methods if METHODS[method].trained is not None]
    output = f"{sizes.num_classes} numbers" if sizes.num_classes else f"an embedding of {sizes.embed_dim} numbers"
    if found.map_shape is not None:
        output = "a map of {} channels, {} x {}".format(*found.map_shape)
    return [
        ("family", found.family),
        ("timm name", found.timm_name),
        ("image", f"{found.image_size.in_full} pixels"),
        ("tokens", f"{sizes.tokens}: {sizes.patch_tokens} patches, {prefix}"),
        ("blocks", f"{sizes.depth}, {sizes.embed_dim} wide, {sizes.num_heads} heads; layers can stand behind each"),
        ("keep ratio 0.7", f"prunes behind blocks {', '.join(map(str, found.layers))}"),
        ("GMACs", f"{dense:.2f} unpruned, {pruned:.2f} at keep ratio 0.7 ({pruned / dense - 1:+.0%})"),
        ("output", output),
        ("methods", f"{methods}; {', '.join(trained)} with a checkpoint that was trained with it"),
    ]
