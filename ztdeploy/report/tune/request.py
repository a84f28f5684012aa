"""What a search is asked for, and what can be wrong with that."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, get_args

from ztdeploy.core.errors import InputError, did_you_mean
from ztdeploy.core.methods import method_named
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.records import Record
from ztdeploy.report.tune.budget import Budget

#: `random` is the paper's Monte Carlo search.
SamplerName = Literal["tpe", "random", "nsga2"]
SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
#: Methods that have a search space.
TUNABLE = ("novelty-merge", "zero-tprune-merge", "zero-tprune")
TRIALS = 100
#: With fewer on either side of the split, a search fits chance.
FEWEST_IMAGES = 8
MOST_WORKERS = 64


class TuneRequest(Record):
    """What to search for, and on what."""

    model: ModelSource
    data: Path
    budget: Budget | None = None  #: None: the whole front, cost against fidelity
    profile: str | None = None  #: whose engines a budget in time is measured with
    methods: tuple[str, ...] = (TUNABLE[0],)
    trials: int = TRIALS
    sampler: SamplerName | None = None  #: by default `tpe` with a budget, `nsga2` without
    workers: int = 1
    storage: str | None = None  #: a database's URL; by default a SQLite file in the folder
    study: str = "tune"  #: its name in the storage
    max_drop: float | None = None  #: points of top-1 that the winner may lose on the tuning images
    limit: int | None = None  #: images, of every class alike; by default all
    seed: int = 0

    @property
    def sampler_used(self) -> SamplerName:
        return self.sampler or ("nsga2" if self.budget is None else "tpe")


def check_request(request: TuneRequest) -> None:
    """What can be told before PyTorch is imported, which takes seconds.

    Raises:
        InputError: a value that makes no sense.
        ScheduleError: an unknown method.
    """
    for method in request.methods:
        method_named(method)
        if method not in TUNABLE:
            raise InputError(f"--method {method}", "one that has a search space", did_you_mean(method, TUNABLE))
    if request.trials < 1:
        raise InputError(f"--trials {request.trials}", "at least 1", "give for instance --trials 150")
    if not 1 <= request.workers <= MOST_WORKERS:
        raise InputError(f"--workers {request.workers}", f"1 to {MOST_WORKERS}", "give for instance --workers 2")
    if request.seed < 0:
        raise InputError(f"--seed {request.seed}", "at least 0", "give for instance --seed 1")
    if request.limit is not None and request.limit < 2 * FEWEST_IMAGES:
        fewest = 2 * FEWEST_IMAGES
        raise InputError(f"--limit {request.limit}", f"at least {fewest}: half of them tune", "raise or drop --limit")
    if request.max_drop is not None and not (math.isfinite(request.max_drop) and 0 <= request.max_drop <= 100):
        raise InputError(f"--max-drop {request.max_drop:g}", "points of top-1, 0 to 100", "give for instance 0.5")
    if request.budget is not None and request.budget.in_time and request.profile is None:
        raise InputError(
            f"--budget {request.budget} without --profile", "whose engines shall be that fast", "give --profile cpu"
        )
