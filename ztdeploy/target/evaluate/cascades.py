"""How a cascade decided on the images of an evaluation, against what was expected from its calibration. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ztdeploy.target.adaptive.calibrate import mean_gmacs, where_images_end
from ztdeploy.target.adaptive.cascade import unlike_words
from ztdeploy.target.adaptive.guarantee import unlike
from ztdeploy.target.evaluate.answers import ClassAnswers, ImageAnswers, VectorAnswers
from ztdeploy.target.evaluate.engines import Workload
from ztdeploy.target.evaluate.eval_report import CascadeScore, StageReached, WentOn
from ztdeploy.target.evaluate.scoring import share


def cascade_score(work: Workload, answers: ImageAnswers, images: Sequence[str]) -> CascadeScore:
    """
    Args:
        answers: to images that could all be read; the last row is the cascade's.
        images: their names.
    """
    setting, stages = work.setting, work.rows[-1]
    assert setting is not None
    ends, first, guarantee = _ends(work, answers), answers.confidence[:, 0], setting.guarantee
    agreement = share(_agrees(answers, guarantee.min_cosine))
    on = [place for place in np.argsort(first, kind="stable").tolist() if ends[place]]
    alike = not unlike(first, setting.quantiles, guarantee.images)
    return CascadeScore(
        stages=tuple(
            StageReached(variant=variant.name, reached=share(ends >= stage), expected=expected)
            for stage, (variant, expected) in enumerate(zip(stages, setting.shares, strict=True))
        ),
        agreement=agreement,
        bound=guarantee.bound,
        calibrated_on=guarantee.data,
        held=None if work.dense_profile else agreement.value >= guarantee.bound,
        unlike=None if alike else unlike_words(setting, len(on), len(images)),
        worst_gmacs=mean_gmacs(work.bundle, [1.0] * len(stages)),
        went_on=tuple(
            WentOn(image=images[place], confidence=float(first[place]), variant=stages[ends[place]].name)
            for place in on
        ),
    )


def mean_gmacs_of(work: Workload, answers: ImageAnswers) -> float:
    """What the cascade computed per image, in units of 1e9 multiply-adds."""
    ends = _ends(work, answers)
    return mean_gmacs(work.bundle, [float((ends >= stage).mean()) for stage in range(len(work.rows[-1]))])


def _ends(work: Workload, answers: ImageAnswers) -> NDArray[np.intp]:
    """The stage that answered each image, `[n]`."""
    assert work.setting is not None
    return where_images_end(answers.confidence.T, work.setting.thresholds)


def _agrees(answers: ImageAnswers, min_cosine: float | None) -> NDArray[np.bool_]:
    """Whether the cascade agrees with the baseline in the sense of its guarantee, `[n]`."""
    if isinstance(answers, ClassAnswers):
        return np.asarray(answers.same[-1])
    assert isinstance(answers, VectorAnswers)
    assert min_cosine is not None
    return np.asarray(answers.cosine[-1].mean(axis=1) >= min_cosine)
