"""Train a heavily pruned model further, and show that what this wins back is in the engine.

The model is the small vision transformer that ships in ``ztdeploy/host/assets/digits``; the images are those that it
was trained on (see ``train_digits.py``). Per seed and method, on the held-out digits, which training never sees:

- *dense*: the shipped model, not pruned
- *pruned*: the same weights, pruned
- *pruned, fine-tuned*: trained further while it is pruned, and evaluated pruned
- *dense fine-tuned, pruned*: the control: as many steps of the same recipe without pruning, pruned afterwards

The fine-tuned weights are written as an ordinary checkpoint, ``ztdeploy build --checkpoint`` makes a bundle of it, and
``ztdeploy eval`` runs its engine on the held-out digits as PNG images.

Usage::

    python scripts/finetune_digits.py [--keep-ratio 0.1] [--method zero-tprune ...] [--seed 0 ...] [--out fine-tuned]

The recipe was fixed before any held-out digit was looked at. It is seeded; another number of threads, processor or
version of a library may round differently.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from train_digits import (
    DEFAULT_OUT,
    Recipe,
    batches,
    learning_rate_factor,
    load_split,
    normalize,
    parameter_groups,
    preprocess,
    random_affine,
)

import ztdeploy
from ztdeploy.core.model_source import ModelSource
from ztdeploy.host.models.loading import load_model
from ztdeploy.target.evaluate.statistics import paired_interval
from ztdeploy.target.measure.statistics import wilson_interval

MODEL = "vit_digits"
Right = npt.NDArray[np.bool_]  # one per held-out digit


@dataclass(frozen=True)
class Tuning:
    """How training goes on: AdamW, a warm-up, a cosine, and for all else the model's own recipe."""

    steps: int = 270  #: 6 epochs
    learning_rate: float = 3e-4
    warmup_steps: int = 27
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True)
class Digits:
    """Images `[n, 3, 32, 32]` with values in 0..1 and their labels `[n]`."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Pruning:
    """How the model is pruned."""

    method: str
    keep_ratio: float


def shipped_model() -> nn.Module:
    """A fresh copy of the model inside the package."""
    model: nn.Module = load_model(ModelSource(name=MODEL)).adapter.model
    return model


def pruned(model: nn.Module, pruning: Pruning | None) -> Any:
    """The model for the length of a ``with`` block, pruned or, for None, as it is."""
    if pruning is None:
        return nullcontext(model)
    return ztdeploy.prune(model, pruning.keep_ratio, method=pruning.method)


def tune(model: nn.Module, pruning: Pruning | None, digits: Digits, tuning: Tuning, seed: int) -> None:
    """Train a model in place; the seed decides the order of images and how they are distorted."""
    recipe, generator = tuning.recipe, torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=tuning.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, tuning.warmup_steps, tuning.steps)
    )
    done = 0
    with pruned(model, pruning) as module:
        module.train()
        while done < tuning.steps:
            for chosen in batches(len(digits.images), recipe.batch_size, generator):
                if done == tuning.steps:
                    break
                images = normalize(random_affine(digits.images[chosen], recipe, generator))
                loss = F.cross_entropy(module(images), digits.labels[chosen], label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                optimizer.step()
                schedule.step()
                done += 1
        module.eval()


@torch.inference_mode()
def right(model: nn.Module, pruning: Pruning | None, digits: Digits) -> Right:
    """Which of the digits the model names."""
    with pruned(model, pruning) as module:
        found: Right = (module(normalize(digits.images)).argmax(dim=1) == digits.labels).numpy()
    return found


def engine_hits(checkpoint: Path, pruning: Pruning, bundle: Path) -> int:
    """Build a bundle from a checkpoint and count what its pruned engine names of the held-out PNG images."""
    keep, method = f"{pruning.keep_ratio}", pruning.method
    _ztdeploy("build", "-m", MODEL, "-p", "cpu", "--checkpoint", checkpoint, "-k", keep, "--method", method,
              "--out", bundle, "--force")  # fmt: skip
    report = json.loads(_ztdeploy("eval", bundle, "--data", DEFAULT_OUT, "--json"))["result"]
    (score,) = [one for one in report["variants"] if one["against_dense"] is not None]
    return int(score["top1"]["count"])


def _ztdeploy(*arguments: object) -> str:
    """What a command prints; what it says on standard error is shown where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "ztdeploy", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"ztdeploy {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


def share(count: int, total: int) -> str:
    """A share with Wilson's interval, in %."""
    interval = wilson_interval(count, total)
    return f"{100 * count / total:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def change(after: Right, before: Right) -> str:
    """A paired change of top-1 with Tango's interval, in points."""
    gained, lost, total = int((after & ~before).sum()), int((before & ~after).sum()), len(after)
    interval = paired_interval(gained, lost, total)
    return f"{100 * (gained - lost) / total:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


HEADINGS = (
    "method", "keep", "seed", "dense", "pruned", "pruned, fine-tuned", "dense fine-tuned, pruned",
    "fine-tuning wins back", "more than the control", "engine",
)  # fmt: skip


def rows(
    prunings: Sequence[Pruning], seed: int, train: Digits, held_out: Digits, tuning: Tuning, out: Path
) -> list[tuple[str, ...]]:
    """One row per method: everything of one seed."""
    plain = shipped_model()
    dense = right(plain, None, held_out)
    control = shipped_model()
    tune(control, None, train, tuning, seed)
    found = []
    for pruning in prunings:
        model = shipped_model()
        tune(model, pruning, train, tuning, seed)
        name = f"{pruning.method}-keep-{pruning.keep_ratio:.2f}-seed-{seed}"
        checkpoint = out / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, checkpoint)
        before, after, other = (right(one, pruning, held_out) for one in (plain, model, control))
        total = len(after)
        found.append(
            (
                pruning.method,
                f"{pruning.keep_ratio:g}",
                f"{seed}",
                *(share(int(one.sum()), total) for one in (dense, before, after, other)),
                change(after, before),
                change(after, other),
                f"{engine_hits(checkpoint, pruning, out / name)} of {total}, PyTorch {int(after.sum())}",
            )
        )
    return found


def main() -> None:
    """Fine-tune, build, evaluate, and print a Markdown table."""
    parser = argparse.ArgumentParser(description="Fine-tune the shipped model while it is pruned.")
    parser.add_argument("--method", nargs="+", default=["zero-tprune", "zero-tprune-merge"])
    parser.add_argument("--keep-ratio", type=float, default=0.1)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=Tuning.steps)
    parser.add_argument("--out", type=Path, default=Path("fine-tuned"), help="folder of checkpoints and bundles")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    split = load_split()
    train, held_out = (
        Digits(
            torch.stack([preprocess(Image.fromarray(split.images[index])) for index in chosen]),
            torch.from_numpy(split.labels[chosen]),
        )
        for chosen in (split.train, split.held_out)
    )
    prunings = [Pruning(method, arguments.keep_ratio) for method in arguments.method]
    tuning, started = Tuning(steps=arguments.steps), time.monotonic()
    print(f"| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}", flush=True)
    for seed in arguments.seed:
        for row in rows(prunings, seed, train, held_out, tuning, out):
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n{tuning}, {torch.get_num_threads()} threads, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
