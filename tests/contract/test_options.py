"""What every option of every method promises; a new value of an option is tested by existing."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from helpers import reference, reference_merging
from helpers.models import IMAGE_SIZE, PREPROCESS, images, layer_plan, random_attention, variant
from helpers.options import case_name, diagonal, values_of
from helpers.reference_options import Shown, alike, decide, scale
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ztdeploy.core.errors import ScheduleError
from ztdeploy.core.methods import COHERENCE_OPTIONS, METHODS
from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan, plan
from ztdeploy.core.schedule import LayerSpec, PruningSchedule
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.host.graph.tensorrt_lint import check_tensorrt
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning import pruning_layer
from ztdeploy.host.pruning.layer import BlockTaps, PruningLayer, Recorder
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.host.pruning.similarity import group_positions

SETTINGS = settings(deadline=None, max_examples=60)
HEADS, WIDTH, EMBED = 3, 4, 5
#: Scores of two implementations agree to this in double and single precision; closer calls are inconclusive.
CLEAR, CLOSE = 1e-6, 2e-4
#: Methods that compare tokens. A-ViT's constants have their test in test_trained_layers.py.
TUNABLE = [method for method in METHODS if METHODS[method].options and METHODS[method].work]
KINDS = ("attention", "keys", "values", "queries")


#: An export takes seconds, so that one stands for a value of each option. Of the methods whose options and layers
#: `zero-tprune-merge` has too, one is enough.
CASES = [
    (method, options)
    for method in TUNABLE
    for options in diagonal(method)[: 1 if method in ("wpr", "zero-tprune") else None]
]


def any_options(method: str) -> st.SearchStrategy[MethodOptions]:
    return st.builds(
        MethodOptions, **{name: st.sampled_from(values_of(name)) for name in sorted(METHODS[method].options)}
    )


def shown(seed: int, plan: LayerPlan, batch: int = 2) -> list[Shown]:
    """What blocks show of images, unlike each other."""
    generator = np.random.default_rng(seed)
    attention = random_attention(generator, batch, HEADS, plan.tokens_in)
    keys, queries, values = generator.normal(size=(3, batch, HEADS, plan.tokens_in, WIDTH)) + 0.3
    tokens = generator.normal(size=(batch, plan.tokens_in, EMBED))
    return [Shown(*one) for one in zip(attention, keys, queries, values, tokens, strict=True)]


def stacked(images: list[Shown], name: str) -> Tensor:
    return torch.tensor(np.stack([getattr(one, name) for one in images]))


def taps_for(layer: PruningLayer, images: list[Shown]) -> BlockTaps:
    """What the layer asked for, and nothing else."""
    return BlockTaps(**{kind: stacked(images, kind) if getattr(layer, f"needs_{kind}") else None for kind in KINDS})


def half_of(plan: LayerPlan, options: MethodOptions) -> list[int]:
    """The places that chance has chosen."""
    entering = plan.tokens_in - (plan.importance_drop if options.order == "importance-first" else 0)
    return group_positions("random", plan.model_copy(update={"tokens_in": entering}))[0].tolist()


def expected(
    method: str, one: Shown, plan: LayerPlan, options: MethodOptions
) -> tuple[list[int], list[int] | None, float]:
    """What the reference keeps, into which slots it merges the others, and how close a call that was."""
    prefix = plan.prefix_tokens
    if method == "tome":
        feature = one.feature(options.feature)
        how = {"alike": lambda a, b: alike(a, b, options.metric), "scale": scale(feature, options.metric)}
        merge = reference_merging.tome(feature[None], prefix=prefix, count=plan.tokens_in - plan.tokens_out, **how)
        return merge.kept, merge.into, merge.margin
    if method == "novelty-merge":
        powers = (options.importance_power, options.size_power, options.distance_power)
        how = {"prefix": prefix, "class_token": plan.class_token, "keep": plan.tokens_out, "powers": powers}
        kept, margin = reference_merging.novelty(one.tokens, one.attention, np.ones(plan.tokens_in), **how)
        return kept, *partners_of(one, kept, plan, options, margin)
    decision = decide(
        one,
        options,
        prefix=prefix,
        class_token=plan.class_token,
        keep=plan.tokens_out,
        similarity_drop=0 if method == "wpr" else plan.similarity_drop,
        iterations=plan.iterations,
        half=half_of(plan, options),
    )
    if not METHODS[method].merges:
        return decision.kept, None, decision.margin
    return decision.kept, *partners_of(one, decision.kept, plan, options, decision.margin)


def partners_of(
    one: Shown, kept: list[int], plan: LayerPlan, options: MethodOptions, margin: float
) -> tuple[list[int], float]:
    """The slots of those that are not kept, and the margin with theirs."""
    into, closest = reference_merging.join_most_similar(
        one.feature(options.partner)[None], kept, prefix=plan.prefix_tokens, least=options.least_similarity
    )
    return into, min(closest, margin)


@st.composite
def plans(draw: st.DrawFn, method: str, options: MethodOptions) -> LayerPlan:
    patches, prefix = draw(st.integers(2, 13)), draw(st.sampled_from([0, 1, 2, 5]))
    only_half = METHODS[method].only_by_similarity
    kept = draw(st.integers(patches - patches // 2 if only_half else 1, patches - 1))
    most = options.most_similar(patches, patches - kept)
    return layer_plan(
        patches,
        kept,
        prefix=prefix,
        class_token=prefix > 0 and draw(st.booleans()),
        similarity_drop=patches - kept if only_half else draw(st.integers(0, most)),
        iterations=draw(st.sampled_from([1, 3])),
        block=draw(st.integers(0, 3)),
    )


class TestTable:
    def test_every_option_is_some_methods_and_every_methods_options_exist(self) -> None:
        known = set().union(*(method.options for method in METHODS.values()))
        assert known == set(MethodOptions.model_fields)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("option", MethodOptions.model_fields)
    def test_an_option_is_known_or_refused_wherever_it_is_given(self, method: str, option: str) -> None:
        default = getattr(DEFAULT_OPTIONS, option)
        architecture = VitAdapter(variant("class-token"), IMAGE_SIZE).architecture
        for value in values_of(option):
            options = MethodOptions(**{option: value})
            schedule = PruningSchedule(
                name="test", method=method, options=options, layers=(LayerSpec(block=1, keep_ratio=0.6),)
            )
            if value == default or option in METHODS[method].options:
                assert plan(schedule, architecture).layers
                continue
            for refuse in (
                lambda schedule=schedule: plan(schedule, architecture),
                lambda options=options: pruning_layer(method, layer_plan(12, 7), options),
            ):
                with pytest.raises(ScheduleError, match=f"option {option} for method '{method}'") as caught:
                    refuse()
                assert all(known in caught.value.expected for known in METHODS[method].options)

    def test_options_of_a_stage_that_drops_nothing_are_refused(self) -> None:
        architecture = VitAdapter(variant("class-token"), IMAGE_SIZE).architecture
        spec = LayerSpec(block=1, keep_ratio=0.6, similarity_share=0)
        schedule = PruningSchedule(
            name="test", method="zero-tprune", options=MethodOptions(metric="dot"), layers=(spec,)
        )
        with pytest.raises(ScheduleError, match="option metric"):
            plan(schedule, architecture)
        assert plan(schedule.model_copy(update={"options": MethodOptions(join="mean")}), architecture).layers

    @pytest.mark.parametrize("option", sorted(COHERENCE_OPTIONS))
    def test_a_power_of_what_is_not_kept_is_refused(self, option: str) -> None:
        architecture = VitAdapter(variant("class-token"), IMAGE_SIZE).architecture
        options = MethodOptions(**{option: 0.25, "coherent": False})
        schedule = PruningSchedule(
            name="test", method="novelty-merge", options=options, layers=(LayerSpec(block=1, keep_ratio=0.6),)
        )
        with pytest.raises(ScheduleError, match=f"option {option} with coherent = false"):
            plan(schedule, architecture)

    @pytest.mark.parametrize("method", TUNABLE)
    def test_the_combinations_hold_every_value(self, method: str) -> None:
        for name in METHODS[method].options:
            assert {getattr(options, name) for options in diagonal(method)} == set(values_of(name))


@pytest.mark.parametrize("method", TUNABLE)
class TestLayer:
    @SETTINGS
    @given(data=st.data())
    def test_keeps_exactly_k_with_the_prefix_and_those_that_the_reference_keeps(
        self, method: str, data: st.DataObject
    ) -> None:
        options = data.draw(any_options(method))
        plan = data.draw(plans(method, options))
        seen = shown(data.draw(st.integers(0, 2**32 - 1)), plan)
        layer, record = pruning_layer(method, plan, options), Recorder()
        choice = layer(stacked(seen, "tokens"), taps_for(layer, seen), record).choice
        kept = choice.kept
        assert kept.shape == (len(seen), plan.tokens_out)
        assert (kept[:, : plan.prefix_tokens] == torch.arange(plan.prefix_tokens)).all()
        assert (kept[:, 1:] > kept[:, :-1]).all()
        assert 0 <= kept.min() <= kept.max() < plan.tokens_in
        for image, one in enumerate(seen):
            theirs, into, margin = expected(method, one, plan, options)
            if margin < CLEAR:
                event("inconclusive: a decision within rounding")
                continue
            assert kept[image].tolist() == theirs
            if into is not None:
                assert choice.into[image].tolist() == into

    @SETTINGS
    @given(data=st.data())
    def test_the_scale_of_what_is_compared_does_not_matter(self, method: str, data: st.DataObject) -> None:
        """One factor for all tokens never does; one for each does not where directions are compared."""
        options = data.draw(any_options(method))
        plan = data.draw(plans(method, options))
        seed = data.draw(st.integers(0, 2**32 - 1))
        seen = shown(seed, plan)
        factor = np.full(plan.tokens_in, 2.0 ** data.draw(st.integers(-12, 12)))
        if options.metric == "cosine" and "distances" not in METHODS[method].work:
            factor = 2.0 ** np.random.default_rng(seed).integers(-6, 7, plan.tokens_in)
        scaled = [
            Shown(
                one.attention,
                *(getattr(one, kind) * factor[:, None] for kind in ("keys", "queries", "values")),
                one.tokens * factor[:, None],
            )
            for one in seen
        ]
        layer, record = pruning_layer(method, plan, options), Recorder()
        choice = layer(stacked(seen, "tokens"), taps_for(layer, seen), record).choice
        again = layer(stacked(scaled, "tokens"), taps_for(layer, scaled)).choice
        clear = record.smallest_gap(len(seen)) > 1e-9
        for one, other in zip(choice.tensors, again.tensors, strict=True):
            assert torch.equal(one[clear], other[clear])

    def test_a_layer_asks_for_what_it_reads_and_for_nothing_else(self, method: str) -> None:
        plan = layer_plan(12, 8, similarity_drop=4)
        for name in METHODS[method].options:
            for value in values_of(name):
                options = MethodOptions(**{name: value})
                layer = pruning_layer(method, plan, options)
                read = {options.feature} if METHODS[method].work & {"halves"} else set()
                read |= {options.partner} if METHODS[method].work & {"partners"} else set()
                assert layer.needs_queries is ("queries" in read)
                assert layer.needs_values is ("values" in read)
                assert layer.needs_keys is bool(read & {"keys", "all-keys"})
                by_rank = "page-rank" in METHODS[method].work and (method == "wpr" or options.partition != "random")
                assert layer.needs_attention is by_rank, "nothing is dropped by importance"


class TestOrder:
    """Importance first and similarity first differ in who comes first, and in nothing else."""

    FIRST = MethodOptions(order="importance-first")

    def choices(self, plan: LayerPlan, seed: int) -> list[Tensor]:
        seen = shown(seed, plan)
        layers = [pruning_layer("zero-tprune", plan, options) for options in (DEFAULT_OPTIONS, self.FIRST)]
        return [layer(stacked(seen, "tokens"), taps_for(layer, seen)).choice.kept for layer in layers]

    @SETTINGS
    @given(seed=st.integers(0, 2**32 - 1), patches=st.integers(2, 13), data=st.data())
    def test_where_only_one_stage_drops_the_order_is_none(self, seed: int, patches: int, data: st.DataObject) -> None:
        kept = data.draw(st.integers(1, patches - 1))
        assert torch.equal(*self.choices(layer_plan(patches, kept, iterations=3), seed))
        half = patches - data.draw(st.integers(1, patches // 2))
        assert torch.equal(*self.choices(layer_plan(patches, half, similarity_drop=patches - half), seed))

    def test_a_large_group_of_alike_tokens_is_thinned_before_or_after_it_votes(self) -> None:
        kept = [self.choices(layer_plan(12, 6, similarity_drop=3, iterations=3), seed) for seed in range(8)]
        assert any(not torch.equal(*pair) for pair in kept)

    def test_the_important_ones_are_those_of_the_importance_stage_alone(self) -> None:
        plan, seen = layer_plan(12, 6, similarity_drop=3, iterations=3), shown(5, layer_plan(12, 6))
        layer = pruning_layer("zero-tprune", plan, self.FIRST)
        kept = layer(stacked(seen, "tokens"), taps_for(layer, seen)).choice.kept
        alone = pruning_layer("wpr", plan.model_copy(update={"tokens_out": plan.tokens_out + 3}))
        important = alone(stacked(seen, "tokens"), taps_for(alone, seen)).choice.kept
        for image in range(len(seen)):
            assert set(kept[image].tolist()) < set(important[image].tolist())


class TestRandomHalf:
    def test_is_the_same_for_every_image_and_another_at_each_place(self) -> None:
        halves = {tuple(group_positions("random", layer_plan(20, 10, prefix=2, block=b))[0].tolist()) for b in range(9)}
        assert len(halves) == 9
        for half in halves:
            assert len(half) == 10
            assert set(half) < set(range(2, 22))


# -------------------- as graphs


class Export:
    """A two-block model with a pruning layer in the first, and what the block shows of the test's images."""

    def __init__(self, method: str, options: MethodOptions) -> None:
        layers = (LayerSpec(block=1, keep_ratio=0.6, iterations=2),)
        schedule = PruningSchedule(name="test", method=method, options=options, layers=layers)
        model, self.images = variant("qk-norm-layer-scale", depth=2), images(6)
        seen: list[tuple[Tensor, BlockTaps]] = []
        with PrunedModel(VitAdapter(model, IMAGE_SIZE), schedule) as pruned:
            (self.plan,) = pruned.token_plan.layers
            handle = pruned.layers[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[:2]))
            with torch.no_grad():
                self.logits = pruned(self.images)[0]
            handle.remove()
            self.graph = export_onnx(pruned, PREPROCESS, GraphSpec(20, "float32", None))
        (self.taps,) = seen

    def run(self) -> list[np.ndarray]:
        session_options = ort.SessionOptions()
        session_options.intra_op_num_threads = 1
        content = ir.serde.serialize_model(self.graph).SerializeToString()
        session = ort.InferenceSession(content, session_options, providers=["CPUExecutionProvider"])
        return session.run(None, {"image": self.images.numpy()})

    def shown(self, image: int) -> Shown:
        """What the reference may look at, in fp64; what the layer did not ask for is not there."""
        x, taps = self.taps
        parts = [taps.attention, taps.keys, taps.queries, taps.values, x]
        nothing = torch.zeros(len(x), 3, x.shape[1], 1)
        arrays = [(nothing if part is None else part)[image].double().numpy() for part in parts]
        if taps.attention is None:  # ranks nothing, but has a shape
            arrays[0] = np.full((3, x.shape[1], x.shape[1]), 1 / x.shape[1])
        return Shown(*arrays)


@cache
def export(method: str, options: MethodOptions) -> Export:
    return Export(method, options)


@pytest.mark.parametrize(("method", "options"), CASES, ids=case_name)
@pytest.mark.short("[novelty-merge-coherence_power", "[zero-tprune-merge-partition=full")
class TestGraph:
    def test_keeps_what_the_reference_keeps_and_answers_as_torch_does(
        self, method: str, options: MethodOptions
    ) -> None:
        made = export(method, options)
        logits, kept, *into = made.run()
        unclear = 0
        for image in range(len(kept)):
            theirs, slots, margin = expected(method, made.shown(image), made.plan, options)
            if margin < CLOSE:
                unclear += 1
                continue
            assert kept[image].tolist() == theirs
            if slots is not None:
                assert into[0][image].tolist() == slots
            np.testing.assert_allclose(logits[image], made.logits[image], atol=1e-4, rtol=1e-4)
        assert unclear <= 3, "the images of this test are meant to be clear-cut"

    @pytest.mark.parametrize("kind", ["fp32", "fp16 for a board", "fp16 for Turing", "bf16"])
    def test_every_axis_is_static_and_every_operator_tensorrts(
        self, method: str, options: MethodOptions, kind: str
    ) -> None:
        spec = replace(
            GraphSpec(20, "float32", None), precision=kind[:4], board="board" in kind, turing="Turing" in kind
        )
        graph = specialise(export(method, options).graph, spec)  # checks shapes
        check_tensorrt(graph)
        for node in graph.graph:
            for value in node.outputs:
                assert value.shape is not None, value.name
                assert [str(one) for one in value.shape if not isinstance(one, int)] in ([], ["batch"])


@pytest.mark.parametrize("feature", ["queries", "values", "keys"])
def test_features_are_those_that_attention_multiplies(feature: str) -> None:
    """Behind the norms of queries and keys."""
    model = variant("qk-norm-layer-scale")
    schedule = PruningSchedule(
        name="test",
        method="zero-tprune",
        options=MethodOptions(feature=feature),
        layers=(LayerSpec(block=2, keep_ratio=0.7),),
    )
    seen: list[BlockTaps] = []
    tokens_in: list[Tensor] = []
    with PrunedModel(VitAdapter(model, IMAGE_SIZE), schedule) as pruned, torch.no_grad():
        pruned.layers[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1]))
        handle = model.blocks[1].register_forward_pre_hook(lambda _module, inputs: tokens_in.append(inputs[0]))
        pruned(images(2))
        handle.remove()
        attention = model.blocks[1].attn
        qkv = attention.qkv(model.blocks[1].norm1(tokens_in[0])).view(2, 17, 3, 3, 16)
        query, key, value = (qkv[:, :, part].transpose(1, 2) for part in range(3))
        wanted = {"queries": attention.q_norm(query), "keys": attention.k_norm(key), "values": value}[feature]
    torch.testing.assert_close(getattr(seen[0], feature), wanted)
    assert [kind for kind in KINDS if getattr(seen[0], kind) is not None] == ["attention", feature]
    assert not np.allclose(reference.key_features(wanted[0].numpy()), 0)
