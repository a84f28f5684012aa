"""The images of a search: one half to choose on, the other half to report on, which no choice ever sees."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ztdeploy.core.errors import ImageError
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.host.confidence import Margin
from ztdeploy.host.models.loading import LoadedModel
from ztdeploy.host.prefix_cache import DensePrefix
from ztdeploy.jobs.tune.request import FEWEST_IMAGES
from ztdeploy.report.tune.records import TuneRequest
from ztdeploy.target.evaluate.data import Decoded, EvalData, data_facts, decode, limited, read_data
from ztdeploy.target.evaluate.eval_report import DataFacts
from ztdeploy.target.runtime.postprocess import divergences
from ztdeploy.target.runtime.preprocess import normalise

#: Images that go through the model at once.
BATCH = 20
#: What the tokens in front of blocks may take; beyond it, fewer blocks are kept.
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Half:
    """Some of the images, decoded."""

    facts: DataFacts
    pixels: NDArray[np.uint8]  #: `[n, H, W, C]`
    accepted: tuple[frozenset[int], ...]  #: classes that count as right; empty sets where there are no labels


@dataclass(frozen=True)
class Answers:
    """What a pruned model and the baseline answer to some images, in a fixed order."""

    kl: NDArray[np.float64]  #: `[n]`, KL(baseline || pruned) in nats
    best: NDArray[np.int64]  #: `[n]`, the pruned model's class
    dense: NDArray[np.int64]  #: `[n]`, the baseline's
    confidence: NDArray[np.float32]  #: `[n]`, of the pruned model in its answer, as a cascade's first stage has it


def read_halves(request: TuneRequest, model: LoadedModel) -> tuple[EvalData, EvalData]:
    """The tuning and the report half: sorted by name, images at even places tune, those at odd ones report.

    Raises:
        ImageError: no images, labels that do not fit the model, or too few for two halves.
    """
    data = read_data(request.data, model.class_names, model.adapter.architecture.num_classes, model.preprocess.channels)
    chosen = limited(data, request.limit, request.seed)
    ordered = sorted(chosen.images, key=chosen.name_of)
    if len(ordered) < 2 * FEWEST_IMAGES:
        raise ImageError(
            f"{len(ordered)} images in '{request.data}'",
            f"at least {2 * FEWEST_IMAGES}: one half to tune on, the other to report on",
            "give more images; 200 and more tell good schedules apart",
        )
    return replace(chosen, images=tuple(ordered[0::2])), replace(chosen, images=tuple(ordered[1::2]))


def decode_half(part: EvalData, model: LoadedModel) -> Half:
    """Read the images; one that cannot be read counts nowhere.

    Raises:
        ImageError: fewer than `FEWEST_IMAGES` can be read.
    """
    images = [decode(one.path, model.preprocess) for one in part.images]
    digests = [image.digest if isinstance(image, Decoded) else b"" for image in images]
    problems = ["" if isinstance(image, Decoded) else image for image in images]
    good = [image.pixels for image in images if isinstance(image, Decoded)]
    if len(good) < FEWEST_IMAGES:
        raise ImageError(f"{len(good)} readable images in a half", f"at least {FEWEST_IMAGES}", "give more images")
    accepted = tuple(one.accepted for one, wrong in zip(part.images, problems, strict=True) if not wrong)
    return Half(data_facts(part, part, digests, problems), np.stack(good), accepted)


class Judge:
    """Compares schedules with the baseline on one half, batch by batch; what all schedules share is computed once.

    Images come in an order of their own, the same for all schedules, so that the first batches stand for all.
    """

    def __init__(self, model: LoadedModel, half: Half, latest: int) -> None:
        """
        Args:
            latest: the last block, from 1, behind which a schedule's first layer may stand.
        """
        architecture = model.adapter.architecture
        order = sorted(range(len(half.pixels)), key=lambda place: hashlib.sha256(str(place).encode()).digest())
        self.accepted = [half.accepted[place] for place in order]
        self.facts, self.labelled = half.facts, half.facts.labelled
        self._confidence = Margin(model.activation)
        self._batches: list[DensePrefix] = []
        kept = _kept_blocks(latest, len(order) * architecture.tokens * architecture.embed_dim * 4)
        for start in range(0, len(order), BATCH):
            images = torch.from_numpy(normalise(half.pixels[order[start : start + BATCH]], model.preprocess))
            self._batches.append(DensePrefix(model.adapter, images, kept))
        self.dense = np.concatenate([batch.dense.numpy().argmax(-1) for batch in self._batches])

    @property
    def images(self) -> int:
        return len(self.accepted)

    def images_in(self, share: float) -> int:
        """About this share of the images, in whole batches."""
        return min(self.images, BATCH * max(1, round(share * len(self._batches))))

    def keep_layers(self, schedule: PruningSchedule, images: int) -> None:
        """Store what a schedule's layers give for the first images, for others that begin with the same layers."""
        for batch in self._batches[: math.ceil(images / BATCH)]:
            batch.keep_layers(schedule)

    def parts(self, schedule: PruningSchedule, images: int | None = None) -> Iterator[Answers]:
        """Batch by batch, of the first images; None: all."""
        for batch in self._batches[: None if images is None else math.ceil(images / BATCH)]:
            dense, given = batch.dense.numpy(), batch.output(schedule)
            output, sure = given.numpy(), self._confidence(given, {}).numpy()
            yield Answers(divergences(dense, output), output.argmax(-1), dense.argmax(-1), sure)

    def all(self, schedule: PruningSchedule) -> Answers:
        return joined(list(self.parts(schedule)))

    def lost(self, best: NDArray[np.int64]) -> float | None:
        """Points of top-1 below the baseline's over the first images, `[m]`; None without labels."""
        if not self.labelled:
            return None
        pairs = zip(best, self.dense, self.accepted, strict=False)
        return 100 * sum((int(dense) in right) - (int(own) in right) for own, dense, right in pairs) / len(best)


def joined(parts: list[Answers]) -> Answers:
    return Answers(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Answers)))


def _kept_blocks(latest: int, each: int) -> list[int]:
    """In front of which blocks, from 0, tokens are kept: all where a first layer may stand, as memory allows.

    A first layer behind block b, from 1, reduces what block b gives, so all in front of block b - 1, from 0, is shared.
    """
    blocks = list(range(1, latest))
    while blocks and len(blocks) * each > _MOST_BYTES:
        blocks = blocks[1::2]
    return blocks
