"""What is searched, and one trial: a point becomes a schedule that keeps the budget, and is judged."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from ztdeploy.core.cost import front_gmacs
from ztdeploy.core.errors import InputError
from ztdeploy.core.schedule import Architecture, PruningSchedule
from ztdeploy.host.models.loading import LoadedModel, load_model
from ztdeploy.jobs.tune.cost import DENSE, Price, price_of
from ztdeploy.jobs.tune.images import Answers, Half, Judge, decode_half, joined, read_halves
from ztdeploy.jobs.tune.space import (
    Point,
    choose,
    counts_of,
    fitted,
    hints,
    latest_first,
    parameters,
    point_like,
    starts,
)
from ztdeploy.report.tune.records import Cost, TuneRequest
from ztdeploy.target.adaptive.guarantee import most_failures, threshold_for
from ztdeploy.target.evaluate.data import EvalData

#: What a search without a budget covers, as shares of the baseline's cost: the whole front.
FRONT = (0.5, 0.85)
#: After these shares of the images, a trial is compared with the others so far.
RUNGS = (0.2, 0.4, 0.7)
SHARE = "share"  #: the parameter by which a search for the whole front says what a trial may cost
#: What a start costs in such a search.
_START_SHARES = (0.65, 0.8, 0.5)
#: Both for the first stage of a cascade, which is cheaper, for its errors are caught.
_STAGES, _START_STAGES = (0.3, 0.75), (0.5, 0.4, 0.6)
#: What a trial leaves behind, beside its value.
SCHEDULE, KL, LOST, IMAGES, SECONDS, PRICE, AGAIN = "schedule", "kl", "lost", "images", "seconds", "price", "same as"
MEAN = "mean cost"  #: of an image in the cascade of the trial's schedule and the baseline
PRESET = "preset"  #: whether it does what a preset does


@dataclass(frozen=True)
class Subject:
    """What is tuned: a model, on images."""

    request: TuneRequest
    model: LoadedModel
    tuning: Half
    rest: EvalData  #: the report half, not decoded: no worker needs it

    @classmethod
    def load(cls, request: TuneRequest) -> Subject:
        """
        Raises:
            ImageError, InputError, ModelError: see `tune`.
        """
        model = load_model(request.model)
        if not model.adapter.architecture.num_classes and model.output != "maps":  # of maps, the next check tells
            raise InputError(
                f"model '{request.model.name}' has no classifier", "a model that names classes", "choose another"
            )
        model.check_classifies()
        tuning, rest = read_halves(request, model)
        return cls(request, model, decode_half(tuning, model), rest)

    @property
    def architecture(self) -> Architecture:
        return self.model.adapter.architecture


@dataclass(frozen=True)
class Search:
    """What is searched, and what its trials cost."""

    subject: Subject
    cost: Cost

    @property
    def architecture(self) -> Architecture:
        return self.subject.architecture

    @property
    def methods(self) -> tuple[str, ...]:
        return self.subject.request.methods

    @cached_property
    def price(self) -> Price:
        return price_of(self.cost, self.architecture)

    @cached_property
    def dense(self) -> float:
        """The cost of the baseline."""
        return self.price(DENSE)

    @property
    def limit(self) -> float | None:
        """What a trial may cost; None: it chooses its own limit."""
        budget = self.subject.request.budget
        return None if budget is None else budget.limit(self.dense)

    @property
    def shares(self) -> tuple[float, float]:
        """What trials without a budget may cost, as shares of the baseline's cost."""
        return FRONT if self.subject.request.cascade is None else _STAGES

    @cached_property
    def latest(self) -> int:
        """The last block, from 1, behind which a first layer may stand so that the budget can be kept; 0 if none."""
        limit = self.dense * self.shares[0] if self.limit is None else self.limit
        return latest_first(self.methods, self.architecture, self.price, limit)

    @cached_property
    def judge(self) -> Judge:
        """On the tuning half."""
        return Judge(self.subject.model, self.subject.tuning, self.latest)

    def fitted(self, point: Point, limit: float, name: str = "tuned") -> PruningSchedule | None:
        return fitted(point, self.architecture, self.price, limit, name)

    def __call__(self, trial: Trial) -> float | tuple[float, float]:
        """Optuna's objective: the values of `objectives`."""
        point = choose(trial, self.methods, self.architecture.depth, self.latest)
        trial.set_user_attr(PRESET, point in self.presets())
        limit = self.limit
        if limit is None:
            limit = self.dense * trial.suggest_float(SHARE, *self.shares)
        schedule = self.fitted(point, limit)
        if schedule is None:
            raise optuna.TrialPruned
        price = self.price(schedule)
        trial.set_user_attr(SCHEDULE, schedule.model_dump(mode="json", by_alias=True))
        trial.set_user_attr(PRICE, price)
        twin = self._twin(trial.study, trial.number, schedule)
        if twin is None:
            self._judged(trial, schedule)
        else:
            self._copied(trial, twin)
        first, *more = (float(trial.user_attrs[name]) for name in self.objectives)
        return (first, more[0]) if more else first

    @property
    def objectives(self) -> tuple[str, ...]:
        """What is lowered, by the names of attributes of trials: KL from the baseline on the tuning half in nats; for a
        front the cost, and KL; for a cascade its mean cost.
        """
        if self.subject.request.cascade is not None:
            return (MEAN,)
        return (KL,) if self.limit is not None else (PRICE, KL)

    def threshold(self, answers: Answers) -> float:
        """Of the first stage's confidence, so that the answers show the cascade's agreement with 95 % confidence."""
        assert self.subject.request.cascade is not None
        allowed = most_failures(len(answers.best), self.subject.request.cascade)
        return threshold_for(answers.confidence, answers.best == answers.dense, allowed)

    def cascade_cost(self, schedule: PruningSchedule, went_on: float) -> float:
        """Of an image on average, in the cascade of a schedule and the baseline, where a share of images goes on."""
        if not schedule.layers:
            return self.dense
        shared = front_gmacs(self.architecture, min(layer.block for layer in schedule.layers) - 1)
        return self.price(schedule) + went_on * (self.dense - shared)

    def _judged(self, trial: Trial, schedule: PruningSchedule) -> None:
        begun, parts = time.monotonic(), list[Answers]()
        rungs = [int(share * self.judge.images) for share in RUNGS] if self.limit is not None else []
        given_up = False
        for part in self.judge.parts(schedule):
            parts.append(part)
            found = joined(parts)
            seen, kl = len(found.kl), float(found.kl.mean())
            if rungs and rungs[0] <= seen < self.judge.images:
                rungs.pop(0)
                trial.report(kl, seen)
                if given_up := trial.should_prune():
                    break
        if not math.isfinite(kl):
            raise optuna.TrialPruned
        for name, value in {KL: kl, IMAGES: seen, SECONDS: round(time.monotonic() - begun, 3)}.items():
            trial.set_user_attr(name, value)
        if given_up:
            raise optuna.TrialPruned
        trial.set_user_attr(LOST, self.judge.lost(found.best))
        if self.subject.request.cascade is not None:
            went_on = float((found.confidence < self.threshold(found)).mean())
            trial.set_user_attr(MEAN, self.cascade_cost(schedule, went_on))

    def _copied(self, trial: Trial, twin: FrozenTrial) -> None:
        """Two points may mean the same layers, which are judged once."""
        trial.set_user_attr(AGAIN, twin.number)
        for name in (KL, IMAGES, LOST, *((MEAN,) if MEAN in twin.user_attrs else ())):
            trial.set_user_attr(name, twin.user_attrs.get(name))
        trial.set_user_attr(SECONDS, 0.0)
        if twin.state == TrialState.PRUNED:
            raise optuna.TrialPruned

    def _twin(self, study: Study, number: int, schedule: PruningSchedule) -> FrozenTrial | None:
        """An earlier trial of the same schedule that has been judged."""
        wanted = schedule.model_dump(mode="json", by_alias=True)
        for one in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            if one.number != number and one.user_attrs.get(SCHEDULE) == wanted and one.user_attrs.get(KL) is not None:
                return one
        return None

    def point_of(self, trial: FrozenTrial) -> Point:
        """What a trial with a schedule has tried."""
        if self.subject.request.search == "counts":
            tried = PruningSchedule.model_validate(trial.user_attrs[SCHEDULE])
            return point_like(tried, counts_of(tried, self.architecture.depth), self.architecture)
        chosen = {name: one for name, one in trial.params.items() if name != SHARE}
        return choose(optuna.trial.FixedTrial(chosen), self.methods, self.architecture.depth, self.latest)

    def starts(self) -> list[dict[str, Any]]:
        """Parameters of the first trials: what presets do, so that a search never ends below them; then what is likely
        to be better.
        """
        points = [*self.presets(), *hints(self.methods, self.architecture.depth, self.latest)]
        own = [parameters(point, self.methods) for point in points]
        if self.limit is not None:
            return own
        shares = _START_SHARES if self.subject.request.cascade is None else _START_STAGES
        return [{**one, SHARE: share} for share in shares for one in own]

    def presets(self) -> list[Point]:
        return starts(self.methods, self.architecture.depth, self.latest)
