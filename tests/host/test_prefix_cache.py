"""The dense prefix is computed once, and what comes of it is bit by bit what a pruned model gives by itself."""

from __future__ import annotations

import pytest
import torch
from helpers.models import IMAGE_SIZE, VARIANTS, adapted, fits, images, schedule, tiny_vit, variant

from ztdeploy.core.errors import ScheduleError
from ztdeploy.core.methods import METHODS
from ztdeploy.core.plan import Variant
from ztdeploy.core.schedule import LayerSpec
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.prefix_cache import DensePrefix, first_block
from ztdeploy.host.pruning.layer import Choice
from ztdeploy.host.pruning.pruned_model import PrunedModel

LATE = (LayerSpec(block=3, keep_ratio=0.6), LayerSpec(block=4, keep_ratio=0.8))
EARLY = (LayerSpec(block=1, keep_ratio=0.75), LayerSpec(block=2, keep_ratio=0.6))


def by_itself(adapter: VitAdapter, wanted: object) -> torch.Tensor:
    with PrunedModel(adapter, wanted) as pruned, torch.inference_mode():  # type: ignore[arg-type]
        return pruned(images(5))[0]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_the_same_bits(method: str, name: str) -> None:
    if not fits(method, name):
        pytest.skip("the method needs a class token")
    adapter = adapted(variant(name))
    prefix = DensePrefix(adapter, images(5))
    for layers in (LATE, EARLY, ()):
        wanted = schedule(method, *layers)
        assert torch.equal(prefix.output(wanted), by_itself(adapter, wanted))


@pytest.mark.parametrize(("kept", "computed"), [((2,), 2), ((1,), 3), ((1, 2), 2), ((3,), 4), ((), 4), (None, 2)])
def test_blocks_in_front_are_not_computed_again(kept: tuple[int, ...] | None, computed: int) -> None:
    """The first pruning layer stands behind block 2, counted from 0."""
    adapter = VitAdapter(tiny_vit(), IMAGE_SIZE)
    prefix, ran = DensePrefix(adapter, images(2), kept), []
    for block in adapter.blocks:
        block.attn.register_forward_hook(lambda *_: ran.append(1))
    wanted = schedule("zero-tprune", *LATE)
    assert first_block(Variant.of(wanted, adapter.architecture).plan) == 2
    output = prefix.output(wanted)
    assert len(ran) == computed
    with PrunedModel(adapter, wanted) as pruned, torch.inference_mode():
        assert torch.equal(output, pruned(images(2))[0])
        assert len(ran) == computed + 4, "afterwards all blocks run again"


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_layers_in_common_are_not_computed_again(method: str, name: str) -> None:
    """Of a schedule that begins as the stored one the rest is computed, and its bits are the same."""
    if not fits(method, name):
        pytest.skip("the method needs a class token")
    adapter = adapted(variant(name))
    prefix, first = DensePrefix(adapter, images(5)), (LayerSpec(block=1, drop=3), LayerSpec(block=2, drop=2))
    stored, ran = schedule(method, *first, LayerSpec(block=3, drop=1)), list[int]()
    assert torch.equal(prefix.keep_layers(stored), by_itself(adapter, stored))
    for last, computed in ((2, 2), (3, 2), (1, 1)):
        wanted = schedule(method, *first, LayerSpec(block=3, drop=last)) if last > 1 else stored
        handles = [block.attn.register_forward_hook(lambda *_: ran.append(1)) for block in adapter.blocks]
        output, count = prefix.output(wanted), len(ran)
        for handle in handles:
            handle.remove()
        ran.clear()
        assert torch.equal(output, by_itself(adapter, wanted))
        if not METHODS[method].inside:  # what is inside a block needs the block
            assert count == computed
    other = schedule(method, LayerSpec(block=2, drop=2))
    assert torch.equal(prefix.output(other), by_itself(adapter, other))
    assert torch.equal(prefix.keep_layers(other), by_itself(adapter, other))
    assert torch.equal(prefix.output(stored), by_itself(adapter, stored)), "what was stored before is forgotten"


def test_dense_is_the_model_itself() -> None:
    adapter = VitAdapter(tiny_vit(), IMAGE_SIZE)
    prefix = DensePrefix(adapter, images(3), (1,))
    with torch.inference_mode():
        expected = adapter.model(images(3))
    assert torch.equal(prefix.dense, expected)
    assert prefix.output(schedule("zero-tprune", LayerSpec(block=3, keep_ratio=1))) is prefix.dense
    for block in adapter.blocks:
        assert "forward" not in vars(block)
        assert not block._forward_pre_hooks


def test_choices_take_the_place_of_the_methods() -> None:
    adapter = VitAdapter(tiny_vit(), IMAGE_SIZE)
    wanted = schedule("random", LayerSpec(block=2, drop=10))
    kept = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 4, 6, 8, 10, 12, 16], [0, 10, 11, 12, 13, 14, 15]])
    given = images(3)
    output = DensePrefix(adapter, given).output(wanted, [Choice(kept)])
    model = adapter.model
    with torch.inference_mode():  # the model by hand: behind block 2 (from 1) only those tokens go on
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(given)))
        tokens = model.blocks[1](model.blocks[0](tokens))
        tokens = torch.stack([one[index] for one, index in zip(tokens, kept, strict=True)])
        expected = model.forward_head(model.norm(model.blocks[3](model.blocks[2](tokens))))
    torch.testing.assert_close(output, expected)


def test_a_failure_leaves_the_model_as_it_was() -> None:
    adapter = VitAdapter(tiny_vit(), IMAGE_SIZE)
    prefix = DensePrefix(adapter, images(2))
    with pytest.raises(ScheduleError):
        prefix.output(schedule("no-such-method", *LATE))
    with PrunedModel(adapter, schedule("zero-tprune", *LATE)), pytest.raises(Exception, match="already pruned"):
        prefix.output(schedule("zero-tprune", *LATE))
    assert all("forward" not in vars(block) for block in adapter.blocks)
