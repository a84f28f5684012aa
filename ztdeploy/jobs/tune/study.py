"""The study in its storage: opened or made, and of the same search; what its database says becomes one line."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.pruners import NopPruner, PercentilePruner
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from pydantic import TypeAdapter

from ztdeploy.core.arguments import shown
from ztdeploy.core.errors import EnvironmentLacksError, InputError
from ztdeploy.core.schedule import Architecture
from ztdeploy.jobs.tune import space
from ztdeploy.jobs.tune.cost import DENSE, price_of
from ztdeploy.jobs.tune.search import Search, Subject
from ztdeploy.jobs.tune.trials import START, SeededByTrial, retry
from ztdeploy.jobs.tune.trusted import damage_told
from ztdeploy.report.tune.records import Cost, TuneRequest

FILE = "study.db"
#: Under these names a study says what it is, and by what its trials are priced.
IDENTITY, COST = "ztdeploy", "cost"
_BEAT_S, _GRACE_S = 10, 120
#: A trial goes on only while it is among the better ones so far.
_PERCENTILE = 40.0
#: Database drivers whose packages have another name.
_PACKAGES = {"psycopg": "psycopg[binary]", "MySQLdb": "mysqlclient", "MySQLdb.connections": "mysqlclient"}


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
    place = without_password(url)
    try:
        yield
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise InputError(
            f"--storage {place}", "a database's URL, such as sqlite:///study.db", "correct --storage"
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        first = (str(error.__cause__ or error).splitlines() or ["no answer"])[0]
        raise EnvironmentLacksError(
            f"the storage {place} cannot be used ({first[:120]})", "a database that answers", "check --storage"
        ) from error


def open_study(url: str, request: TuneRequest) -> Study:
    """The study of that name, made where there is none.

    Raises:
        EnvironmentLacksError: the storage cannot be reached, or its driver is not installed.
        InputError: the URL is none, or the study has other objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # Optuna talks about every trial
    # Heartbeats, retries, sampling parameters together, and fixed ones: all of them have been there for years.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    goals = [StudyDirection.MINIMIZE] * (2 if request.front else 1)
    with storage_errors(url), damage_told(request.study):
        study = optuna.create_study(
            storage=_storage(url),
            study_name=request.study,
            load_if_exists=True,
            directions=goals,
            sampler=SeededByTrial(request.sampler_used, request.seed),
            # Optuna prunes by one value only.
            pruner=NopPruner() if len(goals) > 1 else PercentilePruner(_PERCENTILE, n_startup_trials=START),
        )
    if len(study.directions) != len(goals):
        raise InputError(
            f"study '{request.study}' was made for another kind of budget", "the same one", "give another --study"
        )
    return study


def new_study() -> Study:
    """A study in memory, of a search that is made in one go."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study()


def _storage(url: str) -> RDBStorage:
    try:
        return RDBStorage(url, heartbeat_interval=_BEAT_S, grace_period=_GRACE_S, heartbeat_stale_trial_callback=retry)
    except ImportError as error:
        driver = getattr(error.__cause__ or error, "name", None) or "of its driver"  # Optuna's own error names none
        raise EnvironmentLacksError(
            f"--storage {without_password(url)} needs the module '{driver}', which is not installed",
            "the database's driver, or another one in the URL (mysql+pymysql://...)",
            f"pip install '{_PACKAGES.get(driver, driver)}'",
        ) from error


def identity(subject: Subject) -> dict[str, Any]:
    """What makes a study this study: with anything of it changed, its trials say nothing about what is asked for."""
    request, model = subject.request, subject.model
    return {
        "model": model.timm_name,
        "weights": model.weights_sha256,
        "image size": model.preprocess.image_size.plain,
        "images": subject.tuning.facts.digest,
        "budget": None if request.budget is None else str(request.budget),
        "cascade": request.cascade,
        "profile": request.profile if request.budget is not None and request.budget.in_time else None,
        "methods": list(request.methods),
        "sampler": request.sampler_used,
        "seed": request.seed,
        "search space": space.VERSION,
    }


def check_same(found: object, wanted: dict[str, Any], study: str) -> None:
    """
    Args:
        found: what the study says of itself.

    Raises:
        InputError: it is another one.
    """
    if not isinstance(found, dict):
        raise InputError(f"study '{study}' is none of 'ztdeploy tune'", "a study of its own", "give another --study")
    for name, value in wanted.items():
        if found.get(name) != value:
            raise InputError(
                f"study '{study}' was made for other {name}: {shown(found.get(name))}, not {shown(value)}",
                "the study of the same search",
                "give another --study or --out, or ask for what it was made for",
            )


def cost_in(study: Study, architecture: Architecture) -> Cost:
    """By what a study's trials are priced.

    Raises:
        InputError: no cost, or one that prices nothing.
    """
    try:
        cost: Cost = TypeAdapter(Cost).validate_python(study.user_attrs.get(COST))
        dense = price_of(cost, architecture)(DENSE)
        if not (math.isfinite(dense) and dense > 0):
            raise ValueError(f"dense costs {dense:g}")
    except (ValueError, ArithmeticError, LookupError) as error:  # pydantic's ValidationError is a ValueError
        raise InputError(
            f"study '{study.study_name}' does not say what its trials cost",
            "a study that 'ztdeploy tune' wrote",
            "give another --study or --out, or remove it",
        ) from error
    return cost


def search_of(study: Study, subject: Subject) -> Search:
    """What a study's trials are, which all of its workers must know alike; the study begins with the search's starts.

    Raises:
        InputError: see `cost_in`.
    """
    search = Search(subject, cost_in(study, subject.architecture))
    study.sampler = SeededByTrial(subject.request.sampler_used, subject.request.seed, search.starts())
    return search
