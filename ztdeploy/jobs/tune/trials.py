"""The loop in which trials are made: any number of processes on any number of machines may run it on one study.

Optuna hands out trials and keeps them; there is no scheduler here. A process that dies leaves a running trial. Optuna
finds it when no heart beats for it any more, counts it as failed, and puts the same point in line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from ztdeploy.report.tune.records import SamplerName

#: Trials that are drawn at random before a sampler learns from them.
START = 16
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
#: Where Optuna says of a trial which one it makes again, and which ones in between.
RETRIED, RETRIES = "failed_trial", "retry_history"
_SAMPLERS: dict[SamplerName, Callable[..., BaseSampler]] = {
    "tpe": partial(TPESampler, multivariate=True, n_startup_trials=START),
    "random": RandomSampler,
    "nsga2": partial(NSGAIISampler, population_size=20),
}
_STRIDE = 1_000_003  #: a prime, so that no two trials of neighbouring seeds draw alike
_WAIT_S = 0.5


class SeededByTrial(BaseSampler):
    """A sampler that is made anew for every trial, from the trial's place and the seed; the first points are given.

    So the same seed gives the same search, interrupted or not, and workers of one study never draw the same twice.
    Points that are given by place, not put in line, cannot be put in line twice by two who begin at once.

    Args:
        starts: by place, the values of all parameters.
    """

    def __init__(self, name: SamplerName, seed: int, starts: Sequence[Mapping[str, Any]] = ()) -> None:
        self._make, self._seed, self._starts = _SAMPLERS[name], seed, starts
        self._own = self._make(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        assert isinstance(study._storage, BaseHeartbeat)
        study._storage.record_heartbeat(trial._trial_id)  # Optuna's first one comes after the point is drawn
        place = place_of(study, trial)
        self._own = self._make(seed=(self._seed * _STRIDE + place) % 2**32)
        if place < len(self._starts):
            self._own = PartialFixedSampler(dict(self._starts[place]), self._own)
        self._own.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._own.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._own.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._own.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._own.after_trial(study, trial, state, values)


def place_of(study: Study, trial: FrozenTrial) -> int:
    """How many points were drawn before this one; a trial that is made again keeps its place."""
    number = trial.system_attrs.get(RETRIED, trial.number)
    trials = study.get_trials(deepcopy=False)
    return sum(one.number < number and RETRIED not in one.system_attrs for one in trials)


class Surplus(Exception):  # noqa: N818 - not an error: another worker was first
    """The trial is one more than were asked for."""


def make_trials(
    study: Study,
    objective: Callable[[Trial], Any],
    wanted: int,
    *,
    told: Callable[[int], None] = lambda _done: None,
    alone: Callable[[], bool] = lambda: False,
) -> None:
    """Make trials until the study has as many finished ones as are wanted, whoever makes them.

    Args:
        told: is given the number of finished trials before each trial.
        alone: whether nobody else works on the study, so that whoever was at a running trial has died.
    """

    def guarded(trial: Trial) -> Any:
        states = [one.state for one in study.get_trials(deepcopy=False) if one.number < trial.number]
        if sum(state in (*DONE, TrialState.RUNNING) for state in states) >= wanted:
            raise Surplus
        try:
            return objective(trial)
        except KeyboardInterrupt:  # Optuna counts the trial as failed
            retry(study, study.trials[trial.number])
            raise

    while True:
        states = [one.state for one in study.get_trials(deepcopy=False)]
        done = sum(state in DONE for state in states)
        told(done)
        if done >= wanted:
            return
        if done + states.count(TrialState.RUNNING) < wanted:
            study.optimize(guarded, n_trials=1, catch=(Surplus,))
        elif alone():
            retry_running(study)
        else:  # whoever makes the last ones may die of it
            time.sleep(_WAIT_S)
            optuna.storages.fail_stale_trials(study)


def retry(study: Study, trial: FrozenTrial) -> None:
    """Have a trial's point tried again; what it had not drawn yet will be drawn as it would have been."""
    RetryHeartbeatStaleTrialCallback()(study, trial)


def retry_running(study: Study) -> None:
    """Running trials of a study that nobody else works on are those of processes that died."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        retry(study, trial)
