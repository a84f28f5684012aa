"""The loop around Optuna: the same seed, the same search; nothing lost, nothing double, nothing over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.errors import refused
from optuna.study import Study
from optuna.trial import Trial, TrialState

from ztdeploy.core.errors import EnvironmentLacksError, InputError, ZtdeployError
from ztdeploy.core.model_source import ModelSource
from ztdeploy.jobs.tune.study import check_same, open_study, without_password
from ztdeploy.jobs.tune.trials import DONE, SeededByTrial, make_trials, retry_running
from ztdeploy.report.tune.records import Budget, SamplerName, TuneRequest


def request(sampler: SamplerName = "tpe", **more: Any) -> TuneRequest:
    budget = Budget(kind="gmacs", value=1)
    return TuneRequest(model=ModelSource(name="m"), data=Path("d"), budget=budget, sampler=sampler, **more)


def study_in(folder: Path, sampler: SamplerName = "tpe") -> Study:
    folder.mkdir(exist_ok=True)
    return open_study(f"sqlite:///{folder / 'study.db'}", request(sampler))


def objective(trial: Trial) -> float:
    return float(trial.suggest_float("x", -1, 1) ** 2 + trial.suggest_int("n", 1, 9))


def interrupting(study: Study, after: int) -> Any:
    """An objective that is interrupted when so many trials are finished, in the middle of the next one."""

    def stops(trial: Trial) -> float:
        value = objective(trial)
        if len(drawn(study)) == after:
            raise KeyboardInterrupt
        return value

    return stops


def drawn(study: Study) -> list[dict[str, Any]]:
    return [one.params for one in study.get_trials() if one.state in DONE]


def failed(study: Study) -> list[dict[str, Any]]:
    return [one.params for one in study.get_trials(states=(TrialState.FAIL,))]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_is_the_same_search_interrupted_or_not(sampler: SamplerName, tmp_path: Path) -> None:
    whole, parts = study_in(tmp_path / "whole", sampler), study_in(tmp_path / "parts", sampler)
    make_trials(whole, objective, 26)
    with pytest.raises(KeyboardInterrupt):
        make_trials(parts, interrupting(parts, 19), 26)
    assert len(drawn(parts)) == 19
    again = study_in(tmp_path / "parts", sampler)
    make_trials(again, objective, 26)
    assert drawn(parts) == drawn(whole)
    assert len({str(one) for one in drawn(whole)}) == 26, "none is drawn twice"


def test_the_same_seed_is_the_same_evolution(tmp_path: Path) -> None:
    """Interrupted, it is another one: Optuna counts a generation by the numbers of its trials."""
    studies = [study_in(tmp_path / name, "nsga2") for name in ("one", "other")]
    for study in studies:
        make_trials(study, objective, 26)
    assert drawn(studies[0]) == drawn(studies[1])


def test_two_who_begin_at_once_make_each_start_once(tmp_path: Path) -> None:
    starts = [{"x": at / 10, "n": 1 + at} for at in range(6)]
    there = study_in(tmp_path / "study")
    here = study_in(tmp_path / "study")
    for study in (there, here):
        study.sampler = SeededByTrial("tpe", 0, starts)
    lost = there.ask()
    assert objective(lost) == 1
    with pytest.raises(KeyboardInterrupt):
        make_trials(here, interrupting(here, 3), 9)
    retry_running(here)
    make_trials(here, objective, 9)
    made = drawn(here)
    assert sorted(str(one) for one in made if one in starts) == [str(one) for one in starts]
    assert len({str(one) for one in made}) == 9, "none is drawn twice"


@pytest.mark.parametrize("drew", [True, False])
def test_what_a_dead_worker_was_at_is_made_again(drew: bool, tmp_path: Path) -> None:
    """The same points as without its death: who makes the trial again has its place, drawn or not drawn."""
    whole, study = study_in(tmp_path / "whole", "random"), study_in(tmp_path / "study", "random")
    make_trials(whole, objective, 8)
    make_trials(study, objective, 3)
    lost = study.ask()
    if drew:
        objective(lost)
    make_trials(study, objective, 8, alone=lambda: True)
    assert failed(study) == [lost.params]
    assert sorted(map(str, drawn(study))) == sorted(map(str, drawn(whole))), "the same points, none twice"


def test_a_worker_without_a_heartbeat_has_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Optuna has it, on whatever machine the worker was; nobody waits for it for ever."""
    monkeypatch.setattr("ztdeploy.jobs.tune.study._GRACE_S", 1)
    study = study_in(tmp_path / "study", "random")
    lost = study.ask()
    objective(lost)
    make_trials(study, objective, 3)
    assert failed(study) == [lost.params]
    assert len(drawn(study)) == 3
    assert drawn(study).count(lost.params) == 1


def test_a_trial_too_many_is_not_made(tmp_path: Path) -> None:
    study = study_in(tmp_path / "study")
    make_trials(study, objective, 2)
    others: list[Trial] = []

    def overtaken(_done: int) -> None:
        """Another worker takes the last place right after this one has counted, and is done after this one's try."""
        if not others:
            others.append(study.ask())
        elif failed(study) and len(drawn(study)) == 2:
            study.tell(others[0], 1.0)

    def never(_trial: Trial) -> float:
        raise AssertionError

    make_trials(study, never, 3, told=overtaken)
    assert (len(drawn(study)), len(failed(study))) == (3, 1)


def test_a_study_of_something_else() -> None:
    wanted = {"model": "deit", "seed": 0}
    check_same({"model": "deit", "seed": 0}, wanted, "tune")
    other = {"model": "vit", "seed": 0}
    refused(lambda: check_same(other, wanted, "tune"), "made for other model: 'vit', not 'deit'", kind=InputError)
    refused(lambda: check_same(None, wanted, "tune"), "none of 'ztdeploy tune'", kind=InputError)


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("no url", InputError, "a database's URL"),
        ("carrier-pigeon://coop/3", InputError, "a database's URL"),
        ("sqlite:////nowhere/at/all.db", EnvironmentLacksError, "a database that answers"),
        ("postgresql://me:secret@127.0.0.1:1/tune", EnvironmentLacksError, "expected"),
        ("mysql+nothing://me:secret@127.0.0.1:1/tune", InputError, "a database's URL"),
    ],
)
def test_storages_that_are_none(url: str, error: type[ZtdeployError], words: str) -> None:
    said = refused(lambda: open_study(url, request(storage=url)), words, kind=error)
    assert "secret" not in said


def test_no_password_is_shown(tmp_path: Path) -> None:
    assert without_password("postgresql://me:secret@host/tune") == "postgresql://me:***@host/tune"
    study_in(tmp_path)
    assert optuna.logging.get_verbosity() >= optuna.logging.WARNING
