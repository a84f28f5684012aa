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
from ztdeploy.jobs.tune.identity import check_same
from ztdeploy.jobs.tune.sampling import SeededByTrial, quiet, sampler
from ztdeploy.jobs.tune.study import DONE, Counts, counts, make_trials, open_study, reap, without_password
from ztdeploy.report.tune.budget import Budget
from ztdeploy.report.tune.request import SamplerName, TuneRequest


def request(sampler: SamplerName = "tpe", **more: Any) -> TuneRequest:
    budget = Budget(kind="gmacs", value=1)
    return TuneRequest(model=ModelSource(name="m"), data=Path("d"), budget=budget, sampler=sampler, **more)


def study_in(folder: Path, sampler: SamplerName = "tpe") -> Study:
    folder.mkdir(exist_ok=True)
    return open_study(f"sqlite:///{folder / 'study.db'}", request(sampler))


def objective(trial: Trial) -> float:
    return float(trial.suggest_float("x", -1, 1) ** 2 + trial.suggest_int("n", 1, 9))


def drawn(study: Study) -> list[dict[str, Any]]:
    return [one.params for one in study.get_trials() if one.state in DONE]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_is_the_same_search_interrupted_or_not(sampler: SamplerName, tmp_path: Path) -> None:
    whole, parts = study_in(tmp_path / "whole", sampler), study_in(tmp_path / "parts", sampler)
    make_trials(whole, objective, 26, worker="one")

    def stops(trial: Trial) -> float:
        value = objective(trial)
        if counts(parts).done == 19:
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        make_trials(parts, stops, 26, worker="one")
    assert counts(parts).done == 19
    make_trials(study_in(tmp_path / "parts", sampler), objective, 26, worker="another")
    assert drawn(parts) == drawn(whole)
    assert len({str(one) for one in drawn(whole)}) == 26, "none is drawn twice"


def test_the_same_seed_is_the_same_evolution(tmp_path: Path) -> None:
    """Interrupted, it is another one: Optuna counts a generation by the numbers of its trials."""
    studies = [study_in(tmp_path / name, "nsga2") for name in ("one", "other")]
    for study in studies:
        make_trials(study, objective, 26, worker="one")
    assert drawn(studies[0]) == drawn(studies[1])


def test_two_who_begin_at_once_make_each_start_once(tmp_path: Path) -> None:
    starts = [{"x": at / 10, "n": 1 + at} for at in range(6)]
    there = study_in(tmp_path / "study")
    here = study_in(tmp_path / "study")
    for study in (there, here):
        study.sampler = sampler("tpe", 0, starts)
    lost = there.ask()
    assert objective(lost) == 1
    make_trials(here, objective, 4, worker="here", stop=lambda: counts(here).done == 3)
    lost.set_user_attr("worker", "there")
    reap(here, "there")
    make_trials(here, objective, 9, worker="here")
    made = drawn(here)
    assert sorted(str(one) for one in made if one in starts) == [str(one) for one in starts]
    assert len({str(one) for one in made}) == 9, "none is drawn twice"


def test_what_a_dead_worker_was_at_is_made_again(tmp_path: Path) -> None:
    study = study_in(tmp_path / "study")
    make_trials(study, objective, 5, worker="first")
    lost = study.ask()
    objective(lost)
    lost.set_user_attr("worker", "dead")
    assert reap(study, "somebody else") == 0
    assert reap(study, "dead") == 1
    assert reap(study, "dead") == 0, "once"
    make_trials(study, objective, 8, worker="second")
    assert counts(study).done == 8
    assert [one.params for one in study.get_trials() if one.state == TrialState.FAIL] == [lost.params]
    assert drawn(study).count(lost.params) == 1


@pytest.mark.parametrize("says_whose", [True, False])
def test_a_worker_that_dies_before_it_draws_leaves_its_place(
    says_whose: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To whoever makes the trial again: others counted the place while it ran, and would draw each other's points.
    One that had not even said whose it is has no heart that beats, and would be waited for for ever."""
    whole = study_in(tmp_path / "whole", "random")
    make_trials(whole, objective, 9, worker="one")
    study = study_in(tmp_path / "study", "random")
    make_trials(study, objective, 3, worker="first")
    assert isinstance(study.sampler, SeededByTrial)
    study.sampler.worker = "dead" if says_whose else None
    lost = study.ask()
    make_trials(study, objective, 6, worker="second", stop=lambda: counts(study).done == 5)
    if says_whose:
        assert reap(study, "dead") == 1
    else:
        monkeypatch.setattr("ztdeploy.jobs.tune.study._GRACE_S", 0)
    make_trials(study, objective, 9, worker="second")
    assert study.get_trials()[lost.number].state == TrialState.FAIL
    assert counts(study) == Counts(done=9, running=0)
    assert sorted(map(str, drawn(study))) == sorted(map(str, drawn(whole))), "the same points, none twice"


def test_a_trial_too_many_is_not_made(tmp_path: Path) -> None:
    study = study_in(tmp_path / "study")
    make_trials(study, objective, 2, worker="one")
    others: list[Trial] = []

    def overtaken(_counts: Counts) -> None:
        """Another worker takes the last place right after this one has counted."""
        if not others:
            others.append(study.ask())

    def never(_trial: Trial) -> float:
        raise AssertionError

    def refused_once() -> bool:
        return any(one.state == TrialState.FAIL for one in study.get_trials())

    make_trials(study, never, 3, worker="two", told=overtaken, stop=refused_once)
    study.tell(others[0], 1.0)
    assert counts(study) == Counts(done=3, running=0)


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


def test_no_password_is_shown() -> None:
    assert without_password("postgresql://me:secret@host/tune") == "postgresql://me:***@host/tune"
    quiet()
    assert optuna.logging.get_verbosity() >= optuna.logging.WARNING
