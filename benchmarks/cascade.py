"""What a cascade keeps of the baseline's answers, at which compute and latency, and whether its bound holds.

    ZTDEPLOY_REALDATA=FOLDER python -m benchmarks.cascade [--parts accuracy latency] [--schedule deit_t-reduction-50]
        [--folder KEPT] [--halves 20] [--duration 5] [--rounds 10] [--threads 1 2] [--profiles cpu cpu-int8]

The folder holds a trained DeiT-Tiny, 1,000 photographs of ImageNet's classes and 440 of Caltech-101. Builds a cascade
of the schedule and the baseline, calibrated for 98 % on every second ImageNet photograph. `--folder` keeps the bundle
and the answers, and a later run takes them from there.

- accuracy: thresholds are chosen on one random half of the photographs and judged on the other, and on one set and
  judged on the other set. Compute is given as a share of the untouched model and of our own baseline. A bound is about
  all images that a half is drawn from, hence about both halves; the other half alone misses it by chance as well.
- latency: of the cascade on the ImageNet photographs that it was not calibrated on, against the untouched model, the
  baseline and the static variant, in turns; and of cut graphs against whole ones. Batch 1.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import PLAIN, Contender, Job, plain_export
from benchmarks.halves import CHECKPOINT, CROP_PCT, real_data, write_data
from benchmarks.machine import describe_machine
from benchmarks.turns import Timed, time_in_turns
from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.cascade import CASCADE, CascadeGoal
from ztdeploy.core.cost import gmacs
from ztdeploy.core.errors import ImageError
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.manifest import GateLimits
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import PreprocessOptions
from ztdeploy.core.processes import module_command
from ztdeploy.core.profile import schedule_path
from ztdeploy.core.schedule import read_schedule
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.jobs.request import Gate
from ztdeploy.target.adaptive.calibrate import CHUNK, StageAnswers, choose, mean_gmacs, reported_bound, where_images_end
from ztdeploy.target.adaptive.cascade import Stages
from ztdeploy.target.adaptive.guarantee import quantiles, unlike
from ztdeploy.target.adaptive.pieces import engine_opener
from ztdeploy.target.evaluate.data import LabelledImage, read_labels
from ztdeploy.target.measure.statistics import bootstrap_interval, percentile, round_ratios
from ztdeploy.target.measure.turns import Configuration
from ztdeploy.target.runtime.postprocess import same_answers
from ztdeploy.target.runtime.preprocess import load_pixels

GOALS = (0.98, 0.99)
#: The numbers of images at which a runner compares them with those of its calibration.
LOOKS = tuple(32 << step for step in range(6))
Ratio = Callable[[Timed, Timed], str]


@dataclass(frozen=True)
class Cut:
    """The prefix and the tail of a variant, as one engine."""

    bundle: Path
    of: str
    profile: str
    threads: int

    @property
    def variant(self) -> str:
        return f"{self.of}, cut"

    def command(self) -> list[str]:
        return module_command("benchmarks.cascade_worker", str(self.bundle), self.of, self.profile, str(self.threads))


@dataclass(frozen=True)
class Judged:
    """A cascade that was calibrated on some images, on others."""

    agreement: float
    shares: tuple[float, ...]  #: per stage: share of the images that it runs on
    bound: float
    overall: float  #: agreement on both together, which are all images that halves were drawn from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("accuracy", "latency"), default=["accuracy", "latency"])
    parser.add_argument("--schedule", default="deit_t-reduction-50", help="of the first stage; a name or a file")
    parser.add_argument("--folder", type=Path, help="where bundle and answers are kept")
    parser.add_argument("--halves", type=int, default=20)
    parser.add_argument("--images", type=int, help="of each set at most")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of each engine, over all rounds")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--profiles", nargs="+", default=["cpu", "cpu-int8"])
    arguments = parser.parse_args()
    folder = real_data()
    sets = {
        "imagenet_samples": _images(folder / "imagenet_samples_labels.json", folder / "imagenet_samples"),
        "photographs": _images(folder / "labels.json", folder / "images"),
    }
    sets = {name: images[: arguments.images] for name, images in sets.items()}
    with tempfile.TemporaryDirectory() as scratch:
        kept = arguments.folder or Path(scratch)
        bundle = _bundle(kept, sets["imagenet_samples"], arguments.schedule, tuple(arguments.profiles))
        print(f"{describe_machine()}; DeiT-Tiny, {arguments.schedule} -> baseline")
        if "accuracy" in arguments.parts:
            answers = {name: _answers(kept, name, bundle, images) for name, images in sets.items()}
            print("\n".join(["", *halves(bundle, answers, arguments.halves), "", *across(bundle, answers)]))
        if "latency" in arguments.parts:
            lines = latency(bundle, kept, arguments.threads, arguments.duration, arguments.rounds)
            print("\n".join(["", *lines]))


def _images(labels: Path, folder: Path) -> list[LabelledImage]:
    """The images of a list of labels that lie in a folder, by their names."""
    listed = (replace(one, path=folder / one.path.name) for one in read_labels(labels))
    return sorted(listed, key=lambda one: one.path.name)


def _bundle(kept: Path, images: Sequence[LabelledImage], schedule: str, profiles: tuple[str, ...]) -> Bundle:
    """The bundle in the folder, or a new one there, calibrated on every second image; the others lie in `measured`."""
    if (kept / "bundle").is_dir():
        return read_bundle(kept / "bundle")
    for name, chosen in {"calibrated": images[::2], "measured": images[1::2]}.items():
        write_data(list(chosen), images[0].path.parent, kept / name)
    source = ModelSource(
        name="deit_t", checkpoint=real_data() / CHECKPOINT, preprocess=PreprocessOptions(crop_pct=CROP_PCT)
    )
    request = BuildRequest(
        model=source,
        profiles=profiles,
        out=kept / "bundle",
        schedules=(read_schedule(schedule_path(Path(schedule))),),
        gate=Gate(kept / "calibrated", GateLimits()),
        cascade=CascadeGoal(agreement=GOALS[0]),
    )
    return build(request)


def _answers(kept: Path, name: str, bundle: Bundle, images: Sequence[LabelledImage]) -> StageAnswers:
    """Every stage on every image, from the folder where it holds them."""
    file = kept / f"{name}-{len(images)}-{bundle.manifest.created.replace(':', '')}.npz"
    if not file.is_file():
        profile = next(iter(bundle.manifest.profiles))
        stages = Stages(bundle, profile, engine_opener(bundle, profile, usable_threads()))
        agrees, confidence = list[NDArray[np.bool_]](), list[NDArray[np.float32]]()
        for start in range(0, len(images), CHUNK):
            chunk = [one.path for one in images[start : start + CHUNK]]
            pixels = load_pixels(chunk, bundle.manifest.preprocess)
            outputs, sure = stages.run_all(pixels, [path.name for path in chunk])
            agrees.append(
                np.stack([same_answers(outputs[-1], own, bundle.manifest.model.activation) for own in outputs])
            )
            confidence.append(sure)
        stages.close()
        np.savez(file, agrees=np.concatenate(agrees, axis=1), confidence=np.concatenate(confidence, axis=1))
    with np.load(file) as found:
        return StageAnswers(found["agrees"], found["confidence"])


def of_images(answers: StageAnswers, places: NDArray[np.intp]) -> StageAnswers:
    return StageAnswers(answers.agrees[:, places], answers.confidence[:, places])


def judge(calibrated: StageAnswers, judged: StageAnswers, goal: float) -> Judged:
    """Choose thresholds on some images, and look at others.

    Raises:
        ImageError: too few images to choose them on.
    """
    asked = CascadeGoal(agreement=goal)
    thresholds = choose(calibrated, asked)
    failures = int((~_agree(calibrated, thresholds)).sum())
    bound = reported_bound(failures, calibrated.agrees.shape[1], asked)
    ends = where_images_end(judged.confidence, thresholds)
    shares = tuple(float((ends >= stage).mean()) for stage in range(len(judged.agrees)))
    right = _agree(judged, thresholds)
    overall = (right.sum() + calibrated.agrees.shape[1] - failures) / (len(right) + calibrated.agrees.shape[1])
    return Judged(float(right.mean()), shares, bound, float(overall))


def _agree(answers: StageAnswers, thresholds: Sequence[float]) -> NDArray[np.bool_]:
    ends = where_images_end(answers.confidence, thresholds)
    return np.asarray(answers.agrees[ends, np.arange(len(ends))])


def _compute(bundle: Bundle, shares: Sequence[float]) -> tuple[float, float]:
    """Mean compute as a share of the untouched model, and of our own baseline."""
    dense, mean = bundle.manifest.dense, mean_gmacs(bundle, shares)
    return mean / gmacs(bundle.manifest.model.architecture, dense.plan.tokens_per_block), mean / dense.gmacs


def halves(bundle: Bundle, answers: dict[str, StageAnswers], count: int) -> Iterator[str]:
    """A Markdown table: thresholds chosen on random halves, judged on the others."""
    yield (
        "| images | asked | agreement, mean of halves | worst half | go on | compute / untouched | compute / baseline "
        "| goal reached | bound held | bound held on both halves |"
    )
    yield "| --- " * 10 + "|"
    for name, own in answers.items():
        images = own.agrees.shape[1]
        orders = [np.random.default_rng(seed).permutation(images) for seed in range(count)]
        parts = [(of_images(own, order[: images // 2]), of_images(own, order[images // 2 :])) for order in orders]
        for goal in GOALS:
            try:
                found = [judge(*part, goal) for part in parts]
            except ImageError as error:
                yield f"| {name} | {goal:g} | refused: {error.given}; {error.expected} |" + " |" * 7
                continue
            agreement = [one.agreement for one in found]
            untouched, dense = zip(*(_compute(bundle, one.shares) for one in found), strict=True)
            reached = sum(one.agreement >= goal for one in found)
            held = sum(one.agreement >= one.bound for one in found)
            overall = sum(one.overall >= one.bound for one in found)
            yield (
                f"| {name} | {goal:g} | {100 * fmean(agreement):.2f} % | {100 * min(agreement):.2f} % "
                f"| {100 * fmean(one.shares[1] for one in found):.1f} % | {fmean(untouched):.3f} | {fmean(dense):.3f} "
                f"| {reached} of {count} | {held} of {count} "
                f"| {overall} of {count} |"
            )


def across(bundle: Bundle, answers: dict[str, StageAnswers]) -> Iterator[str]:
    """A Markdown table: thresholds chosen on one set of images, judged on another."""
    yield (
        "| calibrated on | judged on | asked | bound | agreement | bound held | expected to go on | go on "
        "| compute / untouched | warning about unlike images |"
    )
    yield "| --- " * 10 + "|"
    for first, own in answers.items():
        for second, other in answers.items():
            for goal in GOALS if first != second else ():
                found = judge(own, other, goal)
                expected = judge(own, own, goal).shares[1]
                yield (
                    f"| {first} | {second} | {goal:g} | {100 * found.bound:.2f} % | {100 * found.agreement:.2f} % "
                    f"| {'yes' if found.agreement >= found.bound else 'no'} | {100 * expected:.1f} % "
                    f"| {100 * found.shares[1]:.1f} % | {_compute(bundle, found.shares)[0]:.3f} "
                    f"| {warned(own.confidence[0], other.confidence[0])} |"
                )


def warned(calibrated: NDArray[np.float32], seen: NDArray[np.float32], orders: int = 20) -> str:
    """In how many orders of the images a runner would warn, and after how many images."""
    known, after = quantiles(calibrated), list[int]()
    for seed in range(orders):
        shuffled = np.random.default_rng(seed).permutation(seen)
        looks = (look for look in LOOKS if look <= len(seen))
        after += [next((look for look in looks if unlike(shuffled[:look], known, len(calibrated))), 0)]
    fired = [look for look in after if look]
    return f"{len(fired)} of {orders} orders" + (f", after {median(fired):g} images (median)" if fired else "")


def latency(bundle: Bundle, kept: Path, threads: Sequence[int], seconds: float, rounds: int) -> Iterator[str]:
    """Two Markdown tables: latencies in turns, and what cutting costs."""
    yield (
        "| profile | threads | engine | mean, ms | p50 | p99 | worst | mean / untouched | mean / baseline "
        "| answered by stage |"
    )
    yield "| --- " * 10 + "|"
    cuts = list[str]()
    for profile in bundle.manifest.profiles:
        for count in threads:
            timed = time_in_turns(list(_subjects(bundle, kept, profile, count)), rounds=rounds, seconds=seconds)
            found = {one.variant: one for one in timed if one.turns}
            dense = bundle.manifest.dense.name
            for name, one in found.items():
                against = [_ratio(one, found[other], fmean) if other in found else "-" for other in (PLAIN, dense)]
                yield f"| {profile} | {count} | {name} | {_figures(one)} | {' | '.join(against)} | {_stages(one)} |"
            for name, one in found.items():
                whole = found.get(name.removesuffix(", cut"))
                if isinstance(one.subject, Cut) and whole:
                    cuts.append(f"| {profile} | {count} | {whole.variant} | {_ratio(one, whole, median)} |")
            for one in timed:
                if one.reason:
                    yield f"| {profile} | {count} | {one.variant} | not measured: {one.reason} |" + " |" * 6
    yield from ["", "| profile | threads | variant | cut / whole, medians |", "| --- | --- | --- | --- |", *cuts]


def _subjects(bundle: Bundle, kept: Path, profile: str, threads: int) -> Iterator[Configuration | Contender | Cut]:
    manifest, plain = bundle.manifest, kept / "plain.onnx"
    job = Job(manifest.model.name, manifest.preprocess.image_size.height, 1, threads, plain)
    if not plain.is_file():
        plain_export(job)
    yield Contender(PLAIN, job)
    for variant in manifest.variants:
        yield Configuration(bundle.root, variant.name, profile, threads)
        yield Cut(bundle.root, variant.name, profile, threads)
    yield Configuration(bundle.root, CASCADE, profile, threads, data=kept / "measured")


def _figures(one: Timed) -> str:
    samples = [ms for turn in one.turns for ms in turn.samples_ms]
    values = (fmean(samples), percentile(samples, 50), percentile(samples, 99), max(samples))
    return " | ".join(f"{value:.2f}" for value in values)


def _ratio(own: Timed, other: Timed, centre: Callable[[Sequence[float]], float]) -> str:
    """How many times as long the first takes, over the rounds of both, with its 95 % interval."""
    ratios = round_ratios(own.rounds_ms, other.rounds_ms, centre)
    interval = bootstrap_interval(ratios)
    return f"{median(ratios):.3f}" + (f" ({interval:.3f})" if interval else "")


def _stages(one: Timed) -> str:
    answered = [sum(counts) for counts in zip(*(turn.answered for turn in one.turns), strict=True)]
    return ", ".join(f"{100 * count / sum(answered):.1f} %" for count in answered)


if __name__ == "__main__":
    main()
