"""Which pruning method keeps most of the answers at equal latency: what decides the default method.

    ZTDEPLOY_REALDATA=FOLDER python -m benchmarks.default_method [--methods novelty-merge zero-tprune tome ats]
        [--keep-ratios 0.85 0.7 0.55] [--images 500] [--duration 5] [--threads 2]

The folder holds a trained DeiT-Tiny, and one photograph of each ImageNet class in `imagenet_samples/`. Builds every
method at every keep ratio for the profile `cpu`, counts answers that differ from the baseline's on the images, and
measures all engines in turns, at batch 1. Prints two Markdown tables: what was measured, and for each method the share
of changed answers at equal speed-ups, on the lines between what was measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.halves import CHECKPOINT, CROP_PCT, real_data, write_data
from benchmarks.machine import describe_machine
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import PreprocessOptions
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.evaluate.data import read_labels
from ztdeploy.target.evaluate.eval_report import EvalReport, EvalRequest
from ztdeploy.target.evaluate.evaluate import evaluate_bundle
from ztdeploy.target.measure.bench import run_bench
from ztdeploy.target.measure.bench_report import BenchReport, BenchRequest

METHODS, KEEP_RATIOS = ("novelty-merge", "zero-tprune", "tome", "ats"), (0.85, 0.7, 0.55)
#: Speed-ups that methods are compared at.
SPEED_UPS = (1.1, 1.2, 1.3, 1.4, 1.5, 1.6)
MEASURED = (
    "| method | keep ratio | compute saved, % | speed-up | changed answers, % | mean KL, nats | top-1, points |\n"
    + "| --- " * 7
    + "|"
)


class Point(NamedTuple):
    """One variant."""

    method: str
    keep_ratio: float
    saved: float  #: share of the baseline's compute
    speedup: float
    spread: str
    changed: float  #: share of the images
    changed_spread: str
    kl: float
    points: str  #: of top-1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--keep-ratios", nargs="+", type=float, default=list(KEEP_RATIOS))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of each engine, over all rounds")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    folder = real_data()
    with tempfile.TemporaryDirectory() as scratch:
        data, root = Path(scratch) / "data", Path(scratch) / "bundle"
        photographs = read_labels(folder / "imagenet_samples_labels.json")
        write_data(photographs, folder / "imagenet_samples", data)
        source = ModelSource(
            name="deit_t", checkpoint=folder / CHECKPOINT, preprocess=PreprocessOptions(crop_pct=CROP_PCT)
        )
        methods, ratios = tuple(arguments.methods), tuple(arguments.keep_ratios)
        build(BuildRequest(source, ("cpu",), root, keep_ratios=ratios, methods=methods))
        asked = EvalRequest(bundle=root, data=data, limit=arguments.images, threads=arguments.threads)
        answers = evaluate_bundle(asked, cache=Path(scratch) / "cache")
        timing = BenchRequest(
            bundle=root, all_variants=True, duration_s=arguments.duration, threads=(arguments.threads,), warmup_s=0.5
        )
        found = points(answers, run_bench(timing))
    print(f"{describe_machine()}; DeiT-Tiny, {answers.data.images} photographs, one of a class, batch 1\n")
    print("\n".join([MEASURED, *map(_row, found), "", *at_equal_speed(found)]))


def points(answers: EvalReport, times: BenchReport) -> list[Point]:
    """Every variant that was both evaluated and timed."""
    compared, dense, found = {one.variant: one for one in times.comparisons}, answers.dense, list[Point]()
    for score in answers.variants[1:]:
        speed, against = compared[score.variant], score.against_dense
        assert against is not None
        agreement, change = against.agreement, against.change
        moved = "-" if change is None else f"{100 * change.value:+.1f} ({change.interval.scaled(100):+.1f})"
        low, high = 100 * (1 - agreement.interval.high), 100 * (1 - agreement.interval.low)
        found.append(
            Point(
                method=score.method,
                keep_ratio=score.keep_ratio or 0.0,
                saved=1 - score.gmacs / dense.gmacs,
                speedup=speed.speedup,
                spread=f"{speed.interval:.2f}" if speed.interval else "-",
                changed=1 - agreement.value,
                changed_spread=f"{low:.1f} to {high:.1f}",
                kl=against.kl.value,
                points=moved,
            )
        )
    return found


def _row(one: Point) -> str:
    return (
        f"| {one.method} | {one.keep_ratio:g} | {100 * one.saved:.0f} | {one.speedup:.2f} ({one.spread}) "
        f"| {100 * one.changed:.1f} ({one.changed_spread}) | {one.kl:.4f} | {one.points} |"
    )


def at_equal_speed(found: Sequence[Point], speed_ups: Sequence[float] = SPEED_UPS) -> list[str]:
    """A Markdown table of changed answers, in %; "-" where a method's engines are all slower or all faster."""
    methods: Mapping[str, list[Point]] = {
        method: [one for one in found if one.method == method] for method in dict.fromkeys(one.method for one in found)
    }
    lines = [f"| changed answers, in %, at a speed-up of | {' | '.join(f'{one:g}' for one in speed_ups)} |"]
    lines.append("| --- " * (1 + len(speed_ups)) + "|")
    for method, own in methods.items():
        line = [(1.0, 0.0), *sorted((one.speedup, one.changed) for one in own)]  # the baseline changes nothing
        shown = [_between(line, wanted) for wanted in speed_ups]
        lines.append(f"| {method} | {' | '.join('-' if one is None else f'{100 * one:.1f}' for one in shown)} |")
    return lines


def _between(line: Sequence[tuple[float, float]], wanted: float) -> float | None:
    """The value at `wanted` on the line through points that ascend; None beyond its ends."""
    for (left, below), (right, above) in pairwise(line):
        if left <= wanted <= right and right > left:
            return below + (above - below) * (wanted - left) / (right - left)
    return None


if __name__ == "__main__":
    main()
