"""The TensorRT plugins' kernels, on a CPU, against NumPy in fp64 after the contract in plugins/README.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from helpers.cpu_kernels import (
    DEFAULT_SHARED_BYTES,
    FLAGS,
    ORDERS,
    BadArgumentError,
    CpuKernels,
    DivergenceError,
    KernelError,
    OutOfBoundsError,
    RaceError,
    UnwrittenError,
    compile_library,
    cpu_kernels,
    have_compiler,
    sources,
)
from helpers.kernel_reference import (
    AXES,
    CASES,
    PRUNED,
    attention_matrix,
    check_page_rank,
    check_prune,
    head_scores,
    page_rank,
    prune,
    some_survivors,
    tied_keys,
)
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(
    not have_compiler(), reason="g++ is not installed, which compiles the kernels for a CPU"
)


def mostly_long(cases: Sequence[Any]) -> list[Any]:
    """Every fourth case, and the others as part of the long tail."""
    return [pytest.param(case, marks=[pytest.mark.long] * (place % 4 > 0)) for place, case in enumerate(cases)]


def test_the_cases_cover_every_value_of_every_axis():
    for position, (axis, values) in enumerate(AXES.items()):
        assert {case[position] for case in CASES} == set(values), axis
    assert {(case.tokens, case.heads) for case in CASES} >= {(1025, heads) for heads in (1, 3)}


@pytest.mark.parametrize("case", mostly_long(CASES), ids=str)
def test_page_rank_is_what_numpy_says(case):
    check_page_rank(cpu_kernels(), case)


PATHS = ("shared", "l2", "single")
anywhere = pytest.mark.parametrize("path", PATHS)
both_types = pytest.mark.parametrize("dtype", [np.float32, np.float16])


@anywhere
@both_types
def test_where_no_head_passes_all_count(path, dtype):
    attention = attention_matrix(np.random.default_rng(1), 2, 3, 33, dtype)
    got = cpu_kernels().weighted_page_rank(attention, iterations=2, variance_min=5, variance_max=6, path=path)
    np.testing.assert_allclose(got, page_rank(attention, np.ones((2, 33)), iterations=2, limits=(5, 6)), rtol=2e-5)


@anywhere
@pytest.mark.parametrize("passing", [0, 1, 2])
def test_only_passing_heads_count_wherever_they_stand(path, passing):
    rng = np.random.default_rng(2)
    attention = attention_matrix(rng, 1, 3, 33, np.float32)
    _, variance = head_scores(attention, np.ones((1, 33)), 2, True)
    limits = (variance[0, passing] - 1e-3, variance[0, passing] + 1e-3)
    got = cpu_kernels().weighted_page_rank(
        attention, iterations=2, variance_min=limits[0], variance_max=limits[1], path=path
    )
    alone = page_rank(attention[:, passing : passing + 1], np.ones((1, 33)), iterations=2, filter_heads=False)
    np.testing.assert_allclose(got, alone, rtol=2e-5)


@anywhere
def test_limits_of_the_filter_are_inclusive(path):
    """Half of the tokens get all votes: scores of 2 and 0, a variance of exactly 1. The other head is flat: 0."""
    attention = np.full((1, 2, 8, 8), 1 / 8, np.float32)
    attention[:, 0, :, :4], attention[:, 0, :, 4:] = 1 / 4, 0

    def ranked(low, high):
        how = {"variance_min": low, "variance_max": high, "root_mean_square": False, "boost": False}
        return cpu_kernels().weighted_page_rank(attention, iterations=2, path=path, **how)[0].tolist()

    sharp, flat, both = [2.0] * 4 + [0.0] * 4, [1.0] * 8, [1.5] * 4 + [0.5] * 4
    below, above = np.nextafter(np.float32([1, 1]), np.float32([0, 2]))
    assert ranked(0.5, 1.0) == sharp
    assert ranked(1.0, 5.0) == sharp
    assert ranked(0.5, below) == both
    assert ranked(above, 5.0) == both
    assert ranked(0.0, 0.5) == flat
    assert ranked(0.0, 1.0) == both


@anywhere
@pytest.mark.parametrize("filter_heads", [True, False])
def test_a_head_without_votes_gives_zeros_not_nan(path, filter_heads):
    attention = attention_matrix(np.random.default_rng(3), 1, 3, 33, np.float32)
    attention[:, 1] = 0
    got = cpu_kernels().weighted_page_rank(attention, iterations=5, filter_heads=filter_heads, path=path)
    expected = page_rank(attention, np.ones((1, 33)), iterations=5, filter_heads=filter_heads)
    np.testing.assert_allclose(got, expected, rtol=2e-5)
    assert not cpu_kernels().weighted_page_rank(0 * attention, iterations=5, path=path).any()


@anywhere
def test_an_image_without_survivors_gives_zeros(path):
    attention = attention_matrix(np.random.default_rng(4), 2, 2, 17, np.float32)
    alive = np.array([[0.0] * 17, [1.0] * 17])
    got = cpu_kernels().weighted_page_rank(attention, alive, iterations=3, path=path)
    assert not got[0].any()
    np.testing.assert_allclose(got[1], page_rank(attention, alive, iterations=3)[1], rtol=2e-5)


@anywhere
@pytest.mark.parametrize("kept", [1e-3, 1e-9, 1e-15])
def test_heads_that_lose_nearly_all_votes_stay_in_range(path, kept):
    """30 iterations that each keep this share of the votes: far below fp32's range, were the vector not rescaled."""
    rng = np.random.default_rng(5)
    attention = attention_matrix(rng, 1, 2, 41, np.float64)
    alive = some_survivors(rng, 1, 41)
    attention[:, 0] *= np.where(alive[0] > 0, kept, 1.0)
    got = cpu_kernels().weighted_page_rank(attention.astype(np.float32), alive, iterations=30, path=path)
    np.testing.assert_allclose(got, page_rank(attention, alive, iterations=30), rtol=5e-5)


@anywhere
def test_subnormal_fp16_entries_count(path):
    attention = np.full((1, 1, 9, 9), 6e-8, np.float16)  # the smallest that fp16 has
    attention[..., 3] = 1.0
    expected = page_rank(attention, np.ones((1, 9)), iterations=3)
    np.testing.assert_allclose(
        cpu_kernels().weighted_page_rank(attention, iterations=3, path=path), expected, rtol=2e-5
    )


@anywhere
@both_types
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_stay_in_their_image(path, dtype, value):
    attention = attention_matrix(np.random.default_rng(6), 2, 2, 19, dtype)
    clean = cpu_kernels().weighted_page_rank(attention, iterations=4, path=path)
    attention[0, 1, 2, 3] = value
    dirty = cpu_kernels().weighted_page_rank(attention, iterations=4, path=path)
    np.testing.assert_array_equal(clean[1], dirty[1])


@both_types
@pytest.mark.parametrize("tokens", [5, 64, 65, 197])
def test_all_paths_agree_to_the_last_bit_where_threads_share_alike(dtype, tokens):
    attention = attention_matrix(np.random.default_rng(8), 1, 3, tokens, dtype)
    shared, l2, single = (
        cpu_kernels().weighted_page_rank(attention, iterations=5, root_mean_square=False, path=path) for path in PATHS
    )
    np.testing.assert_array_equal(shared, l2)
    np.testing.assert_allclose(single, l2, rtol=1e-6)


@given(seed=st.integers(0, 2**32), tokens=st.integers(2, 60), path=st.sampled_from(PATHS), half=st.booleans())
@settings(max_examples=40, deadline=None)
def test_page_rank_properties(seed, tokens, path, half):
    rng = np.random.default_rng(seed)
    dtype = np.float16 if half else np.float32
    attention, alive = attention_matrix(rng, 1, 2, tokens, dtype), some_survivors(rng, 1, tokens)
    how = {"iterations": int(rng.integers(1, 9)), "boost": False, "filter_heads": False, "path": path}
    scores = cpu_kernels().weighted_page_rank(attention, alive, root_mean_square=False, **how)
    # A mean of scores of mean 1, over the survivors.
    assert scores.sum() == pytest.approx(alive.sum(), rel=1e-4)
    assert not scores[alive == 0].any()
    # The scale of A cancels out: exactly so for a power of 2, in fp32.
    scaled = cpu_kernels().weighted_page_rank(attention.astype(np.float32) / 64, alive, root_mean_square=False, **how)
    np.testing.assert_allclose(scaled, scores, rtol=1e-5)
    # Which token stands where doesn't matter.
    shuffled = rng.permutation(tokens)
    moved = cpu_kernels().weighted_page_rank(
        attention[:, :, shuffled][:, :, :, shuffled], alive[:, shuffled], root_mean_square=False, **how
    )
    np.testing.assert_allclose(moved, scores[:, shuffled], rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------------------------- similarity prune


@both_types
@pytest.mark.parametrize("prefix_tokens", [0, 1, 5])
@pytest.mark.parametrize(("tokens", "width", "heads"), [(5, 4, 1), (14, 6, 2), (65, 7, 3), (197, 64, 3), (257, 33, 4)])
def test_prune_breaks_exact_ties_as_the_contract_says(tokens, width, heads, prefix_tokens, dtype):
    rng = np.random.default_rng(tokens)
    keys = tied_keys(rng, 2, heads, tokens, width, dtype)
    scores = rng.integers(0, 4, (2, tokens)) / 4  # ties among scores as well
    group_a = (tokens - prefix_tokens) // 2
    for drop in sorted({d for d in (1, 2, group_a // 2, group_a - 1, group_a) if 1 <= d <= group_a}):
        got = cpu_kernels().similarity_prune(scores, keys, drop=drop, prefix_tokens=prefix_tokens)
        expected, _ = prune(scores, keys, drop=drop, prefix_tokens=prefix_tokens)
        np.testing.assert_array_equal(got, expected)


@both_types
@pytest.mark.parametrize("shared_limit", [DEFAULT_SHARED_BYTES, 163 * 1024])
@pytest.mark.parametrize("shape", mostly_long(PRUNED), ids=str)
def test_prune_is_what_numpy_says(shape, shared_limit, dtype):
    check_prune(cpu_kernels(), shape, dtype, shared_limit)


def test_nothing_goes_where_nothing_may_be_dropped():
    rng = np.random.default_rng(0)
    scores, keys = rng.random((1, 6)), rng.random((1, 1, 6, 4))
    for prefix_tokens in (5, 6, 9):
        assert cpu_kernels().similarity_prune(scores, keys, drop=1, prefix_tokens=prefix_tokens).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["scores", "keys", "both"])
def test_prune_drops_the_right_number_whatever_it_is_given(value, where):
    rng = np.random.default_rng(9)
    scores, keys = rng.random((2, 40)), rng.standard_normal((2, 2, 40, 8))
    if where != "keys":
        scores[0, ::3] = value
    if where != "scores":
        keys[0, :, ::2] = value
    got = cpu_kernels().similarity_prune(scores, keys, drop=7, prefix_tokens=1)
    assert got.sum(-1).tolist() == [33, 33]
    assert got[:, 0].all()


def test_zero_keys_are_similar_to_nothing_and_never_divide_by_zero():
    keys = np.zeros((1, 2, 12, 8), np.float32)
    got = cpu_kernels().similarity_prune(np.arange(12.0)[None], keys, drop=3, prefix_tokens=0)
    expected, _ = prune(np.arange(12.0)[None], keys, drop=3, prefix_tokens=0)
    np.testing.assert_array_equal(got, expected)


def test_a_zero_key_is_less_opposed_than_an_opposite_one():
    """Cosine 0 against -1: the length of a zero key is clamped, so that its similarity is 0 and not NaN."""
    keys = np.tile(np.float32([1, 0, 0, 0]), (1, 1, 8, 1))
    keys[0, 0, 4:], keys[0, 0, 6] = -keys[0, 0, 4:], 0
    got = cpu_kernels().similarity_prune(np.arange(8.0, 0, -1)[None], keys, drop=1, prefix_tokens=0)
    assert np.flatnonzero(got == 0).tolist() == [6]


def test_minus_zero_and_zero_are_the_same_score():
    scores, keys = np.zeros((1, 8), np.float32), np.ones((1, 1, 8, 4), np.float32)
    scores[0, :4] = -0.0
    got = cpu_kernels().similarity_prune(scores, keys, drop=4, prefix_tokens=0)
    assert got[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


@given(data=st.data(), seed=st.integers(0, 2**32), tokens=st.integers(5, 90), prefix_tokens=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_prune_properties(data, seed, tokens, prefix_tokens):
    rng = np.random.default_rng(seed)
    group_a = (tokens - prefix_tokens) // 2
    drop = data.draw(st.integers(1, max(1, group_a)))
    heads, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 20))
    dtype = data.draw(st.sampled_from([np.float32, np.float16]))
    scores, keys = rng.random((1, tokens)), rng.standard_normal((1, heads, tokens, width)).astype(dtype)

    def survivors(scores, keys, **more):
        return cpu_kernels().similarity_prune(scores, keys, drop=drop, prefix_tokens=prefix_tokens, **more)

    got = survivors(scores, keys)
    assert got.sum() == tokens - min(drop, group_a)
    assert got[0, :prefix_tokens].all()
    # Only the order of scores matters; a power of 2 keeps it exactly.
    np.testing.assert_array_equal(survivors(scores / 1024, keys), got)
    np.testing.assert_array_equal(survivors(scores, keys, order="shuffle", seed=seed % 1000), got)
    # A narrow head has ties (the cosine of 1-wide vectors is 1 or -1), which go by index: those aside, tokens can move.
    _, gaps = prune(scores, keys, drop=drop, prefix_tokens=prefix_tokens)
    if gaps[0] > 1e-5:
        moved = np.concatenate([np.arange(prefix_tokens), prefix_tokens + rng.permutation(tokens - prefix_tokens)])
        np.testing.assert_array_equal(survivors(scores[:, moved], keys[:, :, moved]), got[:, moved])


# -------------------------------------------------------------------------------------------------------- launch plans


def test_page_rank_plans_keep_their_promises():
    kernels = cpu_kernels()
    limits = (DEFAULT_SHARED_BYTES, 64 * 1024, 99 * 1024, 163 * 1024, 227 * 1024)
    for tokens, size, limit in product((*range(1, 80), 196, 197, 257, 577, 1025, 1370, 2000), (2, 4), limits):
        for path, iterations in product(("auto", "l2", "single"), (1, 30)):
            plan = kernels.page_rank_plan(path, tokens, size, iterations, limit)
            assert plan.path, "every one of these sizes has a plan"
            assert plan.shared_bytes <= (DEFAULT_SHARED_BYTES if path == "single" else limit)
            assert plan.lanes * plan.groups <= plan.threads <= 1024
            assert plan.threads % 32 == plan.lanes % 32 == 0
            assert plan.groups % 4 == 0
            assert (plan.path == 1) <= (iterations > 1), "a matrix that is read once is not copied"


def test_the_shared_path_begins_where_the_matrix_fits():
    kernels = cpu_kernels()
    for limit, largest in ((64 * 1024, 170), (99 * 1024, 214), (163 * 1024, 277), (227 * 1024, 328)):
        assert kernels.page_rank_plan("auto", largest, 2, 30, limit).path == 1
        assert kernels.page_rank_plan("auto", largest + 12, 2, 30, limit).path == 2


@pytest.mark.parametrize("tokens", [0, -1, 40_000, 2**31 - 1])
def test_sizes_that_cannot_run_are_refused(tokens):
    kernels = cpu_kernels()
    assert kernels.page_rank_plan("auto", tokens, 2, 30, 163 * 1024).path == 0
    assert kernels.similarity_plan(tokens, 1, 64, DEFAULT_SHARED_BYTES).threads == 0


def test_similarity_plans_keep_their_promises():
    kernels = cpu_kernels()
    for tokens, width, prefix in product((1, 5, 65, 197, 257, 577, 1025, 1370), (1, 32, 64, 128), (0, 1, 5)):
        for limit in (DEFAULT_SHARED_BYTES, 163 * 1024):
            plan = kernels.similarity_plan(tokens, prefix, width, limit)
            assert 64 <= plan.threads == 2 * plan.tile <= 512
            assert plan.shared_bytes <= limit
    assert kernels.similarity_plan(197, 1, 129, DEFAULT_SHARED_BYTES).threads == 0


def test_a_launch_without_a_plan_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(BadArgumentError, match="wider than 128"):
        cpu_kernels().similarity_prune(rng.random((1, 5)), rng.random((1, 1, 5, 130)), drop=1, prefix_tokens=1)
    with pytest.raises(BadArgumentError, match="shared memory"):
        cpu_kernels().weighted_page_rank(rng.random((1, 1, 5, 5)), iterations=2, shared_limit=64)


# ------------------------------------------------------------------------------------- races, divergence, wrong indices


def jobs(kernels: CpuKernels) -> list[Callable[..., Any]]:
    """Calls that together reach every line of the kernels."""
    rng = np.random.default_rng(10)
    attention, alive = attention_matrix(rng, 2, 3, 65, np.float16), some_survivors(rng, 2, 65)
    scores, keys = rng.random((2, 300)), rng.standard_normal((2, 2, 300, 20))

    def rank(path, alive) -> Callable[..., Any]:
        return lambda **how: kernels.weighted_page_rank(attention, alive, iterations=3, path=path, **how)

    def drop(limit) -> Callable[..., Any]:
        return lambda **how: kernels.similarity_prune(scores, keys, drop=20, prefix_tokens=1, shared_limit=limit, **how)

    return [rank(path, who) for path in PATHS for who in (alive, None)] + [drop(16 * 1024), drop(DEFAULT_SHARED_BYTES)]


def test_results_do_not_depend_on_the_order_of_threads():
    for job in jobs(cpu_kernels()):
        expected = job()
        for order, seed in (("reverse", 1), ("shuffle", 1), ("shuffle", 2)):
            np.testing.assert_array_equal(job(order=order, seed=seed), expected)
    assert set(ORDERS) == {"forward", "reverse", "shuffle"}


def test_fibers_of_the_c_library_give_the_same_results():
    """What processors other than x86-64 run."""
    portable = CpuKernels(compile_library(sources(), (*FLAGS, "-DZT_CPU_UCONTEXT")))
    for one, other in zip(jobs(cpu_kernels()), jobs(portable), strict=True):
        np.testing.assert_array_equal(one(), other())


def barriers() -> list[tuple[str, int]]:
    """File and line of every barrier in the kernels."""
    return [
        (name.rpartition("/")[2], line)
        for name, text in sources().items()
        if name.endswith(".cuh")
        for line, content in enumerate(text.splitlines(), 1)
        if "__syncthreads();" in content
    ]


def first_error(kernels: CpuKernels) -> KernelError | None:
    for job in jobs(kernels):
        for order in ORDERS:
            try:
                job(order=order)
            except KernelError as error:
                return error
    return None


@pytest.fixture
def skippable() -> Iterator[CpuKernels]:
    kernels = cpu_kernels()
    yield kernels
    kernels.skip_barrier()


def test_there_are_barriers_to_miss():
    assert len(barriers()) >= 10


@pytest.mark.parametrize(("file", "line"), barriers())
def test_every_barrier_is_needed_and_its_absence_is_noticed(skippable, file, line):
    skippable.skip_barrier(file, line)
    assert isinstance(first_error(skippable), RaceError | UnwrittenError)


@pytest.mark.long
@pytest.mark.parametrize("thread", [0, 5, 63])
@pytest.mark.parametrize(("file", "line"), barriers())
def test_one_thread_that_misses_a_barrier_is_noticed(skippable, file, line, thread):
    skippable.skip_barrier(file, line, thread)
    assert isinstance(first_error(skippable), DivergenceError | RaceError | UnwrittenError)


BARRIER = "    __syncthreads();\n    for (int iteration"
FAULTS = {
    "no barrier": (
        BARRIER,
        "    for (int iteration",
        (RaceError, UnwrittenError),
        "since the last barrier|nobody wrote",
    ),
    "divergent barrier": (
        BARRIER,
        "    if (threadIdx.x != 3) __syncthreads();\n    for (int iteration",
        (DivergenceError, RaceError),
        "divergent barrier|since the last barrier",
    ),
    "early return": (
        "    const float live = live_tokens(block, survivors);\n    int counting",
        "    if (threadIdx.x == 40) return;\n    const float live = live_tokens(block, survivors);\n    int counting",
        (DivergenceError, UnwrittenError),
        "has returned|nobody wrote",
    ),
    "shared index": ("= block.vector[row];", "= block.vector[row + 1];", OutOfBoundsError, "element 65 of 65"),
    "tensor index": ("head_scores[token] =", "head_scores[token + 1] =", OutOfBoundsError, "writes element 65 of a"),
    "misaligned": (
        "const int shift = (misaligned",
        "const int shift = (1 + misaligned",
        OutOfBoundsError,
        "a vector of",
    ),
    "same slot": (
        "block.partial[group * tokens + column + k] =",
        "block.partial[column + k] =",
        RaceError,
        "race: writes",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_planted_in_the_source_are_reported(fault):
    old, new, errors, message = FAULTS[fault]
    texts = sources()
    name = "kernels/weighted_page_rank.cuh"
    assert texts[name].count(old) >= 1, "the source has changed: plant the fault elsewhere"
    texts[name] = texts[name].replace(old, new)
    flags = tuple("-O1" if flag == "-O2" else flag for flag in FLAGS)
    error = first_error(CpuKernels(compile_library(texts, flags)))
    assert isinstance(error, errors), error
    assert any(part in str(error) for part in message.split("|")), error


def test_the_kernels_are_fast_enough_on_a_cpu_for_an_onnx_evaluator():
    """Not a benchmark: ten times what it takes on a slow machine."""
    attention = attention_matrix(np.random.default_rng(0), 2, 3, 197, np.float32)
    began = time.process_time()
    cpu_kernels().weighted_page_rank(attention, iterations=30)
    assert time.process_time() - began < 2
