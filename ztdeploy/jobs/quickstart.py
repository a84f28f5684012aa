"""The whole job on the model inside the package: build, verify, measure accuracy and latency, compare with dense."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.manifest import FidelityRecord
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.progress import Progress
from ztdeploy.host.models.catalogue import CATALOGUE
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.evaluate.eval_report import EvalRequest, Share
from ztdeploy.target.evaluate.evaluate import evaluate_bundle
from ztdeploy.target.evaluate.record import fidelity_record
from ztdeploy.target.measure.turns import Configuration, Timed, measure_latency
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
    right: Share
    fidelity: FidelityRecord
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
    with scratch_folder() as answers:
        report = evaluate_bundle(EvalRequest(bundle=out, data=assets), cache=answers, progress=progress)
    scores = {score.variant: score for score in report.variants}
    top1 = {name: score.top1 for name, score in scores.items() if score.top1 is not None}
    configurations = [Configuration(out, variant.name, PROFILE) for variant in variants]
    latencies = measure_latency(configurations, rounds=5, iterations=40, progress=progress)
    return [
        Row(
            name=variant.name,
            keep_ratio=variant.keep_ratio or 0,
            tokens=variant.plan.tokens_per_block,
            gmacs=variant.gmacs,
            right=top1[variant.name],
            fidelity=fidelity_record(report, scores[variant.name]),
            latency=latency,
            speedup=latency.speedup_over(latencies[0]),
        )
        for variant, latency in zip(variants, latencies, strict=True)
    ]
