"""What the rows of all tables answer to images: computed a few images at a time, and no more kept than is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.ablation.ranking import overlaps, rank_correlations, rankings
from benchmarks.ablation.topics import Row
from ztdeploy.core.errors import ParityError
from ztdeploy.core.plan import LayerPlan, Variant, plan
from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.prefix_cache import DensePrefix, first_block
from ztdeploy.host.pruning.layer import Choice
from ztdeploy.target.runtime.postprocess import divergences


@dataclass(frozen=True)
class Part:
    """Of some images, n of them. r rows, b blocks, t numbers of iterations."""

    dense: NDArray[np.int32]  #: `[n]` best class
    best: NDArray[np.int32]  #: `[r, n]`
    kl: NDArray[np.float64]  #: `[r, n]` nats from dense
    overlap: NDArray[np.float64]  #: `[b, t, n]`; b is 0 where rankings are not asked for
    correlation: NDArray[np.float64]  #: `[b, t, n]`


def joined(parts: Sequence[Part]) -> Part:
    """One after the other; at least one."""
    return Part(
        dense=np.concatenate([part.dense for part in parts]),
        best=np.concatenate([part.best for part in parts], axis=-1),
        kl=np.concatenate([part.kl for part in parts], axis=-1),
        overlap=np.concatenate([part.overlap for part in parts], axis=-1),
        correlation=np.concatenate([part.correlation for part in parts], axis=-1),
    )


def answer(
    adapter: ModelAdapter,
    rows: Sequence[Row],
    images: NDArray[np.float32],
    *,
    first_image: int,
    seed: int,
    kept: int | None,
) -> Part:
    """Run all rows on a few images.

    Args:
        images: normalised, `[n, C, H, W]`.
        first_image: the first one's place among all images: what is random is drawn per image, not per part.
        kept: of the patch tokens, by each block's ranking; None: rankings are not asked for.

    Raises:
        ParityError: the model gives infinities or NaN.
    """
    given = torch.from_numpy(images)
    starts = {first_block(Variant.of(row.schedule, adapter.architecture).plan) for row in rows}
    prefix = DensePrefix(adapter, given, starts)
    dense = prefix.dense.numpy()
    _check_numbers(dense, "the dense model")
    best, kl = np.zeros((len(rows), len(images)), np.int32), np.zeros((len(rows), len(images)))
    for position, row in enumerate(rows):
        logits = prefix.output(row.schedule, _random_choices(adapter, row, first_image, len(images), seed)).numpy()
        _check_numbers(logits, f"'{row.label}'")
        best[position], kl[position] = logits.argmax(-1), divergences(dense, logits)
    empty = np.zeros((0, 0, len(images)))
    overlap, correlation = (empty, empty) if kept is None else _rankings(adapter, given, kept)
    return Part(dense.argmax(-1).astype(np.int32), best, kl, overlap, correlation)


def _check_numbers(logits: NDArray[np.float32], whose: str) -> None:
    if not np.isfinite(logits).all():
        raise ParityError(f"{whose} gives infinities or NaN", "finite logits", "check the weights")


def _random_choices(adapter: ModelAdapter, row: Row, first_image: int, count: int, seed: int) -> list[Choice]:
    """What stays at each layer, drawn for every image; nothing where the row decides by itself."""
    if row.draw is None:
        return []
    layers = plan(row.schedule, adapter.architecture).layers
    drawn = [_drawn(layers, [seed, row.draw, image]) for image in range(first_image, first_image + count)]
    return [Choice(torch.stack(kept)) for kept in zip(*drawn, strict=True)]


def _drawn(layers: Sequence[LayerPlan], seed: Sequence[int]) -> list[Tensor]:
    """`[k]` of each layer, ascending, the prefix tokens first."""
    generator, kept = np.random.default_rng(seed), []
    for layer in layers:
        prefix = layer.prefix_tokens
        patches = prefix + generator.permutation(layer.tokens_in - prefix)[: layer.tokens_out - prefix]
        kept.append(torch.from_numpy(np.concatenate([np.arange(prefix), np.sort(patches)])))
    return kept


def _rankings(adapter: ModelAdapter, images: Tensor, kept: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Overlaps and rank correlations on the dense model's attention: `[b, t, n]` each."""
    architecture = adapter.architecture
    sinks = [
        _RankingSink(architecture.prefix_tokens, kept, class_token=architecture.class_token) for _ in adapter.blocks
    ]
    undo: list[Callable[[], None]] = []
    try:
        for block, sink in enumerate(sinks):
            undo += adapter.tap(block, sink, attention=True, keys=False, values=False, queries=False)
        with torch.inference_mode():
            adapter.model(images)
    finally:
        while undo:
            undo.pop()()
    return np.stack([sink.overlap for sink in sinks]), np.stack([sink.correlation for sink in sinks])


class _RankingSink:
    """Where a block puts its attention: it is ranked at once, since that of all blocks is large."""

    keys: Tensor | None = None
    values: Tensor | None = None
    queries: Tensor | None = None
    overlap: NDArray[np.float64]
    correlation: NDArray[np.float64]

    def __init__(self, prefix: int, kept: int, *, class_token: bool) -> None:
        self._prefix, self._kept, self._class_token = prefix, kept, class_token

    @property
    def attention(self) -> Any:
        return None

    @attention.setter
    def attention(self, value: Any) -> None:
        scores = rankings(value, class_token=self._class_token)[..., self._prefix :]
        self.overlap = overlaps(scores, self._kept).numpy().astype(np.float64)
        self.correlation = rank_correlations(scores).numpy()
