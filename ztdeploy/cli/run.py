"""ztdeploy run"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.options import BundleArgument, ImagesArgument, ProfileOption, VariantOption, number_option
from ztdeploy.cli.output import JsonFlag, print_json, progress_bar, table, warn
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
    threads: Annotated[
        int | None, number_option(arguments.THREADS, "--threads", help="Threads. (default: what the process may use)")
    ] = None,
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
        if runner.bundle.manifest.weights.source == "random":
            warn("the weights are random: predictions mean nothing")
        if not runner.bundle.manifest.model.architecture.num_classes:
            given = NOUNS[runner.bundle.manifest.model.gives]
            warn(f"the model has no classifier: it gives {given}, and no classes to show")
        predictions: list[Prediction] = []
        with progress_bar(not json and len(images) > _CHUNK) as progress:
            for start in range(0, len(images), _CHUNK):
                progress("classifying", start, len(images))
                predictions += runner(images[start : start + _CHUNK], top=top, threshold=threshold)
        chosen, activation = runner.variant, runner.bundle.manifest.model.activation
    if json:
        print_json(
            [
                {
                    "image": str(image),
                    "variant": chosen.name,
                    "labels": [label.plain for label in p.labels],
                    "kept_patches": [len(layer) for layer in p.kept],
                }
                for image, p in zip(images, predictions, strict=True)
            ]
        )
        return
    rows = []
    for image, prediction in zip(images, predictions, strict=True):
        for rank, label in enumerate(prediction.labels):
            rows.append((image.name if rank == 0 else "", label.name, chance(label.probability, label.value)))
    heading = "value" if activation == "none" else "probability"
    tokens = chosen.plan.tokens_per_block
    table(
        f"{bundle.resolve().name}: {chosen.name}, {tokens[0]} -> {tokens[-1]} tokens",
        [("image", "left"), ("class", "left"), (heading, "right")],
        rows,
    )
