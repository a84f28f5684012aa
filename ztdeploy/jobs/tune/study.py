"""The study in its storage, and the loop in which trials are made: any number of processes may run it at once.

Optuna hands out trials and keeps them; there is no scheduler here. A process that dies leaves a running trial, which
its parent notices at once and every other worker when it has no heartbeat any more: the trial counts as failed, and the
same point waits for the next worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.pruners import BasePruner, NopPruner, PercentilePruner
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from ztdeploy.core.errors import EnvironmentLacksError, InputError
from ztdeploy.jobs.tune.sampling import AGAIN_OF, START, WORKER, SeededByTrial, place_of, quiet, sampler
from ztdeploy.jobs.tune.trusted import damage_told
from ztdeploy.report.tune.request import TuneRequest

FILE = "study.db"
#: Under these names a study says what it is, and by what its trials are priced.
IDENTITY, COST = "ztdeploy", "cost"
_BEAT_S, _GRACE_S = 10, 120
_WAIT_S = 0.5
#: A trial goes on only while it is among the better ones so far.
_PERCENTILE = 40.0
#: Of database drivers that are called otherwise where they come from.
_PACKAGES = {"psycopg": "psycopg[binary]", "MySQLdb": "mysqlclient", "MySQLdb.connections": "mysqlclient"}
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class Surplus(Exception):  # noqa: N818 - not an error: another worker was first
    """The trial is one more than were asked for."""


def storage_url(request: TuneRequest, folder: Path) -> str:
    return request.storage or f"sqlite:///{(folder / FILE).absolute()}"


def without_password(url: str) -> str:
    """As it may be shown."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return "a URL that cannot be read"


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what a database says into one line.

    Raises:
        EnvironmentLacksError: it cannot be reached.
        InputError: no such kind of database.
    """
    shown = without_password(url)
    try:
        yield
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise InputError(
            f"--storage {shown}", "a database's URL, such as sqlite:///study.db", "correct --storage"
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        first = (str(cause).splitlines() or ["no answer"])[0]
        raise EnvironmentLacksError(
            f"the storage {shown} cannot be used ({first[:120]})", "a database that answers", "check --storage"
        ) from error


def open_study(url: str, request: TuneRequest) -> Study:
    """The study of that name, made where there is none.

    Raises:
        EnvironmentLacksError: the storage cannot be reached, or its driver is not installed.
        InputError: the URL is none, or the study has other objectives.
    """
    quiet()
    with storage_errors(url), damage_told(request.study):
        storage = _storage(url)
        goals = [StudyDirection.MINIMIZE] * (1 if request.budget is not None else 2)
        study = optuna.create_study(
            storage=storage,
            study_name=request.study,
            load_if_exists=True,
            directions=goals,
            sampler=sampler(request.sampler_used, request.seed),
            pruner=_pruner(request),
        )
    if len(study.directions) != len(goals):
        raise InputError(
            f"study '{request.study}' was made for another kind of budget", "the same one", "give another --study"
        )
    return study


def _storage(url: str) -> RDBStorage:
    try:
        return RDBStorage(
            url,
            heartbeat_interval=_BEAT_S,
            grace_period=_GRACE_S,
            heartbeat_stale_trial_callback=put_back,
        )
    except ImportError as error:
        driver = getattr(error.__cause__ or error, "name", None) or "of its driver"  # Optuna's own error names none
        raise EnvironmentLacksError(
            f"--storage {without_password(url)} needs the module '{driver}', which is not installed",
            "the database's driver, or another one in the URL (mysql+pymysql://...)",
            f"pip install '{_PACKAGES.get(driver, driver)}'",
        ) from error


def _pruner(request: TuneRequest) -> BasePruner:
    if request.budget is None:  # Optuna prunes by one value only
        return NopPruner()
    return PercentilePruner(_PERCENTILE, n_startup_trials=START)


@dataclass(frozen=True)
class Counts:
    done: int
    running: int


def counts(study: Study) -> Counts:
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    return Counts(sum(state in DONE for state in states), sum(state == TrialState.RUNNING for state in states))


def make_trials(
    study: Study,
    objective: Callable[[Trial], Any],
    wanted: int,
    *,
    worker: str,
    told: Callable[[Counts], None] = lambda _counts: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Make trials until the study has as many as are wanted, whoever makes them.

    An interruption puts the point that was being tried back in line.

    Args:
        worker: a name of this process, among all that work on the study.
        told: of how many there are, before each trial.
        stop: asked before each trial.
    """

    assert isinstance(study.sampler, SeededByTrial)
    study.sampler.worker = worker

    def guarded(trial: Trial) -> Any:
        if AGAIN_OF not in trial.user_attrs and place_of(study, trial.number) >= wanted:
            raise Surplus
        try:
            return objective(trial)
        except KeyboardInterrupt:
            put_back(study, trial)
            raise

    while not stop():
        found = counts(study)
        told(found)
        if found.done >= wanted:
            return
        if found.done + found.running >= wanted:  # whoever makes the last ones may die of it
            time.sleep(_WAIT_S)
            optuna.storages.fail_stale_trials(study)
            _end(study, _orphans(study))
            continue
        study.optimize(guarded, n_trials=1, catch=(Surplus,))


def put_back(study: Study, trial: Trial | FrozenTrial) -> None:
    """Have the point of a trial that was not finished tried once more; what it had not drawn yet will be, as it would
    have been."""
    study.enqueue_trial(trial.params, user_attrs={AGAIN_OF: trial.user_attrs.get(AGAIN_OF, trial.number)})


def reap(study: Study, worker: str) -> int:
    """What a worker that has died was at: it counts as failed, and its points wait again.

    Returns:
        How many trials that were.
    """
    left = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state == TrialState.RUNNING and trial.user_attrs.get(WORKER) == worker
    ]
    _end(study, left)
    return len(left)


def end_running(study: Study) -> None:
    """Running trials of a study that nobody else works on are those of whoever died: their points wait again."""
    _end(study, [one for one in study.get_trials(deepcopy=False) if one.state == TrialState.RUNNING])


def _orphans(study: Study) -> list[FrozenTrial]:
    """Running trials of workers that died before they had said whose they are: no heart beats for them."""
    now = datetime.now()
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state == TrialState.RUNNING
        and WORKER not in trial.user_attrs
        and trial.datetime_start is not None
        and (now - trial.datetime_start).total_seconds() > _GRACE_S
    ]


def _end(study: Study, trials: Sequence[FrozenTrial]) -> None:
    """Their points wait again, and they count as failed: in this order, for others count places meanwhile."""
    for trial in trials:
        put_back(study, trial)
        study.tell(trial.number, state=TrialState.FAIL)
