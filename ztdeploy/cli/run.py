"""ztdeploy run"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.help import DEPLOY, OUTPUT
from ztdeploy.cli.options import (
    BundleArgument,
    CascadeOption,
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
    from ztdeploy.target.adaptive.cascade import CascadeRunner
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
    cascade: CascadeOption = False,
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
        # Run the cascade of a bundle that has one; see which stage answered.
        ztdeploy run unsure photos --cascade
    """
    from ztdeploy.target.adaptive.cascade import CascadeRunner
    from ztdeploy.target.adaptive.opening import load
    from ztdeploy.target.runtime.arrays import check_array_path, write_array
    from ztdeploy.target.runtime.image_files import images_in

    if out is not None:
        check_array_path(out)
    opened = partial(load, bundle, keep_ratio=keep_ratio, variant=variant, profile=profile, threads=threads)
    with opened(cascade=True) if cascade else opened() as runner:
        manifest = runner.bundle.manifest
        vectors = manifest.model.gives != "logits"
        if manifest.weights.source == "random":
            warn("the weights are random: predictions mean nothing")
        channels = manifest.preprocess.channels
        files = [file for one in images for file in (images_in(one, channels) if one.is_dir() else [one])]
        predictions: list[Prediction] = []
        with progress_bar() as progress:
            for start in range(0, len(files), _CHUNK):
                if len(files) > _CHUNK:
                    progress(f"running {_what_runs(runner)}", start, len(files))
                part = files[start : start + _CHUNK]
                found = runner(part, top=top, threshold=threshold)
                if piped():
                    for file, prediction in zip(part, found, strict=True):
                        print_row(str(file), *_stage(runner, prediction), *_cells(prediction, vectors=vectors))
                predictions += found
    if out is not None:
        write_array(out, [one.logits for one in predictions])
    shown = list(zip(files, predictions, strict=True))
    answer(lambda: _result(runner, shown), lambda: None if piped() else _show(runner, shown))
    if isinstance(runner, CascadeRunner):
        _say_counts(runner)
    if out is not None:
        note(f"wrote {out}")


def _what_runs(runner: BundleRunner | CascadeRunner) -> str:
    from ztdeploy.target.runtime.runner import BundleRunner

    return runner.variant.name if isinstance(runner, BundleRunner) else f"cascade of {runner.cascade.chain}"


def _stage(runner: BundleRunner | CascadeRunner, prediction: Prediction) -> list[str]:
    """The stage of a cascade that answered, as the name of its variant; nothing of one engine."""
    from ztdeploy.target.runtime.runner import BundleRunner

    if isinstance(runner, BundleRunner) or prediction.stage is None:
        return []
    return [runner.cascade.stages[prediction.stage].variant]


def _say_counts(runner: CascadeRunner) -> None:
    """How many images went on, and whether they are unlike those that the cascade was calibrated on."""
    counts, expected = runner.counts, runner.setting.shares[1]
    went_on = f"{sum(counts[1:])} of {sum(counts)} images went on from {runner.cascade.stages[0].variant}"
    note(f"{went_on} ({100 * sum(counts[1:]) / max(1, sum(counts)):.0f} %; {100 * expected:.0f} % were expected)")
    if runner.warning is not None:
        warn(runner.warning)


def _cells(prediction: Prediction, *, vectors: bool) -> list[str]:
    """What one line says of an image behind its path: each label and its probability, or the shape and norm."""
    if vectors:
        return ["x".join(map(str, prediction.logits.shape)), f"{prediction.norm:.4g}"]
    labels = [
        (one.name, f"{one.value:.6g}" if one.probability is None else f"{one.probability:.6f}")
        for one in prediction.labels
    ]
    return [cell for label in labels or [("-", "-")] for cell in label]


def _show(runner: BundleRunner | CascadeRunner, found: Sequence[tuple[Path, Prediction]]) -> None:
    from ztdeploy.target.runtime.postprocess import chance
    from ztdeploy.target.runtime.runner import BundleRunner

    manifest, title = runner.bundle.manifest, f"{runner.bundle.root.resolve().name}: {_what_runs(runner)}"
    stage = left("answered by")
    if isinstance(runner, BundleRunner):
        tokens, stage = runner.variant.plan.tokens_per_block, []
        title += f", {tokens[0]} -> {tokens[-1]} tokens"
    if (gives := manifest.model.gives) != "logits":
        rows = [(one.name, *_stage(runner, said), *_cells(said, vectors=True)) for one, said in found]
        table(title, left("image") + stage + left(gives) + right("norm"), rows)
        return
    table(
        title,
        left("image")
        + stage
        + left("class")
        + right("value" if manifest.model.activation == "none" else "probability"),
        [
            (
                "" if rank else image.name,
                *(("" if rank else name) for name in _stage(runner, prediction)),
                label.name,
                chance(label.probability, label.value),
            )
            for image, prediction in found
            for rank, label in enumerate(prediction.labels)
        ],
    )


def _result(runner: BundleRunner | CascadeRunner, found: Sequence[tuple[Path, Prediction]]) -> RunResult:
    from ztdeploy.cli.results import RunResult
    from ztdeploy.target.runtime.runner import BundleRunner

    vectors = runner.bundle.manifest.model.gives != "logits"
    images = [
        {
            "image": str(image),
            "labels": [label.plain for label in said.labels],
            "shape": said.logits.shape,
            "norm": said.norm if vectors else None,
            "kept_patches": [len(layer) for layer in said.kept],
            "stage": next(iter(_stage(runner, said)), None),
        }
        for image, said in found
    ]
    about: dict[str, object] = {"bundle": str(runner.bundle.root), "profile": runner.profile}
    if isinstance(runner, BundleRunner):
        about["variant"] = runner.variant.name
    else:
        stages, setting = runner.cascade.stages, runner.setting
        about["cascade"] = {
            "answered": {stage.variant: count for stage, count in zip(stages, runner.counts, strict=True)},
            "expected_to_go_on": setting.shares[1],
            "warning": runner.warning,
        }
    return RunResult.model_validate({**about, "images": images})
