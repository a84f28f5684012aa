"""The search itself: `tune` is the job on one screen."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from optuna.study import Study
from optuna.trial import TrialState

from ztdeploy.core.cache import cache_folder, installed_versions
from ztdeploy.core.cost import plan_gmacs
from ztdeploy.core.errors import ImageError, InputError
from ztdeploy.core.plan import plan
from ztdeploy.core.progress import Progress, parts, silent
from ztdeploy.host.models.loading import LoadedModel
from ztdeploy.jobs.tune.cost import DENSE
from ztdeploy.jobs.tune.counts import check_counts, learn_counts
from ztdeploy.jobs.tune.folder import tune_folder
from ztdeploy.jobs.tune.request import check_request
from ztdeploy.jobs.tune.results import Results
from ztdeploy.jobs.tune.search import KL, Search, Subject
from ztdeploy.jobs.tune.space import least_cost
from ztdeploy.jobs.tune.study import (
    COST,
    IDENTITY,
    check_same,
    identity,
    new_study,
    open_study,
    search_of,
    storage_errors,
    storage_url,
    without_password,
)
from ztdeploy.jobs.tune.trials import retry_running
from ztdeploy.jobs.tune.trusted import check_database, check_trials
from ztdeploy.jobs.tune.workers import make_trials_in_processes
from ztdeploy.report.tune.records import Cost, GmacsCost, Measured, ModelFacts, TuneReport, TuneRequest
from ztdeploy.report.tune.words import conclusion
from ztdeploy.target.adaptive.guarantee import fewest_images, most_failures
from ztdeploy.target.measure.machine import Machine, read_machine

#: About how long building and measuring engines takes; a trial takes about a second.
_MEASURING_S = 60.0


def tune(request: TuneRequest, out: Path, *, cache: Path | None = None, progress: Progress = silent) -> TuneReport:
    """Search for the schedule nearest to the baseline under a budget, or go on with a search that was interrupted.

    Args:
        out: a new folder, or that of an earlier search; a study without a storage of its own lies there.
        cache: see `cache.cache_folder`; what a budget in time is measured with is kept there.

    Returns:
        The report; its schedules are written by `folder.write_tuning`.

    Raises:
        AccuracyError: no trial keeps `max_drop`.
        EnvironmentLacksError: the storage cannot be reached.
        ImageError: no images that can be read, too few, or labels that do not fit the model.
        InputError: a value that makes no sense, a budget that nothing can keep, or a study of another search.
        ModelError: an unknown model, one without a classifier, or one that cannot be pruned.
        KeyboardInterrupt: handed on; the study holds all trials that were finished.
    """
    check_request(request)
    in_time = request.budget is not None and request.budget.in_time
    measuring = _MEASURING_S if in_time else 0.0
    stages = parts(progress, {"load": 6, "cost": measuring, "search": request.trials, "report": 10, "time": measuring})
    stages["load"](f"loading {request.model.name}", 0, 1)
    subject, caches, counts = Subject.load(request), cache_folder(cache), request.search == "counts"
    check_enough(subject)
    url, notes = storage_url(request, out), tuple[str, ...]()
    with tune_folder(out, own_study=request.storage is None and not counts) as begun:
        if not counts:
            with storage_errors(url):
                check_database(url, own=request.storage is None)
        study = new_study() if counts else open_study(url, request)
        with storage_errors(url):
            search = _begin(study, subject, caches, stages["cost"])
            told = _told(study, request, stages["search"])
            if counts:
                learn_counts(study, search, told)
            else:
                check_trials(study, search)
                if request.storage is None:  # the folder is this search's alone: whoever was at them is gone
                    retry_running(study)
                begun()
                notes = make_trials_in_processes(study, search, request, url, told)
            stages["report"]("comparing on the report half", 0, 1)
            results = Results(study, search)
            trials, compared, importances = results.trials(), results.compared(), results.importances()
            cascade = results.cascade()
        measured: tuple[Measured, ...] = ()
        if in_time:
            from ztdeploy.jobs.tune.latency import measure_winners

            schedules = [one.tuned.schedule for one in compared]
            measured = measure_winners(request, schedules, search.price, caches, stages["time"])
        report = TuneReport(
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
            importances=importances,
            compared=compared,
            dense_top1=results.dense_top1,
            cascade=cascade,
            measured=measured,
            notes=notes,
        )
        return report.model_copy(update={"verdict": conclusion(report)})


def check_enough(subject: Subject) -> None:
    """
    Raises:
        ImageError: no cascade can be shown to agree so often on the tuning half, or it is too small to learn counts.
    """
    goal, images = subject.request.cascade, len(subject.tuning.pixels)
    if subject.request.search == "counts":
        check_counts(images)
    if goal is not None and most_failures(images, goal) < 0:
        raise ImageError(
            f"{images} images in the tuning half, for a cascade with an agreement of {goal:g}",
            f"at least {fewest_images(goal)}: fewer cannot show it with 95 % confidence",
            "give more images to --data, which need no labels, or ask for less",
        )


def _begin(study: Study, subject: Subject, cache: Path, progress: Progress) -> Search:
    """What the study searches: written into a new one, read from one that is there.

    Raises:
        InputError: the budget cannot be kept, or the study is of another search.
        ZtdeployError: a budget in time, and nothing can be measured.
    """
    wanted = identity(subject)
    if IDENTITY not in study.user_attrs and not study.get_trials(deepcopy=False):
        cost = _cost(subject, cache, progress)
        _check_reachable(Search(subject, cost))
        if IDENTITY not in study.user_attrs:  # another machine may have begun while this one measured
            study.set_user_attr(COST, cost.model_dump(mode="json"))
            study.set_user_attr(IDENTITY, wanted)
    check_same(study.user_attrs.get(IDENTITY), wanted, study.study_name)
    return search_of(study, subject)


def _cost(subject: Subject, cache: Path, progress: Progress) -> Cost:
    budget = subject.request.budget
    if budget is None or not budget.in_time:
        return GmacsCost()
    from ztdeploy.jobs.tune.latency import measured_cost

    return measured_cost(subject.request, subject.model, cache, progress)


def _check_reachable(search: Search) -> None:
    """
    Raises:
        InputError: no schedule keeps the budget, or the baseline does.
    """
    budget, limit, unit = search.subject.request.budget, search.limit, search.cost.unit
    if limit is None:
        return
    if limit >= search.dense:
        raise InputError(
            f"--budget {budget}: the baseline costs {search.dense:.4g} {unit}, which is within it",
            f"less than {search.dense:.4g} {unit}",
            "build without pruning, or lower the budget",
        )
    if not search.latest:
        least = least_cost(search.methods, search.architecture, search.price, first=1)
        raise InputError(
            f"--budget {budget}: {limit:.4g} {unit}",
            f"at least {least:.4g} {unit}, with a single token from block 2 on",
            "raise the budget, or choose a smaller model or --image-size",
        )


def _told(study: Study, request: TuneRequest, progress: Progress) -> Callable[[int], None]:
    """Tells how many trials are finished, and what is best so far; a search for the front has no best one."""

    def told(done: int) -> None:
        found = [one.user_attrs[KL] for one in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
        best = f", KL {min(found):.4f} so far" if found and request.budget is not None else ""
        if request.front:
            best = f", {len(study.best_trials)} on the front"
        elif request.cascade is not None and found:
            best = f", {study.best_value:.4g} GMACs on average so far"
        progress(f"trial {min(done + 1, request.trials)} of {request.trials}{best}", done, request.trials)

    return told


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
        dense_gmacs=plan_gmacs(architecture, plan(DENSE, architecture)),
    )


def machine_facts() -> Machine:
    machine = read_machine()
    return machine.model_copy(update={"versions": {**machine.versions, **installed_versions("torch", "timm")}})
