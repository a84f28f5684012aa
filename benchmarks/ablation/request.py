"""What an ablation is asked for, and what can be wrong with that."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from benchmarks.ablation.topic_names import Topic
from ztdeploy.core.errors import InputError
from ztdeploy.core.keep_ratio import check_keep_ratio
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.records import Record

SAVED = 0.35
Preset = Literal["default", "paper"]


class AblateRequest(Record):
    """What to compare, and on what."""

    model: ModelSource
    data: Path
    limit: int | None = None  #: images, of every class alike; by default all
    seed: int = 0  #: of the limit, the bootstrap and what is dropped at random
    saved: float | None = None  #: share of dense's multiply-adds; by default 0.35
    keep_ratio: float | None = None  #: in place of `saved`: that of the default schedule, whose cost then holds for all
    preset: Preset = "default"  #: where layers stand, see `schedule.PRESETS`
    only: tuple[Topic, ...] = ()  #: by default all


def check_request(request: AblateRequest) -> None:
    """What can be told before PyTorch is imported, which takes seconds.

    Raises:
        InputError: a value that makes no sense.
        ScheduleError: a keep ratio out of range.
    """
    if request.limit is not None and request.limit < 1:
        raise InputError(f"--limit {request.limit}", "at least 1", "give for instance --limit 1000")
    if request.seed < 0:
        raise InputError(f"--seed {request.seed}", "at least 0", "give for instance --seed 1")
    if request.saved is not None and request.keep_ratio is not None:
        raise InputError("--saved as well as --keep-ratio", "one of them: both say what all rows cost", "drop one")
    if request.saved is not None and not 0 < request.saved < 1:
        raise InputError(f"--saved {request.saved:g}", "a share between 0 and 1", "give for instance --saved 0.35")
    if request.keep_ratio is not None:
        check_keep_ratio(request.keep_ratio)
        if request.keep_ratio == 1:
            raise InputError("--keep-ratio 1", "a ratio that prunes", "give for instance --keep-ratio 0.7")
