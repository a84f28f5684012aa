"""How pruning's overhead over `slice` of the same token counts falls as models and images grow.

    python -m benchmarks.scaling [--models deit_t deit_s deit_b] [--image-sizes 224 384] [--batches 1 8]

Prints one row of a Markdown table as soon as it is measured. Random weights, fp32.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.overhead import Result, build_variants, measure

HEAD = "\n".join(
    [
        "| model | image | tokens | batch | slice ms | pruned ms | overhead | 95 % interval |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["deit_t", "deit_s", "deit_b"])
    parser.add_argument("--image-sizes", nargs="+", type=int, default=[224, 384], help="pixels")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--duration", type=float, default=18.0, help="seconds per engine, over all rounds")
    arguments = parser.parse_args()
    print(f"{describe_machine()}; keep ratio {arguments.keep_ratio:g}, {arguments.rounds} rounds\n\n{HEAD}", flush=True)
    for model in arguments.models:
        for size in arguments.image_sizes:
            with tempfile.TemporaryDirectory() as folder:
                bundle = build_variants(model, arguments.keep_ratio, size, Path(folder) / "bundle")
                for batch in arguments.batches:
                    print(row(measure(bundle, batch, arguments.rounds, arguments.duration, dense=False)), flush=True)


def row(result: Result) -> str:
    """The overhead in percent of the sliced engine's time."""
    ratio = result.pruned_over_slice
    cells = (
        result.model,
        f"{result.image_size}",
        f"{result.tokens}",
        f"{result.batch}",
        f"{result.slice_ms:.2f}",
        f"{result.pruned_ms:.2f}",
        f"{100 * (ratio.value - 1):+.1f} %",
        "-"
        if ratio.low is None or ratio.high is None
        else f"{100 * (ratio.low - 1):+.1f} to {100 * (ratio.high - 1):+.1f} %",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
