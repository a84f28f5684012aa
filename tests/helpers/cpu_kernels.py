"""The TensorRT plugins' kernels on a CPU: compiled with g++ against `plugins/cpu`, called through ctypes.

Every call also checks the kernel: see `plugins/cpu/shim.h`. Outputs that a kernel leaves unwritten are an error.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ztdeploy.profile import data_folder

Floats = npt.NDArray[np.float32]
Path_ = Literal["auto", "shared", "l2", "single"]
Order = Literal["forward", "reverse", "shuffle"]

PATHS: tuple[Path_, ...] = ("auto", "shared", "l2", "single")
ORDERS: tuple[Order, ...] = ("forward", "reverse", "shuffle")
#: What `shared_limit` stands for where a test doesn't care: enough for 577 tokens in fp32.
ANY_SIZE = 2**21
#: What an ahead-of-time plugin may count on.
DEFAULT_SHARED_BYTES = 48 * 1024
# -fno-gnu-unique: several versions of the library in one process must not share their variables.
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fno-gnu-unique", "-Wall", "-Wextra", "-Wno-unknown-pragmas")


class KernelError(AssertionError):
    """The shim found something wrong with a kernel, or refused a launch."""


class BadArgumentError(KernelError):
    pass


class DivergenceError(KernelError):
    pass


class RaceError(KernelError):
    pass


class OutOfBoundsError(KernelError):
    pass


class UnwrittenError(KernelError):
    pass


ERRORS = (KernelError, BadArgumentError, DivergenceError, RaceError, OutOfBoundsError, UnwrittenError)


class PageRankPlan(NamedTuple):
    path: int  # 0: none fits
    threads: int
    lanes: int
    groups: int
    shared_bytes: int


class SimilarityPlan(NamedTuple):
    threads: int  # 0: none fits
    tile: int
    shared_bytes: int


def have_compiler() -> bool:
    return shutil.which("g++") is not None


def sources() -> dict[str, str]:
    """The library's sources by their path inside `plugins`."""
    folder = data_folder("plugins")
    files = [
        *folder.glob("cpu/*.h"),
        *folder.glob("cpu/*.cpp"),
        *folder.glob("kernels/*.h"),
        *folder.glob("kernels/*.cuh"),
    ]
    return {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in sorted(files)}


def compile_library(texts: Mapping[str, str], flags: tuple[str, ...] = FLAGS) -> Path:
    """Compile sources, or take what an earlier run compiled from the same text with the same flags."""
    key = hashlib.sha256(repr((sorted(texts.items()), flags)).encode()).hexdigest()[:20]
    cached = Path(tempfile.gettempdir()) / f"ztdeploy-kernels-{os.getuid()}"
    cached.mkdir(mode=0o700, exist_ok=True)
    library = cached / f"{key}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=cached) as folder:
        for name, text in texts.items():
            path = Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        made = Path(folder) / "library.so"
        command = ["g++", *flags, str(Path(folder) / "cpu" / "library.cpp"), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, f"warnings:\n{done.stderr}"
        # Several test processes may get here at once: each has its own file, and the last one stays.
        made.replace(library)
    return library


class CpuKernels:
    """One compiled version of the kernels."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.zt_last_error.restype = ctypes.c_char_p

    def weighted_page_rank(
        self,
        attention: npt.NDArray[np.generic],
        survivors: npt.NDArray[np.generic] | None = None,
        *,
        iterations: int,
        boost: bool = True,
        filter_heads: bool = True,
        variance_min: float = 0.01,
        variance_max: float = 0.7,
        root_mean_square: bool = True,
        path: Path_ = "auto",
        shared_limit: int = ANY_SIZE,
        order: Order = "forward",
        seed: int = 1,
    ) -> Floats:
        """`ZtWeightedPageRank`: attention `[B, H, N, N]` in fp32 or fp16 to scores `[B, N]`."""
        batch, heads, tokens, _ = attention.shape
        attention, half = _aligned(attention)
        alive = None if survivors is None else np.ascontiguousarray(survivors, np.float32)
        scores = np.full((batch, tokens), np.nan, np.float32)
        code = self.library.zt_weighted_page_rank(
            _pointer(attention), _pointer(alive), half, batch, heads, tokens, iterations, int(boost), int(filter_heads),
            int(root_mean_square), ctypes.c_float(variance_min), ctypes.c_float(variance_max), PATHS.index(path),
            shared_limit, ORDERS.index(order), seed, _pointer(scores),
        )  # fmt: skip
        self._check(code)
        return scores

    def similarity_prune(
        self,
        scores: npt.NDArray[np.generic],
        keys: npt.NDArray[np.generic],
        *,
        drop: int,
        prefix_tokens: int,
        shared_limit: int = DEFAULT_SHARED_BYTES,
        order: Order = "forward",
        seed: int = 1,
    ) -> Floats:
        """`ZtSimilarityPrune`: scores `[B, N]` and keys `[B, H, N, d]` in fp32 or fp16 to survivors `[B, N]`."""
        batch, heads, tokens, width = keys.shape
        keys, half = _aligned(keys)
        scores = np.ascontiguousarray(scores, np.float32)
        survivors = np.full((batch, tokens), np.nan, np.float32)
        code = self.library.zt_similarity_prune(
            _pointer(scores), _pointer(keys), half, batch, heads, tokens, width, drop, prefix_tokens, shared_limit,
            ORDERS.index(order), seed, _pointer(survivors),
        )  # fmt: skip
        self._check(code)
        return survivors

    def page_rank_plan(
        self, path: Path_, tokens: int, element_bytes: int, iterations: int, shared_limit: int
    ) -> PageRankPlan:
        plan = (ctypes.c_int * 5)()
        self.library.zt_page_rank_plan(PATHS.index(path), tokens, element_bytes, iterations, shared_limit, plan)
        return PageRankPlan(*plan)

    def similarity_plan(self, tokens: int, prefix_tokens: int, width: int, shared_limit: int) -> SimilarityPlan:
        plan = (ctypes.c_int * 3)()
        self.library.zt_similarity_plan(tokens, prefix_tokens, width, shared_limit, plan)
        return SimilarityPlan(*plan)

    def skip_barrier(self, file: str = "", line: int = 0, thread: int = -1) -> None:
        """Let all threads, or one, miss the barrier at a source line; without arguments, none."""
        self.library.zt_skip_barrier(file.encode(), line, thread)

    def _check(self, code: int) -> None:
        if code:
            raise ERRORS[code](self.library.zt_last_error().decode())


@cache
def cpu_kernels() -> CpuKernels:
    """The kernels as they ship."""
    return CpuKernels(compile_library(sources()))


def weighted_page_rank(
    attention: npt.NDArray[np.generic],
    survivors: npt.NDArray[np.generic] | None = None,
    *,
    iterations: int,
    boost: bool = True,
    filter_heads: bool = True,
    variance_min: float = 0.01,
    variance_max: float = 0.7,
    root_mean_square: bool = True,
    path: Path_ = "auto",
    order: Order = "forward",
) -> Floats:
    """`ZtWeightedPageRank` by the kernels as they ship."""
    return cpu_kernels().weighted_page_rank(
        attention, survivors, iterations=iterations, boost=boost, filter_heads=filter_heads, variance_min=variance_min,
        variance_max=variance_max, root_mean_square=root_mean_square, path=path, order=order,
    )  # fmt: skip


def similarity_prune(
    scores: npt.NDArray[np.generic],
    keys: npt.NDArray[np.generic],
    *,
    drop: int,
    prefix_tokens: int,
    order: Order = "forward",
) -> Floats:
    """`ZtSimilarityPrune` by the kernels as they ship."""
    return cpu_kernels().similarity_prune(scores, keys, drop=drop, prefix_tokens=prefix_tokens, order=order)


def _aligned(values: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.generic], int]:
    """A dense copy at a multiple of 16 bytes, as on a GPU, and whether it is fp16."""
    half = values.dtype == np.float16
    dtype = np.float16 if half else np.float32
    room = np.empty(values.size + 16, dtype)
    skip = -room.ctypes.data % 16 // room.itemsize
    dense = room[skip : skip + values.size].reshape(values.shape)
    dense[...] = values
    return dense, int(half)


def _pointer(values: npt.NDArray[np.generic] | None) -> ctypes.c_void_p | None:
    return None if values is None else ctypes.c_void_p(values.ctypes.data)
