"""From answers and labels to the figures of a report. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ztdeploy.target.evaluate.answers import ClassAnswers
from ztdeploy.target.evaluate.eval_report import AgainstDense, Answer, Apart, Change, Mean, Share
from ztdeploy.target.evaluate.statistics import mean_interval, paired_interval, wilson_interval

WORST = 10  #: images that a report names per variant
NameOf = Callable[[int], str]


def share(right: NDArray[np.bool_]) -> Share:
    count, total = int(right.sum()), len(right)
    return Share(count=count, total=total, interval=wilson_interval(count, total))


def hits(best: NDArray[np.int32], accepted: Sequence[frozenset[int]]) -> NDArray[np.bool_]:
    """Whether any of an image's classes `[n, k]` is accepted: `[n]`."""
    return np.array([not right.isdisjoint(row) for row, right in zip(best.tolist(), accepted, strict=True)], np.bool_)


def change(variant: NDArray[np.bool_], dense: NDArray[np.bool_]) -> Change:
    """How the share of right answers `[n]` differs, the images being the same."""
    gained, lost = int((variant & ~dense).sum()), int((dense & ~variant).sum())
    total = len(dense)
    return Change(
        gained=gained, lost=lost, value=(gained - lost) / total, interval=paired_interval(gained, lost, total)
    )


def against_dense(
    answers: ClassAnswers,
    position: int,
    images: Sequence[str],
    accepted: Sequence[frozenset[int]] | None,
    name_of: NameOf,
    seed: int,
) -> AgainstDense:
    """One variant of the answers, all of whose images could be read.

    Args:
        images: their names.
        accepted: what counts as right for each; None where they are not labelled.
        name_of: the name of a class.
    """
    first, kl = answers.best[:, :, 0], answers.kl[position]
    changed = None
    if accepted is not None:
        changed = change(hits(answers.best[position, :, :1], accepted), hits(answers.best[0, :, :1], accepted))

    def answer(variant: int, image: int) -> Answer:
        index = int(first[variant, image])
        return Answer(
            index=index, name=name_of(index), probability=round(float(answers.probability[variant, image]), 6)
        )

    worst = [int(image) for image in np.argsort(-kl, kind="stable")[:WORST] if kl[image] > 0]
    return AgainstDense(
        agreement=share(answers.same[position]),
        kl=Mean(value=float(kl.mean()), interval=mean_interval(kl, seed=seed)),
        change=changed,
        worst=tuple(
            Apart(
                image=images[image],
                kl=float(kl[image]),
                dense=answer(0, image),
                variant=answer(position, image),
                labels=() if accepted is None else tuple(map(name_of, sorted(accepted[image]))),
            )
            for image in worst
        ),
    )
