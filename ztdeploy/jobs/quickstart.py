"""The whole job on the model inside the package: build, verify, measure accuracy and latency, compare with dense."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.progress import Progress
from ztdeploy.host.models.catalogue import CATALOGUE
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.evaluate.accuracy import Accuracy, accuracy, all_logits, all_pixels
from ztdeploy.target.evaluate.labels import read_labels
from ztdeploy.target.measure.turns import Configuration, Timed, measure_latency
from ztdeploy.target.runtime.runner import load
from ztdeploy.target.verify import verify_bundle

MODEL, PROFILE = "vit_digits", "cpu"
KEEP_RATIOS = (0.9, 0.7, 0.5, 0.3)


@dataclass(frozen=True)
class Row:
    """One variant of the quickstart's table."""

    name: str
    keep_ratio: float
    tokens: tuple[int, ...]
    gmacs: float
    accuracy: Accuracy
    latency: Timed
    speedup: float


def quickstart(out: Path, progress: Progress, *, force: bool) -> list[Row]:
    """Build the shipped model at several keep ratios and compare each with dense, the dense one first."""
    request = BuildRequest(
        model=ModelSource(name=MODEL), profiles=(PROFILE,), keep_ratios=KEEP_RATIOS, out=out, force=force
    )
    bundle = build(request, progress)
    verify_bundle(out, PROFILE, progress)
    variants = sorted(bundle.manifest.variants, key=lambda variant: -(variant.keep_ratio or 0))
    assets = CATALOGUE[MODEL].shipped
    assert assets is not None
    images = read_labels(assets / "labels.json")
    progress("classifying held-out digits", 0, 1)
    with load(out, keep_ratio=1) as runner:
        pixels = all_pixels(runner, images)
        dense, scores = all_logits(runner, pixels), {}
        for variant in variants:
            runner.switch(variant=variant.name)
            scores[variant.name] = accuracy(all_logits(runner, pixels), dense, images)
    configurations = [Configuration(out, variant.name, PROFILE) for variant in variants]
    latencies = measure_latency(configurations, rounds=5, iterations=40, progress=progress)
    return [
        Row(
            name=variant.name,
            keep_ratio=variant.keep_ratio or 0,
            tokens=variant.plan.tokens_per_block,
            gmacs=variant.gmacs,
            accuracy=scores[variant.name],
            latency=latency,
            speedup=latency.speedup_over(latencies[0]),
        )
        for variant, latency in zip(variants, latencies, strict=True)
    ]
