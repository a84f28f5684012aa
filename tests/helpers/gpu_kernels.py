"""The TensorRT plugins' kernels on a GPU: PTX launched through the CUDA driver, with torch for memory and streams.

Shared by `pytest -m gpu` and by `python -m benchmarks.kernels`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ztdeploy.errors import EnvironmentLacksError
from ztdeploy.plugins.ptx import Version, compile_ptx

#: CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_MAX_DYNAMIC_SHARED = 8
#: A block may have this much without the attribute.
_DEFAULT_SHARED = 48 * 1024
#: PTX that the driver may be too old for, and what to try instead.
_ISAS: tuple[Version | None, ...] = (None, (9, 0), (8, 5))

Argument = torch.Tensor | int | float | None


@dataclass(frozen=True)
class Launch:
    kernel: str
    grid: tuple[int, int]
    threads: int
    shared_bytes: int
    arguments: tuple[Argument, ...]


class GpuKernels:
    """All kernels, loaded on the current device."""

    def __init__(self) -> None:
        torch.zeros(1, device="cuda")  # makes torch's context current
        self.driver = ctypes.CDLL("libcuda.so.1")
        major, minor = torch.cuda.get_device_capability()
        self.module = self._load(f"sm_{major}{minor}")
        self.shared_limit = int(torch.cuda.get_device_properties(0).shared_memory_per_block_optin)

    def run(self, launches: Sequence[Launch]) -> None:
        """Queue launches on torch's current stream."""
        for launch in launches:
            self._launch(launch)

    def _load(self, sm: str) -> ctypes.c_void_p:
        error: Exception | None = None
        for max_isa in _ISAS:
            module = ctypes.c_void_p()
            try:
                text = compile_ptx(sm, max_isa=max_isa).text
                self._check(self.driver.cuModuleLoadData(ctypes.byref(module), text.encode()), "cuModuleLoadData")
            except (RuntimeError, EnvironmentLacksError) as failed:
                error = failed
                continue
            return module
        raise RuntimeError(f"no PTX for {sm} that this driver takes") from error

    def _launch(self, launch: Launch) -> None:
        function = ctypes.c_void_p()
        name = launch.kernel.encode()
        self._check(self.driver.cuModuleGetFunction(ctypes.byref(function), self.module, name), launch.kernel)
        if launch.shared_bytes > _DEFAULT_SHARED:
            code = self.driver.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, launch.shared_bytes)
            self._check(code, "cuFuncSetAttribute")
        values = [_as_c(argument) for argument in launch.arguments]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        code = self.driver.cuLaunchKernel(
            function, *launch.grid, 1, launch.threads, 1, 1, launch.shared_bytes, stream, addresses, None
        )
        self._check(code, launch.kernel)

    def _check(self, code: int, what: str) -> None:
        if code:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"{what}: {(text.value or b'unknown error').decode()} ({code})")


def page_rank_launches(
    attention: torch.Tensor,
    survivors: torch.Tensor | None,
    plan: Sequence[int],
    *,
    iterations: int,
    boost: bool = True,
    filter_heads: bool = True,
    variance_min: float = 0.01,
    variance_max: float = 0.7,
    root_mean_square: bool = True,
) -> tuple[list[Launch], torch.Tensor]:
    """The launches of one `ZtWeightedPageRank` by a plan of launch_plan.h, and the scores that they fill.

    Args:
        attention: `[B, H, N, N]` on the GPU, fp32 or fp16.
        survivors: `[B, N]` fp32, or None.
        plan: path (1 shared, 2 l2, 3 single), threads, lanes, groups, bytes.
    """
    batch, heads, tokens, _ = attention.shape
    path, threads, lanes, groups, shared_bytes = plan
    kind = "f16" if attention.dtype == torch.float16 else "f32"
    scores = torch.full((batch, tokens), torch.nan, device="cuda")
    how = (int(filter_heads), int(root_mean_square))
    if path == 3:
        name = f"zt_weighted_page_rank_{'all_' if survivors is None else ''}{kind}"
        inputs = (attention,) if survivors is None else (attention, survivors)
        arguments = (*inputs, heads, tokens, iterations, int(boost), *how, lanes, groups, scores)
        return [Launch(name, (batch, 1), threads, shared_bytes, arguments)], scores
    head_scores = torch.empty((batch, heads, tokens), device="cuda")
    variances = torch.empty((batch, heads), device="cuda")
    name = f"zt_page_rank_heads_{kind}_{'shared' if path == 1 else 'l2'}"
    first = (attention, survivors, heads, tokens, iterations, int(boost), lanes, groups, head_scores, variances)
    second = (head_scores, variances, heads, tokens, *how, variance_min, variance_max, scores)
    join_threads = min(-(-tokens // 32) * 32, 1024)
    return [
        Launch(name, (heads, batch), threads, shared_bytes, first),
        Launch("zt_join_heads", (batch, 1), join_threads, 0, second),
    ], scores


def prune_launches(
    scores: torch.Tensor, keys: torch.Tensor, plan: Sequence[int], *, drop: int, prefix_tokens: int
) -> tuple[list[Launch], torch.Tensor]:
    """The launch of one `ZtSimilarityPrune`, and the survivors that it fills. `plan`: threads, tile, bytes."""
    batch, heads, tokens, width = keys.shape
    threads, tile, shared_bytes = plan
    kind = "f16" if keys.dtype == torch.float16 else "f32"
    survivors = torch.full((batch, tokens), torch.nan, device="cuda")
    arguments = (scores, keys, heads, tokens, width, drop, prefix_tokens, tile, survivors)
    return [Launch(f"zt_similarity_prune_{kind}", (batch, 1), threads, shared_bytes, arguments)], survivors


def _as_c(argument: Argument) -> ctypes.c_void_p | ctypes.c_int | ctypes.c_float:
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_int(argument) if isinstance(argument, int) else ctypes.c_float(argument)
