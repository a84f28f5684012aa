"""What can be told of a request before PyTorch is imported, which takes seconds."""

from __future__ import annotations

import math
from typing import get_args

from ztdeploy.core import arguments
from ztdeploy.core.errors import InputError, did_you_mean
from ztdeploy.core.methods import method_named
from ztdeploy.core.profile import read_profile
from ztdeploy.report.tune.records import TUNABLE, Budget, BudgetKind, TuneRequest
from ztdeploy.target.evaluate.data import check_exists

#: With fewer on either side of the split, a search fits chance.
FEWEST_IMAGES = 8
#: In the tuning half, to learn a count for each block: what a few tokens change is little, and differs among images.
FEWEST_FOR_COUNTS = 64


def parse_budget(text: str) -> Budget:
    """A budget as somebody types it: `gmacs=3.0`, `reduction=0.35`, `latency_ms=30`, `speedup=1.5`.

    Raises:
        InputError: not `name=number`, an unknown name, or a number that no budget can have.
    """
    name, sign, number = (part.strip() for part in text.partition("="))
    if not sign:
        raise InputError(f"--budget '{text}'", "a name and a number, such as reduction=0.35", "correct --budget")
    kinds: tuple[BudgetKind, ...] = get_args(BudgetKind)
    if name not in kinds:
        raise InputError(f"--budget '{text}'", f"one of {', '.join(kinds)}", did_you_mean(name, kinds))
    try:
        value = float(number)
    except ValueError as error:
        raise InputError(f"--budget '{text}'", f"a number behind {name}=", "correct --budget") from error
    low, high = {"reduction": (0.0, 1.0), "speedup": (1.0, math.inf)}.get(name, (0.0, math.inf))
    if not low < value < high:
        between = f"a number above {low:g}" if math.isinf(high) else f"a number between {low:g} and {high:g}"
        raise InputError(f"--budget '{text}'", between, "correct --budget")
    return Budget(kind=name, value=value)


def check_request(request: TuneRequest) -> None:
    """
    Raises:
        InputError: a value that makes no sense.
        ScheduleError: an unknown method.
    """
    from ztdeploy.host.models.sources import check_source

    check_source(request.model)
    check_exists(request.data)
    if request.profile is not None:
        read_profile(request.profile)
    for method in request.methods:
        method_named(method)
        if method not in TUNABLE:
            raise InputError(f"--method {method}", "one that has a search space", did_you_mean(method, TUNABLE))
    arguments.whole_number("--trials", request.trials, arguments.TRIALS)
    arguments.whole_number("--workers", request.workers, arguments.WORKERS)
    arguments.whole_number("--seed", request.seed, arguments.SEED)
    if request.limit is not None and request.limit < 2 * FEWEST_IMAGES:
        fewest = 2 * FEWEST_IMAGES
        raise InputError(f"--limit {request.limit}", f"at least {fewest}: half of them tune", "raise or drop --limit")
    if request.search == "counts":
        _check_counts(request)
    if request.cascade is not None and not 0 < request.cascade < 1:
        raise InputError(f"--cascade {request.cascade:g}", "a share above 0 and below 1", "give for instance 0.98")
    if request.cascade is not None and request.budget is not None:
        raise InputError(
            f"--cascade {request.cascade:g} and --budget {request.budget}",
            "one of them: the mean cost of a cascade is what its search lowers",
            "leave out --budget",
        )
    if request.max_drop is not None and not 0 <= request.max_drop <= 100:
        raise InputError(f"--max-drop {request.max_drop:g}", str(arguments.POINTS), "give for instance 0.5")
    if request.budget is not None and request.budget.in_time and request.profile is None:
        raise InputError(
            f"--budget {request.budget} without --profile", "a profile whose engines are measured", "give --profile cpu"
        )


def _check_counts(request: TuneRequest) -> None:
    """
    Raises:
        InputError: something that only trials of curves have, or no budget.
    """
    if request.budget is None:
        raise InputError(
            "--search counts without --budget", "the cost at which tokens are exchanged", "give --budget reduction=0.35"
        )
    others = {
        "--sampler": request.sampler is not None,
        "--workers": request.workers > 1,
        "--storage": request.storage is not None,
    }
    if given := [name for name, is_given in others.items() if is_given]:
        raise InputError(
            f"{given[0]} with --search counts",
            "one of them: counts are exchanged in one process, without a database",
            f"leave out {given[0]}",
        )
    if request.limit is not None and request.limit < 2 * FEWEST_FOR_COUNTS:
        fewest = 2 * FEWEST_FOR_COUNTS
        raise InputError(
            f"--limit {request.limit} with --search counts",
            f"at least {fewest}: half of them tune",
            "raise or drop --limit",
        )
