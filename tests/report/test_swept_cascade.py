"""A cascade in a sweep: beside the static variants on plots and in tables, by its mean, with its worst case."""

from __future__ import annotations

import random

from helpers import sweeps
from helpers.bench import configuration

from ztdeploy.core.manifest import Fidelity
from ztdeploy.report.sweep.markdown import markdown
from ztdeploy.report.sweep.page import page
from ztdeploy.report.sweep.panels import View, panels
from ztdeploy.report.sweep.verdict import verdicts
from ztdeploy.target.measure.comparing import compare
from ztdeploy.target.measure.sweep_report import SweepReport, VariantFacts


def swept() -> SweepReport:
    """Most images take 24 ms, every fifth 60 ms; the baseline takes 48 ms."""
    report, beside = sweeps.sweep(methods={"zero-tprune": 1.07}), sweeps.run(1.0)
    draw = random.Random(1)
    rounds = [[(60 if call % 5 == 0 else 24) * draw.uniform(0.99, 1.01) for call in range(20)] for _ in range(10)]
    own = configuration("cascade", rounds, threads=4, gmacs=2.3, answered=(16, 4))
    (dense,) = beside.configurations
    found = compare(own, dense, seed=0)
    assert found is not None
    run = beside.model_copy(update={"configurations": (dense, own), "comparisons": (found,)})
    facts = VariantFacts(
        name="cascade",
        method="cascade",
        keep_ratio=None,
        image_size=sweeps.SIZE,
        gmacs=2.3,
        pruning_gmacs=0.0,
        tokens_per_block=(),
        fidelity=Fidelity(images=1000, agreement=0.996, kl=0.001, data="photographs", data_sha256="1" * 64),
    )
    return report.model_copy(update={"variants": (*report.variants, facts), "runs": (*report.runs, run)})


def test_it_is_recommended_by_its_mean_with_its_worst_case() -> None:
    (found,) = verdicts(swept(), 0.985)
    assert (found.verdict.decision, found.verdict.variant) == ("deploy", "cascade")
    assert "Not where each single image has to be in time: the worst takes 60" in found.verdict.sentence
    assert "31.2 ms a call on average" in found.sentences[0]


def test_it_stands_beside_static_variants() -> None:
    report = swept()
    (panel,) = panels(report)
    assert panel.by_mean
    assert [row.facts.name for row in panel.pruned if row.cascade] == ["cascade"]
    drawn = page(View(report, 0.985))
    assert "ms per call, mean" in drawn
    assert "cascade: 31.2 ms" in drawn
    text = markdown(report, verdicts(report, 0.985))
    assert "| worst ms |" in text
    assert "mean ms" not in markdown(sweeps.sweep(), [])
