"""How much of a trained model's answers each method keeps, all at the same multiply-adds.

    ZTDEPLOY_REALDATA=FOLDER python -m benchmarks.fidelity --part report
    ZTDEPLOY_REALDATA=FOLDER python -m benchmarks.fidelity --part reporting --schedules deit_t-reduction-35
    python -m benchmarks.fidelity --model deit_s --checkpoint FILE --data FOLDER --limit 500

By default, the model and the images are the trained DeiT-Tiny, `images/` and `labels.json` of a folder. Its
photographs, sorted by file name, are cut in two: even places (0, 2, ...) are for choosing defaults (`tuning`), odd ones
for reporting (`report`). Thirds are those of `benchmarks/halves.py`. Each method gets the schedule that a keep ratio
alone means, at the ratio where the model's multiply-adds are nearest to the target, as graphs whose head reads all
tokens have them; with `--schedules`, names or files, at the ratio where its graph costs what the first schedule's does.
All of it runs in PyTorch, fp32. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.halves import CHECKPOINT, CROP_PCT, HALVES, THIRDS, half, real_data, third
from benchmarks.machine import describe_machine
from ztdeploy.core.cost import Count, at_cost, plan_gmacs, schedule_gmacs, share_of_dense
from ztdeploy.core.errors import ScheduleError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.methods import METHODS
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.preprocess_spec import PreprocessOptions
from ztdeploy.core.profile import schedule_path
from ztdeploy.core.schedule import Architecture, PruningSchedule, read_schedule
from ztdeploy.host.models.loading import LoadedModel, load_model
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.evaluate.data import LabelledImage, limited, read_data, read_labels
from ztdeploy.target.evaluate.statistics import mean_interval
from ztdeploy.target.measure.statistics import CONFIDENCE, Interval, wilson_interval
from ztdeploy.target.runtime.postprocess import divergences
from ztdeploy.target.runtime.preprocess import load_pixels, normalise

REFERENCE = "tome"  #: what divergences are divided by
RESAMPLES, BATCH = 10_000, 20
Array = NDArray[np.float32]
#: Methods with an option away from its default, under names of their own.
VARIATIONS = {
    "tome-by-tokens": ("tome", MethodOptions(feature="tokens")),
    "zero-tprune-merge-full-length": ("zero-tprune-merge", MethodOptions(coherent=False)),
    "novelty-merge-full-length": ("novelty-merge", MethodOptions(coherent=False)),
    "novelty-merge-by-keys": ("novelty-merge", MethodOptions(partner="keys")),
}
#: Those that a checkpoint without training for pruning can take.
ROWS = (
    *(name for name, method in METHODS.items() if method.trained is None and not method.reads_blocks),
    *VARIATIONS,
)


@dataclass(frozen=True)
class Row:
    """One method's logits, and what they cost."""

    schedule: PruningSchedule
    share: float  #: of dense multiply-adds
    logits: Array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=(*HALVES, *THIRDS), help="of the folder's photographs; default: report")
    parser.add_argument("--saved", type=float, default=0.35, help="share of the dense model's multiply-adds")
    parser.add_argument("--methods", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--schedules", nargs="+", type=Path, default=[], help="names or files, in rows of their own")
    parser.add_argument("--model", default="deit_t")
    parser.add_argument("--checkpoint", type=Path, help="default: the folder's DeiT-Tiny")
    parser.add_argument("--crop-pct", type=float, help="default: the model's own, and that of the folder's DeiT-Tiny")
    parser.add_argument("--data", type=Path, help="what `eval` takes; default: a half of the folder's photographs")
    parser.add_argument("--limit", type=int, help="so many images of --data")
    arguments = parser.parse_args()
    if arguments.data is not None and arguments.part is not None:
        parser.error("--part names photographs of ZTDEPLOY_REALDATA, --data others: give one of them")
    loaded = load_model(source_of(arguments))
    architecture = loaded.adapter.architecture
    where, photographs = photographs_of(arguments, architecture.num_classes)
    images = normalise(load_pixels([one.path for one in photographs], loaded.preprocess), loaded.preprocess)
    dense = answers(loaded, default_schedule(1.0, architecture), images)
    given = {str(one): read_schedule(schedule_path(one)) for one in arguments.schedules}
    count = plan_gmacs if given else schedule_gmacs
    wanted = next((share_of_dense(one, architecture, count) for one in given.values()), 1 - arguments.saved)
    made = {}
    for name in (REFERENCE, *arguments.methods):
        try:
            made[name] = schedule_at(name, architecture, wanted, count)
        except ScheduleError as error:  # a method that asks the class token, of a model without one
            print(f"{name}: left out: {error}", file=sys.stderr, flush=True)
    rows = {}
    for name, schedule in {**made, **given}.items():
        share = share_of_dense(schedule, architecture, count)
        rows[name] = Row(schedule, share, answers(loaded, schedule, images))
        print(f"{name}: {100 * (share - 1):+.2f} % GMACs", file=sys.stderr, flush=True)
    title = f"{where}, {len(photographs)} photographs; {describe_machine()}, torch {torch.__version__}"
    print(f"{title}\n\n{table(rows, dense, photographs)}")


def source_of(arguments: argparse.Namespace) -> ModelSource:
    checkpoint, crop = arguments.checkpoint, arguments.crop_pct
    if checkpoint is None:
        checkpoint, crop = real_data() / CHECKPOINT, crop or CROP_PCT
    preprocess = PreprocessOptions() if crop is None else PreprocessOptions(crop_pct=crop)
    return ModelSource(name=arguments.model, checkpoint=checkpoint, preprocess=preprocess)


def photographs_of(arguments: argparse.Namespace, classes: int) -> tuple[str, list[LabelledImage]]:
    """What the images are called, and the images."""
    if arguments.data is None:
        folder, part = real_data(), arguments.part or "report"
        return part, third(folder, part) if part in THIRDS else half(read_labels(folder / "labels.json"), part)
    data = limited(read_data(arguments.data, None, classes), arguments.limit)
    return data.name, list(data.images)


def schedule_at(
    method: str, architecture: Architecture, share: float, count: Count = schedule_gmacs
) -> PruningSchedule:
    """The schedule of a method or a variation, at a share of dense's multiply-adds."""
    base, options = VARIATIONS.get(method, (method, DEFAULT_OPTIONS))

    def make(keep_ratio: float) -> PruningSchedule:
        schedule = default_schedule(keep_ratio, architecture, method=base)
        return schedule if options == DEFAULT_OPTIONS else schedule.model_copy(update={"options": options})

    return at_cost(make, architecture, share, count)


def answers(loaded: LoadedModel, schedule: PruningSchedule, images: Array) -> Array:
    """Logits `[n, classes]` of normalised images `[n, 3, S, S]`."""
    with PrunedModel(loaded.adapter, schedule) as pruned, torch.inference_mode():
        parts = [pruned(torch.from_numpy(images[i : i + BATCH]))[0].numpy() for i in range(0, len(images), BATCH)]
    return np.concatenate(parts)


def table(rows: dict[str, Row], dense: Array, photographs: list[LabelledImage]) -> str:
    """Markdown, the smallest divergence first."""
    apart = {method: divergences(dense, row.logits) for method, row in rows.items()}
    lines = [
        "| method | keep ratio | GMACs | KL from dense (nats) | KL / KL of ToMe | same top class as dense | right |",
        "| --- | ---: | ---: | --- | --- | --- | ---: |",
        f"| dense | 1 | 0 % | 0 | | | {correct(dense, photographs)} of {len(photographs)} |",
    ]
    for method in sorted(rows, key=lambda name: float(apart[name].mean())):
        row, kl = rows[method], apart[method]
        same = int((row.logits.argmax(-1) == dense.argmax(-1)).sum())
        mean, agreement = mean_interval(kl, resamples=RESAMPLES), wilson_interval(same, len(kl))
        ratio, spread = kl.mean() / apart[REFERENCE].mean(), ratio_interval(kl, apart[REFERENCE])
        cells = (
            method,
            "" if row.schedule.keep_ratio is None else f"{row.schedule.keep_ratio:g}",
            f"{100 * (row.share - 1):+.1f} %",
            f"{kl.mean():.4f} ({mean.low:.4f} to {mean.high:.4f})",
            "1" if method == REFERENCE else f"{ratio:.2f} ({spread.low:.2f} to {spread.high:.2f})",
            f"{100 * same / len(kl):.1f} % ({100 * agreement.low:.1f} to {100 * agreement.high:.1f})",
            f"{correct(row.logits, photographs)} of {len(photographs)}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def correct(logits: Array, photographs: list[LabelledImage]) -> int:
    best = logits.argmax(-1)
    return sum(int(index) in one.accepted for index, one in zip(best, photographs, strict=True))


def ratio_interval(ours: NDArray[np.float64], theirs: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """Percentile bootstrap of the ratio of two means over the same images `[n]`, which are drawn in pairs."""
    drawn = np.random.default_rng(seed).integers(0, len(ours), (RESAMPLES, len(ours)))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(ours[drawn].mean(1) / theirs[drawn].mean(1), [tail, 100 - tail])
    return Interval(low=float(low), high=float(high), confidence=CONFIDENCE)


if __name__ == "__main__":
    main()
