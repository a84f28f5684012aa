"""A search goes on with a study that anybody may have changed: each change is refused in one line, and none is run."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.architectures import DEIT_TINY
from helpers.errors import refused
from optuna.study import Study
from optuna.trial import Trial, TrialState

from ztdeploy.core.errors import EnvironmentLacksError, InputError
from ztdeploy.core.model_source import ModelSource
from ztdeploy.jobs.tune.search import KL, PRICE, SCHEDULE
from ztdeploy.jobs.tune.space import choose, schedule_of
from ztdeploy.jobs.tune.study import COST, cost_in, open_study, storage_errors
from ztdeploy.jobs.tune.trials import DONE, make_trials, retry, retry_running
from ztdeploy.jobs.tune.trusted import check_database, check_trials
from ztdeploy.report.tune.records import Budget, GmacsCost, TuneRequest

SEARCH: Any = SimpleNamespace(
    methods=("novelty-merge", "zero-tprune"), architecture=DEIT_TINY, latest=7, limit=1.0, objectives=(KL,)
)
REQUEST = TuneRequest(
    model=ModelSource(name="m"), data=Path("d"), budget=Budget(kind="gmacs", value=1), sampler="random"
)
MADE = 6


def count(study: Study, *states: TrialState) -> int:
    return len(study.get_trials(states=states))


def objective(trial: Trial) -> float:
    point = choose(trial, SEARCH.methods, SEARCH.architecture.depth, SEARCH.latest)
    schedule = schedule_of(point, SEARCH.architecture, 0.3)
    value = abs(point.slope) + 0.1
    for name, one in {KL: value, PRICE: 1.0, SCHEDULE: schedule.model_dump(mode="json", by_alias=True)}.items():
        trial.set_user_attr(name, one)
    trial.report(value, 3)
    return value


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study as a search leaves it that was killed: finished trials, one that ran, one that waits."""
    path = tmp_path_factory.mktemp("whole") / "study.db"
    study = open_study(f"sqlite:///{path}", REQUEST)
    study.set_user_attr(COST, GmacsCost().model_dump(mode="json"))
    make_trials(study, objective, MADE)
    objective(study.ask())
    lost = study.ask()
    lost.suggest_categorical("method", list(SEARCH.methods))
    retry(study, study.tell(lost, state=TrialState.FAIL))
    study.enqueue_trial({"first": 2, "slope": 0.5})  # somebody has an idea of his own
    return path


def looked_at(path: Path) -> Study:
    url = f"sqlite:///{path}"
    with storage_errors(url):
        check_database(url, own=True)
    study = open_study(url, REQUEST)
    with storage_errors(url):
        check_trials(study, SEARCH)
        cost_in(study, DEIT_TINY)
    return study


def test_a_study_as_it_was_left_is_taken(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole, tmp_path / "study.db"))
    study = looked_at(path)
    assert count(study, TrialState.RUNNING) == 1
    retry_running(study)
    assert count(study, TrialState.RUNNING) == 0
    make_trials(study, objective, MADE + 4)
    assert count(looked_at(path), *DONE) == MADE + 4


def attribute(name: str, value: str, of: int = 1) -> str:
    return f"UPDATE trial_user_attributes SET value_json = '{value}' WHERE key = '{name}' AND trial_id = {of}"


def added(name: str, value: str) -> str:
    return f"INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (1, '{name}', '{value}')"


def system(name: str, value: str) -> str:
    return f"UPDATE trial_system_attributes SET value_json = '{value}' WHERE key = '{name}'"


def priced(value: str) -> str:
    return f"UPDATE study_user_attributes SET value_json = '{value}' WHERE key = 'cost'"


def distributed(old: str, new: str) -> str:
    return f"UPDATE trial_params SET distribution_json = replace(distribution_json, '{old}', '{new}')"


def parameter(name: str, value: str) -> str:
    return f"UPDATE trial_params SET param_value = {value} WHERE param_name = '{name}' AND trial_id = 1"


STATEMENTS: dict[str, str] = {
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON trials BEGIN DELETE FROM trials; END",
    "a view without an end": "CREATE VIEW v AS WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x FROM t) SELECT 1",
    "a column that is computed": "CREATE TABLE c (a INTEGER, b TEXT AS (hex(zeroblob(1000000000))))",
    "a value that is computed": "CREATE TABLE c (a TEXT DEFAULT (hex(zeroblob(1000000000))))",
    "a check that is computed": "CREATE TABLE c (a TEXT CHECK (length(hex(zeroblob(1000000000))) > 0))",
    "an index that is computed": "CREATE INDEX i ON trials (hex(state))",
    "an index of a part": "CREATE INDEX i ON trials (state) WHERE state = 'x'",
    "a virtual table": "CREATE VIRTUAL TABLE w USING fts5(a)",
    "a text of a megabyte": "UPDATE trial_user_attributes SET value_json = hex(zeroblob(1000000))",
    "no trials": "DROP TABLE trials",
    "no studies": "DROP TABLE studies",
    "another schema": "UPDATE alembic_version SET version_num = 'v99'",
    "two directions": "INSERT INTO study_directions (direction, study_id, objective) VALUES ('MINIMIZE', 1, 1)",
    "the other direction": "UPDATE study_directions SET direction = 'MAXIMIZE'",
    "no direction": "UPDATE study_directions SET direction = 'sideways'",
    "a price that is text": priced('"free"'),
    "no price": "DELETE FROM study_user_attributes",
    "a price of an unknown kind": priced('{"kind": "time"}'),
    "a price that is no JSON": priced('{'),
    "a number twice": "UPDATE trials SET number = 0",
    "a number far away": "UPDATE trials SET number = 1000000000 WHERE trial_id = 2",
    "a number that is text": "UPDATE trials SET number = 'x' WHERE trial_id = 2",
    "an unknown state": "UPDATE trials SET state = 'happy' WHERE trial_id = 1",
    "a start that is no time": "UPDATE trials SET datetime_start = 'yesterday' WHERE trial_id = 1",
    "a trial that is none's": "UPDATE trials SET study_id = 99 WHERE trial_id = 1",
    "a first layer behind block 10^9": parameter("first", "1e9"),
    "a first layer before the first block": parameter("first", "-3"),
    "a step back from layer to layer": parameter("every", "-1"),
    "a slope of 10^308": parameter("slope", "1e308"),
    "a slope that is infinite": parameter("slope", "9e999"),
    "a slope that is no number": parameter("slope", "NULL"),
    "a bend that is text": parameter("bend", "'x'"),
    "a method that is none": parameter("method", "7"),
    "no method": "DELETE FROM trial_params WHERE param_name = 'method' AND trial_id = 1",
    "an unknown parameter": "UPDATE trial_params SET param_name = 'zzz' WHERE param_name = 'bend' AND trial_id = 1",
    "a distribution that is no JSON": "UPDATE trial_params SET distribution_json = '{' WHERE trial_id = 1",
    "a distribution that is none": distributed("FloatDistribution", "os.system"),
    "a distribution nested deep": f"UPDATE trial_params SET distribution_json = '{'[' * 20000}' WHERE trial_id = 1",
    "a wider distribution": distributed("1.5", "9.5"),
    "other choices": distributed("novelty-merge", "os.system"),
    "a value that is another": "UPDATE trial_values SET value = -1",
    "a value that is no number": "UPDATE trial_values SET value = NULL",
    "a value that is infinite": "UPDATE trial_values SET value_type = 'INF_NEG', value = NULL",
    "a value of an unknown type": "UPDATE trial_values SET value_type = 'pickle'",
    "no value": "DELETE FROM trial_values",
    "a report that is infinite": "UPDATE trial_intermediate_values SET intermediate_value_type = 'INF_POS'",
    "a report that is no number": "UPDATE trial_intermediate_values SET intermediate_value_type = 'NAN'",
    "a report beyond all steps": "UPDATE trial_intermediate_values SET step = 9223372036854775807",
    "many reports": "INSERT INTO trial_intermediate_values"
    " (trial_id, step, intermediate_value, intermediate_value_type)"
    " VALUES (1, 4, 1, 'FINITE'), (1, 5, 1, 'FINITE'), (1, 6, 1, 'FINITE')",
    "a schedule that is text": attribute(SCHEDULE, '"keep all"'),
    "a schedule of another world": attribute(SCHEDULE, '{"name": "x", "layer": [{"block": 1000000000, "drop": 1}]}'),
    "no schedule": "DELETE FROM trial_user_attributes WHERE key = 'schedule'",
    "a KL that is no number": attribute(KL, "NaN"),
    "a KL that is infinite": attribute(KL, "-Infinity"),
    "a KL that is text": attribute(KL, '"0.1"'),
    "a KL that is true": attribute(KL, "true"),
    "another KL": attribute(KL, "0.0"),
    "no KL": "DELETE FROM trial_user_attributes WHERE key = 'kl'",
    "a price of 10^400": attribute(PRICE, "1e400"),
    "a cost that is a list": attribute(PRICE, "[1]"),
    "an attribute that is no JSON": attribute(PRICE, "1 +"),
    "a number of 5,000 digits": attribute(PRICE, "9" * 5000),
    "again, of a list": system("failed_trial", "[{}]"),
    "again, of 10^30": system("failed_trial", "1" + "0" * 30),
    "again and again, of text": system("retry_history", '"often"'),
    "same as a list": added("same as", "[{}]"),
    "images that are fractions": added("images", "0.5"),
    "a point in line that is outside": system("fixed_params", '{"first": 1000000000}'),
    "a point in line that is text": system("fixed_params", '"first"'),
    "a point in line of other names": system("fixed_params", '{"os.system": 1}'),
}  # fmt: skip


#: One of each kind; the others are the long tail.
ONE_OF_EACH_KIND = {
    "a trigger",
    "an index that is computed",
    "a text of a megabyte",
    "no trials",
    "the other direction",
    "a price that is text",
    "a number twice",
    "an unknown state",
    "a first layer behind block 10^9",
    "no method",
    "a distribution nested deep",
    "a value that is another",
    "many reports",
    "a schedule of another world",
    "a KL that is no number",
    "again, of 10^30",
    "a point in line that is outside",
}


@pytest.mark.parametrize(
    "what", [pytest.param(one, marks=() if one in ONE_OF_EACH_KIND else pytest.mark.long) for one in STATEMENTS]
)
def test_a_study_that_somebody_changed_is_refused(whole: Path, tmp_path: Path, what: str) -> None:
    path = Path(shutil.copy(whole, tmp_path / "study.db"))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(STATEMENTS[what])
    before = path.read_bytes()
    with pytest.raises((InputError, EnvironmentLacksError)) as caught:
        looked_at(path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1200
    assert path.read_bytes() == before or "no " in what or "trial that is none's" in what
    assert list(tmp_path.iterdir()) == [path]


def test_a_study_of_rows_without_an_end_is_refused(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole, tmp_path / "study.db"))
    with closing(sqlite3.connect(path)) as database, database:
        rows = "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t WHERE x < 500001)"
        database.execute(f"{rows} INSERT INTO trials (number, study_id, state) SELECT x, 1, 'WAITING' FROM t")
    refused(lambda: looked_at(path), "more than a search writes", kind=InputError)


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE diary (text)")


def _beside(side: str, make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def both(path: Path) -> None:
        _foreign(path)
        make(path.with_name(path.name + side))

    return both


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


FILES: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("my diary\n" * 100),
    "a header alone": lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(84)),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("none"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to another file": lambda path: path.symlink_to("/etc/hostname"),
    "a file of a terabyte": _huge,
    "the database of something else": _foreign,
    "a FIFO as its journal": _beside("-journal", os.mkfifo),
    "a link as its journal": _beside("-journal", lambda path: path.symlink_to("/etc/hostname")),
    "a device as its log": _beside("-wal", lambda path: path.symlink_to("/dev/zero")),
    "a FIFO as its shared memory": _beside("-shm", os.mkfifo),
}


@pytest.mark.parametrize("what", FILES)
def test_what_is_no_study_is_refused_before_it_is_opened(tmp_path: Path, what: str) -> None:
    path = tmp_path / "study.db"
    FILES[what](path)
    there = sorted(tmp_path.iterdir())
    refused(lambda: looked_at(path), "study.db", kind=InputError)
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_study_is_refused(whole: Path, tmp_path: Path, share: float) -> None:
    content = whole.read_bytes()
    (tmp_path / "study.db").write_bytes(content[: int(share * len(content))])
    with pytest.raises((InputError, EnvironmentLacksError)):
        looked_at(tmp_path / "study.db")


def test_a_study_that_somebody_else_keeps_locked_is_not_waited_for(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ztdeploy.jobs.tune.trusted._LOCKED_S", 0.01)
    path = Path(shutil.copy(whole, tmp_path / "study.db"))
    with closing(sqlite3.connect(path)) as database:
        database.execute("BEGIN EXCLUSIVE")
        refused(lambda: looked_at(path), "locked", kind=EnvironmentLacksError)
    looked_at(path)


def test_a_study_given_by_its_url_may_be_a_link(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(whole)
    check_database(f"sqlite:///{tmp_path / 'link.db'}", own=False)
    refused(lambda: check_database(f"sqlite:///{tmp_path / 'link.db'}", own=True), "link", kind=InputError)
    os.mkfifo(tmp_path / "f.db")
    refused(lambda: check_database(f"sqlite:///{tmp_path / 'f.db'}", own=False), "FIFO", kind=InputError)


def test_a_database_of_a_server_is_left_to_it() -> None:
    check_database("mysql+pymysql://user:secret@nowhere/studies", own=False)
    check_database("sqlite://", own=False)
