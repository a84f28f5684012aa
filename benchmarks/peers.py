"""Ours against others on the same model, in the same run: each in a process of its own, taking turns.

    python -m benchmarks.peers [--model deit_s] [--keep-ratio 0.7] [--batch 1] [--image-size 224] [--threads 2]

Ours are the dense engine and those of each pruning method at the same token counts; the others run the untouched timm
model: a plain export in ONNX Runtime with default options, torch eager, torch.compile, OpenVINO. fp32, random weights:
with static shapes the time does not depend on the values. Who cannot run here is named with the reason.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.contenders import CONTENDERS, PLAIN, Contender, Job, plain_export, versions
from benchmarks.machine import describe_machine
from benchmarks.overhead import build_variants
from benchmarks.turns import Timed, time_in_turns
from ztdeploy.core.bundle import Bundle
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.methods import METHODS
from ztdeploy.target.measure.turns import Configuration, Timeable

#: Ours, and references at the same token counts.
OURS = ("zero-tprune", "slice", "tome")


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            arguments.model, arguments.image_size, arguments.batch, arguments.threads, Path(folder) / "plain.onnx"
        )
        methods, out = tuple(method for method in OURS if method in METHODS), Path(folder) / "bundle"
        bundle = build_variants(arguments.model, arguments.keep_ratio, arguments.image_size, out, methods)
        job = replace(job, image_size=plain_export(job))
        ours, work = our_engines(bundle, job)
        subjects: list[Timeable] = [*(Contender(name, job) for name in CONTENDERS), *ours]
        timed = time_in_turns(subjects, rounds=arguments.rounds, seconds=arguments.duration)
    print(f"{describe_machine()}, {versions()}\n")
    print(
        f"{job.model}, {job.image_size} px, batch {job.batch}, {job.threads} threads, fp32, random weights, "
        f"keep ratio {arguments.keep_ratio:g}, {arguments.rounds} rounds\n"
    )
    print(table(timed, work))
    absent = [f"ours, {name}: this ztdeploy has no such method" for name in OURS if name not in METHODS]
    for line in [*(f"{one.variant}: {one.reason}" for one in timed if one.reason), *absent]:
        print(f"\nnot measured: {line}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_s")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--image-size", type=int, help="pixels (default: the model's own)")
    parser.add_argument("--threads", type=int, default=usable_threads())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--duration", type=float, default=10.0, help="seconds per contender, over all rounds")
    return parser.parse_args()


def our_engines(bundle: Bundle, job: Job) -> tuple[list[Configuration], Mapping[str, float]]:
    """Every engine of a bundle, and how much less work each one is than dense, by its name."""
    variants, dense = bundle.manifest.variants, bundle.manifest.dense
    engines = [Configuration(bundle.root, one.name, "cpu", job.threads, job.batch) for one in variants]
    return engines, {one.name: dense.gmacs / one.gmacs for one in variants}


def table(timed: Sequence[Timed], work: Mapping[str, float]) -> str:
    """Markdown, the slowest first; speed-ups are over the plain export, or a dash where that could not run."""
    measured = sorted((one for one in timed if one.rounds_ms), key=lambda one: -one.median_ms)
    plain = next((one for one in measured if one.variant == PLAIN), None)
    lines = [
        "| contender | median ms | speed-up over plain | 95 % interval | ratio of GMACs |",
        "| --- | ---: | ---: | --- | ---: |",
    ]
    for one in measured:
        name = f"ours, {one.variant}" if one.variant in work else one.variant
        speedup, interval = one.interval_over(plain) if plain and one is not plain else (None, None)
        ratio = ("1" if one is plain else "-") if speedup is None else f"{speedup:.3f}x"
        span = "-" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"
        lines.append(f"| {name} | {one.median_ms:.2f} | {ratio} | {span} | {work.get(one.variant, 1.0):.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
