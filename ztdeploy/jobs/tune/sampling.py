"""Samplers of which a trial's place alone decides what they draw, given the trials before.

So the same seed gives the same search, interrupted or not; and workers of one study never draw the same twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ztdeploy.report.tune.request import SamplerName

#: Trials that are drawn at random before a sampler learns from them.
START = 16
POPULATION = 20
#: User attributes of a trial: who makes it; of a point that is tried once more, the number of the trial that failed.
WORKER, AGAIN_OF = "worker", "again"
_STRIDE = 1_000_003  #: a prime, so that no two trials of neighbouring seeds draw alike


def place_of(study: Study, number: int) -> int:
    """How many trials before this one have a place of their own.

    A point that is tried once more has that of the trial that failed, whenever it is put back: nobody draws in between
    what somebody else has drawn. A trial that failed before it drew anything, and is not tried once more, has none.
    """
    trials = study.get_trials(deepcopy=False)
    again = {one.user_attrs[AGAIN_OF] for one in trials if AGAIN_OF in one.user_attrs}
    return sum(
        one.number < number
        and AGAIN_OF not in one.user_attrs
        and (one.state != TrialState.FAIL or bool(one.params) or one.number in again)
        for one in trials
    )


class SeededByTrial(BaseSampler):
    """Another sampler, made anew for every trial; the first places are given.

    Points that are given by place, not put in line, cannot be put in line twice by two who begin at once.

    Args:
        make: the other sampler, from a seed.
        starts: by place, the values of all parameters.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int, starts: Sequence[Mapping[str, Any]] = ()) -> None:
        self._make, self._seed, self._starts = make, seed, starts
        self._own, self._given = make(seed), dict[str, Any]()
        self.worker: str | None = None  #: who makes the trials

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if self.worker is not None:  # as early as can be: what nobody has made nobody puts back
            study._storage.set_trial_user_attr(trial._trial_id, WORKER, self.worker)
        place = place_of(study, trial.user_attrs.get(AGAIN_OF, trial.number))
        self._given = dict(self._starts[place]) if place < len(self._starts) else {}
        self._own = self._make((self._seed * _STRIDE + place) % 2**32)
        self._own.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {} if self._given else self._own.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._own.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name in self._given:
            return self._given[param_name]
        return self._own.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._own.after_trial(study, trial, state, values)


def sampler(name: SamplerName, seed: int, starts: Sequence[Mapping[str, Any]] = ()) -> SeededByTrial:
    return SeededByTrial(_MAKERS[name], seed, starts)


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, multivariate=True, n_startup_trials=START)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(seed=seed, population_size=POPULATION)


_MAKERS: dict[SamplerName, Callable[[int], BaseSampler]] = {"tpe": _tpe, "random": _random, "nsga2": _nsga2}


def quiet() -> None:
    """Optuna talks about every trial; we say what matters."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Heartbeats, and sampling parameters together: both have been there for years.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
