"""The driver through ctypes: in child processes, where `libcuda.so.1` is a double that ends them at any misuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.fake_device import Done, FakeDevice

START = """
import ctypes, json, os, sys, threading
import numpy as np
from ztdeploy.target.backends.tensorrt import cuda
from ztdeploy.core.errors import EnvironmentLacksError
double = ctypes.CDLL("libcuda.so.1")
double.fake_cuda_bytes_in_use.restype = ctypes.c_size_t

def answer(value):
    json.dump(value, sys.stdout)

def free_memory():
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cuda.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value

def error_of(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
"""


def on_device(device: FakeDevice, code: str, **settings: str) -> Done:
    return device.python("-c", START + code, **settings)


def answer(device: FakeDevice, code: str, **settings: str) -> Any:
    done = on_device(device, code, **settings)
    assert done.code == 0, done.err
    return json.loads(done.out)


DESCRIBE = "from dataclasses import asdict; d = cuda.open_device(); answer([asdict(d), cuda.device_label(d)])"


def test_an_orin_with_jetpack_6(fake_device: FakeDevice) -> None:
    found, label = answer(fake_device, DESCRIBE)
    assert found == {"name": "Orin", "capability": "8.7", "driver": "12.6"}
    assert label == "sm_87 Orin"


def test_another_gpu(fake_device: FakeDevice) -> None:
    settings = {"FAKE_CUDA_NAME": "NVIDIA Thor", "FAKE_CUDA_CAPABILITY": "11.0", "FAKE_CUDA_DRIVER": "13020"}
    found, label = answer(fake_device, DESCRIBE, **settings)
    assert (found["capability"], found["driver"], label) == ("11.0", "13.2", "sm_110 NVIDIA Thor")


def test_a_machine_without_a_driver_says_so(fake_device: FakeDevice) -> None:
    code = "cuda._LIBRARY = 'libnothing-of-that-name.so.1'; answer(error_of(cuda.open_device))"
    kind, message = answer(fake_device, code)
    assert kind == "EnvironmentLacksError"
    assert "no NVIDIA driver here" in message
    assert "CPU profile" in message


FUNCTIONS = (
    "cuInit",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    "cuDeviceGetName",
    "cuDriverGetVersion",
    "cuDeviceGetAttribute",
    "cuMemGetInfo_v2",
    "cuStreamCreate",
    "cuMemAlloc_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuStreamSynchronize",
    "cuMemFree_v2",
    "cuStreamDestroy_v2",
)

EVERYTHING = """
def everything():
    for known in vars(cuda).values():
        if hasattr(known, "cache_clear"):
            known.cache_clear()
    cuda.open_device()
    free_memory()
    stream, buffer = cuda.Stream(), cuda.Buffer()
    buffer.write(np.zeros(3), stream)
    buffer.read((3,), np.dtype(float), stream)
    stream.wait()
    buffer.close()
    stream.close()
"""


def test_a_function_that_fails_is_named_with_the_drivers_reason(fake_device: FakeDevice) -> None:
    code = (
        EVERYTHING
        + f"""
errors = {{}}
for name in {FUNCTIONS}:
    os.environ["FAKE_CUDA_FAIL"] = name
    errors[name] = error_of(everything)
os.environ["FAKE_CUDA_FAIL"], os.environ["FAKE_CUDA_CODE"] = "cuMemAlloc_v2", "77777"
errors["unknown"] = error_of(everything)
os.environ["FAKE_CUDA_FAIL"] = ""
errors["none"] = error_of(everything)
answer(errors)
"""
    )
    errors = answer(fake_device, code)
    for name in FUNCTIONS:
        kind, message = errors[name]
        assert kind == "EnvironmentLacksError", name
        assert f"{name} failed: unknown error (999)" in message
    assert "unknown error (77777)" in errors["unknown"][1]
    assert errors["none"] is None


def test_memory_that_runs_out_is_told_from_other_failures(fake_device: FakeDevice) -> None:
    code = """
cuda.open_device()
buffer = cuda.Buffer()
before = free_memory()
buffer.reserve(600)
between = free_memory()
failed = error_of(lambda: cuda.Buffer().reserve(600))
grown = error_of(lambda: buffer.reserve(5000))
buffer.close()
buffer.close()
answer([before, between, failed, grown, free_memory(), cuda.Buffer().reserve(900) > 0])
"""
    before, between, failed, grown, after, fits = answer(fake_device, code, FAKE_CUDA_MEMORY="1000")
    assert (before, between, after) == (1000, 400, 1000)
    for kind, message in (failed, grown):
        assert "cuMemAlloc_v2" in message
        assert "out of memory" in message
        assert kind in ("MemoryError", "EnvironmentLacksError")
    assert fits


def test_buffers_grow_and_are_reused(fake_device: FakeDevice) -> None:
    code = """
cuda.open_device()
buffer = cuda.Buffer()
first = buffer.reserve(100)
same = [buffer.reserve(size) for size in (100, 1, 50)]
used = double.fake_cuda_bytes_in_use()
buffer.reserve(200)
grown = double.fake_cuda_bytes_in_use()
buffer.close()
again = buffer.reserve(10)
buffer.close()
answer([all(address == first for address in same), used, grown, again > 0, double.fake_cuda_bytes_in_use()])
"""
    assert answer(fake_device, code) == [True, 100, 200, True, 0]


def test_arrays_come_back_as_they_went(fake_device: FakeDevice) -> None:
    """Of any type and size, nothing at all included; and only once the stream was waited for."""
    code = """
cuda.open_device()
buffer, stream, results = cuda.Buffer(), cuda.Stream(), []
halves = np.random.default_rng(0).random((4, 5)).astype(np.float16)
for array in (np.arange(7, dtype=np.uint8), np.zeros((0, 3)), halves, np.arange(2**16)):
    buffer.write(array, stream)
    back = buffer.read(array.shape, array.dtype, stream)
    early = bool(array.size) and np.array_equal(back, array) and array.any()
    stream.wait()
    results.append([bool(np.array_equal(back, array)), bool(early)])
buffer.close()
stream.close()
answer([results, double.fake_cuda_bytes_in_use(), double.fake_cuda_streams_in_use()])
"""
    results, memory, streams = answer(fake_device, code)
    assert [whole for whole, _ in results] == [True] * 4
    assert (memory, streams) == (0, 0)


def test_the_device_is_opened_once(fake_device: FakeDevice) -> None:
    code = """
first = cuda.open_device()
os.environ["FAKE_CUDA_FAIL"] = "cuInit"
answer(cuda.open_device() is first)
"""
    assert answer(fake_device, code) is True


def test_a_device_that_failed_is_tried_again(fake_device: FakeDevice) -> None:
    """A GPU that another program had to itself for a while, say."""
    code = """
os.environ["FAKE_CUDA_FAIL"] = "cuDevicePrimaryCtxRetain"
failed = error_of(cuda.open_device)
os.environ["FAKE_CUDA_FAIL"] = ""
answer([failed[0], cuda.open_device().name])
"""
    assert answer(fake_device, code) == ["EnvironmentLacksError", "Orin"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("cuda.call('cuMemFree_v2', ctypes.c_uint64(a)); cuda.call('cuMemFree_v2', ctypes.c_uint64(a))", "double free"),
        ("cuda.call('cuMemFree_v2', ctypes.c_uint64(a + 4))", "never allocated"),
        ("b.write(np.zeros(8, np.uint8), s); s.wait(); b._bytes = 99; b.write(np.zeros(99, np.uint8), s)", "bounds"),
        ("b.read((9,), np.dtype('uint8'), s)", "out of bounds"),
        ("cuda.call('cuMemFree_v2', ctypes.c_uint64(a)); b.read((8,), np.dtype('uint8'), s)", "use after free"),
        ("h = s.handle; s.close(); cuda.call('cuStreamSynchronize', ctypes.c_void_p(h))", "destroyed stream"),
        ("cuda.call('cuStreamSynchronize', ctypes.c_void_p(77))", "never made"),
    ],
)
def test_the_double_notices_misuse(fake_device: FakeDevice, code: str, message: str) -> None:
    """Else its silence would prove nothing."""
    done = on_device(fake_device, f"cuda.open_device(); b, s = cuda.Buffer(), cuda.Stream(); a = b.reserve(8); {code}")
    assert done.code == -6, done.err
    assert f"fake_cuda: {'access ' if message == 'bounds' else ''}" in done.err
    assert message in done.err
