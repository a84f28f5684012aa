"""Every model family, proved on models by name: nothing is lost around the blocks, or beside the tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import timm
import torch
from helpers.families import MEMBERS, adapter_of, chained, check_read_tokens, images_for, member, only
from helpers.models import PREPROCESS
from helpers.sessions import run_graph
from timm.layers import apply_rot_embed_cat
from torch import Tensor

from ztdeploy.core.errors import ModelError
from ztdeploy.core.keep_ratio import uniform_schedule
from ztdeploy.core.manifest import GraphRecord
from ztdeploy.core.names import ATTENTIONS, block_name
from ztdeploy.core.plan import plan
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.profile import BatchSizes, HardwareProfile, TensorRtOptions
from ztdeploy.core.schedule import LayerSpec, PruningSchedule
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec
from ztdeploy.host.graph.cutting import cut
from ztdeploy.host.graph.rewriting import shape_of
from ztdeploy.host.graph.tensorrt_lint import check_tensorrt
from ztdeploy.host.models import FAMILIES, REFUSED, adapt, hf_adapter
from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.models.beit import BeitAdapter
from ztdeploy.host.models.eva import EvaAdapter
from ztdeploy.host.models.hf_adapter import HubAdapter
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning.layer import Choice
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.backends import get_backend
from ztdeploy.target.backends.tensorrt.rtx import TensorRtRtxBackend

DENSE = uniform_schedule(1.0, 3)
#: Two layers, so that what is left of what was left is gathered as well.
PRUNED = PruningSchedule(
    name="pruned",
    method="zero-tprune",
    layers=(LayerSpec(block=1, keep_ratio=0.7, iterations=2), LayerSpec(block=2, keep_ratio=0.7)),
)
#: A member of each family whose tokens carry something for their places.
POSITIONAL = ["eva02_tiny_patch14_224", "vit_base_patch16_rope_mixed_224", "beit_base_patch16_224"]
POSITIONAL += ["hf/DINOv3ViTModel", "hf/BeitForImageClassification", "hf/BeitModel"]

#: Their graphs hold nothing that another's does not.
ALIKE = {
    "vit_base_patch32_224",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_gap_224",
    "vit_so400m_patch16_siglip_256",
    "vit_small_patch14_dinov2",
    "eva_large_patch14_196",
    "eva_giant_patch14_224",
    "eva02_large_patch14_clip_224",
    "beitv2_base_patch16_224",
    "hf/ViTModel",
    "hf/ViTMSNModel",
    "hf/ViTMSNForImageClassification",
    "hf/DeiTModel",
    "hf/Dinov2Model",
    "hf/Dinov2WithRegistersForImageClassification",
    "hf/CLIPVisionModel",
}

#: Graphs of each family that the short tests export: with prefix tokens, rotary angles, a relative bias, two heads.
EXPORTED = {
    "deit_small_distilled_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
    "vit_small_patch16_dinov3",
    "eva02_tiny_patch14_224",
    "beit_base_patch16_224",
    "lvvit_s",
    "hf/Dinov2WithRegistersModel",
    "hf/DINOv3ViTModel",
    "hf/SiglipVisionModel",
}


def longer(name: str, long: bool) -> Any:
    return pytest.param(name, marks=pytest.mark.long) if long else name


every = pytest.mark.parametrize("name", [longer(name, name in ALIKE) for name in MEMBERS])
graphs = pytest.mark.parametrize(
    "name", [longer(name, name not in EXPORTED) for name in MEMBERS if name in EXPORTED or name not in ALIKE]
)


@cache
def outputs(name: str, method: str = "zero-tprune") -> tuple[Tensor, list[Tensor]]:
    """What the pruned model gives for three images, and what is left of them behind each layer."""
    with PrunedModel(adapter_of(name), schedule(method)) as pruned, torch.no_grad():
        replay = pruned.replay(images_for(name))
    return replay.output, chained([choice.kept for choice in replay.choices])


def schedule(method: str) -> PruningSchedule:
    return PRUNED.model_copy(update={"method": method})


def expected(name: str, places: list[Tensor]) -> Tensor:
    """The same without removing a token."""
    model = member(name)
    with only(model, dict(enumerate(places))), torch.no_grad():
        output: Tensor = model(images_for(name))
    return output


def test_there_are_enough_of_them_and_one_of_every_family() -> None:
    assert len(MEMBERS) >= 25
    assert {facts.family for facts in MEMBERS.values()} == set(FAMILIES)


@every
class TestEachModel:
    def test_its_sizes_are_told(self, name: str) -> None:
        adapter, facts = adapter_of(name), MEMBERS[name]
        found = adapter.architecture
        assert adapter.family == facts.family
        assert (found.prefix_tokens, found.patch_tokens, found.class_token) == (facts.prefix, 25, facts.class_token)
        tokens: list[Tensor] = []
        adapter.blocks[0].register_forward_pre_hook(lambda _block, inputs: tokens.append(inputs[0]))
        with torch.no_grad():
            adapter.model(images_for(name, 1))
        assert tokens[0].shape == (1, found.tokens, found.embed_dim)

    def test_its_head_reads_the_tokens_that_are_told(self, name: str) -> None:
        check_read_tokens(adapter_of(name), images_for(name))

    def test_dense_is_the_model_itself(self, name: str) -> None:
        model, images = member(name), images_for(name)
        with torch.no_grad():
            before = model(images)
            with PrunedModel(adapt(model, MEMBERS[name].image_size), DENSE) as pruned:
                assert torch.equal(pruned(images)[0], before)
            with PrunedModel(adapt(model, MEMBERS[name].image_size), PRUNED) as pruned:
                assert not torch.allclose(pruned(images)[0], before, atol=1e-3)
            assert torch.equal(model(images), before)  # all hooks are gone

    def test_pruned_is_as_if_the_tokens_that_went_were_nobodys_to_see(self, name: str) -> None:
        output, places = outputs(name)
        prefix = torch.arange(MEMBERS[name].prefix)
        assert all(torch.equal(left[:, : len(prefix)], prefix.expand(len(left), -1)) for left in places)
        assert len({tuple(image.tolist()) for image in places[-1]}) == 3  # images differ in what they keep
        torch.testing.assert_close(output, expected(name, places), rtol=1e-4, atol=1e-4)

    def test_taps_are_what_attention_works_with(self, name: str) -> None:
        adapter = adapter_of(name)
        sink, block = _Sink(), adapter.blocks[1]
        module: Any = attention_of(block)
        seen: dict[str, Any] = {}
        adapter.tap(1, sink, attention=True, keys=True, values=True, queries=True)
        last = next(getattr(module, part) for part in ("proj", "o_proj", "out_proj") if hasattr(module, part))
        last.register_forward_pre_hook(lambda _module, inputs: seen.update(joined=inputs[0]))
        module.register_forward_pre_hook(
            lambda _module, inputs, options: seen.update(**({"x": inputs[0]} if inputs else {}), **options),
            with_kwargs=True,
        )
        with torch.no_grad():
            adapter.model(images_for(name))
            assert sink.attention is not None
            assert sink.values is not None
            torch.testing.assert_close(_softmax(module, sink, seen), sink.attention, rtol=1e-4, atol=1e-5)
            joined = (sink.attention @ sink.values).transpose(1, 2).flatten(2)
            if hasattr(module, "norm"):
                joined = module.norm(joined)
            if getattr(module, "gate", None) is not None:
                joined = joined * module.gate(seen["x"]).sigmoid()
        torch.testing.assert_close(joined, seen["joined"], rtol=1e-4, atol=1e-5)


@graphs
class TestEachGraph:
    """An export takes seconds, so there is one layer where nothing has to follow twice."""

    def test_it_keeps_the_same_tokens_and_gives_the_same(self, name: str) -> None:
        model = graph_of(name)
        check_tensorrt(model)
        with PrunedModel(adapter_of(name, **short(name)), layers_of(name)) as pruned, torch.no_grad():
            replay = pruned.replay(images_for(name))
        reference, places = replay.output, chained([choice.kept for choice in replay.choices])
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        data = ir.serde.serialize_model(model).SerializeToString()
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        logits, *kept = session.run(None, {"image": images_for(name).numpy()})
        found = chained([torch.from_numpy(indices).long() for indices in kept])
        for graph, torchs in zip(found, places, strict=True):
            assert torch.equal(graph, torchs)
        np.testing.assert_allclose(logits, reference.numpy(), rtol=1e-3, atol=1e-3)
        sizes, scope = adapter_of(name, **short(name)).architecture, f"{block_name(len(pruned.model.blocks) - 1)}/mlp/"
        products = [node for node in model.graph if node.op_type == "MatMul" and str(node.name).startswith(scope)]
        assert {shape_of(node.outputs[0])[1] for node in products} == {sizes.read_tokens or places[-1].shape[1]}

    def test_it_can_be_cut_in_front_of_its_first_pruning_layer(self, name: str) -> None:
        """Angles, biases and what else does not come from the image is computed behind the cut."""
        feed = images_for(name).numpy()
        prefix, tail = cut(graph_of(name), 0)
        found, whole = run_graph(tail, **run_graph(prefix, image=feed)), run_graph(graph_of(name), image=feed)
        assert list(found) == list(whole)
        for one, value in whole.items():
            np.testing.assert_array_equal(found[one], value)


def short(name: str) -> dict[str, int]:
    return {} if name in POSITIONAL else {"depth": 2}


def layers_of(name: str) -> PruningSchedule:
    return PRUNED if name in POSITIONAL else PRUNED.model_copy(update={"layers": PRUNED.layers[:1]})


@cache
def graph_of(name: str) -> ir.Model:
    facts = MEMBERS[name]
    size = PREPROCESS.model_copy(update=dict.fromkeys(("image_size", "resize"), ImageSize.of(facts.image_size)))
    with PrunedModel(adapter_of(name, **short(name)), layers_of(name)) as pruned:
        return export_onnx(pruned, size, GraphSpec(20, "float32", None))


class _Sink:
    attention: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    queries: Tensor | None = None


def attention_of(block: Any) -> Any:
    return next(getattr(block, name) for name in ATTENTIONS if hasattr(block, name))


def _softmax(module: Any, sink: _Sink, seen: dict[str, Any]) -> Tensor:
    """Attention from what was tapped: turned by rotary angles, plus a relative bias, where a model has these."""
    assert sink.queries is not None
    assert sink.keys is not None
    queries, keys = sink.queries, sink.keys.repeat_interleave(sink.queries.shape[1] // sink.keys.shape[1], 1)
    if (tables := seen.get("position_embeddings")) is not None:
        from transformers.models.dinov3_vit.modeling_dinov3_vit import apply_rotary_pos_emb

        queries, keys = apply_rotary_pos_emb(queries, keys, *tables)
    if (angles := seen.get("rope")) is not None:
        prefix, half = module.num_prefix_tokens, module.rotate_half
        queries, keys = (
            torch.cat([part[:, :, :prefix], apply_rot_embed_cat(part[:, :, prefix:], angles, half=half)], 2)
            for part in (queries, keys)
        )
    logits = queries @ keys.transpose(2, 3) * queries.shape[-1] ** -0.5
    if (mask := seen.get("attention_mask")) is not None:
        logits = logits + mask
    if getattr(module, "relative_position_bias_table", None) is not None:
        logits = logits + module.relative_position_bias_table[module.relative_position_index].permute(2, 0, 1)
    return logits.softmax(-1)


# -------------------- TensorRT


@pytest.mark.parametrize(
    "name",
    [
        *("vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "beit_base_patch16_224", "lvvit_s"),
        longer("hf/DINOv3ViTModel", long=True),
    ],
)
def test_tensorrt_builds_an_engine_of_each_family(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(TensorRtRtxBackend.module) is None:
        pytest.skip("TensorRT-RTX is not installed: pip install 'ztdeploy[tensorrt-rtx]'")
    graph = tmp_path / "graph.onnx"
    ir.save(graph_of(name).clone(), graph)
    record = GraphRecord(
        file="graphs/graph.onnx",
        opset=20,
        image_input="float32",
        batch=None,
        weights_bytes=graph.stat().st_size,
        operators={},
        nodes=(),
    )
    profile = HardwareProfile(
        name="mine",
        title="Mine",
        backend="tensorrt-rtx",
        precision="fp32",
        batch=BatchSizes(sizes=(1,)),
        tensorrt=TensorRtOptions(workspace_mib=256, compute_capabilities=("8.6",)),
    )
    built = get_backend("tensorrt-rtx").build(graph, record, profile, tmp_path / "out.engine")
    assert built.file.stat().st_size > 0


# -------------------- merging, and layers inside of blocks


@pytest.mark.parametrize(
    "name",
    [
        *("vit_base_patch16_224", *POSITIONAL, "vit_small_patch16_dinov3", "lvvit_s"),
        *("hf/DeiTModel", "hf/Dinov2Model", "hf/CLIPVisionModel", "hf/SiglipVisionModel"),
    ],
)
@pytest.mark.parametrize("method", ["zero-tprune-merge", longer("tome", long=True), "novelty-merge"])
def test_methods_that_merge_reach_every_family(name: str, method: str) -> None:
    dense = member(name)(images_for(name))
    spread = PruningSchedule(
        name="spread", method=method, layers=(LayerSpec(block=1, drop=8), LayerSpec(block=2, drop=5))
    )
    adapter = adapter_of(name)
    with PrunedModel(adapter, spread) as pruned, torch.no_grad():
        output = pruned(images_for(name))[0]
        replay = pruned.replay(images_for(name))
    assert output.isfinite().all()
    assert not torch.allclose(output, dense, atol=1e-3)
    # Told to merge nothing, it drops: then it must give what is left of the tokens, in their places.
    choices = [
        Choice(choice.kept, torch.full_like(choice.into, -1)) for choice in replay.choices if choice.into is not None
    ]
    with PrunedModel(adapter, spread) as pruned:
        dropped = pruned.replay(images_for(name), choices).output
    places = chained([choice.kept for choice in choices])
    if method == "zero-tprune-merge":  # tome decides inside of the block: its dropped tokens are seen by attention
        torch.testing.assert_close(dropped, expected(name, places), rtol=1e-4, atol=1e-4)


# -------------------- what is wrong is noticed


def shifted(adapter: ModelAdapter, by: int) -> ModelAdapter:
    facts = adapter.architecture
    adapter.architecture = facts.model_copy(
        update={"prefix_tokens": facts.prefix_tokens + by, "patch_tokens": facts.patch_tokens - by}
    )
    return adapter


@pytest.mark.parametrize(
    ("name", "by"), [("deit_small_distilled_patch16_224", -1), ("vit_small_patch14_dinov2", 1), ("hf/DeiTModel", -1)]
)
def test_a_prefix_that_is_off_by_one_is_noticed(name: str, by: int) -> None:
    """Either a prefix token goes for some image, or a patch that nothing may drop is kept for all."""
    adapter = shifted(adapter_of(name), by)
    with PrunedModel(adapter, PRUNED) as pruned, torch.no_grad():
        choices = pruned.replay(images_for(name, 16)).choices
    kept = chained([choice.kept for choice in choices])[-1]
    true = MEMBERS[name].prefix
    first = (kept[:, :true] == torch.arange(true)).all(1)
    next_one = (kept == true).any(1)
    assert not first.all() or next_one.all()
    with PrunedModel(adapter_of(name), PRUNED) as pruned, torch.no_grad():
        right = chained([choice.kept for choice in pruned.replay(images_for(name, 16)).choices])[-1]
    assert (right[:, :true] == torch.arange(true)).all()
    assert not (right == true).any(1).all()


@pytest.mark.parametrize("name", POSITIONAL)
@pytest.mark.parametrize("wrong", [longer("not-gathered", long=True), "off-by-one", "same-for-all-images"])
def test_places_that_do_not_follow_the_tokens_are_noticed(
    name: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family: Any = {"eva": EvaAdapter, "beit": BeitAdapter, "transformers": HubAdapter}[MEMBERS[name].family]
    original, prefix = family.follow, MEMBERS[name].prefix

    def follow(self: ModelAdapter, index: int, places: Callable[[], Tensor | None]) -> Any:
        def damaged() -> Tensor | None:
            present = places()
            if present is None:
                return None
            first = present.new_tensor(range(present.shape[1]))
            by_one = torch.cat([present[:, :prefix], (present[:, prefix:] - 1).clamp_min(prefix)], 1)
            damages = {"not-gathered": first.expand_as(present), "off-by-one": by_one}
            return damages.get(wrong, present[:1].expand_as(present))

        return original(self, index, damaged)

    monkeypatch.setattr(family, "follow", follow)
    with PrunedModel(adapter_of(name), PRUNED) as pruned, torch.no_grad():
        replay = pruned.replay(images_for(name))
    places = chained([choice.kept for choice in replay.choices])
    assert not torch.allclose(replay.output, expected(name, places), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["hf/ViTModel", "hf/DINOv3ViTModel", "hf/SiglipVisionModel"])
@pytest.mark.parametrize("wrong", ["other tokens", "other heads", "before softmax"])
def test_a_wrong_tap_is_noticed(name: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_output, added = hf_adapter.on_output, hf_adapter._added
    damages: dict[str, Any] = {"other tokens": lambda x: x.roll(1, 1), "other heads": lambda x: x.roll(1, 2)}

    def damaged(module: Any, take: Any) -> Any:
        return on_output(module, lambda output: take(damages.get(wrong, lambda x: x)(output)))

    def logarithm(functions: list[Any], take: Any) -> Any:
        return added(functions, (lambda x: take(x.log())) if wrong == "before softmax" else take)

    monkeypatch.setattr(hf_adapter, "on_output", damaged)
    monkeypatch.setattr(hf_adapter, "_added", logarithm)
    with pytest.raises(AssertionError, match="not close"):
        TestEachModel().test_taps_are_what_attention_works_with(name)


# -------------------- what is refused


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_tiny_patch4_window7_224", "windows"),
        ("mvitv2_tiny", "grid"),
        ("hiera_tiny_224", "grid"),
        ("cait_xxs24_224", "talking heads"),
        ("xcit_nano_12_p16_224", "channels"),
        ("vit_relpos_small_patch16_224", "bias"),
        ("samvit_base_patch16", "windows"),
        ("resnet18", "no plain vision transformer"),
        ("vit_small_patch16_18x2_224", "blocks lack attn"),
        ("vit_dwee_patch16_reg1_gap_256", "DiffAttention"),
        ("vit_pwee_patch16_reg1_gap_256", "blocks lack attn"),
    ],
)
def test_what_cannot_be_pruned_soundly_is_refused_with_the_reason(name: str, reason: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ModelError, match=reason):
        adapt(model, 224)


def test_every_refusal_is_about_a_module_of_timm() -> None:
    for module in REFUSED:
        importlib.import_module(f"timm.models.{module}")


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_224", "vit_small_patch16_dinov3", "beit_base_patch16_224", "lvvit_s"]
)
def test_an_image_that_patches_do_not_divide_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="multiple of 16"):
        adapt(member(name), 100)


def test_a_class_token_that_the_head_leaves_out_ranks_nothing() -> None:
    for name in ("eva_large_patch14_196", "beit_base_patch16_224", "vit_small_patch16_dinov3"):
        facts = adapter_of(name).architecture
        assert not facts.class_token
        with pytest.raises(Exception, match="class token"):
            plan(schedule("ats"), facts)
    assert isinstance(adapter_of("eva_large_patch14_196"), VitAdapter)


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_so150m_patch16_reg4_map_256"])
def test_attention_pooling_works_with_a_single_patch(name: str) -> None:
    last = PruningSchedule(name="last", layers=(LayerSpec(block=2, keep_ratio=0.01),))
    with PrunedModel(adapter_of(name), last) as pruned, torch.no_grad():
        output, kept, _ = pruned(images_for(name))
    assert kept.shape == (3, MEMBERS[name].prefix + 1)
    assert output.isfinite().all()
