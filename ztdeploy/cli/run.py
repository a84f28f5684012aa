"""ztdeploy run"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.boards import Delivery, on_boards
from ztdeploy.cli.help import DEPLOY, OUTPUT
from ztdeploy.cli.options import (
    BundleArgument,
    CascadeOption,
    ImagesArgument,
    KeepRatioOption,
    ProfileOption,
    SignedByOption,
    ThreadCountOption,
    VariantOption,
    demand_signature,
    option,
    out_path,
)
from ztdeploy.cli.output import answer, left, note, piped, print_row, progress_bar, right, table, warn
from ztdeploy.core.arguments import CLASSES, SHARE, WholeNumbers

if TYPE_CHECKING:
    from ztdeploy.cli.results import RunResult
    from ztdeploy.core.manifest import Manifest
    from ztdeploy.target.adaptive.cascade import CascadeRunner
    from ztdeploy.target.evaluate.maps import MapFacts
    from ztdeploy.target.runtime.postprocess import Prediction
    from ztdeploy.target.runtime.runner import BundleRunner

_CHUNK = 16


@dataclass(frozen=True)
class _Ran:
    """An image file and what came of it."""

    file: Path
    said: Prediction
    facts: MapFacts | None = None  #: of a map
    files: tuple[str, ...] = ()  #: that its map was written to


def register(app: typer.Typer) -> None:
    delivery = Delivery(_show_result, check=_check_paths, fetches={"out": ".npy"}, take=_take)
    app.command(rich_help_panel=DEPLOY)(on_boards(delivery)(run))


def run(
    bundle: BundleArgument,
    images: ImagesArgument,
    keep_ratio: KeepRatioOption = None,
    variant: VariantOption = None,
    profile: ProfileOption = None,
    threads: ThreadCountOption = None,
    signed_by: SignedByOption = None,
    top: Annotated[int, option("--top N", WholeNumbers(1, CLASSES.most), OUTPUT, "Classes to show.")] = 5,
    threshold: Annotated[
        float | None,
        option("--threshold RATIO", SHARE, OUTPUT, "Least probability to show; of a yes in maps. [default: any; 0.5]"),
    ] = None,
    cascade: CascadeOption = False,
    out: Annotated[
        Path | None, option("-o, --out FILE", out_path, OUTPUT, "Also write what the engine gives as one array (.npy).")
    ] = None,
    maps: Annotated[
        Path | None,
        option("--maps DIR", out_path, OUTPUT, "Folder for each image's map, as a coloured PNG and as .npy."),
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
    from ztdeploy.target.adaptive.opening import load
    from ztdeploy.target.runtime.arrays import check_array_path, write_array
    from ztdeploy.target.runtime.image_files import images_in
    from ztdeploy.target.runtime.runner import BundleRunner, class_names

    demand_signature(signed_by)
    if out is not None:
        check_array_path(out)
    if maps is not None:
        _check_maps(maps, bundle)
    opened = partial(load, bundle, keep_ratio=keep_ratio, variant=variant, profile=profile, threads=threads)
    with opened(cascade=True) if cascade else opened() as runner:
        manifest = runner.bundle.manifest
        of_yes = manifest.model.gives == "maps" and manifest.model.activation == "sigmoid"
        names = class_names(runner.bundle) if manifest.model.gives == "maps" else None
        if manifest.weights.source == "random":
            warn("the weights are random: predictions mean nothing")
        channels = manifest.preprocess.channels
        files = [file for one in images for file in (images_in(one, channels) if one.is_dir() else [one])]
        pictures = [None] * len(files) if maps is None else _pictures(files, maps)
        shown: list[_Ran] = []
        with progress_bar() as progress:
            for start in range(0, len(files), _CHUNK):
                if len(files) > _CHUNK:
                    progress(f"running {_what_runs(runner)}", start, len(files))
                part = files[start : start + _CHUNK]
                found = runner(part, top=top, threshold=None if of_yes else threshold)
                for file, said, picture in zip(part, found, pictures[start:], strict=False):
                    ran = _of_map(manifest, names, file, said, picture, top, threshold, keep=out is not None)
                    if piped():
                        print_row(str(file), *_stage(runner, said), *_cells(ran))
                    shown.append(ran)
    if out is not None:
        write_array(out, [one.said.logits for one in shown])
    answer(lambda: _result(runner, shown), lambda: None if piped() else _show(runner, shown))
    if not isinstance(runner, BundleRunner):
        _say_counts(runner)
    for written in (out, maps):
        if written is not None:
            note(f"wrote {written}")


def _check_maps(maps: Path, bundle: Path) -> None:
    """Fail early where no maps could be written; raises as `check_maps_folder`."""
    from ztdeploy.core.bundle import read_bundle
    from ztdeploy.report.kit.map_files import check_maps_folder

    check_maps_folder(maps, read_bundle(bundle))


def _pictures(files: Sequence[Path], maps: Path) -> list[Path]:
    """Where the picture of each file's map is written, in a folder that is made."""
    from ztdeploy.core.files import make_folder
    from ztdeploy.report.kit.map_files import MAP_SUFFIX
    from ztdeploy.report.show.page import sheet_paths

    found = sheet_paths(files, maps, MAP_SUFFIX)
    make_folder(maps)
    return found


def _of_map(
    manifest: Manifest,
    names: Sequence[str] | None,
    file: Path,
    said: Prediction,
    picture: Path | None,
    top: int,
    threshold: float | None,
    *,
    keep: bool,
) -> _Ran:
    """An image with its prediction, and of a map what is in it; a map itself, which may be large, is let go.

    Args:
        names: of the map's classes.
        picture: where its picture is written, if anywhere.
        keep: the map is needed later on.
    """
    if said.gives != "maps":
        return _Ran(file, said)
    from numpy import broadcast_to, float32

    from ztdeploy.report.kit.map_files import write_map
    from ztdeploy.target.evaluate.maps import THRESHOLD, map_facts

    least = THRESHOLD if threshold is None else threshold
    facts = map_facts(said.logits, manifest.model.activation, names=names, top=top, threshold=least)
    files = () if picture is None else write_map(said.logits, file, manifest, picture)
    left = said if keep else replace(said, logits=broadcast_to(float32(0), said.logits.shape))
    return _Ran(file, left, facts, tuple(map(str, files)))


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


def _cells(ran: _Ran) -> list[str]:
    """What one line says of an image behind its path: each label and its probability, or the shape and the norm of a
    vector, or what is in a map.
    """
    shape = "x".join(map(str, ran.said.logits.shape))
    if ran.facts is not None:
        return [shape, *_in_map(ran.facts)]
    if ran.said.gives != "logits":
        return [shape, f"{ran.said.norm:.4g}"]
    labels = [
        (one.name, f"{one.value:.6g}" if one.probability is None else f"{one.probability:.6f}")
        for one in ran.said.labels
    ]
    return [cell for label in labels or [("-", "-")] for cell in label]


def _in_map(facts: MapFacts) -> list[str]:
    """The lowest, mean and highest number and what share is a yes; or classes with their shares."""
    if facts.classes is not None:
        return [cell for name, share in facts.classes.items() for cell in (name, f"{share:.4f}")]
    numbers = (facts.low, facts.mean, facts.high, facts.above)
    return [f"{one:.4g}" for one in numbers if one is not None]


def _show(runner: BundleRunner | CascadeRunner, found: Sequence[_Ran]) -> None:
    from ztdeploy.target.runtime.postprocess import chance
    from ztdeploy.target.runtime.runner import BundleRunner

    manifest, title = runner.bundle.manifest, f"{runner.bundle.root.resolve().name}: {_what_runs(runner)}"
    stage = left("answered by")
    if isinstance(runner, BundleRunner):
        tokens, stage = runner.variant.plan.tokens_per_block, []
        title += f", {tokens[0]} -> {tokens[-1]} tokens"
    if (gives := manifest.model.gives) != "logits":
        heads = right("norm") if gives != "maps" else _map_heads(manifest.model.activation)
        rows = [(one.file.name, *_stage(runner, one.said), *_row(one)) for one in found]
        table(title, left("image") + stage + left(gives) + heads, rows)
        return
    table(
        title,
        left("image")
        + stage
        + left("class")
        + right("value" if manifest.model.activation == "none" else "probability"),
        [
            (
                "" if rank else one.file.name,
                *(("" if rank else name) for name in _stage(runner, one.said)),
                label.name,
                chance(label.probability, label.value),
            )
            for one in found
            for rank, label in enumerate(one.said.labels)
        ],
    )


def _check_paths(paths: Mapping[str, Path]) -> None:
    from ztdeploy.target.runtime.arrays import check_array_path

    if "out" in paths:
        check_array_path(paths["out"])


def _take(files: Mapping[str, bytes], paths: Mapping[str, Path]) -> list[Path]:
    """Write the array that a board has made."""
    from ztdeploy.core.errors import BoardError
    from ztdeploy.core.files import write
    from ztdeploy.target.runtime.arrays import array_in

    if "out" not in files:
        return []
    try:
        array_in(files["out"])
    except Exception as error:  # NumPy's reader lets out anything
        raise BoardError(f"a board's --out: {error}", "an array of numbers", "look at the board") from error
    write(paths["out"], files["out"])
    return [paths["out"]]


def _show_result(result: RunResult) -> None:
    """What a board has said of images: the same figures, without the engine that gave them."""
    from ztdeploy.target.runtime.postprocess import chance

    rows = []
    for one in result.images:
        file = Path(one.image).name
        for place, label in enumerate(one.labels):
            said = chance(label.probability, label.value)
            rows.append(("" if place else file, "" if place else one.stage or "", label.name, said))
        if not one.labels:
            shape = "x".join(map(str, one.shape))
            rows.append((file, one.stage or "", shape, "" if one.norm is None else f"norm {one.norm:.4g}"))
    table(result.variant or "the cascade", left("image", "answered by", "output") + right("value"), rows)


def _map_heads(activation: str) -> list[tuple[str, str]]:
    if activation == "softmax":
        return left("classes")
    return right("lowest", "mean", "highest", *(["share of yes"] if activation == "sigmoid" else []))


def _row(one: _Ran) -> list[str]:
    """The cells of a table; classes share one."""
    if one.facts is None or one.facts.classes is None:
        return _cells(one)
    classes = ", ".join(f"{name} ({100 * share:.1f} %)" for name, share in one.facts.classes.items())
    return [_cells(one)[0], classes]


def _result(runner: BundleRunner | CascadeRunner, found: Sequence[_Ran]) -> RunResult:
    from ztdeploy.cli.results import RunResult
    from ztdeploy.target.runtime.runner import BundleRunner

    images = [
        {
            "image": str(one.file),
            "labels": [label.plain for label in one.said.labels],
            "shape": one.said.logits.shape,
            "norm": one.said.norm if one.said.gives in ("embedding", "features") else None,
            "map": one.facts and one.facts.model_dump(),
            "files": one.files,
            "kept_patches": [len(layer) for layer in one.said.kept],
            "stage": next(iter(_stage(runner, one.said)), None),
        }
        for one in found
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
