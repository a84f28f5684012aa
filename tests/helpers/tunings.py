"""Reports of searches that nobody made."""

from __future__ import annotations

from pathlib import Path

from helpers.ablations import SMALL, model_facts
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.jobs.tune.cost import DENSE as BASELINE
from ztdeploy.jobs.tune.cost import price_of
from ztdeploy.jobs.tune.space import Point, fitted
from ztdeploy.report.tune.records import (
    BestAtCost,
    Budget,
    GmacsCost,
    Importance,
    Measured,
    Ratio,
    Score,
    TrialRecord,
    TuneReport,
    TuneRequest,
)
from ztdeploy.target.evaluate.eval_report import Change, DataFacts, Mean, Share
from ztdeploy.target.measure.machine import read_machine
from ztdeploy.target.measure.statistics import CONFIDENCE, Interval

price = price_of(GmacsCost(), SMALL)
DENSE = price(BASELINE)


def report(
    *, trials: int = 30, front: bool = False, labelled: bool = True, measured: bool = False, name: str = "vit_small"
) -> TuneReport:
    """The further on a trial, the nearer to dense."""
    shares = (0.8, 0.65, 0.5) if front else (0.65, 0.8)
    return TuneReport(
        created="2026-01-02T03:04:05+00:00",
        request=TuneRequest(
            model=ModelSource(name=name),
            data=Path("photographs"),
            budget=None if front else Budget(kind="reduction", value=0.35),
        ),
        storage="",
        model=model_facts(name, dense_gmacs=DENSE),
        machine=read_machine(),
        tuning_data=_data(name, labelled),
        report_data=_data(name, labelled),
        dense_cost=DENSE,
        unit="GMACs",
        cost=GmacsCost(),
        trials=tuple(_trial(number, trials) for number in range(trials)),
        importances=(Importance(parameter="first", share=0.7), Importance(parameter="slope", share=0.3)),
        compared=tuple(_compared(share, labelled, searched=front or not at) for at, share in enumerate(shares)),
        dense_top1=_share() if labelled else None,
        measured=(Measured(schedule="tuned-novelty-merge-65", predicted_ms=1.0, measured_ms=1.1),) if measured else (),
        notes=(f"a worker of {name} was killed by SIGKILL",),
    )


def schedule(share: float, name: str = "tuned") -> PruningSchedule:
    point = Point(method="novelty-merge", first=2)
    found = fitted(point, SMALL, price, share * DENSE, name)
    assert found is not None
    return found


def _compared(share: float, labelled: bool, *, searched: bool) -> BestAtCost:
    tome = default_schedule(0.7, SMALL, method="tome")
    return BestAtCost(
        limit=share * DENSE,
        share=share,
        searched=searched,
        tuned=_score("tuned", schedule(share, f"tuned-novelty-merge-{round(100 * share)}"), 0.01 / share, labelled),
        preset=_score("preset", schedule(share, "preset"), 0.02 / share, labelled),
        tome=_score("ToMe", tome, 0.04 / share, labelled),
        to_preset=Ratio(value=0.5, interval=_interval(0.3, 0.8)),
        to_tome=Ratio(value=0.25, interval=_interval(0.2, 1.1)),
    )


def _score(label: str, one: PruningSchedule, kl: float, labelled: bool) -> Score:
    return Score(
        label=label,
        schedule=one,
        cost=price(one),
        gmacs=price(one),
        tuning_kl=kl,
        kl=Mean(value=kl, interval=_interval(0.8 * kl, 1.3 * kl)),
        agreement=_share(),
        top1=_share() if labelled else None,
        change=Change(gained=1, lost=2, value=-0.01, interval=_interval(-0.05, 0.03)) if labelled else None,
    )


def _trial(number: int, count: int) -> TrialRecord:
    state = "failed" if number % 9 == 5 else "pruned" if number % 3 == 2 else "complete"
    return TrialRecord(
        number=number,
        state=state,
        start=number < 2,
        kl=None if state == "failed" else 0.02 + 0.1 * (count - number) / count,
        images=50,
        cost=0.65 * DENSE,
        lost=0.5,
        seconds=0.2,
        same_as=None,
        parameters={"first": 2, "slope": 0.1},
        schedule=schedule(0.65),
    )


def _data(name: str, labelled: bool) -> DataFacts:
    return DataFacts(
        name=f"photographs of {name}",
        path="photographs",
        rule="listed in labels.json",
        labelled=labelled,
        digest="1" * 64,
        found=100,
        images=100,
        classes=10 if labelled else None,
        ignored=0,
    )


def _share() -> Share:
    return Share(count=90, total=100, interval=_interval(0.8, 0.95))


def _interval(low: float, high: float) -> Interval:
    return Interval(low=low, high=high, confidence=CONFIDENCE)
