"""Several processes that make trials of one study, this one among them."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.processes import end_with_parent, how_it_ended
from ztdeploy.report.tune.records import TuneRequest
from ztdeploy.target.measure.machine import usable_cores

if TYPE_CHECKING:  # a worker ignores Ctrl-C before it imports what takes seconds
    from optuna.study import Study

    from ztdeploy.jobs.tune.search import Search

_END_S = 10.0


def make_trials_in_processes(
    study: Study, search: Search, request: TuneRequest, url: str, told: Callable[[int], None]
) -> tuple[str, ...]:
    """Make trials in this process and in as many others as make up the workers that are asked for.

    Args:
        url: where the study is.
        told: see `make_trials`.

    Returns:
        A sentence for each process that died.
    """
    import torch

    from ztdeploy.jobs.tune.trials import make_trials

    threads = torch.get_num_threads()
    share = min(threads, max(1, len(usable_cores()) // request.workers))
    order = request.model_copy(update={"storage": url})
    process = multiprocessing.get_context("spawn").Process
    others = [process(target=_work, args=(order, share), daemon=True) for _ in range(request.workers - 1)]

    def alone() -> bool:
        """A study in the search's own folder belongs to this command and its workers."""
        return request.storage is None and not any(one.is_alive() for one in others)

    try:
        for one in others:
            one.start()
        torch.set_num_threads(share)
        make_trials(study, search, request.trials, told=told, alone=alone)
        for one in others:
            one.join(_END_S)
        died = [how_it_ended(one.exitcode) for one in others if one.exitcode]
        return tuple(f"a worker {how}; the trial that it was at is made again" for how in died)
    finally:
        torch.set_num_threads(threads)
        for one in others:
            if one.pid is not None:
                one.terminate()
                one.join()


def _work(request: TuneRequest, threads: int) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which ends its workers
    import torch

    from ztdeploy.jobs.tune.search import Subject
    from ztdeploy.jobs.tune.study import open_study, search_of, storage_errors
    from ztdeploy.jobs.tune.trials import make_trials

    torch.set_num_threads(threads)
    assert request.storage is not None
    try:
        subject = Subject.load(request)
        study = open_study(request.storage, request)
        with storage_errors(request.storage):
            make_trials(study, search_of(study, subject), request.trials)
    except ZtdeployError as error:
        sys.exit(str(error))
