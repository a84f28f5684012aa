"""What rows answer: their own pruned model's logits, chance drawn per image, rankings of every block."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from helpers.models import IMAGE_SIZE, images, tiny_vit

from benchmarks.ablation.answers import answer, joined
from benchmarks.ablation.ranking import overlaps, rankings
from benchmarks.ablation.topics import Row, with_options
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.runtime.postprocess import divergences

ADAPTER = VitAdapter(tiny_vit(), IMAGE_SIZE)
PLAIN = default_schedule(0.6, ADAPTER.architecture, method="zero-tprune")
RANDOM = default_schedule(0.6, ADAPTER.architecture, method="random")
ROWS = [
    Row("plain", PLAIN),
    Row("dot", with_options(PLAIN, metric="dot")),
    Row("queries", with_options(PLAIN, feature="queries")),
    *(Row(f"random {draw}", RANDOM, draw) for draw in range(2)),
]
GIVEN = images(6)


def run(start: int, end: int, seed: int = 0, kept: int | None = None) -> Any:
    return answer(ADAPTER, ROWS, GIVEN[start:end].numpy(), first_image=start, seed=seed, kept=kept)


def test_rows_are_pruned_models() -> None:
    part = run(0, 6)
    with torch.inference_mode():
        dense = ADAPTER.model(GIVEN).numpy()
    assert part.dense.tolist() == dense.argmax(-1).tolist()
    for place, row in enumerate(ROWS[:3]):
        with PrunedModel(ADAPTER, row.schedule) as pruned, torch.inference_mode():
            logits = pruned(GIVEN)[0].numpy()
        assert part.best[place].tolist() == logits.argmax(-1).tolist()
        np.testing.assert_array_equal(part.kl[place], divergences(dense, logits))
    assert len({tuple(one) for one in part.kl.tolist()}) == len(ROWS), "every row does something of its own"


def test_parts_do_not_matter_and_seeds_do() -> None:
    whole, parts = run(0, 6, kept=9), joined([run(0, 2, kept=9), run(2, 6, kept=9)])
    for name in ("kl", "best", "overlap", "correlation"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-3, atol=1e-6)
    other = run(0, 6, seed=1)
    assert not np.allclose(other.kl[3], whole.kl[3], rtol=0.1), "another seed draws others"
    np.testing.assert_array_equal(other.kl[0], whole.kl[0])


def test_rankings_are_of_each_blocks_own_attention() -> None:
    class Sink:
        attention = keys = values = queries = None

    sinks = [Sink() for _ in ADAPTER.blocks]
    undo = []
    for block, sink in enumerate(sinks):
        undo += ADAPTER.tap(block, sink, attention=True, keys=False, values=False, queries=False)
    with torch.inference_mode():
        ADAPTER.model(GIVEN)
    for one in reversed(undo):
        one()
    part = run(0, 6, kept=9)
    for block, sink in enumerate(sinks):
        expected = overlaps(rankings(sink.attention, class_token=True)[..., 1:], 9)
        np.testing.assert_allclose(part.overlap[block], expected, rtol=1e-6)
    assert all(block.attn.fused_attn for block in ADAPTER.blocks), "the model is left as it was"
