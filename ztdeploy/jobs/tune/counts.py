"""The search for counts: tokens are exchanged between blocks at equal cost, until no exchange brings answers nearer.

DiffRate (ICCV 2023, arXiv 2305.17997) learns how many tokens go behind each block by gradients over an epoch of
training. Here unlabelled images and the model as it is are asked: how much KL do a few more tokens add that go behind a
block, over the cost that they save? Where that is dear, fewer go, and where it is cheap, more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from ztdeploy.core.errors import ImageError
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.jobs.tune.images import Answers, joined
from ztdeploy.jobs.tune.request import FEWEST_FOR_COUNTS
from ztdeploy.jobs.tune.search import IMAGES, KL, LOST, PRESET, PRICE, SCHEDULE, SECONDS, Search
from ztdeploy.jobs.tune.space import counts_of, hints, in_every_block, point_like

#: Shares of all patch tokens: how many more go where a block is tried, and what a count changes by at most at first.
_TRIED, _STAKE = 1 / 32, 1 / 24
#: A layer that would take a smaller share of all patch tokens is left out: it would take more time than it saves.
_LEAST_LAYER = 1 / 64
#: What the stake is multiplied by after a step that helped and one that did not, and the lowest stake in tokens.
_BOLDER, _SHYER, _LEAST_STAKE = 1.5, 0.5, 0.7
#: Shares of the images that blocks are tried on; the next one as soon as no exchange helps on the one before.
_SHARES = (1 / 3, 2 / 3, 1.0)
_LEVELS = 201
Counts = NDArray[np.float64]


def check_counts(images: int) -> None:
    """
    Args:
        images: of the tuning half.

    Raises:
        ImageError: so few images in the tuning half that counts would fit chance.
    """
    if images < FEWEST_FOR_COUNTS:
        raise ImageError(
            f"{images} images in the tuning half, to learn counts from",
            f"at least {FEWEST_FOR_COUNTS}, which are {2 * FEWEST_FOR_COUNTS} in all",
            "give more images to --data, which need no labels, or leave out --search counts",
        )


def learn_counts(study: Study, search: Search, told: Callable[[int], None]) -> None:
    """Exchange tokens between blocks, from the best start on, until nothing helps or all trials are made.

    Args:
        study: gets a trial for each schedule that is judged: a complete one on all images of the tuning half, a pruned
            one on some. The best complete one is never worse than the best start.
        told: is given the number of trials before each.
    """
    _Learner(study, search, told).run()


@dataclass
class _Learner:
    study: Study
    search: Search
    told: Callable[[int], None]
    best: PruningSchedule | None = None
    kl: NDArray[np.float64] = field(default_factory=lambda: np.array([np.inf]))  #: of the best, `[n]`

    def run(self) -> None:
        self._begin()
        stake, shares = _STAKE * self.search.architecture.patch_tokens, list(_SHARES)
        while self.best is not None and stake >= _LEAST_STAKE and not self._spent:
            images = self.search.judge.images_in(shares[0])
            if self._improved(stake, images):
                stake *= _BOLDER
            else:
                stake *= _SHYER
                shares = shares[1:] or shares

    @property
    def _spent(self) -> bool:
        return len(self.study.trials) >= self.search.subject.request.trials

    def _begin(self) -> None:
        search = self.search
        assert search.limit is not None
        presets = search.presets()
        within = (search.methods, search.architecture.depth, search.latest)
        for point in [*presets, *hints(*within), *in_every_block(*within)]:
            schedule = search.fitted(point, search.limit)
            if schedule is not None and not self._spent:
                self._take_if_better(schedule, self._judged(schedule, preset=point in presets))

    def _improved(self, stake: float, images: int) -> bool:
        """Whether an exchange of at most `stake` tokens a block helps, at first on some images and then on all."""
        assert self.best is not None
        counts = np.array(counts_of(self.best, self.search.architecture.depth))
        for wanted in exchanges(counts, *self._worth(images), stake):
            schedule = self._at_limit(wanted)
            if self._spent:
                break
            if schedule is None or not schedule.layers or schedule == self.best:
                continue
            some = self._judged(schedule, images)
            if some.kl.mean() < self.kl[: len(some.kl)].mean():
                whole = some if len(some.kl) == self.search.judge.images else self._judged(schedule)
                if self._take_if_better(schedule, whole):
                    return True
        return False

    def _worth(self, images: int) -> tuple[Counts, Counts]:
        """What a few more tokens that go behind each block save, per token in the cost's unit, and the KL that they add
        over what they save, in nats per unit: `[depth - 1]` each. Where they save nothing that is infinite.
        """
        assert self.best is not None
        search, best, patches = self.search, self.best, self.search.architecture.patch_tokens
        counts, more = np.array(counts_of(best, search.architecture.depth)), max(1, round(_TRIED * patches))
        saved, worth = np.zeros_like(counts), np.full_like(counts, np.inf)
        search.judge.keep_layers(best, images)
        for place in range(len(counts)):
            tried = schedule_with(best, counts + more * (np.arange(len(counts)) == place), patches)
            saved[place] = max(0.0, search.price(best) - search.price(tried)) / more
            if saved[place] > 0 and not self._spent:
                added = self._judged(tried, images).kl
                worth[place] = (added - self.kl[: len(added)]).mean() / (saved[place] * more)
        return saved, worth

    def _at_limit(self, counts: Counts) -> PruningSchedule | None:
        assert self.best is not None
        assert self.search.limit is not None
        architecture = self.search.architecture
        worthwhile = np.where(counts < _LEAST_LAYER * architecture.patch_tokens, 0.0, counts)
        return self.search.fitted(point_like(self.best, worthwhile.tolist(), architecture), self.search.limit)

    def _judged(self, schedule: PruningSchedule, images: int | None = None, *, preset: bool = False) -> Answers:
        """Judge a schedule on the first images, by default on all, and note the trial."""
        self.told(len(self.study.trials))
        begun, judge = time.monotonic(), self.search.judge
        found = joined(list(judge.parts(schedule, images)))
        whole = len(found.kl) == judge.images
        kl = float(found.kl.mean())
        said: dict[str, Any] = {
            SCHEDULE: schedule.model_dump(mode="json", by_alias=True),
            PRICE: self.search.price(schedule),
            PRESET: preset,
            IMAGES: len(found.kl),
            SECONDS: round(time.monotonic() - begun, 3),
            **({KL: kl} if math.isfinite(kl) else {}),
            **({LOST: judge.lost(found.best)} if whole else {}),
        }
        state = TrialState.COMPLETE if whole and math.isfinite(kl) else TrialState.PRUNED
        value = kl if state == TrialState.COMPLETE else None
        self.study.add_trial(create_trial(state=state, value=value, user_attrs=said))
        return found

    def _take_if_better(self, schedule: PruningSchedule, found: Answers) -> bool:
        if not found.kl.mean() < self.kl.mean():
            return False
        self.best, self.kl = schedule, found.kl
        return True


def exchanges(counts: Counts, saved: Counts, worth: Counts, stake: float) -> Iterator[Counts]:
    """Ways to exchange tokens at about the same cost, the boldest first: among all blocks; between the two whose tokens
    are worth most and least; without the smallest layer.

    Args:
        counts: tokens that go behind each block, `[n]`.
        saved: what one more saves there.
        worth: the KL that it adds over what it saves.
        stake: by how many tokens a count changes at most.
    """
    known = np.isfinite(worth)
    if not known.any():
        return
    least = 1e-3 * worth[known].max(initial=1e-12)  # tokens that are better gone are worth next to nothing
    logs = np.log(np.where(known, np.maximum(worth, least), np.inf))

    def among_all(level: float) -> Counts:
        return np.maximum(0.0, counts - stake * np.clip(logs - level, -1, 1))

    levels = np.linspace(logs[known].min(), logs[known].max(), _LEVELS)
    yield among_all(min(levels, key=lambda level: abs(float(saved @ (among_all(level) - counts)))))
    taking, giving = int(np.argmin(logs)), int(np.argmax(np.where(counts > 0, logs, -np.inf)))
    moved = min(stake, counts[giving])
    if taking != giving:
        pair = counts.copy()
        pair[giving] -= moved
        pair[taking] += moved * saved[giving] / saved[taking]
        yield pair
    if np.count_nonzero(counts) > 1:
        without = counts.copy()
        without[int(np.argmin(np.where(counts > 0, counts, np.inf)))] = 0
        yield without


def schedule_with(like: PruningSchedule, counts: Counts, patches: int) -> PruningSchedule:
    """A schedule with other counts, rounded so that their sums are; at least one token stays."""
    gone = np.minimum(np.round(np.cumsum(counts)), patches - 1).astype(int)
    drops = np.diff(gone, prepend=0)
    first = like.layers[0]
    layers = (first.model_copy(update={"block": at, "drop": int(drop)}) for at, drop in enumerate(drops, 1) if drop)
    return like.model_copy(update={"layers": tuple(layers)})
