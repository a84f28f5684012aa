"""The TensorRT plugins' kernels on a GPU: PTX launched through the CUDA driver, with torch for memory and streams.

Shared by `pytest -m gpu` and by `python -m benchmarks.kernels`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ztdeploy.core.errors import EnvironmentLacksError

from .cpu_kernels import CpuKernels, Floats, compile_library, sources
from .kernel_launches import Launch
from .ptx import Version, compile_ptx

#: CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_MAX_DYNAMIC_SHARED = 8
#: A block may have this much without the attribute.
_DEFAULT_SHARED = 48 * 1024
#: PTX that the driver may be too old for, and what to try instead.
_ISAS: tuple[Version | None, ...] = (None, (9, 0), (8, 5))


class GpuKernels(CpuKernels):
    """All kernels, loaded on the current device; their launch plans come from the library for the CPU."""

    def __init__(self) -> None:
        super().__init__(compile_library(sources()))
        torch.zeros(1, device="cuda")  # makes torch's context current
        self.driver = ctypes.CDLL("libcuda.so.1")
        major, minor = torch.cuda.get_device_capability()
        self.module = self._load(f"sm_{major}{minor}")
        self.shared_limit = int(torch.cuda.get_device_properties(0).shared_memory_per_block_optin)
        self._functions: dict[str, ctypes.c_void_p] = {}

    def put(self, values: npt.NDArray[np.generic]) -> torch.Tensor:
        dtype = np.float16 if values.dtype == np.float16 else np.float32
        return torch.from_numpy(np.ascontiguousarray(values, dtype)).cuda()

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.full(shape, torch.nan, device="cuda")

    def random(self, shape: tuple[int, ...], dtype: type) -> torch.Tensor:
        return torch.rand(shape, device="cuda", dtype=torch.float16 if dtype is np.float16 else torch.float32)

    def get(self, values: Any) -> Floats:
        result: Floats = values.cpu().numpy()
        return result

    def run(self, launches: Sequence[Launch], **_of_a_cpu: Any) -> None:
        """Queue launches on torch's current stream. The other arguments are for a CPU: the GPU orders threads itself,
        and the default limits of the head filter are compiled in."""
        for launch in launches:
            self._launch(launch)

    def _load(self, sm: str) -> ctypes.c_void_p:
        error: Exception | None = None
        for max_isa in _ISAS:
            module = ctypes.c_void_p()
            try:
                text = compile_ptx(sm, max_isa=max_isa).text
                self._must(self.driver.cuModuleLoadData(ctypes.byref(module), text.encode()), "cuModuleLoadData")
            except (RuntimeError, EnvironmentLacksError) as failed:
                error = failed
                continue
            return module
        raise RuntimeError(f"no PTX for {sm} that this driver takes") from error

    def _function(self, launch: Launch) -> ctypes.c_void_p:
        if launch.kernel not in self._functions:
            found = ctypes.c_void_p()
            code = self.driver.cuModuleGetFunction(ctypes.byref(found), self.module, launch.kernel.encode())
            self._must(code, launch.kernel)
            self._functions[launch.kernel] = found
        function = self._functions[launch.kernel]
        if launch.shared_bytes > _DEFAULT_SHARED:
            code = self.driver.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, launch.shared_bytes)
            self._must(code, "cuFuncSetAttribute")
        return function

    def _launch(self, launch: Launch) -> None:
        function = self._function(launch)
        pointers, _alive = launch.pointers()
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        code = self.driver.cuLaunchKernel(
            function, *launch.grid, 1, launch.threads, 1, 1, launch.shared_bytes, stream, pointers, None
        )
        self._must(code, launch.kernel)

    def _must(self, code: int, what: str) -> None:
        if code:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"{what}: {(text.value or b'unknown error').decode()} ({code})")
