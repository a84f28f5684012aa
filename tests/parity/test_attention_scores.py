"""Methods that rank by attention, with loops in double precision: power-bert, spatten, as-vit and etps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import images, layer_of, layer_plan, pruned, random_attention, tiny_vit
from helpers.reference_trained import Floats, squeezed
from torch import Tensor

from ztdeploy.host.pruning.layer import BlockTaps

HEADS, WIDTH, EMBED, PATCHES, KEPT = 3, 4, 6, 12, 7


def received(attention: Floats) -> Floats:
    """`[H, N, N]` to `[N]`."""
    heads, tokens, _ = attention.shape
    scores = [sum(attention[h, i, j] for h in range(heads) for i in range(tokens)) for j in range(tokens)]
    return np.array(scores) / heads


def weighted_by_head(attention: Floats, values: Floats) -> Floats:
    """`[H, N, N]` and `[H, N, d]` to `[N]`."""
    lengths = np.array(
        [[np.linalg.norm(row @ value) for row in one] for one, value in zip(attention, values, strict=True)]
    )
    return np.array([(attention[:, 0, j] * lengths[:, j]).sum() / lengths[:, j].sum() for j in range(lengths.shape[1])])


def best(scores: Floats, kept: int) -> list[int]:
    """The class token and the best others, ascending."""
    return [0, *sorted(1 + np.argsort(-scores[1:])[:kept])]


@pytest.mark.parametrize("seed", range(5))
class TestScores:
    @pytest.fixture
    def shown(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Attention, values and tokens of three images."""
        generator = np.random.default_rng(seed)
        attention = torch.tensor(random_attention(generator, 3, HEADS, PATCHES + 1))
        values = torch.tensor(generator.normal(size=(3, HEADS, PATCHES + 1, WIDTH)))
        return attention, values, torch.tensor(generator.normal(size=(3, PATCHES + 1, EMBED)))

    @pytest.mark.parametrize("method", ["power-bert", "spatten", "as-vit"])
    def test_the_best_stay(self, method: str, shown: tuple[Tensor, Tensor, Tensor]) -> None:
        attention, values, x = shown
        layer = layer_of(method, layer_plan(PATCHES, KEPT), EMBED, HEADS).double()
        kept = layer(x, BlockTaps(attention, None, values)).choice.kept
        for image in range(3):
            if method == "as-vit":
                scores = weighted_by_head(attention[image].numpy(), values[image].numpy())
            else:
                scores = received(attention[image].numpy())
            assert kept[image].tolist() == best(scores, KEPT)

    def test_etps_squeezes_what_the_class_token_attends_to_least(self, shown: tuple[Tensor, Tensor, Tensor]) -> None:
        attention, _, x = shown
        reduction = layer_of("etps", layer_plan(PATCHES, KEPT), EMBED, HEADS).double()(x, BlockTaps(attention))
        for image, tokens in enumerate(x.numpy()):
            kept = best(attention[image, :, 0].mean(0).numpy(), KEPT)
            gone = [token for token in range(PATCHES + 1) if token not in kept]
            assert reduction.choice.kept[image].tolist() == kept
            np.testing.assert_allclose(reduction.tokens[image, 1:], squeezed(tokens[kept[1:]], tokens[gone]))
            np.testing.assert_allclose(reduction.tokens[image, 0], tokens[0])


def test_spatten_adds_up_what_tokens_received_at_the_layers_before() -> None:
    wrapped, seen = pruned(tiny_vit(), "spatten"), list[Tensor]()
    for layer in wrapped.layers:
        layer.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[1].attention))
    with torch.no_grad():
        _, first, second = wrapped(images(3))
    for image in range(3):
        early, late = (received(attention[image].double().numpy()) for attention in seen)
        assert first[image].tolist() == best(early, first.shape[1] - 1)
        assert second[image].tolist() == best(late + early[first[image]], second.shape[1] - 1)
        assert second[image].tolist() != best(late, second.shape[1] - 1) or image  # the sum decides
