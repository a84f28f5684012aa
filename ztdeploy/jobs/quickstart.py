"""The whole job on the model inside the package: build, verify, evaluate and measure it, beside its baseline.

The method is the paper's: with the default one, choosing among 65 tokens costs about what pruning saves.
"""

from __future__ import annotations

from pathlib import Path

from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.methods import PAPER_METHOD
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.progress import Progress, parts
from ztdeploy.core.records import Record
from ztdeploy.host.models.catalogue import CATALOGUE
from ztdeploy.jobs.build import build
from ztdeploy.jobs.request import BuildRequest
from ztdeploy.target.evaluate.eval_report import EvalRequest
from ztdeploy.target.evaluate.evaluate import evaluate_bundle
from ztdeploy.target.measure.turns import Configuration, measure_latency
from ztdeploy.target.verify import verify_bundle

MODEL, PROFILE = "vit_digits", "cpu"
KEEP_RATIOS = (0.9, 0.7, 0.5, 0.3)
_SHARES = {"build": 30, "verify": 1, "evaluate": 6, "measure": 4}  #: about how long each takes, in seconds


class QuickstartRow(Record):
    """One variant of the quickstart's table."""

    variant: str
    keep_ratio: float
    tokens_per_block: tuple[int, ...]
    gmacs: float
    images: int
    top1: float  #: share of the images
    agreement: float  #: share of the images with the baseline's answer
    kl: float  #: mean divergence from the baseline's output, nats
    median_ms: float
    speedup: float


class Quickstart(Record):
    bundle: str
    variants: tuple[QuickstartRow, ...]  #: the baseline first


def quickstart(out: Path, progress: Progress, *, force: bool) -> Quickstart:
    """Build the shipped model at several keep ratios, and compare each with the baseline, which comes first."""
    model, stages = ModelSource(name=MODEL), parts(progress, _SHARES)
    request = BuildRequest(model, (PROFILE,), out, methods=(PAPER_METHOD,), keep_ratios=KEEP_RATIOS, force=force)
    bundle = build(request, stages["build"])
    verify_bundle(out, PROFILE, stages["verify"])
    digits = CATALOGUE[MODEL].shipped
    assert digits is not None
    with scratch_folder() as answers:
        judged = EvalRequest(bundle=out, data=digits, profile=PROFILE)
        report = evaluate_bundle(judged, cache=answers, progress=stages["evaluate"])
    scores = {score.variant: score for score in report.variants}
    variants = sorted(bundle.manifest.variants, key=lambda variant: -(variant.keep_ratio or 0))
    configurations = [Configuration(out, variant.name, PROFILE) for variant in variants]
    latencies = measure_latency(configurations, rounds=5, iterations=40, progress=stages["measure"])
    rows = []
    for variant, latency in zip(variants, latencies, strict=True):
        top1, against = scores[variant.name].top1, scores[variant.name].against_dense
        assert top1 is not None
        rows.append(
            QuickstartRow(
                variant=variant.name,
                keep_ratio=variant.keep_ratio or 0,
                tokens_per_block=variant.plan.tokens_per_block,
                gmacs=variant.gmacs,
                images=top1.total,
                top1=top1.value,
                agreement=1.0 if against is None else against.agreement.value,
                kl=0.0 if against is None else against.kl.value,
                median_ms=latency.median_ms,
                speedup=latency.speedup_over(latencies[0]),
            )
        )
    return Quickstart(bundle=str(out), variants=tuple(rows))
