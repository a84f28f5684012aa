"""ztdeploy run"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.help import DEPLOY, OUTPUT
from ztdeploy.cli.options import (
    BundleArgument,
    ImagesArgument,
    KeepRatioOption,
    ProfileOption,
    ThreadCountOption,
    VariantOption,
    option,
    path,
)
from ztdeploy.cli.output import answer, left, note, piped, print_row, progress_bar, right, table, warn
from ztdeploy.core.arguments import CLASSES, SHARE, WholeNumbers

if TYPE_CHECKING:
    from ztdeploy.cli.results import RunResult
    from ztdeploy.target.runtime.postprocess import Prediction
    from ztdeploy.target.runtime.runner import BundleRunner

_CHUNK = 16


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=DEPLOY)(run)


def run(
    bundle: BundleArgument,
    images: ImagesArgument,
    keep_ratio: KeepRatioOption = None,
    variant: VariantOption = None,
    profile: ProfileOption = None,
    threads: ThreadCountOption = None,
    top: Annotated[int, option("--top N", WholeNumbers(1, CLASSES.most), OUTPUT, "Classes to show.")] = 5,
    threshold: Annotated[
        float | None, option("--threshold RATIO", SHARE, OUTPUT, "Least probability to show. [default: any]")
    ] = None,
    out: Annotated[
        Path | None, option("-o, --out FILE", path, OUTPUT, "Also write what the engine gives as one array (.npy).")
    ] = None,
) -> None:
    """Run a bundle's engine on images or folders.

    Examples:
        # Classify an image.
        ztdeploy run quickstart photo.jpg
        # Classify a folder with the baseline; show the best class of each image.
        ztdeploy run quickstart photos --variant dense --top 1
    """
    from ztdeploy.target.adaptive.opening import load
    from ztdeploy.target.runtime.arrays import check_array_path, write_array
    from ztdeploy.target.runtime.image_files import images_in

    if out is not None:
        check_array_path(out)
    with load(bundle, keep_ratio=keep_ratio, variant=variant, profile=profile, threads=threads) as runner:
        manifest, chosen = runner.bundle.manifest, runner.variant
        vectors = manifest.model.gives != "logits"
        if manifest.weights.source == "random":
            warn("the weights are random: predictions mean nothing")
        channels = manifest.preprocess.channels
        files = [file for one in images for file in (images_in(one, channels) if one.is_dir() else [one])]
        predictions: list[Prediction] = []
        with progress_bar() as progress:
            for start in range(0, len(files), _CHUNK):
                if len(files) > _CHUNK:
                    progress(f"running {chosen.name}", start, len(files))
                part = files[start : start + _CHUNK]
                found = runner(part, top=top, threshold=threshold)
                if piped():
                    for file, prediction in zip(part, found, strict=True):
                        print_row(str(file), *_cells(prediction, vectors=vectors))
                predictions += found
    if out is not None:
        write_array(out, [one.logits for one in predictions])
    shown = list(zip(files, predictions, strict=True))
    answer(lambda: _result(runner, shown), lambda: None if piped() else _show(runner, shown))
    if out is not None:
        note(f"wrote {out}")


def _cells(prediction: Prediction, *, vectors: bool) -> list[str]:
    """What one line says of an image behind its path: each label and its probability, or the shape and norm."""
    if vectors:
        return ["x".join(map(str, prediction.logits.shape)), f"{prediction.norm:.4g}"]
    labels = [
        (one.name, f"{one.value:.6g}" if one.probability is None else f"{one.probability:.6f}")
        for one in prediction.labels
    ]
    return [cell for label in labels or [("-", "-")] for cell in label]


def _show(runner: BundleRunner, found: Sequence[tuple[Path, Prediction]]) -> None:
    from ztdeploy.target.runtime.postprocess import chance

    manifest, tokens = runner.bundle.manifest, runner.variant.plan.tokens_per_block
    title = f"{runner.bundle.root.resolve().name}: {runner.variant.name}, {tokens[0]} -> {tokens[-1]} tokens"
    if (gives := manifest.model.gives) != "logits":
        rows = [(one.name, *_cells(said, vectors=True)) for one, said in found]
        table(title, left("image", gives) + right("norm"), rows)
        return
    table(
        title,
        left("image", "class") + right("value" if manifest.model.activation == "none" else "probability"),
        [
            ("" if rank else image.name, label.name, chance(label.probability, label.value))
            for image, prediction in found
            for rank, label in enumerate(prediction.labels)
        ],
    )


def _result(runner: BundleRunner, found: Sequence[tuple[Path, Prediction]]) -> RunResult:
    from ztdeploy.cli.results import RunResult

    vectors = runner.bundle.manifest.model.gives != "logits"
    images = [
        {
            "image": str(image),
            "labels": [label.plain for label in said.labels],
            "shape": said.logits.shape,
            "norm": said.norm if vectors else None,
            "kept_patches": [len(layer) for layer in said.kept],
        }
        for image, said in found
    ]
    names = {"bundle": str(runner.bundle.root), "profile": runner.profile, "variant": runner.variant.name}
    return RunResult.model_validate({**names, "images": images})
