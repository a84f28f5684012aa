"""The search itself: `tune` is the job on one screen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from optuna.study import Study
from pydantic import TypeAdapter

from ztdeploy.core.cache import cache_folder, installed_versions
from ztdeploy.core.cost import gmacs
from ztdeploy.core.errors import InputError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.progress import Progress, silent
from ztdeploy.core.schedule import Architecture, PruningSchedule
from ztdeploy.host.models.loading import LoadedModel, load_model
from ztdeploy.jobs.tune.folder import tune_folder
from ztdeploy.jobs.tune.identity import check_same, identity
from ztdeploy.jobs.tune.images import Half, Judge, decode_half, read_halves
from ztdeploy.jobs.tune.pool import run_workers
from ztdeploy.jobs.tune.results import Results
from ztdeploy.jobs.tune.sampling import sampler
from ztdeploy.jobs.tune.search import Search, latest_first
from ztdeploy.jobs.tune.space import least_cost
from ztdeploy.jobs.tune.study import (
    COST,
    IDENTITY,
    Counts,
    end_running,
    make_trials,
    open_study,
    storage_errors,
    storage_url,
    without_password,
)
from ztdeploy.jobs.tune.trusted import check_database, check_trials
from ztdeploy.report.tune.budget import FRONT
from ztdeploy.report.tune.cost import Cost, GmacsCost
from ztdeploy.report.tune.records import Compared, Measured, ModelFacts, TuneReport
from ztdeploy.report.tune.request import TuneRequest, check_request
from ztdeploy.target.evaluate.data import EvalData
from ztdeploy.target.measure.machine import Machine, read_machine


def tune(request: TuneRequest, out: Path, *, cache: Path | None = None, progress: Progress = silent) -> TuneReport:
    """Search for the schedule that is nearest to dense under a budget, or go on with a search that was interrupted.

    Args:
        out: a new folder, or that of an earlier search; a study without a storage of its own lies there.
        cache: see `cache.cache_folder`; what a budget in time is measured with is kept there.

    Returns:
        The report; its schedules are written by `folder.write_tuning`.

    Raises:
        AccuracyError: no trial keeps `max_drop`.
        EnvironmentLacksError: the storage cannot be reached, or all workers died.
        ImageError: no images that can be read, too few, or labels that do not fit the model.
        InputError: a value that makes no sense, a budget that nothing can keep, or a study of another search.
        ModelError: an unknown model, one without a classifier, or one that cannot be pruned.
        KeyboardInterrupt: handed on; the study holds all trials that were finished.
    """
    check_request(request)
    progress(f"loading {request.model.name}", 0, 1)
    subject, caches = Subject.load(request), cache_folder(cache)
    with tune_folder(out, own_study=request.storage is None) as begun:
        url = storage_url(request, out)
        with storage_errors(url):
            check_database(url, own=request.storage is None)
        study = open_study(url, request)
        with storage_errors(url):
            search = _begin(study, request, subject, caches, progress)
            check_trials(study, search)
            if request.storage is None:  # the folder is this search's alone: whoever was at them is gone
                end_running(study)
            begun()
            notes = _make_trials(study, search, request, url, progress)
            progress("comparing on the report half", request.trials, request.trials)
            results = Results(request, study, search, Judge(subject.model, subject.reported(), search.latest))
            trials, compared, mattered = results.trials(), results.compared(), results.importances()
        return TuneReport(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            request=request.model_copy(update={"storage": request.storage and without_password(request.storage)}),
            storage=without_password(url) if request.storage else "",
            model=model_facts(subject.model),
            machine=machine_facts(),
            tuning_data=subject.tuning.facts,
            report_data=results.judge.facts,
            dense_cost=search.dense,
            unit=search.cost.unit,
            cost=search.cost,
            trials=trials,
            importances=mattered,
            compared=compared,
            dense_top1=results.dense_top1,
            measured=_measured(request, search, compared, caches, progress),
            notes=notes,
        )


def _begin(study: Study, request: TuneRequest, subject: Subject, cache: Path, progress: Progress) -> Search:
    """What the study searches: written into a new one, read from one that is there.

    Raises:
        InputError: the budget cannot be kept, or the study is of another search.
        ZtdeployError: a budget in time, and nothing can be measured.
    """
    wanted = identity(request, subject.model, subject.tuning.facts)
    if IDENTITY not in study.user_attrs and not study.get_trials(deepcopy=False):
        cost = _cost(request, subject, cache, progress)
        _check_reachable(request, subject.architecture, cost)
        if IDENTITY not in study.user_attrs:  # another machine may have begun while this one measured
            study.set_user_attr(COST, cost.model_dump(mode="json"))
            study.set_user_attr(IDENTITY, wanted)
    check_same(study.user_attrs.get(IDENTITY), wanted, request.study)
    return subject.search_of(study)


@dataclass(frozen=True)
class Subject:
    """What is tuned: a model, and images."""

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
        if not model.adapter.architecture.num_classes:
            raise InputError(
                f"model '{request.model.name}' has no classifier", "a model that names classes", "choose another"
            )
        model.check_classifies()
        tuning, rest = read_halves(request, model)
        return cls(request, model, decode_half(tuning, model), rest)

    @property
    def architecture(self) -> Architecture:
        return self.model.adapter.architecture

    def reported(self) -> Half:
        return decode_half(self.rest, self.model)

    def search_of(self, study: Study) -> Search:
        """What a study's trials are, which every worker of it must know alike; the study begins with its starts."""
        cost, limit = _cost_of(study, self.architecture), None
        dense = dense_cost(cost, self.architecture)
        if self.request.budget is not None:
            limit = self.request.budget.limit(dense)
        latest = _latest(self.request, self.architecture, cost, dense * FRONT[0] if limit is None else limit)
        search = Search(
            judge=Judge(self.model, self.tuning, latest),
            architecture=self.architecture,
            methods=self.request.methods,
            cost=cost,
            dense=dense,
            limit=limit,
            latest=latest,
        )
        study.sampler = sampler(self.request.sampler_used, self.request.seed, search.starts())
        return search


def _cost_of(study: Study, architecture: Architecture) -> Cost:
    """What a study says that its trials are priced by.

    Raises:
        InputError: no cost, or one that prices nothing.
    """
    try:
        cost: Cost = TypeAdapter(Cost).validate_python(study.user_attrs.get(COST))
        dense = dense_cost(cost, architecture)
        if not (math.isfinite(dense) and dense > 0):
            raise ValueError(f"dense costs {dense:g}")
    except (ValueError, ArithmeticError, LookupError) as error:  # pydantic's ValidationError is a ValueError
        raise InputError(
            f"study '{study.study_name}' does not say what its trials cost",
            "a study that 'ztdeploy tune' wrote",
            "give another --study or --out, or remove it",
        ) from error
    return cost


def dense_cost(cost: Cost, architecture: Architecture) -> float:
    return cost.of(default_schedule(1.0, architecture), architecture)


def _latest(request: TuneRequest, architecture: Architecture, cost: Cost, limit: float) -> int:
    def price(schedule: PruningSchedule) -> float:
        return cost.of(schedule, architecture)

    return latest_first(architecture, limit, lambda first: least_cost(request.methods, architecture, price, first))


def _cost(request: TuneRequest, subject: Subject, cache: Path, progress: Progress) -> Cost:
    if request.budget is None or not request.budget.in_time:
        return GmacsCost()
    from ztdeploy.jobs.tune.latency import measured_cost

    return measured_cost(request, subject.model, cache, progress)


def _check_reachable(request: TuneRequest, architecture: Architecture, cost: Cost) -> None:
    """
    Raises:
        InputError: no schedule keeps the budget, or dense does.
    """
    budget = request.budget
    if budget is None:
        return
    dense = dense_cost(cost, architecture)
    limit = budget.limit(dense)
    if limit >= dense:
        raise InputError(
            f"--budget {budget}: the dense model costs {dense:.4g} {cost.unit}, which is within it",
            f"less than {dense:.4g} {cost.unit}",
            "build without pruning, or lower the budget",
        )
    if not _latest(request, architecture, cost, limit):
        least = least_cost(request.methods, architecture, lambda schedule: cost.of(schedule, architecture), first=1)
        raise InputError(
            f"--budget {budget}: {limit:.4g} {cost.unit}",
            f"at least {least:.4g} {cost.unit}, with a single token from block 2 on",
            "raise the budget, or choose a smaller model or --image-size",
        )


def _make_trials(study: Study, search: Search, request: TuneRequest, url: str, progress: Progress) -> tuple[str, ...]:
    def told(found: Counts) -> None:
        best = _best(study)
        text = f"trial {min(found.done + 1, request.trials)} of {request.trials}{best}"
        progress(text, min(found.done, request.trials), request.trials)

    if request.workers > 1:
        return run_workers(study, request, url, told)
    make_trials(study, search, request.trials, worker="alone", told=told)
    return ()


def _best(study: Study) -> str:
    """So far; a search for the front has no best one."""
    if len(study.directions) > 1:
        return f", {len(study.best_trials)} on the front"
    values: list[Any] = [one.value for one in study.get_trials(deepcopy=False) if one.value is not None]
    return f", KL {min(values):.4f} so far" if values else ""


def _measured(
    request: TuneRequest, search: Search, compared: tuple[Compared, ...], cache: Path, progress: Progress
) -> tuple[Measured, ...]:
    if request.budget is None or not request.budget.in_time:
        return ()
    from ztdeploy.jobs.tune.latency import measure_winners

    return measure_winners(request, [one.tuned.schedule for one in compared], search.price, cache, progress)


def model_facts(model: LoadedModel) -> ModelFacts:
    architecture = model.adapter.architecture
    return ModelFacts(
        name=model.name,
        timm_name=model.timm_name,
        weights=model.weights_source,
        origin=model.weights_origin,
        sha256=model.weights_sha256,
        depth=architecture.depth,
        tokens=architecture.tokens,
        dense_gmacs=gmacs(architecture, (architecture.tokens,) * architecture.depth),
    )


def machine_facts() -> Machine:
    machine = read_machine()
    return machine.model_copy(update={"versions": {**machine.versions, **installed_versions("torch", "timm")}})
