"""The runtimes that a bundle has CPU engines for, on the same variants, in the same run, taking turns.

    python -m benchmarks.cpu_runtimes [--model deit_s] [--keep-ratio 0.7] [--batch 1,8] [--threads 2]
    python -m benchmarks.cpu_runtimes --profiles cpu-int8 cpu-openvino-int8 --methods zero-tprune

The second prints what int8 gains over the fp32 baseline of ONNX Runtime;
`benchmarks.int8_answers` prints what it costs.
Random weights: with static shapes the time does not depend on them. What cannot run here is named with the reason.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders import PLAIN, Contender, Job, plain_export
from benchmarks.machine import describe_machine
from benchmarks.turns import Timed, time_in_turns
from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.model_source import ModelSource
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.measure.turns import Configuration, Timeable

PROFILES = (
    "cpu",
    "cpu-int8",
    "cpu-openvino",
    "cpu-openvino-bf16",
    "cpu-openvino-int8",
    "cpu-openvino-int8-rows",
)
METHODS = ("zero-tprune", "slice")


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle and read_bundle(arguments.bundle)
        bundle = bundle or _build(arguments, Path(folder) / "bundle")
        print(f"{describe_machine()}, {arguments.threads} threads, {bundle.manifest.model.name}")
        for batch in map(int, arguments.batch.split(",")):
            subjects = engines(bundle, batch, arguments.threads)
            size = bundle.manifest.preprocess.image_size.height
            job = Job(bundle.manifest.model.name, size, batch, arguments.threads, Path(folder) / f"plain-{batch}.onnx")
            plain_export(job)
            everyone: list[Timeable] = [*subjects, Contender(PLAIN, job)]
            timed = time_in_turns(everyone, rounds=arguments.rounds, seconds=arguments.duration)
            print(f"\nBatch {batch}, {arguments.rounds} rounds\n\n{table(subjects, timed)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_s")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=usable_threads())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--duration", type=float, default=10.0, help="seconds per engine, over all rounds")
    parser.add_argument("--profiles", nargs="+", default=PROFILES[1:], choices=PROFILES[1:], help="beside cpu")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--bundle", type=Path, help="one with some of these profiles, instead of a fresh one")
    return parser.parse_args()


def _build(arguments: argparse.Namespace, out: Path) -> Bundle:
    request = BuildRequest(
        model=ModelSource(name=arguments.model, weights="random"),
        profiles=(PROFILES[0], *arguments.profiles),
        keep_ratios=(arguments.keep_ratio,),
        methods=tuple(arguments.methods),
        out=out,
    )
    return build(request)


def engines(bundle: Bundle, batch: int, threads: int) -> list[Configuration]:
    """Of each variant one per profile; dense comes first, each profile's engines in the order of `PROFILES`."""
    variants = sorted(bundle.manifest.variants, key=lambda one: -one.gmacs)
    names = [name for name in PROFILES if name in bundle.manifest.profiles]
    return [Configuration(bundle.root, one.name, name, threads, batch) for one in variants for name in names]


def table(subjects: Sequence[Configuration], timed: Sequence[Timed]) -> str:
    """Markdown; speed-ups are over the dense engine of the same profile, over the first profile's same variant and its
    dense engine, with an interval, and over the untouched model in ONNX Runtime, which is the last of `timed`."""
    *ours, plain = timed
    found = {(one.variant, one.profile): own for one, own in zip(subjects, ours, strict=True)}
    dense = subjects[0].variant
    lines = [
        "| variant | profile | median ms | over its dense | over cpu | over dense cpu | 95 % interval | over plain |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for (variant, profile), own in found.items():
        if own.reason:
            lines.append(f"| {variant} | {profile} | not measured: {own.reason} | | | | | |")
            continue
        over_dense, _ = own.interval_over(found[dense, profile])
        over_cpu, _ = own.interval_over(found[variant, PROFILES[0]])
        overall, interval = own.interval_over(found[dense, PROFILES[0]])
        span = "-" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"
        ratios = " | ".join(f"{ratio:.3f}x" for ratio in (over_dense, over_cpu, overall))
        lines.append(
            f"| {variant} | {profile} | {own.median_ms:.2f} | {ratios} | {span} | {own.interval_over(plain)[0]:.3f}x |"
        )
    lines.append(f"| {PLAIN} | | {plain.median_ms:.2f} | | | | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
