"""Made-up reports of runs that differ in what a test says, and in noise."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.bench import configuration
from ztdeploy.core.model_source import ModelSource
from ztdeploy.target.measure.bench_report import BenchReport, read_report
from ztdeploy.target.measure.comparing import compare
from ztdeploy.target.measure.sweep_report import SweepReport, SweepRequest, VariantFacts

#: Milliseconds, and GMACs.
VARIANTS: dict[str, tuple[float, float]] = {"dense": (50.0, 4.6), "keep-0.70": (33.0, 2.9), "keep-0.50": (24.0, 2.2)}
TEMPLATE = Path(__file__).parents[1] / "target" / "measure" / "bench_report_v1.json"


def run(
    seed: int = 0,
    *,
    slower: Mapping[str, float] | None = None,
    variants: Sequence[str] = tuple(VARIANTS),
    rounds: int = 10,
    noise: float = 0.01,
    offset: float = 0.0,
    placement: float = 0.0,
    batch: int = 1,
    threads: int | None = 2,
    machine: Mapping[str, Any] | None = None,
    bundle: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    **changes: Any,
) -> BenchReport:
    """A report of `bench`.

    Args:
        slower: variant -> how many times longer it takes; "all" stands for every one.
        noise: standard deviation from round to round, half of it common to all variants of a round.
        offset: by how much everything in this run is slower.
        placement: standard deviation from process to process.
        machine, bundle: fields of the records that are to differ.
        measured: fields of every configuration that are to differ.
        changes: fields of the report that are to differ.
    """
    generator, factors = random.Random(seed), slower or {}
    common = [generator.gauss(0, noise / 2) for _ in range(rounds)]
    configurations = []
    for name in variants:
        milliseconds, gmacs = VARIANTS[name]
        scale = factors.get(name, 1.0) * factors.get("all", 1.0) * (1 + offset) * (1 + generator.gauss(0, placement))
        samples = [
            [milliseconds * scale * (1 + shared + generator.gauss(0, noise)) * (1 + call / 1000) for call in range(3)]
            for shared in common
        ]
        made = configuration(name, samples, batch=batch, threads=threads, gmacs=gmacs)
        configurations.append(made.model_copy(update=dict(measured or {})))
    pairs = [compare(one, configurations[0], seed=0) for one in configurations[1:]] if variants[0] == "dense" else []
    template = read_report(TEMPLATE)
    return template.model_copy(
        update={
            "configurations": tuple(configurations),
            "comparisons": tuple(pair for pair in pairs if pair is not None),
            "warnings": (),
            "machine": template.machine.model_copy(update=dict(machine or {})),
            "bundle": template.bundle.model_copy(update=dict(bundle or {})),
            **changes,
        }
    )


def sweep(*runs: BenchReport, **changes: Any) -> SweepReport:
    """A report of `sweep` with these runs."""
    described = {}
    for one in runs:
        for own in one.configurations:
            tokens = (197,) * 12 if own.variant == "dense" else (197,) * 4 + (100,) * 8
            described[own.variant, one.bundle.image_size] = VariantFacts(
                name=own.variant,
                method="zero-tprune",
                keep_ratio=own.keep_ratio,
                image_size=one.bundle.image_size,
                gmacs=own.gmacs,
                pruning_gmacs=0.0,
                tokens_per_block=tokens,
            )
    report = SweepReport(
        progress="complete",
        request=SweepRequest(model=ModelSource(name="vit_digits")),
        variants=tuple(described.values()),
        runs=runs,
        planned=sum(len(one.configurations) for one in runs),
    )
    return report.model_copy(update=changes)
