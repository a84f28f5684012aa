"""What is recommended, by the written rules; and what is said to limit trust."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import sweeps

from ztdeploy.core.model_source import ModelSource
from ztdeploy.report.sweep.markdown import markdown
from ztdeploy.report.sweep.page import page
from ztdeploy.report.sweep.panels import View
from ztdeploy.report.sweep.snapping import block_ms, snaps
from ztdeploy.report.sweep.trust import limits, warned
from ztdeploy.report.sweep.verdict import PanelVerdict, verdicts
from ztdeploy.target.evaluate.scoring import share
from ztdeploy.target.measure.bench_report import Failure
from ztdeploy.target.measure.sweep_report import SweepReport, rows
from ztdeploy.target.verdict import JudgedVariant, conclude, quality_of_share


def only(report: SweepReport, min_agreement: float = 0.95) -> PanelVerdict:
    (found,) = verdicts(report, min_agreement)
    return found


def said(report: SweepReport, min_agreement: float = 0.95) -> tuple[str, str | None]:
    found = only(report, min_agreement).verdict
    return found.decision, found.variant


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (0.5, ("deploy", "keep-0.70")),  # below, top-1 is shown to fall by more than a point
        (0.94, ("deploy", "keep-0.70")),
        (0.95, ("deploy", "keep-0.80")),  # 40 of 1000 changed at 0.70: up to 5.4 %
        (0.985, ("deploy", "keep-0.90")),
        (0.995, ("open", "keep-0.90")),
        (1, ("baseline", None)),
    ],
)
def test_the_fastest_that_agrees_often_enough(least: float, expected: tuple[str, str | None]) -> None:
    found = only(sweeps.sweep(), least)
    assert said(sweeps.sweep(), least) == expected
    assert (found.choice.facts.name if found.choice else None) == expected[1]


def of_vectors(report: SweepReport) -> SweepReport:
    """The same, of embeddings: the mean cosine is as high as agreement was."""
    variants = [
        one.model_copy(
            update={
                "fidelity": one.fidelity.model_copy(
                    update={"agreement": None, "kl": None, "cosine": one.fidelity.agreement, "top1": None}
                )
            }
        )
        if one.fidelity
        else one
        for one in report.variants
    ]
    return report.model_copy(update={"variants": tuple(variants)})


@pytest.mark.parametrize(("least", "name"), [(0.5, "keep-0.50"), (0.95, "keep-0.70"), (1, None)])
def test_embeddings_are_recommended_by_their_cosine(least: float, name: str | None) -> None:
    report = of_vectors(sweeps.sweep())
    found = only(report, least)
    assert found.verdict.variant == name
    text = found.verdict.sentence + " ".join(found.sentences)
    assert "mean cosine" in text
    assert "of the answers" not in text
    drawn = page(View(report, least))
    assert "mean cosine" in drawn
    assert "Latency against cosine" in drawn
    assert "Latency against answers lost" not in drawn
    assert "mean cosine" in markdown(report, [found])


def test_without_fidelity_nothing_is_recommended() -> None:
    assert said(sweeps.sweep(fidelity=False)) == ("open", "keep-0.50")
    assert "sweep again with --data" in only(sweeps.sweep(fidelity=False)).verdict.sentence


def test_controls_are_never_recommended() -> None:
    assert said(sweeps.sweep(), 0.0) == ("deploy", "keep-0.70"), "slice is faster, and does not look"
    assert said(sweeps.sweep(methods={"slice": 1.0})) == ("open", None)


def test_what_a_variant_saves_is_what_the_table_says() -> None:
    report = sweeps.sweep()
    found = only(report, 0.94)
    assert found.choice is not None
    own, dense = found.choice.measured.latency, rows(report)[0].measured.latency
    assert own is not None
    assert dense is not None
    assert found.sentences[0].startswith(f"keep-0.70 takes {own.p50_ms:.1f} ms a call instead of {dense.p50_ms:.1f} ms")
    ratio = sweeps.DENSE_GMACS / sweeps.gmacs(0.7)
    assert f"for {ratio:.2f}x less work ({sweeps.gmacs(0.7):.2f} instead of 4.60 GMACs)" in found.sentences[0]
    assert "that is 'slice'" in " ".join(found.sentences)


def test_a_cascade_is_judged_by_its_mean_and_its_worst_case_is_said() -> None:
    some = quality_of_share(share(np.arange(1000) >= 10), None)
    many = quality_of_share(share(np.arange(1000) >= 100), None)
    cascade = JudgedVariant("cascade", 1.6, None, some, "1.35 times the baseline's compute")
    found = conclude([JudgedVariant("keep-0.50", 2.0, None, many), cascade], timed=False)
    assert (found.decision, found.variant) == ("deploy", "cascade")
    assert found.sentence.startswith("the cascade needs 38 % less compute")
    assert "the worst takes 1.35 times the baseline's compute" in found.sentence


def test_pruning_does_not_pay() -> None:
    slow = sweeps.sweep(methods={"zero-tprune": 1.5, "slice": 1.4}, gain=0.2)
    assert said(slow) == ("baseline", None)
    assert "does not pay here" in only(slow).verdict.sentence
    assert said(sweeps.sweep(ratios=(0.9,), methods={"zero-tprune": 1.0}, gain=0.0)) == ("baseline", None)


def test_too_few_rounds_say_nothing() -> None:
    found = only(sweeps.sweep(rounds=3)).verdict
    assert found.decision == "open"
    assert "3 rounds" in found.sentence


def test_dense_alone_and_nothing_at_all() -> None:
    assert said(sweeps.sweep(ratios=())) == ("open", None)
    assert verdicts(sweeps.sweep(runs=(), progress="interrupted")) == []


def test_settings_are_judged_each_by_itself() -> None:
    report = sweeps.sweep(batches=(1, 8))
    labels = [f"224 px, batch {n}, 4 threads" for n in (1, 8)]
    assert [one.panel.label for one in verdicts(report)] == [one.verdict.setting for one in verdicts(report)] == labels


def test_random_weights_are_said() -> None:
    report = sweeps.sweep(fidelity=False)
    random = report.request.model_copy(update={"model": ModelSource(name="deit_s", weights="random")})
    found = only(report.model_copy(update={"request": random})).verdict
    assert found.decision == "open"
    assert "weights are random" in found.sentence


def test_what_limits_trust() -> None:
    assert limits(sweeps.sweep()) == []
    busy = sweeps.run(0.7, warnings=(sweeps.BUSY,))
    report = sweeps.sweep(
        ratios=(0.7,),
        runs=(busy, sweeps.run(0.7, batch=8)),
        progress="interrupted",
        planned=9,
        failures=(Failure(message="keep-0.10 at 224 px: no token left", exit_code=3),),
    )
    interrupted, failed, warning = limits(report)
    assert interrupted == "The sweep was interrupted: 6 of 9 configurations measured."
    assert failed.startswith("1 configuration failed")
    assert warning == "Other processes kept 0.4 of 4 usable cores busy (in 1 of 2 runs): stop them."
    assert [(one.caution.kind, one.runs) for one in warned(report)] == [("busy", 1)]


def test_what_could_snap() -> None:
    report, staircase = sweeps.sweep(), sweeps.staircase()
    found = {one.tokens: one for one in snaps(report, staircase)}
    assert found[101].tread == 96
    assert found[101].variants == ("keep-0.80", "slice-keep-0.80")
    assert 197 not in found, "dense has what it has"
    assert 158 not in found, "too far above 144"
    for one in found.values():
        assert 0 < one.tokens - one.tread <= 0.06 * one.tokens
        points = staircase.points
        assert one.saved_ms == pytest.approx(block_ms(points, one.tokens) - block_ms(points, one.tread))
    ends = staircase.points[0], staircase.points[-1]
    assert [block_ms(staircase.points, one.tokens) for one in ends] == [one.block_ms for one in ends]
    assert block_ms(staircase.points, 1) == ends[0].block_ms
