"""Pruning overhead against `slice` of the same token counts, and speed-up against the ratio of GMACs.

    python -m benchmarks.overhead [--model deit_s] [--keep-ratio 0.7] [--batch 1] [--rounds 12] [--iterations 20]

Each engine runs in a process of its own, they take turns, and ratios are taken round by round. Random weights
are enough: with static shapes the time does not depend on the values.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import describe_machine
from ztdeploy.bundle import Bundle
from ztdeploy.measure.latency import Configuration, measure_latency
from ztdeploy.pipeline import BuildRequest, build

METHODS = ("zero-tprune", "slice")


@dataclass(frozen=True)
class Result:
    """What the issue's figures are made of. Times in milliseconds, medians over all rounds."""

    model: str
    keep_ratio: float
    batch: int
    dense_ms: float
    slice_ms: float
    pruned_ms: float
    pruned_over_slice: float
    speedup: float
    gmacs_ratio: float

    @property
    def share_of_ideal(self) -> float:
        return self.speedup / self.gmacs_ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_s")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--iterations", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        request = BuildRequest(
            model=arguments.model,
            profiles=("cpu",),
            keep_ratios=(arguments.keep_ratio,),
            methods=METHODS,
            weights="random",
            out=Path(folder) / "bundle",
        )
        result = measure(build(request), arguments.batch, arguments.rounds, arguments.iterations)
    print(describe_machine())
    print(f"{result.model}, keep ratio {result.keep_ratio:g}, batch {result.batch}, fp32, medians")
    print(f"  dense  {result.dense_ms:8.2f} ms")
    print(f"  slice  {result.slice_ms:8.2f} ms")
    print(f"  pruned {result.pruned_ms:8.2f} ms")
    print(f"  pruned / slice          {result.pruned_over_slice:.3f}  (at most 1.08 wanted)")
    print(f"  speed-up over dense     {result.speedup:.3f}")
    print(f"  ratio of GMACs          {result.gmacs_ratio:.3f}")
    print(f"  speed-up / GMACs ratio  {result.share_of_ideal:.3f}  (at least 0.92 wanted)")
    print(json.dumps(asdict(result)))


def measure(bundle: Bundle, batch: int, rounds: int, iterations: int) -> Result:
    """Time dense, sliced and pruned in turns."""
    manifest = bundle.manifest
    variant, sliced = (next(v for v in manifest.variants if v.schedule.method == m and v.plan.layers) for m in METHODS)
    assert variant.plan.tokens_per_block == sliced.plan.tokens_per_block
    names = [manifest.dense.name, sliced.name, variant.name]
    configurations = [Configuration(bundle.root, name, "cpu", batch=batch) for name in names]
    dense, cut, ours = measure_latency(configurations, rounds=rounds, iterations=iterations)
    return Result(
        model=manifest.model.name,
        keep_ratio=variant.keep_ratio or 0.0,
        batch=batch,
        dense_ms=dense.median_ms,
        slice_ms=cut.median_ms,
        pruned_ms=ours.median_ms,
        pruned_over_slice=1 / ours.speedup_over(cut),
        speedup=ours.speedup_over(dense),
        gmacs_ratio=manifest.dense.gmacs / variant.gmacs,
    )


if __name__ == "__main__":
    main()
