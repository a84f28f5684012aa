"""Ahead-of-time plugins: PTX inside the engine, so that neither CMake nor a plugin library is needed. TensorRT >= 10.9.

What the API gives and asks for, by the version of TensorRT's documentation that says so:

- 10.6: the module `tensorrt.plugin` with `register`, which takes a function whose annotations say what is a tensor and
  what an attribute. Attributes have no defaults; the number of inputs is fixed, so that the page rank without survivors
  is a plugin of its own here, `ZtWeightedPageRankAll`.
- 10.9: `aot_impl`, which returns kernel name, PTX, `KernelLaunchParams` and `SymIntExprs`. One kernel, one launch, no
  workspace. The kernel's arguments are inputs, then those expressions (32-bit ints), then outputs. An ONNX node asks
  for it with the attributes `plugin_namespace` and `aot`.
- 11.1 and 11.2.1 (issue 4849 of NVIDIA/TensorRT): device memory leaks each time an engine with such a plugin changes
  its input shape. A static batch avoids it.

How a kernel shares its work among threads depends on the number of tokens, which therefore must be static.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from ztdeploy.core.errors import EnvironmentLacksError, InputError, MissingExtraError
from ztdeploy.target.plugins import NAMESPACE, SIMILARITY_PRUNE, WEIGHTED_PAGE_RANK, WEIGHTED_PAGE_RANK_ALL
from ztdeploy.target.plugins.ptx import compile_ptx

OLDEST_TENSORRT: Final = (10, 9)

#: What every CUDA device gives a block without being asked. There is no way to opt in to more from here.
SHARED_BYTES: Final = 48 * 1024
_WARP: Final = 32


@dataclass(frozen=True)
class Target:
    """What the kernels are compiled for."""

    sm: str  #: such as "sm_87"
    max_isa: tuple[int, int] | None = None  #: the newest PTX that the device's driver reads, such as (8, 5)


@dataclass(frozen=True)
class Launch:
    """Threads and dynamic shared memory of a block, and the ints that tell the kernel how it was launched."""

    threads: int
    shared_bytes: int
    shares: tuple[int, ...]


def register_plugins(target: Target) -> list[str]:
    """Register the ahead-of-time plugins with TensorRT, in this process, and return their names.

    Raises:
        MissingExtraError: TensorRT's Python module is not installed.
        EnvironmentLacksError: it is older than 10.9.
        InputError: they are registered already; the target is part of a registration, so there is one per process.
    """
    trt, plugin = import_tensorrt()
    if hasattr(plugin.op, NAMESPACE):
        raise InputError(
            "the ahead-of-time plugins are registered already",
            "one registration in a process",
            "build each engine in a process of its own",
        )
    definitions = {
        WEIGHTED_PAGE_RANK: page_rank_functions(trt, plugin, target),
        WEIGHTED_PAGE_RANK_ALL: page_rank_all_functions(trt, plugin, target),
        SIMILARITY_PRUNE: prune_functions(trt, plugin, target),
    }
    for name, (describe, implement) in definitions.items():
        plugin.register(f"{NAMESPACE}::{name}")(describe)
        plugin.aot_impl(f"{NAMESPACE}::{name}")(implement)
    return list(definitions)


def import_tensorrt() -> tuple[ModuleType, ModuleType]:
    """TensorRT and its plugin module, if they can do this.

    Raises:
        MissingExtraError: not installed.
        EnvironmentLacksError: too old.
    """
    try:
        trt = import_module("tensorrt")
    except ImportError as error:
        raise MissingExtraError("tensorrt", "tensorrt", "registering ahead-of-time plugins") from error
    found = str(trt.__version__)
    plugin = _plugin_module() if _at_least(found, OLDEST_TENSORRT) else None
    if plugin is None or not hasattr(plugin, "aot_impl"):
        raise EnvironmentLacksError(
            f"TensorRT {found} has no ahead-of-time plugins",
            f"TensorRT {OLDEST_TENSORRT[0]}.{OLDEST_TENSORRT[1]} or newer",
            "use the C++ plugin library, or the graph of plain operators",
        )
    return trt, plugin


def _plugin_module() -> ModuleType | None:
    try:
        return import_module("tensorrt.plugin")
    except ImportError:  # some builds leave it out
        return None


Functions = tuple[Callable[..., Any], Callable[..., Any]]

_PAGE_RANK_ATTRIBUTES: Final[dict[str, type]] = {
    "iterations": int,
    "boost": int,
    "filter_heads": int,
    "variance_min": float,
    "variance_max": float,
    "root_mean_square": int,
}
_PRUNE_ATTRIBUTES: Final[dict[str, type]] = {"drop": int, "prefix_tokens": int}


def page_rank_functions(trt: ModuleType, plugin: ModuleType, target: Target) -> Functions:
    """What `ZtWeightedPageRank` returns, and its kernel. TensorRT reads names, order and annotations of arguments."""

    def describe(
        attention: Any,
        survivors: Any,
        iterations: int,
        boost: int,
        filter_heads: int,
        variance_min: float,
        variance_max: float,
        root_mean_square: int,
    ) -> Any:
        return _scores_like(trt, plugin, attention)

    def implement(
        attention: Any,
        survivors: Any,
        iterations: int,
        boost: int,
        filter_heads: int,
        variance_min: float,
        variance_max: float,
        root_mean_square: int,
        outputs: Any,
        tactic: int,
    ) -> Any:
        ints = (iterations, boost, filter_heads, root_mean_square)
        limits = (variance_min, variance_max)
        return _page_rank(trt, plugin, target, "zt_weighted_page_rank", attention, ints, limits)

    return _annotated(plugin, describe, implement, ("attention", "survivors"), _PAGE_RANK_ATTRIBUTES)


def page_rank_all_functions(trt: ModuleType, plugin: ModuleType, target: Target) -> Functions:
    """The same for the first pruning layer of a model, where all tokens are there."""

    def describe(
        attention: Any,
        iterations: int,
        boost: int,
        filter_heads: int,
        variance_min: float,
        variance_max: float,
        root_mean_square: int,
    ) -> Any:
        return _scores_like(trt, plugin, attention)

    def implement(
        attention: Any,
        iterations: int,
        boost: int,
        filter_heads: int,
        variance_min: float,
        variance_max: float,
        root_mean_square: int,
        outputs: Any,
        tactic: int,
    ) -> Any:
        ints = (iterations, boost, filter_heads, root_mean_square)
        limits = (variance_min, variance_max)
        return _page_rank(trt, plugin, target, "zt_weighted_page_rank_all", attention, ints, limits)

    return _annotated(plugin, describe, implement, ("attention",), _PAGE_RANK_ATTRIBUTES)


def prune_functions(trt: ModuleType, plugin: ModuleType, target: Target) -> Functions:
    """What `ZtSimilarityPrune` returns, and its kernel."""

    def describe(scores: Any, keys: Any, drop: int, prefix_tokens: int) -> Any:
        return plugin.from_shape_expr((scores.shape_expr[0], scores.shape_expr[1]), dtype=trt.float32)

    def implement(scores: Any, keys: Any, drop: int, prefix_tokens: int, outputs: Any, tactic: int) -> Any:
        heads, tokens, width = (_static(keys, axis, SIMILARITY_PRUNE) for axis in (1, 2, 3))
        launch = prune_launch(tokens, prefix_tokens, width)
        kernel = f"zt_similarity_prune_{_element(trt, keys)}"
        ints = (heads, tokens, width, drop, prefix_tokens, *launch.shares)
        params = _launch_params(plugin, scores.shape_expr[0], launch)
        return kernel, _ptx(target), params, _expressions(plugin, ints)

    return _annotated(plugin, describe, implement, ("scores", "keys"), _PRUNE_ATTRIBUTES)


def _page_rank(
    trt: ModuleType,
    plugin: ModuleType,
    target: Target,
    kernel: str,
    attention: Any,
    settings: tuple[int, ...],
    limits: tuple[float, float],
) -> tuple[str, str, Any, Any]:
    heads, tokens = (_static(attention, axis, WEIGHTED_PAGE_RANK) for axis in (1, 2))
    element = _element(trt, attention)
    launch = page_rank_launch(tokens, 2 if element == "f16" else 4)
    ints = (heads, tokens, *settings, *launch.shares)
    params = _launch_params(plugin, attention.shape_expr[0], launch)
    return f"{kernel}_{element}", _ptx(target, limits), params, _expressions(plugin, ints)


@cache
def _ptx(target: Target, limits: tuple[float, float] | None = None) -> str:
    """Floats cannot be arguments, so the limits of the head filter are compiled in: one PTX for each pair."""
    if limits is None:
        return compile_ptx(target.sm, max_isa=target.max_isa).text
    return compile_ptx(target.sm, max_isa=target.max_isa, variance_min=limits[0], variance_max=limits[1]).text


def _annotated(
    plugin: ModuleType,
    describe: Callable[..., Any],
    implement: Callable[..., Any],
    tensors: Sequence[str],
    attributes: dict[str, type],
) -> Functions:
    """Give both functions annotations that are classes: TensorRT does not resolve annotations that are text."""
    inputs = dict.fromkeys(tensors, plugin.TensorDesc) | attributes
    describe.__annotations__ = {**inputs, "return": plugin.TensorDesc}
    results = tuple[str, str, plugin.KernelLaunchParams, plugin.SymIntExprs]  # type: ignore[name-defined]
    implement.__annotations__ = {**inputs, "tactic": int, "return": results}
    return describe, implement


def page_rank_launch(tokens: int, element_bytes: int) -> Launch:
    """How the single-launch page rank is launched: `zt::single_page_rank_plan` of launch_plan.h; a test compares them.

    Raises:
        InputError: so many tokens that not even the vectors fit into shared memory.
    """
    quads = (tokens + 6) // 4  # that a row spans, wherever in a quad it starts
    threads = next((count for least, count in ((4096, 1024), (1024, 512), (256, 256)) if quads * tokens >= least), 128)
    best: tuple[int, int, int] | None = None
    for lanes in range(_WARP, threads + 1, _WARP):
        groups = min(threads // lanes, 32) // 4 * 4
        while groups > 0 and _page_rank_floats(tokens, threads, groups) > SHARED_BYTES // 4:
            groups -= 4
        if groups < 1:
            continue
        cost = -(-quads // lanes) * -(-tokens // groups) + groups // 2
        if best is None or cost < best[0]:
            best = (cost, lanes, groups)
    if best is None:
        raise _too_large(f"{tokens} tokens")
    _, lanes, groups = best
    return Launch(threads, 4 * _page_rank_floats(tokens, threads, groups), (lanes, groups))


def prune_launch(tokens: int, prefix_tokens: int, width: int) -> Launch:
    """How the similarity kernel is launched: `zt::similarity_plan` of launch_plan.h; a test compares them.

    Raises:
        InputError: the kernel is not made for heads this wide, or for this many tokens.
    """
    group_a = max(tokens - prefix_tokens, 0) // 2
    tile = min(-(-max(group_a, 1) // 32) * 32, 256)
    while tile > 0 and _prune_bytes(tokens, width, tile) > SHARED_BYTES:
        tile -= 32
    if width > 128 or tile < 32:
        raise _too_large(f"{tokens} tokens with heads {width} wide")
    return Launch(tile * 32 // 16, _prune_bytes(tokens, width, tile), (tile,))


def _page_rank_floats(tokens: int, threads: int, groups: int) -> int:
    return 2 * tokens + max(groups * tokens, threads) + groups


def _prune_bytes(tokens: int, width: int, tile: int) -> int:
    stride = -(-width // 4) * 4 + 4
    return 4 * ((tile + 32) * stride + 32 * 16 + 2 * tokens)


def _too_large(what: str) -> InputError:
    return InputError(
        f"no ahead-of-time kernel takes {what}",
        f"what fits into {SHARED_BYTES // 1024} KB of shared memory",
        "use the C++ plugin library, or the graph of plain operators",
    )


def _scores_like(trt: ModuleType, plugin: ModuleType, attention: Any) -> Any:
    return plugin.from_shape_expr((attention.shape_expr[0], attention.shape_expr[2]), dtype=trt.float32)


def _element(trt: ModuleType, tensor: Any) -> str:
    return "f16" if tensor.dtype == trt.float16 else "f32"


def _static(tensor: Any, axis: int, name: str) -> int:
    extent = int(tensor.shape[axis])
    if extent < 1:
        raise InputError(
            f"axis {axis} of an input of {name} is dynamic",
            "static shapes, but for the batch",
            "export the graph with a fixed number of tokens",
        )
    return extent


def _launch_params(plugin: ModuleType, batch: Any, launch: Launch) -> Any:
    params = plugin.KernelLaunchParams()
    params.grid_x = batch
    params.block_x = launch.threads
    params.shared_mem = launch.shared_bytes
    return params


def _expressions(plugin: ModuleType, values: Sequence[int]) -> Any:
    return plugin.SymIntExprs.from_tuple(tuple(plugin.SymInt32(int(value)) for value in values))


def _at_least(version: str, oldest: tuple[int, int]) -> bool:
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) >= oldest
