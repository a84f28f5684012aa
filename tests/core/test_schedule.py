"""From keep ratios to integers, and what they cost."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers.architectures import DEIT_S
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from ztdeploy.core.cost import gmacs, plan_gmacs, pruning_gmacs, schedule_gmacs
from ztdeploy.core.errors import InputError, ScheduleError
from ztdeploy.core.keep_ratio import default_schedule, uniform_schedule
from ztdeploy.core.methods import DEFAULT_METHOD, METHODS, PAPER_METHOD
from ztdeploy.core.options import MethodOptions
from ztdeploy.core.plan import LayerPlan, TokenPlan, Variant, default_iterations, plan
from ztdeploy.core.schedule import Architecture, LayerSpec, PruningSchedule, read_schedule


def architecture(*, depth: int = 12, patches: int = 196, prefix: int = 1) -> Architecture:
    return DEIT_S.model_copy(
        update={"depth": depth, "patch_tokens": patches, "prefix_tokens": prefix, "class_token": prefix > 0}
    )


def one_layer(keep_ratio: float, *, block: int = 1, **layer: float | int) -> PruningSchedule:
    return PruningSchedule(
        name="one", method=PAPER_METHOD, layers=(LayerSpec(block=block, keep_ratio=keep_ratio, **layer),)
    )


def token_counts(token_plan: TokenPlan) -> list[int]:
    return sorted(set(token_plan.tokens_per_block), reverse=True)


class TestUniformSchedule:
    def test_deit_s_at_keep_70_has_the_token_counts_of_the_literature(self) -> None:
        token_plan = plan(uniform_schedule(0.7, 12, method=PAPER_METHOD), DEIT_S)
        assert token_plan.tokens_per_block == (197,) * 3 + (139,) * 3 + (98,) * 3 + (69,) * 3
        assert [layer.block for layer in token_plan.layers] == [2, 5, 8]
        assert [layer.iterations for layer in token_plan.layers] == [5, 3, 1]
        assert [layer.similarity_drop for layer in token_plan.layers] == [29, 20, 14]
        assert [layer.importance_drop for layer in token_plan.layers] == [29, 21, 15]

    def test_the_paper_preset_stands_behind_blocks_1_3_6_9_11(self) -> None:
        schedule = uniform_schedule(0.8, 12, preset="paper", method=PAPER_METHOD)
        assert [layer.block for layer in schedule.layers] == [1, 3, 6, 9, 11]
        assert [layer.iterations for layer in plan(schedule, DEIT_S).layers] == [5, 5, 3, 1, 1]

    @pytest.mark.parametrize(("depth", "blocks"), [(4, [1, 2, 3]), (8, [2, 4, 6]), (12, [3, 6, 9]), (24, [6, 12, 18])])
    def test_positions_scale_with_depth(self, depth: int, blocks: list[int]) -> None:
        assert [layer.block for layer in uniform_schedule(0.5, depth).layers] == blocks

    @given(depth=st.integers(1, 64), preset=st.sampled_from(["default", "paper"]))
    def test_every_depth_gets_blocks_that_exist_in_ascending_order(self, depth: int, preset: str) -> None:
        blocks = [layer.block for layer in uniform_schedule(0.5, depth, preset=preset).layers]
        assert blocks == sorted(set(blocks))
        assert blocks
        assert 1 <= blocks[0] <= blocks[-1] <= depth

    def test_keep_ratio_1_is_dense_and_has_no_layers(self) -> None:
        schedule = uniform_schedule(1.0, 12)
        assert (schedule.name, schedule.layers) == ("dense", ())
        assert plan(schedule, DEIT_S) == TokenPlan(layers=(), tokens_per_block=(197,) * 12)

    @pytest.mark.parametrize("ratio", [0, 0.0, -1, -1e-9, 1.1, 2, math.nan, math.inf, -math.inf])
    def test_a_ratio_outside_0_to_1_is_refused_with_its_value(self, ratio: float) -> None:
        with pytest.raises(ScheduleError, match=r"keep ratio .*; expected a number in \(0, 1\]; give") as caught:
            uniform_schedule(ratio, 12)
        assert str(ratio) in caught.value.given
        assert caught.value.exit_code == 3

    @pytest.mark.parametrize("ratio", ["0.7", None, [0.7]])
    def test_a_ratio_that_is_no_number_is_refused(self, ratio: object) -> None:
        with pytest.raises(InputError):
            uniform_schedule(ratio, 12)  # type: ignore[arg-type]

    def test_names_say_ratio_method_and_preset(self) -> None:
        assert uniform_schedule(0.7, 12).name == "keep-0.70"
        assert uniform_schedule(0.725, 12).name == "keep-0.725"
        assert uniform_schedule(0.7, 12, method="random").name == "random-keep-0.70"
        assert uniform_schedule(0.7, 12, preset="paper").name == "keep-0.70-paper"

    def test_the_ratio_it_was_made_from_is_remembered(self) -> None:
        assert uniform_schedule(0.7, 12).keep_ratio == 0.7
        assert uniform_schedule(1, 12).keep_ratio == 1.0

    def test_only_zero_tprune_has_an_s_stage_by_default(self) -> None:
        assert {layer.similarity_share for layer in uniform_schedule(0.7, 12, method=PAPER_METHOD).layers} == {0.5}
        dropped = [layer.similarity_drop for layer in plan(uniform_schedule(0.7, 12, method="slice"), DEIT_S).layers]
        assert dropped == [0, 0, 0]


class TestIterations:
    @pytest.mark.parametrize(
        ("block", "iterations"), [(1, 5), (2, 5), (3, 5), (4, 3), (6, 3), (8, 3), (9, 1), (10, 1), (12, 1)]
    )
    def test_5_in_the_first_quarter_3_in_the_middle_1_in_the_last(self, block: int, iterations: int) -> None:
        assert default_iterations(block, 12, 197) == iterations

    def test_1_where_attention_is_too_large_for_caches(self) -> None:
        large = DEIT_S.model_copy(update={"patch_tokens": 1369})
        layers = plan(uniform_schedule(0.5, 12, method=PAPER_METHOD), large).layers
        assert [(layer.tokens_in, layer.iterations) for layer in layers] == [(1370, 1), (686, 3), (344, 1)]

    def test_an_explicit_count_wins(self) -> None:
        assert plan(one_layer(0.5, iterations=7), DEIT_S).layers[0].iterations == 7

    @pytest.mark.parametrize("iterations", [0, -1, 1001])
    def test_counts_out_of_range_are_refused(self, iterations: int) -> None:
        with pytest.raises(ValidationError):
            LayerSpec(block=1, keep_ratio=0.5, iterations=iterations)


class TestPlan:
    @example(patches=100, percent=7, prefix=1)  # 0.07 * 100 is 7.000000000000001
    @example(patches=25, percent=28, prefix=0)
    @given(patches=st.integers(1, 2000), percent=st.integers(1, 100), prefix=st.integers(0, 5))
    def test_kept_is_the_ceiling_of_ratio_times_prunable_tokens(self, patches: int, percent: int, prefix: int) -> None:
        token_plan = plan(one_layer(percent / 100), architecture(patches=patches, prefix=prefix))
        kept = math.ceil(Fraction(percent, 100) * patches)
        assert token_plan.tokens_per_block[1] == prefix + kept
        assert bool(token_plan.layers) is (kept < patches)

    @given(
        patches=st.integers(1, 1000),
        prefix=st.integers(0, 5),
        depth=st.integers(1, 24),
        data=st.data(),
        share=st.floats(0, 1),
    )
    def test_counts_fall_and_the_drops_add_up(
        self, patches: int, prefix: int, depth: int, data: st.DataObject, share: float
    ) -> None:
        blocks = sorted(data.draw(st.sets(st.integers(1, depth), max_size=5)))
        ratios = data.draw(st.lists(st.floats(0.01, 1), min_size=len(blocks), max_size=len(blocks)))
        specs = [
            LayerSpec(block=block, keep_ratio=ratio, similarity_share=share)
            for block, ratio in zip(blocks, ratios, strict=True)
        ]
        given_architecture = architecture(depth=depth, patches=patches, prefix=prefix)
        token_plan = plan(PruningSchedule(name="any", method=PAPER_METHOD, layers=tuple(specs)), given_architecture)

        counts = token_plan.tokens_per_block
        assert len(counts) == depth
        assert counts[0] == prefix + patches
        assert all(later <= earlier for earlier, later in pairwise(counts))
        assert min(counts) >= prefix + 1
        current = prefix + patches
        for layer in token_plan.layers:
            dropped = layer.tokens_in - layer.tokens_out
            prunable = layer.tokens_in - prefix
            assert layer.tokens_in == current == counts[layer.block]
            assert dropped > 0
            assert layer.similarity_drop + layer.importance_drop == dropped
            assert 0 <= layer.similarity_drop <= prunable // 2
            assert layer.importance_drop >= 0
            assert abs(layer.similarity_drop - min(share * dropped, prunable // 2)) <= 0.5
            assert (layer.prefix_tokens, layer.class_token) == (prefix, prefix > 0)
            current = layer.tokens_out
            if layer.block + 1 < depth:
                assert counts[layer.block + 1] == current

    def test_a_layer_that_would_drop_nothing_is_left_out(self) -> None:
        schedule = PruningSchedule(
            name="some", layers=(LayerSpec(block=1, keep_ratio=0.99), LayerSpec(block=2, keep_ratio=0.5))
        )
        token_plan = plan(schedule, architecture(patches=16))
        assert [layer.block for layer in token_plan.layers] == [1]
        assert token_plan.tokens_per_block[:3] == (17, 17, 9)

    def test_a_layer_behind_the_last_block_is_allowed(self) -> None:
        token_plan = plan(one_layer(0.5, block=12), DEIT_S)
        assert token_plan.tokens_per_block == (197,) * 12
        assert token_plan.layers[0].tokens_out == 99

    @pytest.mark.parametrize("blocks", [(13,), (100,), (3, 13), (3, 3), (6, 3), (3, 6, 6)])
    def test_blocks_that_are_not_there_or_out_of_order_are_refused(self, blocks: tuple[int, ...]) -> None:
        layers = tuple(LayerSpec(block=block, keep_ratio=0.9) for block in blocks)
        with pytest.raises(ScheduleError, match="ascending blocks from 1 to 12") as caught:
            plan(PruningSchedule(name="wrong", layers=layers), DEIT_S)
        assert "'wrong'" in caught.value.given
        assert f"block {blocks[-1]}" in caught.value.given

    @pytest.mark.parametrize(("share", "drop"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
    def test_the_share_says_how_many_go_by_similarity(self, share: float, drop: int) -> None:
        layer = plan(one_layer(0.5, similarity_share=share), architecture(patches=16)).layers[0]
        assert (layer.similarity_drop, layer.importance_drop) == (drop, 8 - drop)

    def test_a_share_beyond_group_a_is_made_up_by_importance(self) -> None:
        layer = plan(one_layer(0.1, similarity_share=1.0), architecture(patches=101)).layers[0]
        assert (layer.similarity_drop, layer.importance_drop) == (50, 40)

    def test_an_explicit_similarity_drop_overrides_the_share(self) -> None:
        for explicit in (0, 1, 8):
            layer = plan(one_layer(0.5, similarity_drop=explicit), architecture(patches=16)).layers[0]
            assert layer.similarity_drop == explicit

    @pytest.mark.parametrize(("ratio", "explicit", "limit"), [(0.9, 2, 1), (0.25, 9, 8), (0.5, 9, 8)])
    def test_an_explicit_similarity_drop_beyond_what_can_go_is_refused(
        self, ratio: float, explicit: int, limit: int
    ) -> None:
        with pytest.raises(ScheduleError, match=f"similarity_drop {explicit}; expected at most {limit}"):
            plan(one_layer(ratio, similarity_drop=explicit), architecture(patches=16))


class TestVariant:
    def test_holds_a_schedule_with_its_plan(self) -> None:
        schedule = uniform_schedule(0.7, 12, method=PAPER_METHOD)
        variant = Variant.of(schedule, DEIT_S)
        assert (variant.schedule, variant.plan) == (schedule, plan(schedule, DEIT_S))

    @pytest.mark.parametrize(
        ("said", "layers", "ratio"),
        [(0.7, True, 0.7), (None, True, None), (1.0, True, None), (None, False, 1.0), (1.0, False, 1.0)],
    )
    def test_is_the_baseline_where_it_prunes_nothing_whatever_its_schedule_says(
        self, said: float | None, layers: bool, ratio: float | None
    ) -> None:
        specs = (LayerSpec(block=1, drop=9),) if layers else ()
        variant = Variant.of(PruningSchedule(name="any", method=PAPER_METHOD, keep_ratio=said, layers=specs), DEIT_S)
        assert variant.keep_ratio == ratio
        assert [one for one in (0.7, 0.5, 1.0, math.nan) if variant.has_ratio(one)] == (
            [] if ratio is None else [ratio]
        )


class TestModels:
    @pytest.mark.parametrize(
        "values",
        [
            {"block": 0, "keep_ratio": 0.5},
            {"block": 1, "keep_ratio": 0.0},
            {"block": 1, "keep_ratio": 1.01},
            {"block": 1, "keep_ratio": math.nan},
            {"block": 1, "keep_ratio": 0.5, "similarity_share": -0.1},
            {"block": 1, "keep_ratio": 0.5, "similarity_share": 1.1},
            {"block": 1, "keep_ratio": 0.5, "similarity_drop": -1},
            {"block": 1, "keep_ratio": 0.5, "iteration": 3},
        ],
    )
    def test_a_layer_refuses_values_out_of_range_and_unknown_keys(self, values: dict[str, float]) -> None:
        with pytest.raises(ValidationError):
            LayerSpec.model_validate(values)

    @pytest.mark.parametrize("name", ["a", "0", "keep-0.70", "a_b.c-d", "x" * 64])
    def test_names_that_are_safe_as_file_names_are_accepted(self, name: str) -> None:
        assert PruningSchedule(name=name).name == name

    @pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a\\b", "-a", "A", "a b", "é", "a\n", "x" * 65])
    def test_names_that_could_leave_the_folder_or_surprise_are_refused(self, name: str) -> None:
        with pytest.raises(ValidationError):
            PruningSchedule(name=name)

    def test_schedules_and_plans_cannot_be_changed(self) -> None:
        schedule = uniform_schedule(0.7, 12, method=PAPER_METHOD)
        with pytest.raises(ValidationError):
            schedule.name = "other"  # type: ignore[misc]
        with pytest.raises(ValidationError):
            plan(schedule, DEIT_S).layers[0].block = 3  # type: ignore[misc]


TOML = """
method = "wpr"
[[layer]]
block = 3
keep_ratio = 0.7
[[layer]]
block = 6
keep_ratio = 0.5
similarity_drop = 4
iterations = 2
"""


LAYER = "[[layer]]\nblock = 3\nkeep_ratio = 0.7\n"


class TestReading:
    def test_toml(self, tmp_path: Path) -> None:
        path = tmp_path / "My Schedule.toml"
        path.write_text(TOML)
        assert read_schedule(path) == PruningSchedule(
            name="my-schedule",
            method="wpr",
            layers=(
                LayerSpec(block=3, keep_ratio=0.7),
                LayerSpec(block=6, keep_ratio=0.5, similarity_drop=4, iterations=2),
            ),
        )

    def test_json_says_the_same(self, tmp_path: Path) -> None:
        toml, other = tmp_path / "same.toml", tmp_path / "same.json"
        toml.write_text(TOML)
        layers = [
            {"block": 3, "keep_ratio": 0.7},
            {"block": 6, "keep_ratio": 0.5, "similarity_drop": 4, "iterations": 2},
        ]
        other.write_text(json.dumps({"method": "wpr", "layer": layers}))
        assert read_schedule(other) == read_schedule(toml)

    def test_a_name_inside_the_file_wins_over_the_file_name(self, tmp_path: Path) -> None:
        path = tmp_path / "file.toml"
        path.write_text('name = "inside"')
        assert read_schedule(path).name == "inside"

    def test_what_is_written_comes_back(self, tmp_path: Path) -> None:
        schedule = uniform_schedule(0.6, 12, preset="paper", method=PAPER_METHOD)
        path = tmp_path / "round.json"
        path.write_text(schedule.model_dump_json(by_alias=True))
        assert read_schedule(path) == schedule

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("broken.toml", b"[[layer]\nblock = 1"),
            ("binary.toml", b"\xff\xfe\x00\x01"),
            ("json-in.toml", b'{"layer": []}'),
            ("deep.toml", b"a = " + b"[" * 100_000),
        ],
    )
    def test_a_malformed_file_is_a_schedule_error_that_names_it(
        self, tmp_path: Path, name: str, content: bytes
    ) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ScheduleError, match="cannot be read") as caught:
            read_schedule(path)
        assert str(path) in caught.value.given

    @pytest.mark.parametrize(
        ("content", "where"),
        [
            ("keep = 0.7", "keep"),
            ("[[layr]]\nblock = 1\nkeep_ratio = 0.5", "layr"),
            ("[[layer]]\nblock = 1\nkeep_ratio = 0.5\niters = 3", "layer.0.iters"),
            ("[[layer]]\nblock = 1", "layer.0"),
            ("[[layer]]\nblock = 1\nkeep_ratio = 0.5\ndrop = 3", "layer.0"),
            ("[[layer]]\nblock = 1\ndrop = -1", "layer.0.drop"),
            ("[[layer]]\nkeep_ratio = 0.5", "layer.0.block"),
            ("[[layer]]\nblock = 1\nkeep_ratio = 1.5", "layer.0.keep_ratio"),
            ("[[layer]]\nblock = 1\nkeep_ratio = nan", "layer.0.keep_ratio"),
            ("[[layer]]\nblock = 0\nkeep_ratio = 0.5", "layer.0.block"),
            ("[[layer]]\nblock = 1.5\nkeep_ratio = 0.5", "layer.0.block"),
            ("[layer]\nblock = 1\nkeep_ratio = 0.5", "layer"),
            ('name = "../../etc/passwd"', "name"),
            ("method = 3", "method"),
            ("keep_ratio = 5", "keep_ratio"),
            ("keep_ratio = nan", "keep_ratio"),
        ],
    )
    def test_a_wrong_value_or_unknown_key_is_named(self, tmp_path: Path, content: str, where: str) -> None:
        path = tmp_path / "wrong.toml"
        path.write_text(content)
        with pytest.raises(ScheduleError) as caught:
            read_schedule(path)
        assert caught.value.fix == f"correct {where}"
        assert str(path) in caught.value.given

    @pytest.mark.parametrize("content", ["", "# to be written", "\n\n"])
    def test_a_file_that_says_nothing_is_no_schedule(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "empty.toml"
        path.write_text(content)
        with pytest.raises(ScheduleError, match="is empty"):
            read_schedule(path)

    def test_options(self, tmp_path: Path) -> None:
        path = tmp_path / "options.toml"
        path.write_text(f'method = "zero-tprune"\n{LAYER}[options]\nmetric = "dot"\nhead_filter = false\n')
        options = read_schedule(path).options
        assert options == MethodOptions(metric="dot", head_filter=False)
        assert options.changed == {"metric", "head_filter"}
        assert str(options) == "head_filter = false, metric = dot"

    @pytest.mark.parametrize(
        ("content", "given", "expected", "fix"),
        [
            ('metrik = "dot"', "unknown option 'metrik'", "a known option", "did you mean 'metric'?"),
            ('zzz = "dot"', "unknown option 'zzz'", "a known option", "choose from: average_power, coherence_power"),
            ('metric = "dots"', "option metric = dots", "cosine, dot, euclidean, manhattan", "did you mean 'dot'?"),
            ("metric = 3", "option metric = 3", "cosine, dot, euclidean, manhattan", "choose from: cosine"),
            ('head_filter = "no idea"', "option head_filter = no idea", "one of true, false", "choose from"),
            ("least_similarity = 2", "option least_similarity = 2", "-1 to 1", "correct options.least_similarity"),
        ],
    )
    def test_a_wrong_option_is_named_with_the_nearest_right_one(
        self, tmp_path: Path, content: str, given: str, expected: str, fix: str
    ) -> None:
        path = tmp_path / "wrong.toml"
        path.write_text(f"{LAYER}[options]\n{content}\n")
        with pytest.raises(ScheduleError) as caught:
            read_schedule(path)
        assert given in caught.value.given
        assert str(path) in caught.value.given
        assert expected in caught.value.expected
        assert fix in caught.value.fix

    @pytest.mark.parametrize("content", ["[1, 2]", "null", "3", '"text"'])
    def test_json_that_is_no_object_is_refused(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "wrong.json"
        path.write_text(content)
        with pytest.raises(ScheduleError, match="the file"):
            read_schedule(path)


class TestCost:
    def test_deit_s_dense_is_4_6_gmacs(self) -> None:
        assert round(gmacs(DEIT_S, (197,) * 12), 1) == 4.6

    def test_one_block_written_out(self) -> None:
        sizes = {"depth": 1, "embed_dim": 2, "num_heads": 1, "mlp_dim": 5, "patch_dim": 7, "num_classes": 11}
        tokens = {"patch_tokens": 3, "prefix_tokens": 0, "class_token": False}
        tiny = DEIT_S.model_copy(update=sizes | tokens)
        projections, attention, mlp = 4 * 3 * 2 * 2, 2 * 3 * 3 * 2, 2 * 3 * 2 * 5
        patches, head = 3 * 7 * 2, 2 * 11
        assert gmacs(tiny, (3,)) == pytest.approx((projections + attention + mlp + patches + head) / 1e9, rel=1e-12)

    def test_deit_s_at_keep_70_is_2_9_gmacs(self) -> None:
        token_plan = plan(uniform_schedule(0.7, 12, method=PAPER_METHOD), DEIT_S)
        assert round(gmacs(DEIT_S, token_plan.tokens_per_block), 2) == 2.90

    @given(patches=st.integers(2, 400), ratio=st.floats(0.05, 0.95))
    def test_pruning_never_costs_more_than_dense(self, patches: int, ratio: float) -> None:
        small = architecture(patches=patches)
        token_plan = plan(uniform_schedule(ratio, 12, method=PAPER_METHOD), small)
        dense = gmacs(small, (small.tokens,) * 12)
        assert (gmacs(small, token_plan.tokens_per_block) < dense) is bool(token_plan.layers)

    def test_the_pruning_layers_cost_well_under_a_block(self) -> None:
        token_plan = plan(uniform_schedule(0.7, 12, method=PAPER_METHOD), DEIT_S)
        n = 197
        one_layer_only = TokenPlan(layers=token_plan.layers[:1], tokens_per_block=())
        expected = (1 + 5) * 6 * n * n + 98 * (n - 98) * 64
        assert pruning_gmacs(DEIT_S, one_layer_only, PAPER_METHOD) == pytest.approx(expected / 1e9, rel=1e-12)
        assert 0 < pruning_gmacs(DEIT_S, token_plan, PAPER_METHOD) < 0.05 * gmacs(DEIT_S, (n,))

    def test_a_stage_that_drops_nothing_costs_nothing(self) -> None:
        n = 197
        only_importance = plan(one_layer(0.5, similarity_share=0.0, iterations=4), DEIT_S)
        assert pruning_gmacs(DEIT_S, only_importance, PAPER_METHOD) == pytest.approx(4 * 6 * n * n / 1e9, rel=1e-12)
        only_similarity = plan(one_layer(0.5, similarity_share=1.0, iterations=4), DEIT_S)
        assert pruning_gmacs(DEIT_S, only_similarity, PAPER_METHOD) == pytest.approx(
            (6 * n * n + 98 * 99 * 64) / 1e9, rel=1e-12
        )
        assert pruning_gmacs(DEIT_S, plan(uniform_schedule(1.0, 12), DEIT_S), DEFAULT_METHOD) == 0

    def test_methods_that_score_nothing_cost_nothing(self) -> None:
        token_plan = plan(one_layer(0.5), DEIT_S)
        assert pruning_gmacs(DEIT_S, token_plan, "slice") == pruning_gmacs(DEIT_S, token_plan, "random") == 0

    def test_partners_are_sought_among_whole_tokens(self) -> None:
        token_plan = plan(one_layer(0.5), DEIT_S)
        more = pruning_gmacs(DEIT_S, token_plan, "zero-tprune-merge") - pruning_gmacs(DEIT_S, token_plan, PAPER_METHOD)
        assert more == pytest.approx(98 * (98 + 99) * 384 / 1e9, rel=1e-9)

    @pytest.mark.parametrize(("patches", "width"), [(798, 384), (799, 64)])
    def test_distances_of_many_tokens_are_those_of_narrower_ones(self, patches: int, width: int) -> None:
        large = DEIT_S.model_copy(update={"patch_tokens": patches})
        found = pruning_gmacs(large, plan(one_layer(0.5), large), "novelty-merge")
        gone, kept, ranking = patches // 2, patches - patches // 2, plan(one_layer(0.5), large).layers[0].iterations * 6
        assert round(1e9 * found) == (patches + 1) ** 2 * (width + ranking) + gone * (kept + kept + 1) * 384


class TestOptions:
    """What options change about counts and costs."""

    def layer(self, options: MethodOptions, keep_ratio: float = 0.5, **spec: Any) -> LayerPlan:
        schedule = one_layer(keep_ratio, **spec).model_copy(update={"options": options})
        return plan(schedule, DEIT_S).layers[0]

    def macs(self, options: MethodOptions, method: str = "zero-tprune") -> int:
        """Of one layer of 197 tokens that drops 49 by similarity and 49 by importance, with 4 iterations."""
        schedule = one_layer(0.5, iterations=4).model_copy(update={"options": options, "method": method})
        return round(1e9 * pruning_gmacs(DEIT_S, plan(schedule, DEIT_S), method, options))

    def test_importance_first_leaves_the_similarity_stage_half_of_fewer_tokens(self) -> None:
        first = MethodOptions(order="importance-first")
        assert self.layer(first, 0.3, similarity_share=0.25).similarity_drop == 34
        assert self.layer(first, 0.3).similarity_drop == 59, "as many as stay, though half of those that go are 68"
        assert self.layer(MethodOptions(), 0.3, similarity_share=1.0).similarity_drop == 98
        with pytest.raises(ScheduleError, match="at most 59"):
            self.layer(first, 0.3, similarity_drop=60)

    def test_without_groups_all_can_go_by_similarity(self) -> None:
        full = MethodOptions(partition="full")
        assert self.layer(full, 0.3, similarity_share=1.0).similarity_drop == 137
        assert self.layer(full, 0.3, similarity_drop=137).similarity_drop == 137
        with pytest.raises(ScheduleError, match=r"at most 137 \(no more than the 137 dropped\)"):
            self.layer(full, 0.3, similarity_drop=138)

    @given(patches=st.integers(2, 60), data=st.data())
    def test_every_group_holds_enough_tokens(self, patches: int, data: st.DataObject) -> None:
        options = data.draw(st.builds(MethodOptions, order=..., partition=...))
        small, kept = architecture(patches=patches), data.draw(st.integers(1, patches - 1))
        drop = data.draw(st.integers(1, max(1, options.most_similar(patches, patches - kept))))
        spec = LayerSpec(block=1, drop=patches - kept, similarity_drop=drop)
        (layer,) = plan(
            PruningSchedule(name="test", method=PAPER_METHOD, options=options, layers=(spec,)), small
        ).layers
        live = layer.tokens_in - (layer.importance_drop if options.order == "importance-first" else 0)
        group_a, group_b = options.groups(live, layer.prefix_tokens)
        assert layer.similarity_drop <= group_a
        assert 0 < group_b <= live

    def test_the_cost_of_each(self) -> None:
        n, ranking, default = 197, 6 * 197 * 197, 5 * 6 * 197 * 197 + 98 * 99 * 64
        assert self.macs(MethodOptions()) == default
        for same in ({"metric": "manhattan"}, {"feature": "values"}, {"partition": "important"}, {"join": "mean"}):
            assert self.macs(MethodOptions.model_validate(same)) == default
        for wide in ("all-keys", "tokens"):
            assert self.macs(MethodOptions(feature=wide)) == default + 98 * 99 * (384 - 64)
        assert self.macs(MethodOptions(partition="full")) == 5 * ranking + 195 * 196 * 64
        assert self.macs(MethodOptions(partition="random")) == default - ranking, "chance asks for no ranking"
        live = n - 49
        first = MethodOptions(order="importance-first")
        assert self.macs(first) == 4 * ranking + 73 * (live - 73) * 64, "one ranking serves both"
        merge = "zero-tprune-merge"
        fewer = self.macs(MethodOptions(), merge) - self.macs(MethodOptions(partner="keys"), merge)
        assert fewer == 98 * 98 * (384 - 64)

    def test_a_block_whose_tokens_decide_computes_all_of_them(self) -> None:
        by_keys, by_tokens = (
            plan(one_layer(0.5).model_copy(update={"options": MethodOptions(feature=feature)}), DEIT_S)
            for feature in ("keys", "tokens")
        )
        assert plan_gmacs(DEIT_S, by_tokens) == gmacs(DEIT_S, by_tokens.tokens_per_block)
        assert plan_gmacs(DEIT_S, by_keys) < plan_gmacs(DEIT_S, by_tokens)


class TestMergingLate:
    """Merging methods: four late layers at a steady rate, at the cost of the paper's method."""

    def late(self, ratio: float, given: Architecture = DEIT_S) -> PruningSchedule:
        return default_schedule(ratio, given, method="zero-tprune-merge")

    @pytest.mark.parametrize("ratio", [0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1])
    def test_costs_what_the_papers_method_costs_as_closely_as_integers_allow(self, ratio: float) -> None:
        wanted = plan_gmacs(DEIT_S, plan(uniform_schedule(ratio, 12, method=PAPER_METHOD), DEIT_S))
        assert plan_gmacs(DEIT_S, plan(self.late(ratio), DEIT_S)) == pytest.approx(
            wanted, rel=0.001 if ratio > 0.4 else 0.005
        )

    @pytest.mark.parametrize("ratio", [0.9, 0.7, 0.6, 0.5])
    def test_tokens_become_fewer_at_a_steady_rate_and_never_too_fast(self, ratio: float) -> None:
        layers = plan(self.late(ratio), DEIT_S).layers
        share = (layers[0].tokens_out - 1) / 196
        assert share >= 0.68
        for layer in layers:  # block counts from 0: that of the first layer is one twelfth behind the start
            twelfths = layer.block - layers[0].block + 1
            assert abs(layer.tokens_out - 1 - 196 * share**twelfths) <= 1 + twelfths  # counts are rounded

    @pytest.mark.parametrize(("ratio", "first"), [(0.95, 4), (0.7, 4), (0.65, 4), (0.6, 3), (0.5, 2), (0.3, 1)])
    def test_starts_as_late_as_the_rate_allows(self, ratio: float, first: int) -> None:
        assert [layer.block for layer in self.late(ratio).layers] == [first, first + 1, first + 3, first + 6]

    def test_deit_s_at_keep_70(self) -> None:
        schedule = self.late(0.7)
        assert (schedule.name, schedule.keep_ratio) == ("zero-tprune-merge-keep-0.70", 0.7)
        assert plan(schedule, DEIT_S).tokens_per_block == (*(197,) * 4, 149, 113, 113, *(65,) * 3, 28, 28)
        assert {layer.similarity_share for layer in schedule.layers} == {0.5}

    @given(depth=st.integers(1, 40), patches=st.integers(1, 400), percent=st.integers(1, 99))
    def test_any_model_gets_a_schedule_that_fits_it(self, depth: int, patches: int, percent: int) -> None:
        small = architecture(depth=depth, patches=patches)
        token_plan = plan(self.late(percent / 100, small), small)
        assert min(token_plan.tokens_per_block) >= 2
        assert depth == 1 or all(layer.block + 1 < depth for layer in token_plan.layers), "nothing to save there"

    def test_positions_scale_with_depth(self) -> None:
        assert [layer.block for layer in self.late(0.7, architecture(depth=24)).layers] == [8, 10, 14, 20]

    def test_a_preset_that_was_asked_for_is_taken(self) -> None:
        schedule = default_schedule(0.7, DEIT_S, method="zero-tprune-merge", preset="paper")
        assert schedule == uniform_schedule(0.7, 12, method="zero-tprune-merge", preset="paper")

    def test_keep_1_is_the_dense_model(self) -> None:
        assert self.late(1.0) == uniform_schedule(1.0, 12, method="zero-tprune-merge")

    @pytest.mark.parametrize("ratio", [0.9, 0.7, 0.5, 0.3])
    def test_a_model_whose_grid_is_read_has_layers_all_over_its_depth(self, ratio: float) -> None:
        grid = DEIT_S.model_copy(update={"reads_grid": True, "read_tokens": None})
        schedule = default_schedule(ratio, grid)
        assert [layer.block for layer in schedule.layers] == [2, 4, 6, 8, 10]
        assert schedule.options.importance_power == 0
        assert schedule_gmacs(grid, plan(schedule, grid)) == pytest.approx(
            schedule_gmacs(grid, plan(default_schedule(ratio, grid, method=PAPER_METHOD), grid)), rel=0.01
        )


class TestMergingInEveryBlock:
    """ToMe's schedule: a constant count, at the cost of the default method's schedule."""

    @pytest.mark.parametrize("ratio", [0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1])
    def test_costs_what_the_papers_method_costs_as_closely_as_integers_allow(self, ratio: float) -> None:
        wanted = plan_gmacs(DEIT_S, plan(uniform_schedule(ratio, 12, method=PAPER_METHOD), DEIT_S))
        schedule = default_schedule(ratio, DEIT_S, method="tome")
        token_plan = plan(schedule, DEIT_S)
        assert plan_gmacs(DEIT_S, token_plan) == pytest.approx(wanted, rel=0.01)
        for change in (-1, 1) if ratio > 0.6 else ():  # one token more or less in one block is no closer
            layers = list(schedule.layers)
            first = layers[0]
            layers[0] = first.model_copy(update={"drop": (first.drop or 0) + change})
            other = plan_gmacs(DEIT_S, plan(schedule.model_copy(update={"layers": tuple(layers)}), DEIT_S))
            assert abs(other - wanted) >= abs(plan_gmacs(DEIT_S, token_plan) - wanted)

    def test_counts_are_constant_and_the_remainder_is_spread(self) -> None:
        schedule = default_schedule(0.7, DEIT_S, method="tome")
        assert [layer.block for layer in schedule.layers] == list(range(1, 13))
        assert [layer.drop for layer in schedule.layers] == [12, *[13] * 11]
        assert (schedule.name, schedule.keep_ratio, schedule.method) == ("tome-keep-0.70", 0.7, "tome")

    @pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].only_by_similarity])
    def test_no_block_loses_more_than_half(self, method: str) -> None:
        for layer in plan(default_schedule(0.1, DEIT_S, method=method), DEIT_S).layers:
            assert layer.tokens_in - layer.tokens_out <= (layer.tokens_in - 1) // 2

    @pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].spread != "thirds"])
    @pytest.mark.parametrize("ratio", [0.95, 0.7, 0.5])
    def test_every_shape_costs_what_the_papers_method_costs(self, method: str, ratio: float) -> None:
        wanted = plan_gmacs(DEIT_S, plan(uniform_schedule(ratio, 12, method=PAPER_METHOD), DEIT_S))
        found = default_schedule(ratio, DEIT_S, method=method)
        assert plan_gmacs(DEIT_S, plan(found, DEIT_S)) == pytest.approx(wanted, rel=0.015)
        assert default_schedule(1.0, DEIT_S, method=method) == uniform_schedule(1.0, 12, method=method)

    @pytest.mark.parametrize(
        ("method", "blocks", "drops"),
        [
            ("mctf", range(2, 13), [15, 15, 16, 15, 15, 16, 15, 15, 16, 15, 16]),
            ("ppt", (3, 6, 9), [47, 48, 48]),
            ("tofu", range(1, 13), [12, *[13] * 5, 12, *[13] * 5]),
        ],
    )
    def test_where_the_same_number_goes(self, method: str, blocks: Sequence[int], drops: list[int]) -> None:
        schedule = default_schedule(0.7, DEIT_S, method=method)
        assert [layer.block for layer in schedule.layers] == list(blocks)
        assert [layer.drop for layer in schedule.layers] == drops

    def test_pitome_keeps_the_same_share_everywhere(self) -> None:
        layers = plan(default_schedule(0.7, DEIT_S, method="pitome"), DEIT_S).layers
        shares = [(layer.tokens_out - 1) / 196 for layer in layers]
        ratio = shares[0]
        assert len(layers) == 12
        assert all(abs(share - ratio**place) < place / 196 for place, share in enumerate(shares, 1))

    @given(depth=st.integers(1, 40), patches=st.integers(1, 400), percent=st.integers(1, 99))
    @pytest.mark.parametrize("method", ["pitome", "diffrate", "ppt", "mctf"])
    def test_any_model_gets_a_shape_that_fits_it(self, method: str, depth: int, patches: int, percent: int) -> None:
        small = architecture(depth=depth, patches=patches)
        assert min(plan(default_schedule(percent / 100, small, method=method), small).tokens_per_block) >= 2

    def test_tofu_drops_in_the_first_half_and_merges_in_the_second(self) -> None:
        found = plan(default_schedule(0.7, DEIT_S, method="tofu"), DEIT_S)
        assert [layer.averages for layer in found.layers] == [False] * 6 + [True] * 6
        merging = plan(default_schedule(0.7, DEIT_S, method="tome"), DEIT_S)
        dropping = found.model_copy(update={"layers": found.layers[:1]})
        both = merging.model_copy(update={"layers": merging.layers[:1], "tokens_per_block": found.tokens_per_block})
        dropping = dropping.model_copy(update={"tokens_per_block": found.tokens_per_block})
        saved = plan_gmacs(DEIT_S, both) - plan_gmacs(DEIT_S, dropping)
        assert saved == pytest.approx(12 * 384 * 384 / 1e9), "the projection of attention, which nothing reads"

    def test_other_methods_stand_where_they_stood(self) -> None:
        for method in ("zero-tprune", "wpr", "random", "slice"):
            assert default_schedule(0.6, DEIT_S, method=method) == uniform_schedule(0.6, 12, method=method)

    def test_the_mlp_of_a_merging_block_sees_fewer_tokens(self) -> None:
        layers = (LayerSpec(block=2, drop=20), LayerSpec(block=3, drop=10))
        token_plan = plan(PruningSchedule(name="test", method="tome", layers=layers), DEIT_S)
        assert token_plan.tokens_per_block == (197, 197, 177, *(167,) * 9)
        assert token_plan.mlp_tokens_per_block == (197, 177, 167, *(167,) * 9)
        behind = plan(PruningSchedule(name="test", method=PAPER_METHOD, layers=layers), DEIT_S)
        assert behind.mlp_tokens_per_block == behind.tokens_per_block == token_plan.tokens_per_block
        counted = gmacs(DEIT_S, behind.tokens_per_block)
        assert counted - plan_gmacs(DEIT_S, token_plan) == pytest.approx(2 * 30 * 384 * 1536 / 1e9, rel=1e-9)

    def test_dropped_tokens_go_no_further_than_the_attention(self) -> None:
        token_plan = plan(
            PruningSchedule(name="test", method=PAPER_METHOD, layers=(LayerSpec(block=2, drop=20),)), DEIT_S
        )
        counted = gmacs(DEIT_S, token_plan.tokens_per_block)
        saved = counted - plan_gmacs(DEIT_S, token_plan)
        assert saved == pytest.approx(20 * (384 * 384 + 2 * 384 * 1536) / 1e9, rel=1e-9)
        merged = plan(PruningSchedule(name="test", method="evit", layers=(LayerSpec(block=2, drop=20),)), DEIT_S)
        assert plan_gmacs(DEIT_S, merged) == gmacs(DEIT_S, merged.tokens_per_block), "merging takes all of them"

    def test_a_merging_layer_costs_its_similarities_and_its_sums(self) -> None:
        token_plan = plan(PruningSchedule(name="test", method="tome", layers=(LayerSpec(block=1, drop=20),)), DEIT_S)
        expected = 98 * 99 * 64 + 20 * 177 * 384
        assert pruning_gmacs(DEIT_S, token_plan, "tome") == pytest.approx(expected / 1e9, rel=1e-12)

    def test_more_than_half_in_one_block_is_refused(self) -> None:
        schedule = PruningSchedule(name="test", method="tome", layers=(LayerSpec(block=1, keep_ratio=0.4),))
        with pytest.raises(ScheduleError, match="block 1: 117 of 196 patch tokens to drop"):
            plan(schedule, DEIT_S)


class TestDrop:
    def test_is_an_exact_count(self) -> None:
        schedule = PruningSchedule(
            name="test", method=PAPER_METHOD, layers=(LayerSpec(block=2, drop=7), LayerSpec(block=3, drop=0))
        )
        (layer,) = plan(schedule, DEIT_S).layers
        assert (layer.tokens_in, layer.tokens_out) == (197, 190)

    def test_something_must_stay(self) -> None:
        schedule = PruningSchedule(name="test", method=PAPER_METHOD, layers=(LayerSpec(block=2, drop=196),))
        with pytest.raises(ScheduleError, match="drop 196"):
            plan(schedule, DEIT_S)

    def test_an_unknown_method_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(ScheduleError, match="did you mean 'tome'"):
            plan(PruningSchedule(name="test", method="tom", layers=(LayerSpec(block=2, drop=7),)), DEIT_S)
