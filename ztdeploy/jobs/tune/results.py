"""From the trials of a study to what is reported: the winner, what it is compared with, what mattered."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ztdeploy.core.cost import at_cost, plan_gmacs, share_of_dense
from ztdeploy.core.errors import AccuracyError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.plan import plan
from ztdeploy.core.records import to_json
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.jobs.tune.images import Answers, Judge, decode_half
from ztdeploy.jobs.tune.search import AGAIN, IMAGES, KL, LOST, MEAN, PRESET, PRICE, SCHEDULE, SECONDS, Search
from ztdeploy.jobs.tune.space import Point
from ztdeploy.report.tune.records import (
    BestAtCost,
    CascadeFound,
    Importance,
    Ratio,
    Score,
    State,
    TrialRecord,
    TwoStages,
)
from ztdeploy.target.adaptive.guarantee import lower_bound
from ztdeploy.target.evaluate.eval_report import Mean, Share
from ztdeploy.target.evaluate.scoring import change, hits, share
from ztdeploy.target.evaluate.statistics import RESAMPLES, mean_interval
from ztdeploy.target.measure.statistics import CONFIDENCE, Interval

#: At which other costs the winner's shape is compared with ToMe: shares of the baseline's.
OTHER_SHARES = (0.85, 0.75, 0.65, 0.5)
#: Of a front, at most so many are compared and written.
MOST_WINNERS = 8
_NEAR = 0.02
#: Fewer trials say nothing about what mattered.
_FEWEST_TRIALS = 10
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class Results:
    """Computes on demand; schedules that were judged once are not judged again."""

    def __init__(self, study: Study, search: Search) -> None:
        self.study, self.search, self.request = study, search, search.subject.request
        half = decode_half(search.subject.rest, search.subject.model)
        self.judge = Judge(search.subject.model, half, search.latest)  #: on the report half
        self._complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        self._answers: dict[tuple[str, bool], Answers] = {}
        self._best_start = 0

    def trials(self) -> tuple[TrialRecord, ...]:
        return tuple(_record(one) for one in self.study.get_trials(deepcopy=False) if one.state in _STATES)

    def compared(self) -> tuple[BestAtCost, ...]:
        """The winner first; of a search for the front, its members from the most exact to the cheapest.

        Raises:
            AccuracyError: no trial keeps `max_drop`.
        """
        limit, dense = self.search.limit, self.search.dense
        if self.request.cascade is not None:
            best = self._cheapest(self._allowed())
            return (self._compare(best, best.user_attrs[PRICE], True),)
        if limit is None:
            return tuple(self._compare(one, one.user_attrs[PRICE], True) for one in self._front())
        best = min(self._allowed(), key=lambda one: (one.user_attrs[KL], one.number))
        others = [share for share in OTHER_SHARES if abs(dense * share - limit) > _NEAR * dense]
        return (self._compare(best, limit, True), *(self._compare(best, dense * share, False) for share in others))

    def cascade(self) -> CascadeFound | None:
        """The cheapest cascade that was found, and the cheapest of the presets; None where none was asked for."""
        if self.request.cascade is None:
            return None
        best = self._cheapest(self._allowed())
        presets = [one for one in self._complete if one.user_attrs.get(PRESET)]
        name = self._compare(best, best.user_attrs[PRICE], True).name
        preset = self._cheapest(presets) if presets else best
        return CascadeFound(tuned=self._two_stages(best, name), preset=self._two_stages(preset, "preset"))

    @staticmethod
    def _cheapest(trials: Sequence[FrozenTrial]) -> FrozenTrial:
        return min(trials, key=lambda one: (one.user_attrs[MEAN], one.number))

    def _two_stages(self, trial: FrozenTrial, name: str) -> TwoStages:
        schedule = PruningSchedule.model_validate({**trial.user_attrs[SCHEDULE], "name": name})
        threshold, answers = self.search.threshold(self._of(schedule, tuning=True)), self._of(schedule)
        went_on = answers.confidence < threshold
        agrees = went_on | (answers.best == answers.dense)
        return TwoStages(
            schedule=schedule,
            threshold=threshold,
            went_on=share(went_on),
            agreement=share(agrees),
            bound=lower_bound(int((~agrees).sum()), len(agrees)),
            mean_gmacs=self.search.cascade_cost(schedule, float(went_on.mean())),
            worst_gmacs=self.search.cascade_cost(schedule, 1.0),
        )

    def _allowed(self) -> list[FrozenTrial]:
        most, lost = self.request.max_drop, [one.user_attrs.get(LOST) or 0.0 for one in self._complete]
        allowed = [one for one, points in zip(self._complete, lost, strict=True) if most is None or points <= most]
        if not allowed:
            raise AccuracyError(
                f"the least that a trial loses on the tuning half is {min(lost, default=np.nan):.2f} points of top-1",
                f"at most {most:g} (--max-drop)",
                "raise --max-drop or the budget, or give more --trials",
            )
        return allowed

    def _front(self) -> list[FrozenTrial]:
        """Those that no other is at least as good as in cost and KL, spread evenly if they are many."""
        best: list[FrozenTrial] = []
        for one in sorted(self._allowed(), key=lambda one: (one.user_attrs[PRICE], one.user_attrs[KL])):
            if not best or one.user_attrs[KL] < best[-1].user_attrs[KL]:
                best.append(one)
        places = np.unique(np.linspace(0, len(best) - 1, min(MOST_WINNERS, len(best))).round().astype(int))
        return [best[place] for place in places[::-1]]

    def _compare(self, trial: FrozenTrial, limit: float, searched: bool) -> BestAtCost:
        search, point = self.search, self.search.point_of(trial)
        name = f"tuned-{point.method}-{round(100 * limit / search.dense)}"
        if searched and self.request.search == "counts":
            tuned = PruningSchedule.model_validate({**trial.user_attrs[SCHEDULE], "name": name})
        else:
            tuned = self._at(point, limit, name)
        preset, tome, ours = self._preset(limit, searched=searched), self._tome(tuned), self._of(tuned)
        return BestAtCost(
            limit=limit,
            share=search.price(tuned) / search.dense,
            searched=searched,
            tuned=self._score("tuned", tuned),
            preset=self._score("preset", preset),
            tome=self._score("ToMe", tome),
            to_preset=ratio(ours.kl, self._of(preset).kl),
            to_tome=ratio(ours.kl, self._of(tome).kl),
        )

    def _at(self, point: Point, limit: float, name: str) -> PruningSchedule:
        """A shape at another cost; one that stands too late for it as early as it can."""
        found = self.search.fitted(point, limit, name)
        if found is None:
            found = self.search.fitted(point.model_copy(update={"first": 1, "weights": ()}), limit, name)
        assert found is not None
        return found

    def _preset(self, limit: float, *, searched: bool) -> PruningSchedule:
        """The best of the presets on the tuning half; at costs that were not searched, the one that was best there."""
        fitted = {place: self.search.fitted(one, limit, "preset") for place, one in enumerate(self.search.presets())}
        found = {place: schedule for place, schedule in fitted.items() if schedule is not None}
        if not searched and self._best_start in found:
            return found[self._best_start]
        best = min(found, key=lambda place: self._tuning_kl(found[place]))
        if searched:
            self._best_start = best
        return found[best]

    def _tuning_kl(self, schedule: PruningSchedule) -> float:
        """As a trial has found it, where there was one."""
        known = self._known_kl(schedule)
        return float(self._of(schedule, tuning=True).kl.mean()) if known is None else known

    def _known_kl(self, schedule: PruningSchedule) -> float | None:
        wanted = schedule.model_copy(update={"name": "tuned"}).model_dump(mode="json", by_alias=True)
        return next(
            (float(one.user_attrs[KL]) for one in self._complete if one.user_attrs.get(SCHEDULE) == wanted), None
        )

    def _tome(self, tuned: PruningSchedule) -> PruningSchedule:
        """ToMe with the compute of what was found."""
        architecture = self.search.architecture
        share = share_of_dense(tuned, architecture)
        return at_cost(lambda ratio: default_schedule(ratio, architecture, method="tome"), architecture, share)

    def _of(self, schedule: PruningSchedule, *, tuning: bool = False) -> Answers:
        key = (to_json(schedule.model_copy(update={"name": "x", "keep_ratio": None})), tuning)
        if key not in self._answers:
            self._answers[key] = (self.search.judge if tuning else self.judge).all(schedule)
        return self._answers[key]

    def _score(self, label: str, schedule: PruningSchedule) -> Score:
        answers = self._of(schedule)
        right = self._right(answers.best) if self.judge.labelled else None
        return Score(
            label=label,
            schedule=schedule,
            cost=self.search.price(schedule),
            gmacs=plan_gmacs(self.search.architecture, plan(schedule, self.search.architecture)),
            tuning_kl=self._known_kl(schedule),
            kl=Mean(value=float(answers.kl.mean()), interval=mean_interval(answers.kl, seed=self.request.seed)),
            agreement=share(answers.best == answers.dense),
            top1=None if right is None else share(right),
            change=None if right is None else change(right, self._right_dense),
        )

    def _right(self, best: NDArray[np.int64]) -> NDArray[np.bool_]:
        return hits(best.astype(np.int32)[:, None], self.judge.accepted)

    @cached_property
    def _right_dense(self) -> NDArray[np.bool_]:
        return self._right(self.judge.dense)

    @property
    def dense_top1(self) -> Share | None:
        return share(self._right_dense) if self.judge.labelled else None

    def importances(self) -> tuple[Importance, ...]:
        """How much each parameter decides whether a trial is among the good ones, of all parameters together."""
        if self.request.search == "counts":  # a count of its own for each block says all there is to say
            return ()
        if len(self._complete) < _FEWEST_TRIALS or len({one.user_attrs[KL] for one in self._complete}) < 2:
            return ()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that less is better, which is what is meant
            found = get_param_importances(
                self.study, evaluator=PedAnovaImportanceEvaluator(), target=lambda one: float(one.user_attrs[KL])
            )
        return tuple(Importance(parameter=name, share=float(value)) for name, value in found.items())


def _record(trial: FrozenTrial) -> TrialRecord:
    said = trial.user_attrs
    schedule = said.get(SCHEDULE)
    return TrialRecord(
        number=trial.number,
        state=_STATES[trial.state],
        start=bool(said.get(PRESET)),
        kl=said.get(KL),
        images=said.get(IMAGES) or 0,
        cost=said.get(PRICE),
        lost=said.get(LOST),
        seconds=said.get(SECONDS) or 0.0,
        same_as=said.get(AGAIN),
        parameters=trial.params,
        schedule=None if schedule is None else PruningSchedule.model_validate(schedule),
    )


def ratio(ours: NDArray[np.float64], theirs: NDArray[np.float64], *, seed: int = 0) -> Ratio:
    """The ratio of two means over the same images `[n]`, with a percentile bootstrap that draws them in pairs."""
    drawn = np.random.default_rng(seed).integers(0, len(ours), (RESAMPLES, len(ours)))
    tail = 100 * (1 - CONFIDENCE) / 2
    tiny = np.finfo(np.float64).tiny  # what agrees to the last bit has a ratio all the same
    low, high = np.percentile((ours[drawn].mean(1) + tiny) / (theirs[drawn].mean(1) + tiny), [tail, 100 - tail])
    value = (ours.mean() + tiny) / (theirs.mean() + tiny)
    return Ratio(value=float(value), interval=Interval(low=float(low), high=float(high), confidence=CONFIDENCE))
