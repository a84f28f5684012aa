"""Train the small vision transformer that ships in ``ztdeploy/host/assets/digits``.

The model is an ordinary ``timm`` ``VisionTransformer`` (32x32 input, 4x4 patches, 64 patch tokens
and a class token, 12 blocks). It is trained from scratch on the handwritten digits that come with
scikit-learn, so neither training nor use needs a network.

Usage::

    python scripts/train_digits.py [--epochs N] [--out ztdeploy/host/assets/digits]
    python scripts/train_digits.py --check      # re-evaluate what is already there

The held-out digits are never looked at during training: the number of epochs is fixed, and the
exponential moving average of the weights at the end is what gets saved. They are evaluated once,
from the files that were written (half-precision weights, PNG images), so the recorded accuracy is
the accuracy of the shipped files. The recipe is seeded and single-threaded; another processor or
another version of a library may still round differently and give slightly different weights.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import safetensors
import sklearn  # type: ignore[import-untyped, unused-ignore]
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]
from sklearn.model_selection import (  # type: ignore[import-untyped, unused-ignore]
    train_test_split,
)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ztdeploy.host.models.catalogue import ASSETS

DEFAULT_OUT = ASSETS / "digits"

ARCHITECTURE: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": 10,
    "embed_dim": 96,
    "depth": 12,
    "num_heads": 3,
    "mlp_ratio": 4.0,
    "global_pool": "token",
}
"""Keyword arguments of ``timm.models.vision_transformer.VisionTransformer``."""

PREPROCESSING: dict[str, Any] = {
    "resize": 32,
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
"""What the runtime does to an image: resize, scale to 0..1, ``(x - mean) / std``."""

CLASSES = [str(digit) for digit in range(10)]
HELD_OUT = 360
SPLIT_SEED = 0


@dataclass(frozen=True)
class Recipe:
    """The fixed training recipe; it is recorded in ``model.json``."""

    epochs: int = 75
    seed: int = 0
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: int = 5
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    drop_path: float = 0.05
    label_smoothing: float = 0.1
    mixup_alpha: float = 0.4
    mixup_probability: float = 0.3
    rotation_degrees: float = 12.0
    shear_degrees: float = 8.0
    scale: float = 0.12
    shift_pixels: float = 3.0


@dataclass(frozen=True)
class Split:
    """The digits as 8-bit grey images, their labels, and who is in which part."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    train: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]


def load_split() -> Split:
    """Load the digits and split them, stratified by class, with a fixed seed."""
    digits = load_digits()
    images = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=SPLIT_SEED
    )
    return Split(images, labels, np.sort(train), np.sort(held_out))


def preprocess(image: Image.Image) -> Tensor:
    """Turn an image of any size into a ``(3, 32, 32)`` tensor with values in 0..1."""
    size = int(PREPROCESSING["resize"])
    resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, dtype=np.float32) / np.float32(255.0)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def normalize(batch: Tensor) -> Tensor:
    """Apply ``(x - mean) / std`` to a batch with values in 0..1."""
    mean = torch.tensor(PREPROCESSING["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(PREPROCESSING["std"]).view(1, 3, 1, 1)
    return (batch - mean) / std


def random_affine(batch: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Rotate, shear, scale and shift every image of a batch at random; the border is black."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(len(batch), generator=generator) * 2.0 - 1.0) * limit

    angle = uniform(math.radians(recipe.rotation_degrees))
    shear = torch.tan(uniform(math.radians(recipe.shear_degrees)))
    zoom_x = 1.0 + uniform(recipe.scale)
    zoom_y = 1.0 + uniform(recipe.scale)
    shift = 2.0 * recipe.shift_pixels / batch.shape[-1]
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack(
        [
            torch.stack([zoom_x * cos, zoom_x * (shear * cos - sin), uniform(shift)], dim=1),
            torch.stack([zoom_y * sin, zoom_y * (shear * sin + cos), uniform(shift)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, padding_mode="zeros", align_corners=False)


def mixup(batch: Tensor, targets: Tensor, recipe: Recipe, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Blend a batch with its own reverse, for some of the batches."""
    if rng.random() >= recipe.mixup_probability:
        return batch, targets
    weight = float(rng.beta(recipe.mixup_alpha, recipe.mixup_alpha))
    return (
        weight * batch + (1.0 - weight) * batch.flip(0),
        weight * targets + (1.0 - weight) * targets.flip(0),
    )


def learning_rate_factor(step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then a cosine down to (nearly) zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the indices of one shuffled epoch, batch by batch."""
    order = torch.randperm(count, generator=generator)
    for start in range(0, count, size):
        yield order[start : start + size]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay the weight matrices only: no biases, norms, or embeddings of tokens and positions."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_plain = parameter.ndim < 2 or name in {"cls_token", "pos_embed"}
        (plain if is_plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def train(images: Tensor, labels: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """Train on images with values in 0..1 and return the averaged weights."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)

    model = VisionTransformer(**ARCHITECTURE, drop_path_rate=recipe.drop_path)
    model.train()
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate)
    steps_per_epoch = math.ceil(len(images) / recipe.batch_size)
    warmup = recipe.warmup_epochs * steps_per_epoch
    total = recipe.epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, warmup, total))

    targets = F.one_hot(labels, len(CLASSES)).float()
    started = time.monotonic()
    for epoch in range(recipe.epochs):
        running = 0.0
        for chosen in batches(len(images), recipe.batch_size, generator):
            batch = random_affine(images[chosen], recipe, generator)
            batch, target = mixup(batch, targets[chosen], recipe, rng)
            loss = F.cross_entropy(model(normalize(batch)), target, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            schedule.step()
            for name, value in model.state_dict().items():
                average[name].lerp_(value.detach(), 1.0 - recipe.ema_decay)
            running += loss.item() * len(chosen)
        print(
            f"epoch {epoch + 1:3d}/{recipe.epochs}  training loss {running / len(images):.4f}"
            f"  {time.monotonic() - started:.0f} s",
            flush=True,
        )
    return average


def write_json(path: Path, value: object) -> None:
    """Write readable JSON that ends in a newline."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_images(split: Split, out: Path) -> None:
    """Write the held-out digits as 8x8 PNGs named INDEX_LABEL, and ``labels.json``.

    INDEX is the digit's position in ``sklearn.datasets.load_digits()``.
    """
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    rows: list[str] = []
    for index in split.held_out.tolist():
        label = int(split.labels[index])
        name = f"{index:04d}_{label}.png"
        Image.fromarray(split.images[index]).save(folder / name)
        rows.append(json.dumps({"file": name, "class": CLASSES[label], "indices": [label]}))
    text = "[\n" + ",\n".join(rows) + "\n]\n"
    (out / "labels.json").write_text(text, encoding="utf-8")


@torch.inference_mode()
def evaluate(out: Path, architecture: dict[str, Any]) -> float:
    """Return the accuracy of the files in ``out``: saved weights, PNG images, ``labels.json``."""
    model = VisionTransformer(**architecture)
    weights = load_file(out / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    model.eval()
    rows = json.loads((out / "labels.json").read_text(encoding="utf-8"))
    correct = 0
    for row in rows:
        with Image.open(out / "images" / row["file"]) as image:
            logits = model(normalize(preprocess(image).unsqueeze(0)))
        correct += int(logits.argmax().item()) in row["indices"]
    return correct / len(rows)


def describe(split: Split, recipe: Recipe, accuracy: float) -> dict[str, Any]:
    """Build the contents of ``model.json``."""
    return {
        "name": "digits",
        "architecture": ARCHITECTURE,
        "preprocessing": PREPROCESSING,
        "classes": CLASSES,
        "training": {
            "script": "scripts/train_digits.py",
            "initialization": "random (no pretrained weights)",
            "recipe": asdict(recipe),
            "train_images": len(split.train),
            "held_out_images": len(split.held_out),
            "split_seed": SPLIT_SEED,
            "held_out_accuracy": round(accuracy, 6),
            "weights": "exponential moving average, rounded to float16",
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "pillow": PIL.__version__,
                "safetensors": safetensors.__version__,
                "scikit-learn": sklearn.__version__,
                "timm": timm.__version__,
                "torch": torch.__version__.split("+")[0],
            },
        },
        "data": {
            "name": "Optical Recognition of Handwritten Digits",
            "source": "UCI Machine Learning Repository, via sklearn.datasets.load_digits",
            "url": "https://doi.org/10.24432/C50P49",
            "authors": "E. Alpaydin, C. Kaynak",
            "licence": "CC BY 4.0",
        },
    }


def main() -> None:
    """Train and write everything, or check what is there."""
    parser = argparse.ArgumentParser(description="Train the digits model that ztdeploy ships.")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--check", action="store_true", help="train nothing: evaluate the files in --out")
    arguments = parser.parse_args()
    out: Path = arguments.out

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    if arguments.check:
        recorded = json.loads((out / "model.json").read_text(encoding="utf-8"))
        accuracy = evaluate(out, recorded["architecture"])
        expected = recorded["training"]["held_out_accuracy"]
        print(f"held-out accuracy {accuracy:.4f} (recorded {expected:.4f})")
        return

    recipe = Recipe(epochs=arguments.epochs)
    split = load_split()
    write_images(split, out)
    images = torch.stack([preprocess(Image.fromarray(split.images[i])) for i in split.train])
    weights = train(images, torch.from_numpy(split.labels[split.train]), recipe)
    save_file(
        {name: value.half().contiguous() for name, value in weights.items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    (out / "model.safetensors").chmod(0o644)  # the writer makes it private
    accuracy = evaluate(out, ARCHITECTURE)
    write_json(out / "model.json", describe(split, recipe, accuracy))
    print(f"held-out accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
