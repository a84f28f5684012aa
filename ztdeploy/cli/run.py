"""ztdeploy run"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.options import (
    BundleArgument,
    ImagesArgument,
    ProfileOption,
    ThreadCountOption,
    VariantOption,
    number_option,
)
from ztdeploy.cli.output import JsonFlag, left, print_json, progress_bar, right, table, warn
from ztdeploy.core import arguments

if TYPE_CHECKING:
    from ztdeploy.target.runtime.postprocess import Prediction

_CHUNK = 16


def register(app: typer.Typer) -> None:
    app.command(help="Classify images with a bundle's engine.")(run)


def run(
    bundle: BundleArgument,
    images: ImagesArgument,
    keep_ratio: Annotated[
        float | None,
        number_option(arguments.KEEP_RATIO, "--keep-ratio", "-k", help="Which variant. (default: the first built)"),
    ] = None,
    variant: VariantOption = None,
    profile: ProfileOption = None,
    threads: ThreadCountOption = None,
    top: Annotated[
        int, number_option(arguments.WholeNumbers(1, arguments.CLASSES.most), "--top", help="How many classes to show.")
    ] = 5,
    threshold: Annotated[
        float | None, number_option(arguments.SHARE, "--threshold", help="Least probability to show. (default: any)")
    ] = None,
    json: JsonFlag = False,
) -> None:
    from ztdeploy.core.preprocess_spec import NOUNS
    from ztdeploy.target.runtime.postprocess import chance
    from ztdeploy.target.runtime.runner import load

    with load(bundle, keep_ratio=keep_ratio, variant=variant, profile=profile, threads=threads) as runner:
        manifest, chosen = runner.bundle.manifest, runner.variant
        if manifest.weights.source == "random":
            warn("the weights are random: predictions mean nothing")
        if not manifest.model.architecture.num_classes:
            warn(f"the model has no classifier: it gives {NOUNS[manifest.model.gives]}, and no classes to show")
        predictions: list[Prediction] = []
        with progress_bar(not json and len(images) > _CHUNK) as progress:
            for start in range(0, len(images), _CHUNK):
                progress("classifying", start, len(images))
                predictions += runner(images[start : start + _CHUNK], top=top, threshold=threshold)
    found = list(zip(images, predictions, strict=True))
    if json:
        print_json(
            [
                {
                    "image": str(image),
                    "variant": chosen.name,
                    "labels": [label.plain for label in prediction.labels],
                    "kept_patches": [len(layer) for layer in prediction.kept],
                }
                for image, prediction in found
            ]
        )
        return
    tokens = chosen.plan.tokens_per_block
    table(
        f"{bundle.resolve().name}: {chosen.name}, {tokens[0]} -> {tokens[-1]} tokens",
        left("image", "class") + right("value" if manifest.model.activation == "none" else "probability"),
        [
            ("" if rank else image.name, label.name, chance(label.probability, label.value))
            for image, prediction in found
            for rank, label in enumerate(prediction.labels)
        ],
    )
