"""One trial: a point is chosen, made into a schedule that keeps the budget, and judged until it falls behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from ztdeploy.core.schedule import Architecture, PruningSchedule
from ztdeploy.jobs.tune.images import Judge
from ztdeploy.jobs.tune.space import Point, choose, fitted, hints, parameters, starts
from ztdeploy.report.tune.budget import FRONT
from ztdeploy.report.tune.cost import Cost

#: After these shares of the images, a trial is held against the others so far.
RUNGS = (0.2, 0.4, 0.7)
SHARE = "share"  #: the parameter by which a search for the whole front says what a trial may cost
#: What a start costs in such a search.
_START_SHARES = (0.65, 0.8, 0.5)
#: What a trial leaves behind, beside its value.
SCHEDULE, KL, LOST, IMAGES, SECONDS, PRICE, AGAIN = "schedule", "kl", "lost", "images", "seconds", "price", "same as"
PRESET = "preset"  #: whether it does what a preset does


@dataclass(frozen=True)
class Search:
    """What is searched, and by what it is judged."""

    judge: Judge
    architecture: Architecture
    methods: tuple[str, ...]
    cost: Cost
    dense: float  #: cost of the dense model
    limit: float | None  #: None: a trial chooses its own
    latest: int  #: the last block, from 1, behind which a first layer may stand

    def price(self, schedule: PruningSchedule) -> float:
        return self.cost.of(schedule, self.architecture)

    def fitted(self, point: Point, limit: float, name: str = "tuned") -> PruningSchedule | None:
        return fitted(point, self.architecture, self.price, limit, name)

    def __call__(self, trial: Trial) -> float | tuple[float, float]:
        """Optuna's objective: KL from dense on the tuning half, in nats; without a limit the cost, and KL."""
        point = choose(trial, self.methods, self.architecture.depth, self.latest)
        trial.set_user_attr(PRESET, point in self._presets())
        limit = self.limit
        if limit is None:
            limit = self.dense * trial.suggest_float(SHARE, *FRONT)
        schedule = self.fitted(point, limit)
        if schedule is None:
            raise optuna.TrialPruned
        price = self.price(schedule)
        trial.set_user_attr(SCHEDULE, schedule.model_dump(mode="json", by_alias=True))
        trial.set_user_attr(PRICE, price)
        twin = self._twin(trial.study, trial.number, schedule)
        kl = self._judged(trial, schedule) if twin is None else self._copied(trial, twin)
        return kl if self.limit is not None else (price, kl)

    def _judged(self, trial: Trial, schedule: PruningSchedule) -> float:
        begun, found, best = time.monotonic(), list[np.ndarray[Any, Any]](), list[np.ndarray[Any, Any]]()
        rungs = [int(share * self.judge.images) for share in RUNGS] if self.limit is not None else []
        for part in self.judge.parts(schedule):
            found.append(part.kl)
            best.append(part.best)
            seen = sum(map(len, found))
            if rungs and rungs[0] <= seen < self.judge.images:
                rungs.pop(0)
                so_far = float(np.concatenate(found).mean())
                trial.report(so_far, seen)
                if trial.should_prune():
                    self._note(trial, so_far, seen, time.monotonic() - begun)
                    raise optuna.TrialPruned
        kl = float(np.concatenate(found).mean())
        if not np.isfinite(kl):
            raise optuna.TrialPruned
        self._note(trial, kl, self.judge.images, time.monotonic() - begun)
        trial.set_user_attr(LOST, self.judge.lost(np.concatenate(best)))
        return kl

    def _note(self, trial: Trial, kl: float, seen: int, seconds: float) -> None:
        for name, value in {KL: kl, IMAGES: seen, SECONDS: round(seconds, 3)}.items():
            trial.set_user_attr(name, value)

    def _copied(self, trial: Trial, twin: FrozenTrial) -> float:
        """Two points may mean the same layers: that is told once."""
        trial.set_user_attr(AGAIN, twin.number)
        for name in (KL, IMAGES, LOST):
            trial.set_user_attr(name, twin.user_attrs.get(name))
        trial.set_user_attr(SECONDS, 0.0)
        if twin.state == TrialState.PRUNED:
            raise optuna.TrialPruned
        return float(twin.user_attrs[KL])

    def _twin(self, study: Study, number: int, schedule: PruningSchedule) -> FrozenTrial | None:
        """An earlier trial of the same schedule that has been judged."""
        wanted = schedule.model_dump(mode="json", by_alias=True)
        for one in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            if one.number != number and one.user_attrs.get(SCHEDULE) == wanted and one.user_attrs.get(KL) is not None:
                return one
        return None

    def starts(self) -> list[dict[str, Any]]:
        """Parameters of the first trials: what presets do, so that a search never ends below them; then what is likely
        to be better.
        """
        points = [*self._presets(), *hints(self.methods, self.architecture.depth, self.latest)]
        own = [parameters(point, self.methods) for point in points]
        if self.limit is not None:
            return own
        return [{**one, SHARE: share} for share in _START_SHARES for one in own]

    def _presets(self) -> list[Point]:
        return starts(self.methods, self.architecture.depth, self.latest)


def latest_first(architecture: Architecture, limit: float, cheapest: Callable[[int], float], share: float = 0.6) -> int:
    """The last block, from 1, behind which a first layer may stand so that the limit can still be kept; 0 if none.

    Args:
        cheapest: the least that schedules cost whose first layer stands behind a block.
        share: of the depth, beyond which a search does not look.
    """
    blocks = range(1, max(1, round(share * architecture.depth)) + 1)
    return max((block for block in blocks if cheapest(block) <= limit), default=0)
