"""As much of CUDA as running an engine takes, from the driver's own library: nothing has to be installed for it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.errors import EnvironmentLacksError

_LIBRARY = "libcuda.so.1"
_OUT_OF_MEMORY = 2
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute

#: GPUs that any supported TensorRT or TensorRT-RTX has ever built for, by their compute capability.
KNOWN_CAPABILITIES: dict[str, str] = {
    "7.5": "Turing: GeForce RTX 20, T4",
    "8.0": "Ampere: A100",
    "8.6": "Ampere: GeForce RTX 30, A10",
    "8.7": "Ampere: Jetson Orin",
    "8.9": "Ada: GeForce RTX 40, L4",
    "9.0": "Hopper: H100",
    "10.0": "Blackwell: B200",
    "10.3": "Blackwell: B300",
    "11.0": "Blackwell: Jetson Thor",
    "12.0": "Blackwell: GeForce RTX 50",
    "12.1": "Blackwell: GB10",
}


@dataclass(frozen=True)
class Device:
    """The GPU that engines run on, its primary context current."""

    name: str
    capability: str  #: such as "8.7"
    driver: str  #: the newest CUDA that the driver knows, such as "12.6"


@cache
def _driver() -> Any:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise EnvironmentLacksError(
            f"no NVIDIA driver here ('{_LIBRARY}' cannot be loaded)",
            "a machine with an NVIDIA GPU and its driver",
            "run this on the device itself, or use a CPU profile here",
        ) from error


def call(name: str, *arguments: Any) -> None:
    """Call a driver function, and turn its error code into an error that names it.

    Raises:
        EnvironmentLacksError: always; the GPU's memory being exhausted has words of its own.
    """
    function: Callable[..., int] = getattr(_driver(), name)
    code = function(*arguments)
    if code == _OUT_OF_MEMORY:
        raise EnvironmentLacksError(
            f"{name}: the GPU is out of memory", "free GPU memory", "close other programs, or use a smaller batch"
        )
    if code:
        text = c_char_p()
        _driver().cuGetErrorString(code, byref(text))
        reason = (text.value or b"unknown error").decode(errors="replace")
        raise EnvironmentLacksError(
            f"the CUDA driver's {name} failed: {reason} ({code})",
            "a working GPU",
            "check it with nvidia-smi, or reboot",
        )


@cache
def _primary_context() -> tuple[c_int, c_void_p]:
    """The first GPU that this process may use, and its context, which all libraries share."""
    call("cuInit", c_uint(0))
    handle, context = c_int(), c_void_p()
    call("cuDeviceGet", byref(handle), c_int(0))
    call("cuDevicePrimaryCtxRetain", byref(context), handle)
    return handle, context


def enter_device() -> None:
    """Make the GPU's context this thread's current one. The driver keeps one per thread, and starts with none."""
    call("cuCtxSetCurrent", _primary_context()[1])


@cache
def open_device() -> Device:
    """The first GPU that this process may use.

    Raises:
        EnvironmentLacksError: there is no driver or no GPU.
    """
    handle, _ = _primary_context()
    enter_device()
    name = ctypes.create_string_buffer(256)
    call("cuDeviceGetName", name, c_int(len(name)), handle)
    version = c_int()
    call("cuDriverGetVersion", byref(version))
    major, minor = _attribute(handle, _MAJOR), _attribute(handle, _MINOR)
    return Device(
        name=name.value.decode(errors="replace"),
        capability=f"{major}.{minor}",
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _attribute(handle: c_int, which: int) -> int:
    value = c_int()
    call("cuDeviceGetAttribute", byref(value), c_int(which), handle)
    return value.value


def device_label(device: Device) -> str:
    """What an engine is bound to: "sm_87 Orin"."""
    return f"sm_{device.capability.replace('.', '')} {device.name}"


class Stream:
    """A queue of work."""

    def __init__(self) -> None:
        handle = c_void_p()
        call("cuStreamCreate", byref(handle), c_uint(1))  # does not wait for the default stream
        self.handle = handle.value or 0

    def wait(self) -> None:
        call("cuStreamSynchronize", c_void_p(self.handle))

    def close(self) -> None:
        if self.handle:
            call("cuStreamDestroy_v2", c_void_p(self.handle))
            self.handle = 0


class Buffer:
    """Device memory that grows as needed."""

    def __init__(self) -> None:
        self.address, self._bytes = 0, 0

    def reserve(self, size: int) -> int:
        """At least `size` bytes; what was inside is lost when it grows. Returns the address."""
        if size > self._bytes:
            self.close()
            address = c_uint64()
            call("cuMemAlloc_v2", byref(address), c_size_t(size))
            self.address, self._bytes = address.value, size
        return self.address

    def write(self, array: NDArray[Any], stream: Stream) -> int:
        """Queue a copy from a C-contiguous array, which must live until the stream is waited for."""
        address = self.reserve(max(1, array.nbytes))
        source = c_void_p(array.ctypes.data)
        call("cuMemcpyHtoDAsync_v2", c_uint64(address), source, c_size_t(array.nbytes), c_void_p(stream.handle))
        return address

    def read(self, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Stream) -> NDArray[Any]:
        """Queue a copy to a new array, filled once the stream is waited for."""
        array = np.empty(shape, dtype)
        target = c_void_p(array.ctypes.data)
        call("cuMemcpyDtoHAsync_v2", target, c_uint64(self.address), c_size_t(array.nbytes), c_void_p(stream.handle))
        return array

    def close(self) -> None:
        if self.address:
            call("cuMemFree_v2", c_uint64(self.address))
            self.address, self._bytes = 0, 0
