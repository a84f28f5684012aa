"""DiffRate, PiToMe, MCTF, ToFu and PPT against NumPy twins written from the papers' texts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import reference_rivals as reference
from helpers.models import layer_plan, random_attention
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning import pruning_layer
from ztdeploy.host.pruning.layer import BlockTaps, Recorder

SETTINGS = settings(deadline=None, max_examples=60)
CLEAR, BATCH, HEADS, WIDTH, EMBED = 1e-9, 2, 3, 4, 6
THRESHOLD = 7e-5


class Given:
    """What blocks show of two images, unlike each other."""

    def __init__(self, seed: int, plan: LayerPlan, *, sized: bool) -> None:
        generator, tokens = np.random.default_rng(seed), plan.tokens_in
        self.attention = random_attention(generator, BATCH, HEADS, tokens)
        self.keys, self.values = generator.normal(size=(2, BATCH, HEADS, tokens, WIDTH)) + 0.3
        self.x = generator.normal(size=(BATCH, tokens, EMBED)) + 0.2
        self.size = generator.integers(1, 6, (BATCH, tokens)).astype(np.float64) if sized else np.ones((BATCH, tokens))
        self.sized = sized

    def taps(self) -> BlockTaps:
        size = torch.tensor(self.size[..., None]) if self.sized else None
        return BlockTaps(torch.tensor(self.attention), torch.tensor(self.keys), torch.tensor(self.values), size)


def expected(method: str, given: Given, image: int, plan: LayerPlan) -> reference.Fused:
    x, attention, keys, values, size = (
        values[image] for values in (given.x, given.attention, given.keys, given.values, given.size)
    )
    prefix, count = plan.prefix_tokens, plan.tokens_in - plan.tokens_out
    twins: dict[str, Callable[[], reference.Fused]] = {
        "pitome": lambda: reference.pitome(x, keys, size, prefix=prefix, count=count, margin=0.9 - 0.9 * plan.position),
        "mctf": lambda: reference.mctf(x, attention, size, prefix=prefix, count=count),
        "tofu": lambda: reference.tofu(x, keys, size, prefix=prefix, count=count, drops=plan.drops),
        "ppt": lambda: reference.ppt(x, attention, keys, values, size, prefix=prefix, count=count, threshold=THRESHOLD),
        "diffrate": lambda: reference.diffrate(
            x, attention, size, prefix=prefix, keep=plan.tokens_out, merges=plan.similarity_drop
        ),
    }
    return twins[method]()


METHODS = ("pitome", "mctf", "tofu", "ppt", "diffrate")


def check(method: str, plan: LayerPlan, given: Given) -> None:
    record = Recorder()
    with torch.no_grad():
        found = pruning_layer(method, plan).double()(torch.tensor(given.x), given.taps(), record)
    gaps = record.smallest_gap(BATCH)
    for image in range(BATCH):
        wanted = expected(method, given, image, plan)
        assert gaps[image] <= wanted.margin + 1e-9, "the layer knows how close the call was"
        if wanted.margin < CLEAR:
            event("inconclusive: a decision within rounding")
            continue
        assert found.choice.kept[image].tolist() == wanted.kept
        assert found.choice.into[image].tolist() == wanted.into
        np.testing.assert_allclose(found.tokens[image], wanted.tokens, rtol=1e-9, atol=1e-9)
        if found.size is None:
            assert plan.drops
            assert not given.sized
        else:
            np.testing.assert_allclose(found.size[image, :, 0], wanted.sizes, rtol=1e-9)
            torch.testing.assert_close(found.bias[image, 0, 0].exp(), found.size[image, :, 0])


@pytest.mark.parametrize("method", METHODS)
@SETTINGS
@given(
    seed=st.integers(0, 2**32 - 1),
    prefix=st.sampled_from([1, 2, 5]),
    patches=st.integers(2, 17),
    sized=st.booleans(),
    position=st.sampled_from([0.0, 0.25, 0.9]),
    drops=st.booleans(),
    data=st.data(),
)
def test_decides_and_joins_as_the_twin(
    method: str,
    seed: int,
    prefix: int,
    patches: int,
    sized: bool,
    position: float,
    drops: bool,
    data: st.DataObject,
) -> None:
    most = patches - 1 if method == "diffrate" else patches // 2
    count = data.draw(st.integers(1, most))
    similar = data.draw(st.integers(0, count)) if method == "diffrate" else count
    plan = layer_plan(patches, patches - count, prefix=prefix, similarity_drop=similar)
    some = {"diffrate": similar == 0, "tofu": drops}.get(method, False)
    plan = plan.model_copy(update={"merges": True, "position": position, "drops": some})
    check(method, plan, Given(seed, plan, sized=sized))


class TestWhatSetsThemApart:
    """One small case each, which another method decides otherwise."""

    def test_pitome_keeps_the_token_that_is_alone_and_merges_within_the_cluster(self) -> None:
        keys = torch.zeros(1, 1, 7, 3)
        noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        keys[0, 0, 1:6] = torch.tensor([1.0, 0.0, 0.0]) + 0.01 * noise
        keys[0, 0, 6] = torch.tensor([0.0, 1.0, 0.0])
        choice = pruning_layer("pitome", layer_plan(6, 4))(torch.zeros(1, 7, 2), BlockTaps(None, keys)).choice
        assert 6 in choice.kept[0]
        assert choice.kept[0, choice.into[0]].max() < 6

    def test_mctf_spares_what_gets_attention(self) -> None:
        """Two twin pairs; the one that is attended to stays apart."""
        x = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
        attention = torch.full((1, 1, 5, 5), 0.05)
        attention[..., 1:3] = 0.425
        choice = pruning_layer("mctf", layer_plan(4, 3))(x, BlockTaps(attention)).choice
        assert set(choice.kept[0].tolist()) >= {0, 1, 2}

    def test_tofu_keeps_the_length_that_an_average_loses(self) -> None:
        keys = torch.ones(1, 1, 3, 2)
        x = torch.tensor([[[5.0, 5.0], [3.0, 0.0], [0.0, 1.0]]])
        tokens = pruning_layer("tofu", layer_plan(2, 1))(x, BlockTaps(None, keys)).tokens
        assert tokens[0, 1].norm().item() == pytest.approx(3.0)
        assert tokens[0, 1, 0] == pytest.approx(3 * tokens[0, 1, 1].item())

    @pytest.mark.parametrize(("peak", "dropped"), [(0.9, True), (0.101, False)])
    def test_ppt_drops_where_scores_differ_and_merges_where_they_do_not(self, peak: float, dropped: bool) -> None:
        """Of 196 patch tokens the variance of the scores is at most 7e-5 unless some stand out."""
        tokens = 197
        attention = torch.full((1, 1, tokens, tokens), 1.0)
        attention[..., 1:9] = 1.0 + 100 * peak - 10
        taps = BlockTaps(attention, torch.ones(1, 1, tokens, 4), torch.ones(1, 1, tokens, 4))
        choice = pruning_layer("ppt", layer_plan(196, 146))(torch.zeros(1, tokens, 2), taps).choice
        assert bool((choice.into == -1).all()) is dropped
        assert bool((choice.into >= 1).all()) is not dropped

    def test_diffrate_drops_the_last_and_merges_the_next(self) -> None:
        attention = torch.full((1, 1, 6, 6), 0.1)
        attention[:, :, 0] = torch.tensor([0.1, 0.3, 0.05, 0.25, 0.1, 0.2])
        x = torch.eye(6).unsqueeze(0).clone()
        x[0, 4] = x[0, 3]
        layer = pruning_layer("diffrate", layer_plan(5, 3, similarity_drop=1))
        choice = layer(x, BlockTaps(attention)).choice
        assert (choice.kept.tolist(), choice.into.tolist()) == ([[0, 1, 3, 5]], [[-1, 2]])
