"""Shows what a bundle's engines look at: `show_bundle` is the job on one screen."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ztdeploy.core.bundle import WEIGHTS_FILE, Bundle, read_bundle
from ztdeploy.core.errors import BundleError, InputError, OutputError
from ztdeploy.core.files import disk_errors, make_folder, write
from ztdeploy.core.folders import check_folder_path
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.methods import METHODS
from ztdeploy.core.preprocess_spec import Output
from ztdeploy.report.show.captions import UNEXPLAINED, disagreement
from ztdeploy.report.show.contact_sheet import contact_sheet
from ztdeploy.report.show.page import write_page
from ztdeploy.report.show.tiles import Grid, importance_tile, layer_tile, plain_tile
from ztdeploy.target.backends import get_backend
from ztdeploy.target.evaluate.patches import LayerPatches, follow
from ztdeploy.target.evaluate.reasons import LayerReasons, agreed_layers, reasons_of
from ztdeploy.target.runtime.cosine import cosines
from ztdeploy.target.runtime.inputs import load_pixels
from ztdeploy.target.runtime.interface import Outputs
from ztdeploy.target.runtime.postprocess import Label, top_labels
from ztdeploy.target.runtime.runner import BundleRunner, class_names, load

#: What `show` writes is told from everything else by its name, and only that is replaced.
PAGE, SHEET_SUFFIX = "show.html", ".show.png"
_CHUNK, _TOP = 16, 3


@dataclass(frozen=True)
class Seen:
    """One variant on one image."""

    variant: VariantRecord
    labels: tuple[Label, ...]
    cosine: float | None  #: to dense's embedding or features (mean over positions); None of a classifier
    layers: tuple[LayerPatches, ...]
    reasons: tuple[LayerReasons | None, ...]  #: one per layer, as are the next two
    tiles: tuple[Image.Image, ...]
    maps: tuple[Image.Image | None, ...]  #: of importance
    doubt: str | None  #: why some reasons are missing


@dataclass(frozen=True)
class _Found:
    """What one variant makes of all images."""

    variant: VariantRecord
    engine: Outputs
    noted: Outputs | None  #: the same graph with more outputs
    unexplained: str | None = None  #: why there are none, where the method would have reasons


@dataclass(frozen=True)
class ShownImage:
    """One image with all that is drawn of it."""

    image: Path
    sheet: Path
    depth: int  #: blocks of the model
    plain: Image.Image
    grid: Grid
    dense: VariantRecord
    dense_labels: tuple[Label, ...]
    seen: tuple[Seen, ...]


def show_bundle(
    bundle: str | Path,
    images: Sequence[Path],
    out: Path,
    *,
    keep_ratios: Sequence[float] = (),
    variants: Sequence[str] = (),
    profile: str | None = None,
) -> Iterator[ShownImage]:
    """Write a contact sheet per image into `out`, and a page of all of them when the last one is taken.

    Nothing is written before all images are read and all engines have run.

    Args:
        keep_ratios: which variants; by default all that prune.
        variants: names of variants, for keep ratios that several share and for schedules without one.

    Raises:
        BundleError: damaged, or without such a variant, profile or engine.
        ImageError: an image cannot be read.
        InputError: no variant that prunes, or a keep ratio that several variants share.
        OutputError: `out` is a file, or cannot be written.
        ParityError: an engine gives what cannot be right.
    """
    opened = read_bundle(bundle)
    pruned = _pruned(opened, keep_ratios, variants)
    grid = Grid(*opened.manifest.model.architecture.rows_and_columns)
    sheets = _sheets(images, out)
    _check_folder(out, [*sheets, out / PAGE])
    pixels = load_pixels(images, opened.manifest.preprocess)
    with load(opened, variant=opened.manifest.dense.name, profile=profile) as runner:
        found = [_find(runner, variant, pixels) for variant in (opened.manifest.dense, *pruned)]
    shown = _shown(opened, images, pixels, found, sheets, grid)
    make_folder(out)
    yield from write_page(out / PAGE, opened, (_with_sheet(one) for one in shown))


def _with_sheet(one: ShownImage) -> ShownImage:
    file = io.BytesIO()
    contact_sheet(one).save(file, "PNG")
    write(one.sheet, file.getbuffer())
    return one


def _shown(
    bundle: Bundle,
    images: Sequence[Path],
    pixels: NDArray[np.uint8],
    found: Sequence[_Found],
    sheets: Sequence[Path],
    grid: Grid,
) -> Iterator[ShownImage]:
    """One image after the other, so that only one's drawings are in memory."""
    manifest, names = bundle.manifest, class_names(bundle)
    top = _TOP if manifest.model.architecture.num_classes else 0
    activation = manifest.model.activation
    dense, *pruned = found
    for index, (image, sheet) in enumerate(zip(images, sheets, strict=True)):
        plain = plain_tile(pixels[index], grid)
        like = [_cosine(dense, one, index, manifest.model.gives) for one in pruned]
        seen = tuple(
            _seen(one, index, plain, grid, top_labels(one.engine.logits[index], names, top, activation), cosine)
            for one, cosine in zip(pruned, like, strict=True)
        )
        labels = top_labels(dense.engine.logits[index], names, top, activation)
        yield ShownImage(image, sheet, manifest.model.architecture.depth, plain, grid, manifest.dense, labels, seen)


def _cosine(dense: _Found, found: _Found, index: int, output: Output) -> float | None:
    if output == "logits":
        return None
    return float(cosines(dense.engine.logits[index], found.engine.logits[index]).mean())


def _seen(
    found: _Found, index: int, plain: Image.Image, grid: Grid, labels: tuple[Label, ...], cosine: float | None
) -> Seen:
    variant, plans = found.variant, found.variant.plan.layers
    kept, into = ([layer[index] for layer in layers] for layers in (found.engine.kept, found.engine.into))
    method = METHODS.get(variant.schedule.method)
    layers = follow(plans, kept, into, grid.patches, fuses=method is not None and method.fuses)
    reasons: tuple[LayerReasons | None, ...] = (None,) * len(layers)
    doubt = found.unexplained
    if found.noted is not None:
        agreed = agreed_layers(found.engine, found.noted, index)
        reasons = reasons_of(variant, layers, found.noted, index, agreed)
        doubt = disagreement(plans[agreed].block) if agreed < len(plans) else None
    both = list(zip(layers, reasons, strict=True))
    tiles = tuple(layer_tile(plain, layer, grid, why) for layer, why in both)
    maps = tuple(
        importance_tile(plain.size, layer, grid, why) if why is not None and why.has_importance else None
        for layer, why in both
    )
    return Seen(variant, labels, cosine, layers, reasons, tiles, maps, doubt)


def _pruned(bundle: Bundle, keep_ratios: Sequence[float], names: Sequence[str]) -> list[VariantRecord]:
    pruned = [variant for variant in bundle.variants(keep_ratios, names) if variant.plan.layers]
    if not pruned:
        raise InputError(
            f"only the dense variant of '{bundle.root}'",
            "a variant that prunes",
            "choose another --keep-ratio, or build one with --keep-ratio 0.7",
        )
    return pruned


def _find(runner: BundleRunner, variant: VariantRecord, pixels: NDArray[np.uint8]) -> _Found:
    """Run a variant's engine, and where the bundle has it its graph with notes."""
    runner.switch(variant=variant.name)
    engine = _run(runner, pixels)
    notes = runner.graph.notes_file
    if notes is None:
        method = METHODS.get(variant.schedule.method)
        return _Found(variant, engine, None, UNEXPLAINED if method is not None and method.decides_by_image else None)
    runner.bundle.verify_files([notes, WEIGHTS_FILE])
    record = variant.engines[runner.profile]
    noted_graph, file = runner.bundle.path(notes), runner.bundle.path(record.file)
    runner.close()  # one of them in memory at a time
    try:
        runner.bundle.verify_files(sorted({*runner.bundle.files_of_graph(notes)} - {notes, WEIGHTS_FILE}))
        graph = get_backend(record.backend).load_noted(noted_graph, engine=file, threads=runner.threads)
    except BundleError as error:  # the engine's runtime may know operators that this ONNX Runtime lacks
        return _Found(variant, engine, None, f"Why patches went is not known: {error.given.rstrip('.')}.")
    try:
        runner.adopt(variant.name, graph)
        noted = _run(runner, pixels)
    except BundleError:  # another variant's, perhaps
        return _Found(variant, engine, None, disagreement(variant.plan.layers[0].block))
    finally:
        runner.close()
    return _Found(variant, engine, noted)


def _run(runner: BundleRunner, pixels: NDArray[np.uint8]) -> Outputs:
    return Outputs.joined([runner.infer(pixels[at : at + _CHUNK]) for at in range(0, len(pixels), _CHUNK)])


def _check_folder(out: Path, files: Sequence[Path]) -> None:
    check_folder_path(out)
    with disk_errors(out):
        for file in files:
            if file.is_dir():
                raise OutputError(f"'{file}' is a folder", "a file to write", "choose another --out")


def _sheets(images: Sequence[Path], out: Path) -> list[Path]:
    """One name per image, of harmless characters, each different (where case does not matter as well)."""
    names: list[str] = []
    for image in images:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", image.stem).strip("-")[:80] or "image"
        taken, count, name = {one.lower() for one in names}, 1, stem
        while name.lower() in taken:
            count += 1
            name = f"{stem}-{count}"
        names.append(name)
    return [out / f"{name}{SHEET_SUFFIX}" for name in names]
