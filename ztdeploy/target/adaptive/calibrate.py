"""Choose the thresholds of a cascade on images that need no labels, with a bound on its agreement with the baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.cascade import ALL_GO_ON, CascadeGoal, CascadeSetting, Guarantee, percent_below
from ztdeploy.core.cost import front_gmacs
from ztdeploy.core.errors import AccuracyError, BundleError, ImageError
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.manifest import CascadeFidelity
from ztdeploy.core.progress import Progress
from ztdeploy.target.adaptive.cascade import Stages
from ztdeploy.target.adaptive.guarantee import (
    fewest_images,
    lower_bound,
    most_failures,
    quantiles,
    threshold_for,
)
from ztdeploy.target.adaptive.pieces import engine_opener, graph_opener
from ztdeploy.target.backends import why_not_run
from ztdeploy.target.evaluate.data import Decoded, EvalData, data_facts, decode
from ztdeploy.target.measure.turns import milliseconds
from ztdeploy.target.runtime.parity import golden_pixels
from ztdeploy.target.runtime.postprocess import cosines, same_answers

#: Images that are decoded before the stages run on them.
CHUNK = 16
#: Calls that time a stage, and that warm it up before.
_CALLS, _WARM_UP = 15, 3
_ROUNDING = 1e-6


@dataclass(frozen=True)
class StageAnswers:
    """Every stage on every calibration image."""

    agrees: NDArray[np.bool_]  #: `[S, n]`: whether a stage agrees with the baseline, which the last one is
    confidence: NDArray[np.float32]  #: `[S - 1, n]`


def calibrate(bundle: Bundle, profile: str, data: EvalData, goal: CascadeGoal, progress: Progress) -> CascadeSetting:
    """Run all stages on the images and choose thresholds.

    Raises:
        AccuracyError: no thresholds reach the goal at less than the baseline's cost.
        ImageError: too few images for the agreement that is asked for.
    """
    by_engines = why_not_run(bundle.manifest.profiles[profile]) is None
    threads = usable_threads(bundle.manifest.profiles[profile].threads)
    opened = (engine_opener if by_engines else graph_opener)(bundle, profile, threads)
    stages = Stages(bundle, profile, opened)
    try:
        measured, guarantee_data = _measure(bundle, stages, data, goal, progress)
        stage_ms = _time(bundle, stages) if by_engines else None
    finally:
        stages.close()
    thresholds = choose(measured, goal)
    ends = where_images_end(measured.confidence, thresholds)
    failures = int((~measured.agrees[ends, np.arange(len(ends))]).sum())
    shares = tuple(float((ends >= stage).mean()) for stage in range(len(measured.agrees)))
    setting = CascadeSetting(
        thresholds=thresholds,
        shares=shares,
        guarantee=Guarantee(
            **guarantee_data,
            images=len(ends),
            asked=goal.agreement,
            failures=failures,
            bound=reported_bound(failures, len(ends), goal),
            min_cosine=None if bundle.manifest.model.gives == "logits" else goal.min_cosine,
            by="engines" if by_engines else "graphs",
        ),
        quantiles=quantiles(measured.confidence[0]),
        gmacs=mean_gmacs(bundle, shares),
        stage_ms=stage_ms,
    )
    _check_pays(bundle, setting, goal, measured)
    return setting


def _measure(
    bundle: Bundle, stages: Stages, data: EvalData, goal: CascadeGoal, progress: Progress
) -> tuple[StageAnswers, dict[str, str]]:
    cascade, preprocess = bundle.manifest.cascade, bundle.manifest.preprocess
    assert cascade is not None
    digests, problems = list[bytes](), list[str]()
    agrees, confidence = list[NDArray[np.bool_]](), list[NDArray[np.float32]]()
    for start in range(0, len(data.images), CHUNK):
        progress("calibrating the cascade", start, len(data.images))
        images = [decode(one.path, preprocess) for one in data.images[start : start + CHUNK]]
        digests += [image.digest if isinstance(image, Decoded) else b"" for image in images]
        problems += ["" if isinstance(image, Decoded) else image for image in images]
        good = [image.pixels for image in images if isinstance(image, Decoded)]
        if good:
            outputs, sure = stages.run_all(np.stack(good), [f"image {at}" for at in range(len(good))])
            agrees.append(np.stack([_agree(bundle, outputs[-1], own, goal) for own in outputs]))
            confidence.append(sure)
    if not agrees:
        raise ImageError(f"no image of '{data.path}' can be read", "images to calibrate the cascade on", problems[0])
    facts = data_facts(data, data, digests, problems)
    found = StageAnswers(np.concatenate(agrees, axis=1), np.concatenate(confidence, axis=1))
    return found, {"data": facts.name, "data_sha256": facts.digest}


def _agree(
    bundle: Bundle, dense: NDArray[np.float32], own: NDArray[np.float32], goal: CascadeGoal
) -> NDArray[np.bool_]:
    """Whether outputs agree with the baseline's, `[n]`."""
    model = bundle.manifest.model
    if model.gives == "logits":
        return same_answers(dense, own, model.activation)
    like = cosines(dense, own)
    return np.asarray(like.reshape(len(like), -1).mean(-1) >= goal.min_cosine)


def check_enough(images: int, goal: CascadeGoal) -> None:
    """
    Raises:
        ImageError: so few images cannot show the agreement that is asked for.
    """
    if goal.agreement is not None and most_failures(images, goal.agreement) < 0:
        raise ImageError(
            f"{images} images to calibrate a cascade for an agreement of {goal.agreement:g}",
            f"at least {fewest_images(goal.agreement)}: fewer cannot show it with 95 % confidence",
            "give more images to --calib, which need no labels, or ask for less",
        )


def choose(measured: StageAnswers, goal: CascadeGoal) -> tuple[float, ...]:
    """One threshold for each stage but the last; the same for all of them, which `guarantee.py` explains.

    Raises:
        ImageError: too few images.
    """
    sure, images = measured.confidence, measured.confidence.shape[1]
    if goal.max_rerun is not None:
        ordered = np.sort(sure[0])
        lowest = float(ordered[min(images - 1, math.floor(goal.max_rerun * images))])
        return (lowest,) * len(sure)
    assert goal.agreement is not None
    check_enough(images, goal)
    if len(sure) == 1:
        return (threshold_for(sure[0], measured.agrees[0], most_failures(images, goal.agreement)),)
    return _along_a_path(measured, goal.agreement)


def reported_bound(failures: int, images: int, goal: CascadeGoal) -> float:
    """A bound on agreement that may be reported for thresholds chosen on the same images, see `guarantee.py`.

    Thresholds for a share of images that may go on are chosen by confidence alone, without a look at answers.
    """
    tested = failures if goal.agreement is None else most_failures(images, goal.agreement)
    return lower_bound(tested, images)


def _along_a_path(measured: StageAnswers, agreement: float) -> tuple[float, ...]:
    """The last threshold of a fixed sequence from the highest down that is shown to hold."""
    images, chosen = measured.confidence.shape[1], ALL_GO_ON
    allowed = most_failures(images, agreement)
    for step in range(1024, -1, -1):
        ends = where_images_end(measured.confidence, (step / 1024,) * len(measured.confidence))
        failures = int((~measured.agrees[ends, np.arange(images)]).sum())
        if failures > allowed:
            break
        chosen = step / 1024
    return (chosen,) * len(measured.confidence)


def where_images_end(confidence: NDArray[np.float32], thresholds: Sequence[float]) -> NDArray[np.intp]:
    """The stage that answers each image, `[n]`: the first that is confident, else the last."""
    sure = confidence >= np.asarray(thresholds)[:, None]
    return np.where(sure.any(0), sure.argmax(0), len(sure))


def mean_gmacs(bundle: Bundle, shares: Sequence[float]) -> float:
    """Mean multiply-adds of one image, in units of 1e9: the prefix once, and each stage's tail for its share."""
    manifest, cascade = bundle.manifest, bundle.manifest.cascade
    assert cascade is not None
    prefix = front_gmacs(manifest.model.architecture, cascade.block)
    tails = (bundle.variant(name=stage.variant).gmacs - prefix for stage in cascade.stages)
    return prefix + sum(share * tail for share, tail in zip(shares, tails, strict=True))


def check_promises(bundle: Bundle, profile: str) -> None:
    """Hold what the manifest says of the cascade with a profile's engines against the counts that it follows from.

    Raises:
        BundleError: a bound that so many images do not show, or another mean compute than that of its stages.
    """
    cascade = bundle.manifest.cascade
    setting = cascade.settings.get(profile) if cascade else None
    found = cascade.evaluations.get(profile) if cascade else None
    said = list[tuple[float, float, CascadeSetting | CascadeFidelity]]()
    if setting is not None:
        one = setting.guarantee
        said.append((one.bound, lower_bound(one.failures, one.images, one.confidence), setting))
    if found is not None:
        failures = round((1 - found.likeness) * found.images)
        said.append((found.bound, lower_bound(failures, found.images), found))
    for bound, shown, record in said:
        gmacs, fix = mean_gmacs(bundle, record.shares), "build the bundle again"
        if bound > shown + _ROUNDING:
            given = f"the cascade ({profile}) promises an agreement of {bound:.4g}"
            raise BundleError(given, f"at most {shown:.4g}, which its images show", fix)
        if not math.isclose(gmacs, record.gmacs, rel_tol=_ROUNDING):
            given = f"the cascade ({profile}) takes {record.gmacs:.4g} GMACs on average"
            raise BundleError(given, f"{gmacs:.4g}, which its stages and the images at each make", fix)


def _time(bundle: Bundle, stages: Stages) -> tuple[float, ...]:
    """Milliseconds of one image that ends at each stage; medians of a few calls."""
    pixels, count = golden_pixels(bundle)[:1], len(stages.variants)

    def until(last: int) -> float:
        thresholds = [math.inf if stage < last else -math.inf for stage in range(count - 1)]
        times = [milliseconds(lambda: stages.run(pixels, ["image 1"], thresholds)) for _ in range(_WARM_UP + _CALLS)]
        return median(times[_WARM_UP:])

    return tuple(round(until(stage), 4) for stage in range(count))


def _check_pays(bundle: Bundle, setting: CascadeSetting, goal: CascadeGoal, measured: StageAnswers) -> None:
    """
    Raises:
        AccuracyError: the cascade computes no less than the baseline alone; says which agreement one that does has.
    """
    dense, guarantee = bundle.manifest.dense.gmacs, setting.guarantee
    if setting.gmacs < dense and setting.shares[-1] < 1:
        return
    wanted = f"agreement of {goal.agreement:g}" if goal.agreement is not None else f"share of {goal.max_rerun:g}"
    best, share = _best_that_pays(bundle, measured)
    raise AccuracyError(
        f"a cascade for an {wanted}: {100 * setting.shares[-1]:.0f} % of {guarantee.images} images of"
        f" '{guarantee.data}' go on to the baseline, which takes {setting.gmacs / dense:.2f} times its compute",
        f"a cascade that computes less than the baseline: on these images the best agrees on {percent_below(best)}, at"
        f" {share:.2f} times its compute",
        "ask for a lower agreement, give a higher --keep-ratio, or give more images to --calib",
    )


def _best_that_pays(bundle: Bundle, measured: StageAnswers) -> tuple[float, float]:
    """The highest share of the images with the baseline's answer, of all cascades that compute less than the baseline,
    and the share of its compute that this one takes.

    Args:
        measured: on images of which the first stage answers some.
    """
    images, dense, found = measured.confidence.shape[1], bundle.manifest.dense.gmacs, (0.0, 1.0)
    for threshold in np.unique(measured.confidence):
        ends = where_images_end(measured.confidence, (float(threshold),) * len(measured.confidence))
        gmacs = mean_gmacs(bundle, [float((ends >= stage).mean()) for stage in range(len(measured.agrees))])
        if gmacs < dense:
            agrees = float(measured.agrees[ends, np.arange(images)].mean())
            found = max(found, (agrees, gmacs / dense), key=lambda one: (one[0], -one[1]))
    return found
