"""Several workers on one study, each a process; one that dies loses nothing (`study.reap`)."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from optuna.study import Study

from ztdeploy.core.errors import EnvironmentLacksError
from ztdeploy.core.processes import how_it_ended, module_command, module_environment
from ztdeploy.core.records import to_json
from ztdeploy.jobs.tune.study import Counts, counts, reap
from ztdeploy.jobs.tune.worker import WorkerOrder
from ztdeploy.report.tune.request import TuneRequest
from ztdeploy.target.measure.machine import usable_cores

_LOOK_S = 0.3
_END_S = 10.0


@dataclass
class _Worker:
    name: str
    process: subprocess.Popen[str]


def run_workers(study: Study, request: TuneRequest, url: str, told: Callable[[Counts], None]) -> tuple[str, ...]:
    """Have workers make the trials.

    Returns:
        What is worth knowing of those that died, in words.

    Raises:
        EnvironmentLacksError: all of them died before the search was over.
        KeyboardInterrupt: handed on, once all of them have put back what they were at.
    """
    threads = max(1, len(usable_cores()) // request.workers)
    workers = [_start(request, url, threads) for _ in range(request.workers)]
    notes: list[str] = []
    try:
        while workers:
            told(counts(study))
            time.sleep(_LOOK_S)
            for worker in [one for one in workers if one.process.poll() is not None]:
                workers.remove(worker)
                notes += _ended(study, worker)
    except KeyboardInterrupt:
        _end(study, workers)
        raise
    if counts(study).done < request.trials:
        raise EnvironmentLacksError(
            f"all workers ended early ({notes[-1] if notes else 'each by itself'})",
            "one that lives until the search is over",
            "run the same command again: it goes on where this one ended",
        )
    return tuple(notes)


def _start(request: TuneRequest, url: str, threads: int) -> _Worker:
    name = f"{os.uname().nodename}-{os.getpid()}-{uuid4().hex[:8]}"
    order = WorkerOrder(request=request, storage=url, name=name, threads=threads, parent=os.getpid())
    process = subprocess.Popen(
        module_command("ztdeploy.jobs.tune.worker"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**module_environment(), "OMP_NUM_THREADS": str(threads)},
    )
    assert process.stdin is not None
    process.stdin.write(to_json(order))  # not an argument: a URL may hold a password
    process.stdin.close()
    return _Worker(name, process)


def _ended(study: Study, worker: _Worker) -> list[str]:
    code = worker.process.returncode
    if code == 0:
        return []
    assert worker.process.stdout is not None
    said = worker.process.stdout.read().strip()
    left = reap(study, worker.name)
    again = f"; the trial that it was at ({left}) is made again" if left else ""
    return [f"a worker {how_it_ended(code)}{f': {said[:200]}' if said else ''}{again}"]


def _end(study: Study, workers: list[_Worker]) -> None:
    """Ctrl-C has reached them, too, where they share a terminal; they put back what they were at."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        try:
            worker.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        reap(study, worker.name)
