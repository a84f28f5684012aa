"""How near a trained dense model's maps stay to those without pruning, by method, all at the same multiply-adds.

    ZTDEPLOY_REALDATA=FOLDER python -m benchmarks.dense --size 224 --saved 0.35
    ZTDEPLOY_REALDATA=FOLDER python -m benchmarks.dense --size 518 --saved 0.5 --images 20

A DINOv2-S and its head for saliency (`benchmarks/saliency_model.py`), in PyTorch, fp32, on one thread. Saved are the
backbone's multiply-adds. Photographs are spread evenly over a half by file name: defaults were chosen on the
tuning half, and the report half is for reporting. Prints a Markdown table.

A photograph whose map without pruning has less than 1 % of its positions above 0.5 counts in the error and not in the
intersection over union. `decided` leaves out those with over 10 % of their positions within 0.05 of 0.5, too.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.halves import half, real_data
from benchmarks.machine import describe_machine
from benchmarks.saliency_model import SaliencyHead, backbone_folder, saliency_head
from ztdeploy.core.cost import at_cost, gmacs, pruning_gmacs, share_of_dense
from ztdeploy.core.keep_ratio import default_schedule, late_schedule, uniform_schedule
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.plan import plan
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.schedule import Architecture, PruningSchedule
from ztdeploy.host.models.loading import LoadedModel, load_model
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.evaluate.data import read_labels
from ztdeploy.target.evaluate.maps import THRESHOLD, compare_maps
from ztdeploy.target.runtime.preprocess import load_pixels, normalise

METHODS = (
    *("default", "late", "novelty-merge", "zero-tprune-merge", "tome", "zero-tprune"),
    *("pitome", "mctf", "tofu", "diffrate", "ppt"),
)
LEAST_ABOVE = 0.01  #: share of a map's positions above the threshold without which it has no intersection over union
NEAR, MOST_NEAR = 0.05, 0.1
HEAD_GMACS = {224: 1.48, 518: 7.91}
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One method's maps against those without pruning, for `n` photographs."""

    schedule: PruningSchedule
    saved: float
    extra: float  #: GMACs of the pruning layers
    error: NDArray[np.float64]  #: `[n]`
    iou: NDArray[np.float64]  #: `[n]`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("tuning", "report"), default="report")
    parser.add_argument("--size", type=int, choices=HEAD_GMACS, default=224)
    parser.add_argument("--saved", type=float, default=0.35, help="share of the backbone's multiply-adds")
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = real_data()
    paths = [one.path for one in half(read_labels(folder / "labels.json"), arguments.half)]
    paths = [paths[int(place)] for place in np.linspace(0, len(paths), arguments.images, endpoint=False)]
    loaded = backbone(folder, arguments.size)
    images = normalise(load_pixels(paths, loaded.preprocess), loaded.preprocess)
    head, architecture = saliency_head(folder, arguments.size), loaded.adapter.architecture
    dense = maps_of(loaded, head, default_schedule(1.0, architecture), images)
    rows = {}
    for method in arguments.methods:
        schedule = schedule_at(method, architecture, 1 - arguments.saved)
        rows[method] = against(dense, maps_of(loaded, head, schedule, images), schedule, architecture)
        print(method, [layer.block for layer in schedule.layers], file=sys.stderr, flush=True)
    print(f"{arguments.half} half, {len(paths)} photographs, {arguments.size} px; {describe_machine()}\n")
    print(table(rows, dense, architecture, HEAD_GMACS[arguments.size]))


def backbone(folder: Path, size: int) -> LoadedModel:
    """The trained backbone for images of `size` pixels, which gives the features of all patches."""
    with TemporaryDirectory() as temporary:
        source = backbone_folder(folder, size, Path(temporary) / "backbone")
        return load_model(ModelSource(name=f"hf:{source}", output="features", image_size=ImageSize.of(size)))


def schedule_at(method: str, architecture: Architecture, share: float) -> PruningSchedule:
    """The schedule of a method at a share of the backbone's multiply-adds: `late` is what classifiers get."""

    def make(keep_ratio: float) -> PruningSchedule:
        if method == "default":
            return default_schedule(keep_ratio, architecture)
        if method == "late":
            return late_schedule(uniform_schedule(keep_ratio, architecture.depth), architecture)
        if method == "novelty-merge":
            return uniform_schedule(keep_ratio, architecture.depth)
        return default_schedule(keep_ratio, architecture, method=method)

    return at_cost(make, architecture, share)


def maps_of(loaded: LoadedModel, head: SaliencyHead, schedule: PruningSchedule, images: Array) -> Array:
    """Logits of maps `[n, 1, S, S]` of normalised images `[n, 3, S, S]`."""
    with PrunedModel(loaded.adapter, schedule) as pruned, torch.inference_mode():
        return np.concatenate([head(pruned(torch.from_numpy(image[None]))[0]).numpy() for image in images])


def against(dense: Array, maps: Array, schedule: PruningSchedule, architecture: Architecture) -> Row:
    figures = [compare_maps(*pair, "sigmoid") for pair in zip(dense, maps, strict=True)]
    return Row(
        schedule,
        1 - share_of_dense(schedule, architecture),
        pruning_gmacs(architecture, plan(schedule, architecture), schedule.method, schedule.options),
        np.array([one.error for one in figures]),
        np.array([one.iou for one in figures], np.float64),
    )


def table(rows: dict[str, Row], dense: Array, architecture: Architecture, head: float) -> str:
    """Markdown, the smallest error first."""
    likely = 1 / (1 + np.exp(-dense[:, 0]))
    counts = (likely > THRESHOLD).mean((1, 2)) >= LEAST_ABOVE
    decided = counts & ((np.abs(likely - THRESHOLD) < NEAR).mean((1, 2)) <= MOST_NEAR)
    backbone = gmacs(architecture, (architecture.tokens,) * architecture.depth)
    lines = [
        f"| method | layers | backbone | with head | pruning | error | IoU of {counts.sum()} | median, worst "
        f"| decided, {decided.sum()} |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for method, row in sorted(rows.items(), key=lambda pair: float(pair[1].error.mean())):
        blocks = ", ".join(str(layer.block) for layer in row.schedule.layers)
        cells = (
            method,
            blocks if len(row.schedule.layers) < architecture.depth - 1 else "every block",
            f"-{100 * row.saved:.1f} %",
            f"-{100 * row.saved * backbone / (backbone + head):.1f} %",
            f"{100 * row.extra / backbone:+.1f} %",
            f"{row.error.mean():.4f}",
            f"{row.iou[counts].mean():.3f}",
            f"{np.median(row.iou[counts]):.3f}, {row.iou[counts].min():.2f}",
            f"{row.iou[decided].mean():.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
