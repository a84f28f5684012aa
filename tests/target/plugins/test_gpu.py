"""The TensorRT plugins' kernels on a GPU against NumPy, in all cases of test_kernels.py.

Where `ZTDEPLOY_STAND_IN_GPU` is set, the CPU stands in for a GPU: what is tried then are these tests.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from helpers.cpu_kernels import DEFAULT_SHARED_BYTES, CpuKernels, cpu_kernels, have_compiler
from helpers.kernel_reference import CASES, PRUNED, check_page_rank, check_prune, prune, tied_keys

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not have_compiler(), reason="g++ is not installed, which compiles the kernels' launch plans"),
]
both_types = pytest.mark.parametrize("dtype", [np.float32, np.float16])


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    if os.environ.get("ZTDEPLOY_STAND_IN_GPU"):
        return cpu_kernels()
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here: the kernels run on the CPU only")
    from helpers.gpu_kernels import GpuKernels

    return GpuKernels()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_page_rank_on_a_gpu_is_what_numpy_says(kernels, case):
    size = np.dtype(case.dtype).itemsize
    if not kernels.page_rank_plan(case.path, case.tokens, size, case.iterations, kernels.shared_limit).path:
        pytest.skip(f"{case.tokens} tokens do not fit {kernels.shared_limit} bytes of shared memory")
    check_page_rank(kernels, case)


@both_types
@pytest.mark.parametrize("shape", PRUNED, ids=str)
@pytest.mark.parametrize("shared_limit", [DEFAULT_SHARED_BYTES, 163 * 1024])
def test_prune_on_a_gpu_is_what_numpy_says(kernels, shape, dtype, shared_limit):
    check_prune(kernels, shape, dtype, shared_limit)


@both_types
@pytest.mark.parametrize("prefix_tokens", [0, 1, 5])
def test_prune_on_a_gpu_breaks_exact_ties_as_the_contract_says(kernels, prefix_tokens, dtype):
    rng = np.random.default_rng(0)
    keys, scores = tied_keys(rng, 2, 3, 197, 64, dtype), rng.integers(0, 4, (2, 197)) / 4
    got = kernels.similarity_prune(scores, keys, drop=40, prefix_tokens=prefix_tokens)
    expected, _ = prune(scores, keys, drop=40, prefix_tokens=prefix_tokens)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("path", ["shared", "l2", "single"])
def test_a_small_case_for_a_checker_of_memory_and_races(kernels, path):
    """What compute-sanitizer watches, which slows kernels down a hundredfold: one launch of each kernel."""
    rng = np.random.default_rng(1)
    for dtype in (np.float32, np.float16):
        attention = rng.random((2, 2, 65, 65)).astype(dtype)
        for survivors in (None, np.ones((2, 65))):
            scores = kernels.weighted_page_rank(attention, survivors, iterations=3, path=path)
            assert np.isfinite(scores).all()
        keys = rng.standard_normal((2, 2, 65, 20)).astype(dtype)
        kept = kernels.similarity_prune(scores, keys, drop=9, prefix_tokens=1, shared_limit=16 * 1024)
        assert kept.sum(-1).tolist() == [56, 56]
