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
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ztdeploy.core.profile import data_folder

from .kernel_launches import Launch, PageRankOptions, PageRankPlan, SimilarityPlan, page_rank_launches, prune_launches

Floats = npt.NDArray[np.float32]
Path_ = Literal["auto", "shared", "l2", "single"]
Order = Literal["forward", "reverse", "shuffle"]

PATHS: tuple[Path_, ...] = ("auto", "shared", "l2", "single")
ORDERS: tuple[Order, ...] = ("forward", "reverse", "shuffle")
#: What `shared_limit` stands for where a test doesn't care: enough for 577 tokens in fp32.
ANY_SIZE = 2**21
#: What every device gives a block.
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
    """One compiled version of the kernels. `GpuKernels` runs the same launches elsewhere."""

    #: bytes of dynamic shared memory that a block may have at most
    shared_limit = 2**23

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.zt_last_error.restype = ctypes.c_char_p

    def weighted_page_rank(
        self,
        attention: npt.NDArray[np.generic],
        survivors: npt.NDArray[np.generic] | None = None,
        *,
        path: Path_ = "auto",
        shared_limit: int = ANY_SIZE,
        order: Order = "forward",
        seed: int = 1,
        **options: Any,
    ) -> Floats:
        """`ZtWeightedPageRank`: attention `[B, H, N, N]` in fp32 or fp16 to scores `[B, N]`, by `PageRankOptions`."""
        how = PageRankOptions(**options)
        size = 2 if attention.dtype == np.float16 else 4
        limit = min(shared_limit, self.shared_limit)
        plan = self.page_rank_plan(path, attention.shape[-1], size, how.iterations, limit)
        if not plan.path:
            raise BadArgumentError("no launch plan fits the shared memory")
        alive = None if survivors is None else self.put(survivors.astype(np.float32))
        launches, scores = page_rank_launches(self.put(attention), alive, plan, self.empty, how)
        self.run(launches, order=order, seed=seed, limits=(how.variance_min, how.variance_max))
        return self.get(scores)

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
        limit = min(shared_limit, self.shared_limit)
        plan = self.similarity_plan(keys.shape[2], prefix_tokens, keys.shape[3], limit)
        if not plan.threads:
            raise BadArgumentError("no launch plan: a head wider than 128, or too many tokens for the memory")
        ranked = self.put(scores.astype(np.float32))
        launches, survivors = prune_launches(
            ranked, self.put(keys), plan, self.empty, drop=drop, prefix_tokens=prefix_tokens
        )
        self.run(launches, order=order, seed=seed)
        return self.get(survivors)

    def put(self, values: npt.NDArray[np.generic]) -> Any:
        """A dense copy in fp16 or fp32 at a multiple of 16 bytes, where the kernels run."""
        dtype = np.float16 if values.dtype == np.float16 else np.float32
        room = np.empty(values.size + 16, dtype)
        skip = -room.ctypes.data % 16 // room.itemsize
        dense = room[skip : skip + values.size].reshape(values.shape)
        dense[...] = values
        return dense

    def empty(self, shape: tuple[int, ...]) -> Any:
        """fp32, all NaN: what a kernel leaves unwritten shows."""
        return np.full(shape, np.nan, np.float32)

    def random(self, shape: tuple[int, ...], dtype: type) -> Any:
        """Uniform in [0, 1)."""
        return self.put(np.random.default_rng(0).random(shape, np.float32).astype(dtype))

    def get(self, values: Any) -> Floats:
        result: Floats = values
        return result

    def run(
        self,
        launches: Sequence[Launch],
        *,
        order: Order = "forward",
        seed: int = 1,
        limits: tuple[float, float] = (0.01, 0.7),
    ) -> None:
        """Run launches one after the other. `limits`: of the head filter in the single-launch kernels."""
        for launch in launches:
            pointers, _alive = launch.pointers()
            self._check(
                self.library.zt_launch(
                    launch.kernel.encode(),
                    *launch.grid,
                    launch.threads,
                    launch.shared_bytes,
                    pointers,
                    ORDERS.index(order),
                    seed,
                    ctypes.c_float(limits[0]),
                    ctypes.c_float(limits[1]),
                )
            )

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
