"""The ablation itself: `ablate` is the job on one screen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from benchmarks.ablation.answers import Part, answer, joined
from benchmarks.ablation.report import AblateReport
from benchmarks.ablation.request import SAVED, AblateRequest, check_request
from benchmarks.ablation.scoring import Scorer
from benchmarks.ablation.topics import Row, bases, topics
from ztdeploy.core.cost import share_of_dense
from ztdeploy.core.errors import InputError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.methods import PAPER_METHOD
from ztdeploy.core.schedule import Architecture
from ztdeploy.host.models.loading import LoadedModel, load_model
from ztdeploy.jobs.tune.run import machine_facts, model_facts
from ztdeploy.target.evaluate.data import Decoded, EvalData, data_facts, decode, limited, read_data
from ztdeploy.target.evaluate.eval_report import DataFacts
from ztdeploy.target.evaluate.scoring import hits, share
from ztdeploy.target.runtime.preprocess import normalise

#: Images that go through the model at once.
BATCH = 16
#: What a schedule may be off the cost that was asked for, as a share of dense.
_NEAR = 0.01
Progress = Callable[[str, int, int], None]


def silent(_what: str, _done: int, _total: int) -> None:
    """The progress of an ablation that nobody watches."""


def ablate(request: AblateRequest, progress: Progress = silent) -> AblateReport:
    """Compare the method's options on a model and images, in PyTorch, all at the same multiply-adds.

    Raises:
        ImageError: no images that can be read, or labels that do not fit the model.
        InputError: a value that makes no sense.
        ModelError: an unknown model, one without a classifier, or one that cannot be pruned.
        ParityError: the model gives infinities or NaN.
        ScheduleError: a keep ratio out of range.
    """
    check_request(request)
    progress(f"loading {request.model.name}", 0, 1)
    model = load_model(request.model)
    architecture = model.adapter.architecture
    if not architecture.num_classes:
        raise InputError(
            f"model '{request.model.name}' has no classifier", "a model that names classes", "choose another"
        )
    model.check_classifies()
    data = read_data(request.data, model.class_names, architecture.num_classes, model.preprocess.channels)
    chosen = limited(data, request.limit, request.seed)
    target = _share(request, architecture)
    found = bases(architecture, target, request.preset, request.keep_ratio)
    tables = topics(found, request.only)
    rows = list({row.key: row for table in tables for row in table.rows}.values())
    keep_ratio = found.plain.keep_ratio
    assert keep_ratio is not None
    ranked = any(table.topic == "iterations" for table in tables)
    kept = math.ceil(keep_ratio * architecture.patch_tokens) if ranked else None
    facts, answers, accepted = _Answers(model, rows, chosen, request.seed, kept, progress).all(data)
    scorer = Scorer(architecture, {row.key: place for place, row in enumerate(rows)}, answers, accepted, request.seed)
    return AblateReport(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        request=request,
        model=model_facts(model),
        machine=machine_facts(),
        data=facts,
        share=target,
        keep_ratio=keep_ratio,
        dense_top1=None if accepted is None else share(hits(answers.dense[:, None], accepted)),
        tables=tuple(scorer.table(table) for table in tables),
        convergence=None if kept is None else scorer.convergence(kept),
    )


def _share(request: AblateRequest, architecture: Architecture) -> float:
    """Of dense's multiply-adds that all rows shall have.

    Raises:
        InputError: no schedule saves as much, or as little.
    """
    if request.keep_ratio is not None:
        schedule = default_schedule(request.keep_ratio, architecture, method=PAPER_METHOD, preset=request.preset)
        return share_of_dense(schedule, architecture)
    saved = SAVED if request.saved is None else request.saved
    reached = 1 - share_of_dense(bases(architecture, 1 - saved, request.preset).plain, architecture)
    if abs(reached - saved) > _NEAR:
        raise InputError(
            f"--saved {saved:g}", f"what the default schedule reaches; the nearest is {reached:.2f}", "change --saved"
        )
    return 1 - saved


@dataclass(frozen=True)
class _Answers:
    """All images, a few at a time, through all rows; one that cannot be read counts nowhere."""

    model: LoadedModel
    rows: list[Row]
    chosen: EvalData
    seed: int
    kept: int | None
    progress: Progress

    def all(self, data: EvalData) -> tuple[DataFacts, Part, list[frozenset[int]] | None]:
        """What the images were, what was answered, and what counts as right, of those that can be read."""
        content: list[bytes] = []
        problem: list[str] = []
        parts: list[Part] = []
        for start in range(0, len(self.chosen.images), BATCH):
            images = [decode(one.path, self.model.preprocess) for one in self.chosen.images[start : start + BATCH]]
            content += [one.digest if isinstance(one, Decoded) else b"" for one in images]
            problem += ["" if isinstance(one, Decoded) else one for one in images]
            pixels = [one.pixels for one in images if isinstance(one, Decoded)]
            if pixels:
                parts.append(self._part(np.stack(pixels), start))
        facts = data_facts(data, self.chosen, content, problem)
        good = [one.accepted for one, wrong in zip(self.chosen.images, problem, strict=True) if not wrong]
        return facts, joined(parts), good if data.labelled else None

    def _part(self, pixels: NDArray[np.uint8], start: int) -> Part:
        self.progress(f"pruning in {len(self.rows)} ways", start, len(self.chosen.images))
        return answer(
            self.model.adapter,
            self.rows,
            normalise(pixels, self.model.preprocess),
            first_image=start,
            seed=self.seed,
            kept=self.kept,
        )
