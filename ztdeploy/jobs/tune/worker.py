"""A process that makes trials of a study until it has as many as are wanted.

Run with `python -m ztdeploy.jobs.tune.worker ORDER`.

The study says what the search is; the order says where it is, and how to load what it is about.
"""

from __future__ import annotations

import json
import os
import sys

from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.records import Record, from_json
from ztdeploy.report.tune.request import TuneRequest


class WorkerOrder(Record):
    """What a worker needs to know."""

    request: TuneRequest
    storage: str
    name: str
    threads: int
    parent: int  #: without whom there is nobody to work for


def main() -> int:
    order = from_json(WorkerOrder, sys.stdin.read())
    try:
        _work(order)
    except ZtdeployError as error:
        print(json.dumps({"error": str(error)}))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _work(order: WorkerOrder) -> None:
    import torch

    from ztdeploy.jobs.tune.run import Subject
    from ztdeploy.jobs.tune.study import make_trials, open_study, storage_errors

    torch.set_num_threads(order.threads)
    subject = Subject.load(order.request)
    study = open_study(order.storage, order.request)
    with storage_errors(order.storage):
        search = subject.search_of(study)
        make_trials(
            study,
            search,
            order.request.trials,
            worker=order.name,
            stop=lambda: os.getppid() != order.parent,
        )


if __name__ == "__main__":
    sys.exit(main())
