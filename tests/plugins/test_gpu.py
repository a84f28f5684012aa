"""The TensorRT plugins' kernels on a GPU, against the same kernels on a CPU, which test_kernels.py holds to NumPy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from helpers.cpu_kernels import DEFAULT_SHARED_BYTES, cpu_kernels, have_compiler

torch = pytest.importorskip("torch")
from helpers.gpu_kernels import GpuKernels, page_rank_launches, prune_launches  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here: the kernels run on the CPU only"),
    pytest.mark.skipif(not have_compiler(), reason="g++ is not installed, which compiles the kernels' launch plans"),
]
SIZES = (5, 64, 65, 197, 257, 577, 1025)


@pytest.fixture(scope="module")
def gpu() -> GpuKernels:
    return GpuKernels()


def attention_matrix(rng, batch, heads, tokens, dtype):
    preference = np.linspace(0.1, 2.0, heads)[None, :, None, None]
    logits = rng.standard_normal((batch, heads, tokens, tokens)).astype(np.float32)
    weights = np.exp(logits + preference * rng.standard_normal((batch, heads, 1, tokens)))
    return (weights / weights.sum(-1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("survivors", [False, True])
@pytest.mark.parametrize("path", ["auto", "shared", "l2", "single"])
@pytest.mark.parametrize(("tokens", "dtype"), list(product(SIZES, [np.float32, np.float16])))
def test_page_rank_is_the_same_on_a_gpu(gpu, tokens, dtype, path, survivors):
    rng = np.random.default_rng(tokens)
    iterations = 30 if tokens < 300 else 5
    plan = cpu_kernels().page_rank_plan(path, tokens, np.dtype(dtype).itemsize, iterations, gpu.shared_limit)
    if not plan.path:
        pytest.skip(f"a matrix of {tokens} tokens does not fit {gpu.shared_limit} bytes of shared memory")
    attention = attention_matrix(rng, 2, 3, tokens, dtype)
    alive = (rng.random((2, tokens)) < 0.7).astype(np.float32) if survivors else None
    on_gpu = None if alive is None else torch.from_numpy(alive).cuda()
    # All heads count: a head at the edge of the filter may fall on either side.
    launches, scores = page_rank_launches(
        torch.from_numpy(attention).cuda(), on_gpu, plan, iterations=iterations, filter_heads=False
    )
    gpu.run(launches)
    expected = cpu_kernels().weighted_page_rank(
        attention, alive, iterations=iterations, filter_heads=False, path=path, shared_limit=gpu.shared_limit
    )
    np.testing.assert_allclose(scores.cpu().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("aot", [False, True])
@pytest.mark.parametrize(("tokens", "dtype"), list(product(SIZES, [np.float32, np.float16])))
def test_prune_is_the_same_on_a_gpu(gpu, tokens, dtype, aot):
    rng = np.random.default_rng(tokens)
    limit = DEFAULT_SHARED_BYTES if aot else gpu.shared_limit
    plan = cpu_kernels().similarity_plan(tokens, 1, 64, limit)
    scores = rng.random((2, tokens)).astype(np.float32)
    keys = rng.standard_normal((2, 3, tokens, 64)).astype(dtype)
    drop = max(1, tokens // 5)
    launches, survivors = prune_launches(
        torch.from_numpy(scores).cuda(), torch.from_numpy(keys).cuda(), plan, drop=drop, prefix_tokens=1
    )
    gpu.run(launches)
    got = survivors.cpu().numpy()
    expected = cpu_kernels().similarity_prune(scores, keys, drop=drop, prefix_tokens=1, shared_limit=limit)
    assert got.sum(-1).tolist() == [tokens - drop] * 2
    # Similarities within rounding may trade places; on these inputs, one pair at most.
    assert np.all(np.sum(got != expected, -1) <= 2)
