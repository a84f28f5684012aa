"""What to deploy, in one sentence: the one rule that concludes from measurements. Pure.

Of each pruned variant something is known: its speed-up over the baseline, and what it changes. The rule, by intervals
of 95 % everywhere and never by figures alone:

1. A variant **pays** where the interval of its speed-up lies above 1. Where no speed was measured, all pay.
2. It is **within** the limits where the interval of the share of changed answers ends below what may change; **beyond**
   where it begins above, or where top-1 is shown to fall by more than the limit; otherwise **open**. Embeddings and
   features are held to their mean cosine in the same way; maps to their mean intersection over union or, of values, to
   their mean error.
3. Deploy the fastest variant that pays and is within. Without one: if one that pays is open, say how many images
   would decide; if nothing is known of what changes, say how to find out; if all are beyond, deploy the baseline.
4. Where none pays, deploy the baseline, or measure more rounds where these were too few.
5. A cascade is judged like a variant, by its means. Some of its images cost more than the baseline, so the sentence
   that recommends one says what the worst costs, and that hard real time forbids it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ztdeploy.core.arguments import MIN_AGREEMENT
from ztdeploy.core.bundle import Bundle
from ztdeploy.core.cascade import CASCADE, Guarantee
from ztdeploy.core.manifest import Fidelity, GateLimits, GateRow
from ztdeploy.core.verdict import Decision, Verdict
from ztdeploy.target.evaluate.eval_report import Change, EvalReport, Mean, Share, VariantScore
from ztdeploy.target.measure.bench_report import BenchReport, Comparison
from ztdeploy.target.measure.statistics import FEWEST_ROUNDS, Interval, Z, wilson_interval

#: Top-1 that a recommended variant may be shown to lose, in points.
MAX_DROP = 1.0
#: Methods that drop tokens without looking at them: they show what choosing costs, and are never recommended.
CONTROLS = ("slice", "random")
#: Beyond this, a figure lies so near to its limit that no number of images is worth naming.
_MOST_IMAGES = 100_000
_NO_LIMITS = GateLimits()
EVALUATE = "run 'ztdeploy eval BUNDLE --data DIR'"

Standing = Literal["within", "beyond", "open"]


@dataclass(frozen=True)
class Spread:
    """A figure and where it lies."""

    value: float
    interval: Interval  #: the value itself twice where nobody knows better


@dataclass(frozen=True)
class Quality:
    """What a variant changes, on some images."""

    images: int
    changed: Spread | None  #: share of the images whose answer differs from the baseline's; None for vectors and maps
    cosine: Spread | None  #: mean cosine to the baseline's vectors; None for classifiers and maps
    change: Spread | None  #: top-1 less the baseline's, as a share; None without labels
    error: Spread | None = None  #: mean error of maps, of probabilities or as a share of the range
    iou: Spread | None = None  #: mean intersection over union of maps; None of values


@dataclass(frozen=True)
class Held:
    """A figure that a limit is on."""

    spread: Spread
    limit: float
    sign: int  #: 1: the higher the worse; -1: the lower the worse
    text: str  #: that it is within the limit, in words
    must: str  #: that it has to be

    @property
    def standing(self) -> Standing:
        low, high = sorted(self.sign * end for end in (self.spread.interval.low, self.spread.interval.high))
        return "within" if high <= self.sign * self.limit else "beyond" if low > self.sign * self.limit else "open"


def held(quality: Quality, min_agreement: float, asked: GateLimits) -> list[Held]:
    """What a variant is held to. Maps are held to what is asked of them, and otherwise to `min_agreement`: their mean
    intersection over union is at least as much, or the mean error of values at most as far from 1.
    """
    most, found = 1 - min_agreement, list[Held]()
    if quality.changed is not None:
        percent = f"at most {100 * most:.3g} %"
        found.append(Held(quality.changed, most, 1, f"{percent} change", f"{percent} may change"))
    least_iou, most_error = asked.min_iou, asked.max_error
    if least_iou is None and most_error is None:
        least_iou, most_error = (None, most) if quality.iou is None else (min_agreement, None)
    limits = (
        ("mean cosine", quality.cosine, min_agreement, -1),
        ("mean IoU", quality.iou, least_iou, -1),
        ("mean error", quality.error, most_error, 1),
    )
    for name, spread, limit, sign in limits:
        if spread is not None and limit is not None:
            end = f"at {'most' if sign > 0 else 'least'} {limit:.4g}"
            found.append(Held(spread, limit, sign, f"the {name} is {end}", f"the {name} must be {end}"))
    return found


@dataclass(frozen=True)
class JudgedVariant:
    """A pruned variant, or a cascade."""

    name: str
    work_ratio: float  #: the baseline's compute over its own
    speed: Comparison | None = None
    quality: Quality | None = None
    worst: str = ""  #: of a cascade: what an image costs that goes through all stages, in words


def quality_of_score(score: VariantScore, images: int) -> Quality | None:
    """Of a variant that was evaluated; None for the baseline."""
    against, likeness, maps = score.against_dense, score.likeness, score.maps
    if against is not None:
        return quality_of_share(against.agreement, against.change)
    if maps is not None:
        return Quality(images, None, None, None, _spread(maps.error), _spread(maps.iou))
    return None if likeness is None else Quality(images, None, _spread(likeness.mean), None)


def _spread(mean: Mean | None) -> Spread | None:
    return None if mean is None else Spread(mean.value, mean.interval)


def quality_of_share(agreement: Share, change: Change | None) -> Quality:
    """Of answers that were compared with the baseline's."""
    moved = None if change is None else Spread(change.value, change.interval)
    return Quality(agreement.total, _flipped(agreement.value, agreement.interval), None, moved)


def quality_of_fidelity(found: Fidelity | None) -> Quality | None:
    """Of an evaluation on record."""
    if found is None:
        return None
    change = None
    if found.change is not None and found.top1 is not None and found.dense_top1 is not None:
        change = Spread(
            found.top1 - found.dense_top1, Interval(low=found.change[0], high=found.change[1], confidence=0.95)
        )
    return _quality(found, found.images, change)


def quality_of_guarantee(guarantee: Guarantee) -> Quality:
    """Of a cascade on its calibration images, of which its bound says how many answers change at most."""
    changed, most = 1 - guarantee.agreement, 1 - guarantee.bound
    low = _flipped(guarantee.agreement, wilson_interval(guarantee.images - guarantee.failures, guarantee.images))
    interval = Interval(low=low.interval.low, high=max(changed, most), confidence=guarantee.confidence)
    return Quality(guarantee.images, Spread(changed, interval), None, None)


def quality_of_gate(row: GateRow, images: int) -> Quality:
    """Of a variant on the calibration images of a build."""
    return _quality(row, images, None if row.drop is None else _exact(-row.drop / 100))


def _quality(known: Fidelity | GateRow, images: int, change: Spread | None) -> Quality:
    changed = None
    if known.agreement is not None:
        changed = _flipped(known.agreement, wilson_interval(round(known.agreement * images), images))
    cosine, error, iou = (None if one is None else _exact(one) for one in (known.cosine, known.error, known.iou))
    return Quality(images, changed, cosine, change, error, iou)


def _flipped(share: float, interval: Interval) -> Spread:
    low, high = 1 - interval.high, 1 - interval.low
    return Spread(1 - share, Interval(low=low, high=high, confidence=interval.confidence))


def _exact(value: float) -> Spread:
    return Spread(value, Interval(low=value, high=value, confidence=1.0))


def standing(quality: Quality, min_agreement: float = MIN_AGREEMENT, asked: GateLimits = _NO_LIMITS) -> Standing:
    """Where a variant stands with regard to what may change; see `held`."""
    if _loses_top1(quality):
        return "beyond"
    places = {one.standing for one in held(quality, min_agreement, asked)}
    return "beyond" if "beyond" in places else "open" if "open" in places else "within"


def _loses_top1(quality: Quality) -> bool:
    return quality.change is not None and quality.change.interval.high < -MAX_DROP / 100


def images_needed(quality: Quality, min_agreement: float = MIN_AGREEMENT, asked: GateLimits = _NO_LIMITS) -> int | None:
    """How many images would decide, if as large a share of them changed; two significant digits.

    None: a figure is too near to its limit to say.

    Wilson's interval leaves out a limit L where n (p - L)^2 > z^2 L (1 - L); that of a mean narrows with the root of n.
    """
    count = 0
    for one in held(quality, min_agreement, asked):
        if one.standing != "open":
            continue
        figure, interval = one.spread.value, one.spread.interval
        away = abs(figure - one.limit)
        if one.spread is quality.changed:
            spread = Z * math.sqrt(one.limit * (1 - one.limit))
        else:
            spread = math.sqrt(quality.images) * max(interval.high - figure, figure - interval.low)
        if away == 0 or (spread / away) ** 2 > _MOST_IMAGES:
            return None
        count = max(count, math.ceil((spread / away) ** 2))
    step: int = 10 ** max(0, len(str(count)) - 2)
    return max(quality.images + 1, -(-count // step) * step)


def conclude(
    variants: Sequence[JudgedVariant],
    *,
    timed: bool,
    min_agreement: float = MIN_AGREEMENT,
    asked: GateLimits = _NO_LIMITS,
    evaluate: str = EVALUATE,
    saves: str = "compute",
    random_weights: bool = False,
) -> Verdict:
    """The rule.

    Args:
        timed: whether speed was measured; otherwise compute ranks the variants.
        min_agreement: see `MIN_AGREEMENT`.
        asked: of maps, see `held`.
        evaluate: what to do where nothing is known of what changes.
        saves: what `work_ratio` is of, where speed was not measured.
        random_weights: nothing can be known of it.
    """
    if not variants:
        return Verdict(decision="open", sentence="There is no pruned variant to compare with the baseline.")

    does = partial(_does, timed=timed, saves=saves)

    def saving(one: JudgedVariant) -> float:
        return one.speed.speedup if timed and one.speed else one.work_ratio

    paying = [one for one in variants if not timed or (one.speed and one.speed.outcome == "faster")]
    if not paying:
        return _no_gain(max(variants, key=saving), [one.speed.outcome for one in variants if one.speed])
    paying.sort(key=saving, reverse=True)
    if random_weights:
        text = f"{does(paying[0])}; the weights are random, so nothing can be said of answers."
        return Verdict(decision="open", sentence=text, variant=paying[0].name)
    known = [(one, one.quality, standing(one.quality, min_agreement, asked)) for one in paying if one.quality]
    for one, quality, where in known:
        if where == "within":
            end = "deploy." if timed else "deploy it where 'ztdeploy bench' finds it faster."
            return _verdict("deploy", one, f"{does(one)} and {_costs(quality)}: {end}{_worst(one)}")
    for one, quality, where in known:
        if where == "open":
            return _verdict(
                "open", one, f"{does(one)} and {_costs(quality)}: {_too_few(quality, min_agreement, asked)}"
            )
    if len(known) < len(paying):
        one = next(one for one in paying if one.quality is None)
        return _verdict("open", one, f"{does(one)}; what it changes is not known: {evaluate}.")
    one, quality, _ = known[-1]  # the mildest
    why = _beyond(quality, min_agreement, asked)
    text = f"{does(one)} and {_costs(quality)}: deploy the baseline, for {why}."
    return Verdict(decision="baseline", sentence=text, variant=None)


def _verdict(decision: Decision, one: JudgedVariant, text: str) -> Verdict:
    return Verdict(decision=decision, sentence=text, variant=one.name)


def _no_gain(best: JudgedVariant, outcomes: Sequence[str]) -> Verdict:
    speed = best.speed
    assert speed is not None
    name, span = spoken(best.name), f"{speed.interval:.2f}" if speed.interval else ""
    if "too few rounds" in outcomes:
        count = len(speed.ratios)
        text = (
            f"{name} ran {speed.speedup:.2f} times as fast as the baseline in {count} round{'s' if count != 1 else ''}"
        )
        return _verdict("open", best, f"{text}, too few to conclude: measure {FEWEST_ROUNDS} or more.")
    shown = "no gain was shown" if "no difference shown" in outcomes else "pruning does not pay here"
    text = f"{name} is {speed.speedup:.2f} times as fast as the baseline ({span}): {shown}, deploy the baseline."
    return Verdict(decision="baseline", sentence=text)


def _worst(one: JudgedVariant) -> str:
    """What speaks against a cascade all the same."""
    return f" Not where each single image has to be in time: the worst takes {one.worst}." if one.worst else ""


def spoken(name: str) -> str:
    """A variant's name as it is said: "keep 0.70" of "keep-0.70", "tome, keep 0.70" of "tome-keep-0.70"."""
    if name == CASCADE:
        return "the cascade"
    before, found, ratio = name.rpartition("keep-")
    return f"{before.rstrip('-') + ', ' if before else ''}keep {ratio}" if found else f"'{name}'"


def _does(one: JudgedVariant, timed: bool, saves: str) -> str:
    if timed:
        assert one.speed is not None
        return f"{spoken(one.name)} is {one.speed.speedup:.2f} times as fast"
    return f"{spoken(one.name)} needs {100 * (1 - 1 / one.work_ratio):.0f} % less {saves}"


def _costs(quality: Quality) -> str:
    if quality.changed is not None:
        text = f"changes {_percent(quality.changed)} of the answers"
        if quality.changed.interval.high > quality.changed.interval.low:
            text += f" ({quality.changed.interval.scaled(100):.1f})"
    elif quality.error is not None:
        figures = [f"a mean error of {quality.error.value:.4f}{_within(quality.error)}"]
        if quality.iou is not None:
            figures.insert(0, f"a mean IoU of {_cosine(quality.iou.value)}{_within(quality.iou)}")
        text = f"gives maps with {' and '.join(figures)}"
    else:
        assert quality.cosine is not None
        text = f"has a mean cosine of {_cosine(quality.cosine.value)} to the baseline{_within(quality.cosine)}"
    if quality.change is not None:
        text += f"; top-1 {100 * quality.change.value:+.1f} points"
        if quality.change.interval.high > quality.change.interval.low:
            text += f" ({quality.change.interval.scaled(100):+.1f})"
    return text


def _percent(figure: Spread) -> str:
    return f"{100 * figure.value:.1f} %"


def _cosine(value: float) -> str:
    """Rounded down where it would read as 1."""
    return f"{value if value == 1 else min(value, 0.9999):.4f}"


def _within(spread: Spread) -> str:
    """The interval, where there is one."""
    low, high = spread.interval.low, spread.interval.high
    return f" ({_cosine(low)} to {_cosine(high)})" if high > low else ""


def _too_few(quality: Quality, min_agreement: float, asked: GateLimits) -> str:
    """What is missing to decide."""
    limit = next(one.text for one in held(quality, min_agreement, asked) if one.standing == "open")
    needed = images_needed(quality, min_agreement, asked)
    images = f"{quality.images} image{'s' if quality.images != 1 else ''}"
    if needed is None:
        return f"that is too near to the limit to decide on {images} whether {limit}."
    few = "is" if quality.images == 1 else "are"
    return f"{images} {few} too few to decide whether {limit}; about {needed:,} would do."


def _beyond(quality: Quality, min_agreement: float, asked: GateLimits) -> str:
    if _loses_top1(quality):
        return f"top-1 may fall by {MAX_DROP:g} point at most"
    return next(one.must for one in held(quality, min_agreement, asked) if one.standing == "beyond")


# What each kind of report knows of variants.


def verdict_of_eval(report: EvalReport) -> Verdict:
    """Of variants that were evaluated and not timed."""
    dense = report.dense
    variants = [
        JudgedVariant(
            score.variant,
            dense.gmacs / score.gmacs,
            None,
            quality_of_score(score, report.data.images),
            f"{score.cascade.worst_gmacs / dense.gmacs:.2f} times the baseline's compute" if score.cascade else "",
        )
        for score in report.variants[1:]
        if score.method not in CONTROLS and score.gmacs < dense.gmacs
    ]
    request = report.request
    return conclude(
        variants,
        timed=False,
        min_agreement=request.min_agreement,
        asked=GateLimits(max_error=request.max_error, min_iou=request.min_iou),
        random_weights=report.bundle.weights == "random",
    )


def verdicts_of_bench(report: BenchReport, bundle: Bundle) -> tuple[Verdict, ...]:
    """Of variants that were timed, by setting; an evaluation of the very engines says what they change."""
    request, facts, found = report.request, report.bundle, list[Verdict]()
    quality = {
        one.name: quality_of_fidelity(bundle.fidelity(one, facts.profile))
        for one in bundle.manifest.variants
        if one.schedule.method not in CONTROLS
    }
    if report.cascade is not None:
        known = bundle.manifest.cascade.evaluations.get(facts.profile) if bundle.manifest.cascade else None
        quality[CASCADE] = quality_of_fidelity(known) or quality_of_guarantee(report.cascade.guarantee)
    settings = list(dict.fromkeys(one.setting for one in report.measured))
    for setting in settings:
        timed = [one for one in report.comparisons if (one.batch, one.threads) == (setting.batch, setting.threads)]
        verdict = conclude(
            [
                JudgedVariant(o.variant, o.work_ratio, o, quality[o.variant], _worst_of_bench(report, o))
                for o in timed
                if o.variant in quality
            ],
            timed=True,
            min_agreement=request.min_agreement,
            evaluate=EVALUATE.replace("BUNDLE", facts.path),
            random_weights=facts.weights == "random",
        )
        found.append(verdict.model_copy(update={"setting": str(setting) if len(settings) > 1 else ""}))
    return tuple(found)


def _worst_of_bench(report: BenchReport, compared: Comparison) -> str:
    """What the slowest call of a cascade took beside the baseline's typical one; nothing of a static variant."""
    if compared.variant != CASCADE:
        return ""
    setting = (compared.batch, compared.threads)
    own, dense = (
        next(one.latency for one in report.measured if (one.variant, one.batch, one.threads) == (name, *setting))
        for name in (CASCADE, compared.reference)
    )
    assert own is not None
    assert dense is not None
    return f"{own.max_ms:.3g} ms, {own.max_ms / dense.p50_ms:.2f} times the baseline's median"


def verdict_of_build(bundle: Bundle) -> Verdict:
    """Of what was built; calibration images say what variants change, and what a cascade keeps."""
    verdict, cascade = _of_variants(bundle), bundle.manifest.lines_of_cascade
    sentences = [verdict.sentence, *(f"{line[0].upper()}{line[1:]}." for line in cascade)]
    return verdict.model_copy(update={"sentence": " ".join(sentences)})


def _of_variants(bundle: Bundle) -> Verdict:
    manifest, gate = bundle.manifest, next(iter(bundle.manifest.gates), None)
    rows = {} if gate is None else {row.variant: quality_of_gate(row, gate.images) for row in gate.rows}
    pruned = [one for one in manifest.variants if one.plan.layers and one.schedule.method not in CONTROLS]
    if gate is not None and gate.rows and not pruned:
        text = f"No variant is within the limits on {gate.images} images of '{gate.data}': deploy the baseline."
        return Verdict(decision="baseline", sentence=text)
    asked = _NO_LIMITS if gate is None else gate.limits
    return conclude(
        [JudgedVariant(one.name, manifest.dense.gmacs / one.gmacs, None, rows.get(one.name)) for one in pruned],
        timed=False,
        min_agreement=MIN_AGREEMENT if asked.min_agreement is None else asked.min_agreement,
        asked=asked,
        evaluate=EVALUATE.replace("BUNDLE", str(bundle.root)),
        random_weights=manifest.weights.source == "random",
    )
