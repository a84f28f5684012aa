"""Pruning overhead against `slice` of the same token counts, and speed-up against the ratio of GMACs.

    python -m benchmarks.overhead [--model deit_s] [--keep-ratio 0.7] [--batch 1] [--image-size 224]
                                  [--rounds 60] [--duration 18]

Each engine runs in a process of its own, they take turns, and ratios are taken round by round. Random weights
are enough: with static shapes the time does not depend on the values.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.contenders import PLAIN, Contender, Job, plain_export
from benchmarks.machine import describe_machine
from benchmarks.turns import Timed, time_in_turns
from ztdeploy.core.bundle import Bundle
from ztdeploy.core.cost import whole_block_gmacs
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.model_source import ModelSource
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.measure.statistics import Interval
from ztdeploy.target.measure.turns import Configuration, Timeable

METHODS = ("zero-tprune", "slice")


@dataclass(frozen=True)
class Ratio:
    """A ratio with its 95 % interval, None where there are too few rounds for one."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.value:.3f}" + (f" ({self.low:.3f} to {self.high:.3f})" if self.low is not None else "")


@dataclass(frozen=True)
class Result:
    """What figures are made of. Times in milliseconds, medians over all rounds."""

    model: str
    image_size: int
    tokens: int  #: of a dense block
    keep_ratio: float
    batch: int
    dense_ms: float | None  #: None: not measured
    slice_ms: float
    pruned_ms: float
    pruned_over_slice: Ratio
    speedup: Ratio | None  #: over dense, our own engine
    plain_ms: float | None  #: the untouched model in ONNX Runtime, which computes all of the last block
    speedup_over_plain: Ratio | None
    gmacs_ratio: float  #: of what the graphs compute
    counted_ratio: float  #: as papers count, who let a block run before its tokens go

    @property
    def share_of_ideal(self) -> float | None:
        return None if self.speedup_over_plain is None else self.speedup_over_plain.value / self.counted_ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_s")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--image-size", type=int, help="pixels (default: the model's own)")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--duration", type=float, default=18.0, help="seconds per engine, over all rounds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = build_variants(arguments.model, arguments.keep_ratio, arguments.image_size, Path(folder) / "bundle")
        result = measure(bundle, arguments.batch, arguments.rounds, arguments.duration)
    print(describe_machine())
    print(
        f"{result.model}, {result.image_size} px, keep ratio {result.keep_ratio:g}, batch {result.batch}, fp32, medians"
    )
    print(f"  dense  {result.dense_ms:8.2f} ms")
    print(f"  plain  {result.plain_ms:8.2f} ms  ({PLAIN})")
    print(f"  slice  {result.slice_ms:8.2f} ms")
    print(f"  pruned {result.pruned_ms:8.2f} ms")
    print(f"  pruned / slice          {result.pruned_over_slice}  (at most 1.02 wanted)")
    print(f"  speed-up over dense     {result.speedup}")
    print(f"  speed-up over plain     {result.speedup_over_plain}")
    of_graphs = f"of what the graphs compute: {result.gmacs_ratio:.3f}"
    print(f"  ratio of GMACs          {result.counted_ratio:.3f}  ({of_graphs})")
    print(f"  over plain / GMACs ratio {result.share_of_ideal:.3f}  (at least 0.97 wanted)")
    print(json.dumps(asdict(result)))


def build_variants(
    model: str, keep_ratio: float, image_size: int | None, out: Path, methods: tuple[str, ...] = METHODS
) -> Bundle:
    """Dense, and pruned by each of some methods, with random weights."""
    source = ModelSource(name=model, weights="random", image_size=image_size)
    return build(BuildRequest(source, ("cpu",), out, keep_ratios=(keep_ratio,), methods=methods))


def measure(bundle: Bundle, batch: int, rounds: int, duration_s: float, *, dense: bool = True) -> Result:
    """Time sliced and pruned in turns, and where it is asked for dense: our own engine, and the untouched model.

    Raises:
        RuntimeError: one of them could not be measured.
    """
    manifest, architecture = bundle.manifest, bundle.manifest.model.architecture
    variant, sliced = (_pruned_by(bundle, method) for method in METHODS)
    assert variant.plan.tokens_per_block == sliced.plan.tokens_per_block
    names = [sliced.name, variant.name, *([manifest.dense.name] if dense else [])]
    subjects: list[Timeable] = [Configuration(bundle.root, name, "cpu", batch=batch) for name in names]
    if dense:
        size, plain = manifest.preprocess.image_size.height, bundle.root.with_name("plain.onnx")
        job = Job(manifest.model.name, size, batch, usable_threads(), plain)
        plain_export(job)
        subjects.append(Contender(PLAIN, job))
    timed = time_in_turns(subjects, rounds=rounds, seconds=duration_s)
    for one in timed:
        if one.reason:
            raise RuntimeError(f"{one.variant}: {one.reason}")
    cut, ours = timed[:2]
    return Result(
        model=manifest.model.name,
        image_size=manifest.preprocess.image_size.height,
        tokens=manifest.dense.plan.tokens_per_block[0],
        keep_ratio=variant.keep_ratio or 0.0,
        batch=batch,
        dense_ms=timed[2].median_ms if dense else None,
        slice_ms=cut.median_ms,
        pruned_ms=ours.median_ms,
        pruned_over_slice=_ratio(cut, ours),
        speedup=_ratio(ours, timed[2]) if dense else None,
        plain_ms=timed[3].median_ms if dense else None,
        speedup_over_plain=_ratio(ours, timed[3]) if dense else None,
        gmacs_ratio=manifest.dense.gmacs / variant.gmacs,
        counted_ratio=whole_block_gmacs(architecture, manifest.dense.plan)
        / whole_block_gmacs(architecture, variant.plan),
    )


def _pruned_by(bundle: Bundle, method: str) -> VariantRecord:
    return next(one for one in bundle.manifest.variants if one.schedule.method == method and one.plan.layers)


def _ratio(faster: Timed, slower: Timed) -> Ratio:
    """How many times longer the second takes."""
    value, interval = faster.interval_over(slower)
    bounds: Interval | None = interval
    return Ratio(value, bounds.low if bounds else None, bounds.high if bounds else None)


if __name__ == "__main__":
    main()
