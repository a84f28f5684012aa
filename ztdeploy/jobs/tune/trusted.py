"""Whether a study is what `tune` left there: anybody may have written the file that a search goes on with.

The file is looked at before Optuna opens it, since a database can hold programs (triggers, views, computed columns).
The trials are looked at before any is used, since Optuna takes their values at their word.
"""

from __future__ import annotations

import re
import sqlite3
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from ztdeploy.core.arguments import shown
from ztdeploy.core.errors import EnvironmentLacksError, InputError
from ztdeploy.core.files import reason_of
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.jobs.tune.search import (
    AGAIN,
    IMAGES,
    KL,
    LOST,
    MEAN,
    PRESET,
    PRICE,
    RUNGS,
    SCHEDULE,
    SECONDS,
    SHARE,
    Search,
)
from ztdeploy.jobs.tune.space import choose
from ztdeploy.jobs.tune.trials import RETRIED, RETRIES

#: Bytes of a study, rows of one of its tables, and bytes of one text in it; a thousand trials take four megabytes.
_LARGEST, _MOST_ROWS, _LONGEST = 256 * 2**20, 500_000, 100_000
_LOCKED_S = 5.0
#: Optuna's tables that grow, and what is longest in each.
_TEXTS = {
    "studies": "study_name",
    "trials": "state",
    "trial_params": "distribution_json",
    "trial_intermediate_values": "step",
    "trial_values": "value_type",
    **{f"{of}_{whose}_attributes": "value_json" for of in ("study", "trial") for whose in ("user", "system")},
}
#: What makes a table or an index compute something, once the one check that Optuna's tables have is taken out.
_PROGRAMS = re.compile(r"\b(CHECK|AS|DEFAULT|WHERE|VIRTUAL|SELECT)\b", re.IGNORECASE)
_OWN_CHECK = "CHECK (version_info_id=1)"
_FIX = "give another --study or --out, or remove it"


def check_database(url: str, *, own: bool) -> None:
    """Look at a SQLite file before it is opened; databases of servers are left to whoever runs them.

    Args:
        own: whether it is the study in the search's own folder, which is no link.

    Raises:
        InputError: no regular file, somebody else's database, or one that computes something or is too large.
        EnvironmentLacksError: it cannot be read, or somebody else keeps it locked.
    """
    place = sqlalchemy.make_url(url)
    if place.get_backend_name() != "sqlite" or not place.database or place.database == ":memory:":
        return
    path = Path(place.database) if own else Path(place.database).resolve()
    for side in ("", "-journal", "-wal", "-shm"):  # SQLite reads the others as well
        _check_regular(path.with_name(path.name + side))
    try:
        if not path.exists() or not path.stat().st_size:
            return
        if path.stat().st_size > _LARGEST:
            raise _strange(path, f"has more than {_LARGEST:,} bytes")
        with closing(sqlite3.connect(path, timeout=_LOCKED_S)) as database:
            _check_content(database, path)
    except (sqlite3.OperationalError, OSError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise EnvironmentLacksError(
            f"the storage {path} cannot be used ({reason})", "a database that answers", "check --storage and --out"
        ) from error
    except sqlite3.DatabaseError as error:
        raise _strange(path, f"cannot be read ({error})") from error


def _check_regular(path: Path) -> None:
    try:
        regular = stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):  # nothing there, or what opening it will say
        return
    if not regular:
        raise _strange(path, "is a link, a folder, a device or a FIFO")


def _check_content(database: sqlite3.Connection, path: Path) -> None:
    database.text_factory = bytes  # it may be no text
    tables = set[str]()
    for kind, name, statement in database.execute("SELECT type, name, sql FROM sqlite_master"):
        said = (statement or b"").decode(errors="replace").replace(_OWN_CHECK, "")
        expression = kind == b"index" and said.count("(") > 1
        if kind not in (b"table", b"index") or _PROGRAMS.search(said) or expression:
            raise _strange(path, f"holds a program ({shown(name.decode(errors='replace'))})")
        if kind == b"table":
            tables.add(name.decode(errors="replace"))
    if tables and not tables >= _TEXTS.keys():
        raise _strange(path, "is the database of something else")
    for table in tables & _TEXTS.keys():
        query = f"SELECT count(*), max(length({_TEXTS[table]})) FROM {table}"  # noqa: S608 - names of ours
        ((rows, longest),) = database.execute(query)
        if rows > _MOST_ROWS or (longest or 0) > _LONGEST:
            raise _strange(path, f"holds more than a search writes (table {table})")
    twice = "SELECT number FROM trials GROUP BY study_id, number HAVING count(*) > 1"
    if tables and database.execute(twice).fetchone() is not None:
        raise _strange(path, "holds two trials of one number")


def check_trials(study: Study, search: Search) -> None:
    """Look at every trial of a study before one is used.

    Raises:
        InputError: a trial, or the study, that no such search makes.
    """
    wanted = [StudyDirection.MINIMIZE] * len(search.objectives)
    with damage_told(study.study_name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns of values out of range, which are refused here
        _check(study.directions == wanted, "its directions")
        for number, trial in enumerate(study.get_trials(deepcopy=False)):
            with damage_told(study.study_name, f"trial {number}"):
                _check_trial(number, trial, search)


@contextmanager
def damage_told(study: str, place: str = "the database") -> Iterator[None]:
    """Turn what Optuna, SQLAlchemy or a check of ours raises about strange values into one line.

    Raises:
        InputError: instead.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RuntimeError) as error:
        raise InputError(
            f"study '{study}' was changed by something else than 'ztdeploy tune' ({place}: {shown(error)})",
            "the trials of this search",
            _FIX,
        ) from error


def _check_trial(number: int, trial: FrozenTrial, search: Search) -> None:
    """
    Raises:
        ValueError, ...: whatever looking at it raises.
    """
    said = trial.user_attrs
    _check(trial.number == number, "its number")
    _check_attributes(said)
    _check(_whole(trial.system_attrs.get(RETRIED), *trial.system_attrs.get(RETRIES, [])), "its retries")
    _check(len(trial.intermediate_values) <= len(RUNGS), "its reports")
    _check(_finite(*trial.intermediate_values, *trial.intermediate_values.values()), "its reports")
    complete = trial.state == TrialState.COMPLETE
    _check_point(trial.system_attrs.get("fixed_params", {}), search, whole=False)  # of a point that was put in line
    asked = _check_point(trial.params, search, whole=complete)
    _check(all(asked[name] == one for name, one in trial.distributions.items()), "its distributions")
    if complete:
        _check(trial.values == [said[name] for name in search.objectives] and SCHEDULE in said, "its values")


def _check_point(given: Any, search: Search, *, whole: bool) -> dict[str, BaseDistribution]:
    _check(isinstance(given, Mapping), "its parameters")
    asked = _Asked(given, whole=whole)
    choose(asked, search.methods, search.architecture.depth, search.latest)
    if search.limit is None:
        asked.suggest_float(SHARE, *search.shares)
    _check(given.keys() <= asked.distributions.keys(), "its parameters")
    return asked.distributions


class _Asked(FixedTrial):
    """Answers a search's questions with the values of a trial, each of which must be one that it could have drawn.

    Args:
        whole: whether all of them must be there; else the first possible value stands for one that is not.
    """

    def __init__(self, given: Mapping[str, Any], *, whole: bool) -> None:
        super().__init__(dict(given))
        self._given, self._whole = given, whole

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._given:
            value = self._given[name]
            if isinstance(distribution, CategoricalDistribution):
                _check(any(type(value) is type(one) and value == one for one in distribution.choices), name)
            else:
                _check(_finite(value) and distribution._contains(value), name)
        else:
            _check(not self._whole, name)
            is_choice = isinstance(distribution, CategoricalDistribution)
            self._params[name] = distribution.choices[0] if is_choice else distribution.low  # type: ignore[attr-defined]
        return super()._suggest(name, distribution)


def _check_attributes(said: Mapping[str, Any]) -> None:
    figures = {name: said.get(name) for name in (KL, PRICE, LOST, MEAN, SECONDS, IMAGES, AGAIN)}
    _check(_finite(*(one for one in figures.values() if one is not None)), "its figures")
    _check(_whole(figures[IMAGES], figures[AGAIN]), "its figures")
    _check(isinstance(said.get(PRESET, False), bool), "its figures")
    if SCHEDULE in said:
        PruningSchedule.model_validate(said[SCHEDULE])


def _finite(*values: object) -> bool:
    return all(isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 1e18 for one in values)


def _whole(*values: object) -> bool:
    return all(one is None or (type(one) is int and abs(one) < 2**31) for one in values)


def _check(right: bool, what: str) -> None:
    if not right:
        raise ValueError(what)


def _strange(path: Path, found: str) -> InputError:
    return InputError(f"study file '{path}' {found}", "a study that 'ztdeploy tune' wrote", _FIX)
