"""How the TensorRT plugins' operators become kernel launches: name, grid and arguments, as the CUDA driver takes them.

The same launches run on a GPU (`gpu_kernels`) and on a CPU (`cpu_kernels`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

#: A tensor of NumPy or torch, dense and aligned to 16 bytes; None is a null pointer.
Argument = Any


class PageRankPlan(NamedTuple):
    """See `PageRankPlan` in plugins/kernels/launch_plan.h."""

    path: int  #: 0: none fits, 1: shared, 2: l2, 3: single
    threads: int
    lanes: int
    groups: int
    shared_bytes: int


class SimilarityPlan(NamedTuple):
    """See `SimilarityPlan` in plugins/kernels/launch_plan.h."""

    threads: int  #: 0: none fits
    tile: int
    shared_bytes: int


@dataclass(frozen=True)
class PageRankOptions:
    """The attributes of `ZtWeightedPageRank`."""

    iterations: int
    boost: int = 1
    filter_heads: bool = True
    variance_min: float = 0.01
    variance_max: float = 0.7
    root_mean_square: bool = True


@dataclass(frozen=True)
class Launch:
    kernel: str
    grid: tuple[int, int]
    threads: int
    shared_bytes: int
    arguments: tuple[Argument, ...]

    def pointers(self) -> tuple[Any, Any]:
        """The arguments as an array of pointers to each, and what must outlive its use."""
        values = [_as_c(argument) for argument in self.arguments]
        return (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values)), values


def page_rank_launches(
    attention: Any,
    survivors: Any | None,
    plan: PageRankPlan,
    empty: Callable[[tuple[int, ...]], Any],
    how: PageRankOptions,
) -> tuple[list[Launch], Any]:
    """The launches of one `ZtWeightedPageRank`, and the scores `[B, N]` that they fill.

    Args:
        attention: `[B, H, N, N]`, fp32 or fp16.
        survivors: `[B, N]` fp32, or None.
        empty: makes an fp32 tensor of a shape, where the kernels run.
    """
    batch, heads, tokens, _ = attention.shape
    path, threads, lanes, groups, shared_bytes = plan
    kind = _kind(attention)
    scores = empty((batch, tokens))
    flags = (int(how.filter_heads), int(how.root_mean_square))
    if path == 3:
        name = f"zt_weighted_page_rank_{'all_' if survivors is None else ''}{kind}"
        inputs = (attention,) if survivors is None else (attention, survivors)
        arguments = (*inputs, heads, tokens, how.iterations, int(how.boost), *flags, lanes, groups, scores)
        return [Launch(name, (batch, 1), threads, shared_bytes, arguments)], scores
    head_scores, variances = empty((batch, heads, tokens)), empty((batch, heads))
    name = f"zt_page_rank_heads_{kind}_{'shared' if path == 1 else 'l2'}"
    first = (attention, survivors, heads, tokens, how.iterations, int(how.boost), lanes, groups, head_scores, variances)
    second = (head_scores, variances, heads, tokens, *flags, float(how.variance_min), float(how.variance_max), scores)
    join_threads = min(-(-tokens // 32) * 32, 1024)
    return [
        Launch(name, (heads, batch), threads, shared_bytes, first),
        Launch("zt_join_heads", (batch, 1), join_threads, 0, second),
    ], scores


def prune_launches(
    scores: Any,
    keys: Any,
    plan: SimilarityPlan,
    empty: Callable[[tuple[int, ...]], Any],
    *,
    drop: int,
    prefix_tokens: int,
) -> tuple[list[Launch], Any]:
    """The launch of one `ZtSimilarityPrune`, and the survivors `[B, N]` that it fills.

    Args:
        scores: `[B, N]` fp32.
        keys: `[B, H, N, d]`, fp32 or fp16.
    """
    batch, heads, tokens, width = keys.shape
    survivors = empty((batch, tokens))
    arguments = (scores, keys, heads, tokens, width, drop, prefix_tokens, plan.tile, survivors)
    name = f"zt_similarity_prune_{_kind(keys)}"
    return [Launch(name, (batch, 1), plan.threads, plan.shared_bytes, arguments)], survivors


def launches_bytes(launches: Sequence[Launch]) -> int:
    """Bytes of all tensors that launches are given, each once: what they must move at least."""
    tensors = {id(one): one for launch in launches for one in launch.arguments if hasattr(one, "shape")}
    return sum(int(one.nbytes) for one in tensors.values())


def _kind(values: Any) -> str:
    return "f16" if str(values.dtype).endswith("float16") else "f32"


def _as_c(argument: Argument) -> Any:
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, int):
        return ctypes.c_int(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return ctypes.c_void_p(argument.data_ptr() if hasattr(argument, "data_ptr") else argument.ctypes.data)
