"""How much faster a trained dense model gets, head included, and whether runtimes agree on its maps.

    ZTDEPLOY_REALDATA=FOLDER python -m benchmarks.dense_speed --size 518 --saved 0.5

Builds a DINOv2-S and its head for saliency (`benchmarks/saliency_model.py`) once, and times the engines with and
without pruning in turns. Saved are the backbone's multiply-adds; the ratio of GMACs is that of the whole model, without
what pruning layers compute. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

import ztdeploy
from benchmarks.dense import HEAD_GMACS, backbone, schedule_at
from benchmarks.halves import half, real_data
from benchmarks.machine import describe_machine
from benchmarks.saliency_model import saliency_model
from benchmarks.turns import Timed, time_in_turns
from ztdeploy.core.bundle import Bundle
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.target.evaluate.data import read_labels
from ztdeploy.target.measure.turns import Configuration
from ztdeploy.target.runtime.postprocess import probabilities

HEAD = (
    "| profile | baseline ms | pruned ms | speed-up | 95 % interval | GMACs ratio | probabilities apart |\n| --- | "
    + " | ".join(["---:"] * 6)
    + " |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, choices=HEAD_GMACS, default=518)
    parser.add_argument("--saved", type=float, default=0.5, help="share of the backbone's multiply-adds")
    parser.add_argument("--profiles", nargs="+", default=["cpu", "cpu-openvino"])
    parser.add_argument("--threads", type=int, default=usable_threads())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--duration", type=float, default=60.0, help="seconds per engine, over all rounds")
    arguments = parser.parse_args()
    folder = real_data()
    photo = half(read_labels(folder / "labels.json"), "tuning")[0].path
    with TemporaryDirectory() as temporary:
        schedule = schedule_at("default", backbone(folder, arguments.size).adapter.architecture, 1 - arguments.saved)
        bundle = ztdeploy.build(
            saliency_model(folder, arguments.size),
            backbone="backbone",
            schedule=schedule,
            profile=arguments.profiles,
            image_size=arguments.size,
            activation="sigmoid",
            batch=1,
            out=Path(temporary) / "bundle",
        )
        dense, pruned = sorted(bundle.manifest.variants, key=lambda one: -one.gmacs)
        pairs = [(one.name, profile) for profile in arguments.profiles for one in (dense, pruned)]
        subjects = [Configuration(bundle.root, *pair, arguments.threads) for pair in pairs]
        timed = time_in_turns(subjects, rounds=arguments.rounds, seconds=arguments.duration)
        maps = [probabilities_of(bundle, photo, *pair) for pair in pairs]
    print(
        f"{arguments.size} px, batch 1, {arguments.threads} threads, {arguments.rounds} rounds; {describe_machine()}\n"
    )
    print(HEAD)
    for place, profile in enumerate(arguments.profiles):
        both = slice(2 * place, 2 * place + 2)
        apart = max(float(np.abs(ours - first).max()) for ours, first in zip(maps[both], maps[:2], strict=True))
        print(f"| {profile} | {row(timed[both])} | {dense.gmacs / pruned.gmacs:.2f} | {apart:.1e} |")


def probabilities_of(bundle: Bundle, photo: Path, variant: str, profile: str) -> NDArray[np.float64]:
    """Of a photograph, `[h, w, 1]`."""
    with ztdeploy.load(bundle, variant=variant, profile=profile) as runner:
        (prediction,) = runner(photo)
    likely = probabilities(np.moveaxis(prediction.map, 0, -1), "sigmoid")
    assert likely is not None
    return likely


def row(timed: Sequence[Timed]) -> str:
    """Cells of the baseline and the pruned engine of one profile."""
    dense, pruned = timed
    if reason := dense.reason or pruned.reason:
        return f"not measured: {reason} | | |"
    ratio, interval = pruned.interval_over(dense)
    span = "-" if interval is None else f"{interval.low:.2f} to {interval.high:.2f}"
    return f"{dense.median_ms:.0f} | {pruned.median_ms:.0f} | {ratio:.2f} | {span}"


if __name__ == "__main__":
    main()
