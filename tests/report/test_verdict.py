"""What is recommended, by the written rules; and what is said to limit trust."""

from __future__ import annotations

import pytest
from helpers import sweeps

from ztdeploy.core.model_source import ModelSource
from ztdeploy.report.sweep.markdown import markdown
from ztdeploy.report.sweep.page import page
from ztdeploy.report.sweep.panels import View
from ztdeploy.report.sweep.snapping import block_ms, snaps
from ztdeploy.report.sweep.trust import limits, warned
from ztdeploy.report.sweep.verdict import Verdict, verdicts
from ztdeploy.target.measure.bench_report import Failure
from ztdeploy.target.measure.sweep_report import SweepReport, rows


def only(report: SweepReport, least_agreement: float = 0.95) -> Verdict:
    (found,) = verdicts(report, least_agreement)
    return found


def chosen(verdict: Verdict) -> str | None:
    return verdict.choice.facts.name if verdict.choice else None


@pytest.mark.parametrize(
    ("least", "decision", "name"),
    [(0.5, "deploy", "keep-0.50"), (0.95, "deploy", "keep-0.70"), (0.99, "deploy", "keep-0.90"), (1, "dense", None)],
)
def test_the_fastest_that_agrees_often_enough(least: float, decision: str, name: str | None) -> None:
    report = sweeps.sweep()
    found = only(report, least)
    assert (found.decision, chosen(found)) == (decision, name)
    if found.choice is not None:
        agreeing = [
            row
            for row in rows(report)
            if row.comparison and row.facts.fidelity and row.facts.fidelity.likeness >= least
            if row.facts.method == "zero-tprune"
        ]
        best = max(agreeing, key=lambda row: row.comparison.speedup if row.comparison else 0)
        assert found.choice.facts.name == best.facts.name
        assert f"Deploy {name}: " in found.headline
    else:
        assert found.headline.startswith("Deploy the baseline.")


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
    assert chosen(found) == name
    text = found.headline + " ".join(found.sentences)
    assert "cosine" in text
    assert "answer" not in text
    assert "agree" not in text
    drawn = page(View(report, least))
    assert "mean cosine" in drawn
    assert "Latency against cosine" in drawn
    assert "Latency against answers lost" not in drawn
    assert "mean cosine" in markdown(report, [found])


def test_without_fidelity_nothing_is_recommended() -> None:
    found = only(sweeps.sweep(fidelity=False))
    assert (found.decision, chosen(found)) == ("open", "keep-0.50")
    text = " ".join(found.sentences)
    assert "Deploy" not in found.headline + text
    assert "The mildest that pays is keep-0.90" in text
    assert "sweep again with --data" in text


def test_controls_are_never_recommended() -> None:
    assert chosen(only(sweeps.sweep(), 0.0)) == "keep-0.50", "slice is faster, and does not look"
    found = only(sweeps.sweep(methods={"slice": 1.0}))
    assert (found.decision, found.choice) == ("unknown", None)
    assert found.headline == "There is nothing to compare."


def test_what_a_variant_saves_is_what_the_table_says() -> None:
    report = sweeps.sweep()
    found = only(report)
    assert found.choice is not None
    own, dense = found.choice.measured.latency, rows(report)[0].measured.latency
    assert own is not None
    assert dense is not None
    assert found.sentences[0].startswith(f"keep-0.70 takes {own.p50_ms:.1f} ms a call instead of {dense.p50_ms:.1f} ms")
    ratio = sweeps.DENSE_GMACS / sweeps.gmacs(0.7)
    assert f"for {ratio:.2f}x less work ({sweeps.gmacs(0.7):.2f} instead of 4.60 GMACs)" in found.sentences[0]
    assert "that is 'slice'" in " ".join(found.sentences)


def test_pruning_does_not_pay() -> None:
    slow = sweeps.sweep(methods={"zero-tprune": 1.5, "slice": 1.4}, gain=0.2)
    found = only(slow)
    assert (found.decision, found.headline, found.choice) == ("no gain", "Pruning does not pay here.", None)
    even = only(sweeps.sweep(ratios=(0.9,), methods={"zero-tprune": 1.0}, gain=0.0))
    assert even.decision == "no gain"


def test_too_few_rounds_say_nothing() -> None:
    found = only(sweeps.sweep(rounds=3))
    assert (found.decision, found.choice) == ("unknown", None)
    assert "Too few rounds" in found.headline


def test_dense_alone_and_nothing_at_all() -> None:
    assert only(sweeps.sweep(ratios=())).headline == "There is nothing to compare."
    assert verdicts(sweeps.sweep(runs=(), progress="interrupted")) == []


def test_settings_are_judged_each_by_itself() -> None:
    report = sweeps.sweep(batches=(1, 8))
    assert [one.panel.label for one in verdicts(report)] == [f"224 px, batch {n}, 4 threads" for n in (1, 8)]


def test_random_weights_are_said() -> None:
    report = sweeps.sweep(fidelity=False)
    random = report.request.model_copy(update={"model": ModelSource(name="deit_s", weights="random")})
    assert only(report.model_copy(update={"request": random})).sentences[-1].startswith("The weights are random")


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
