"""What doctor says about a machine, of which each finding is made to be in each of its states."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ztdeploy.core.errors import EnvironmentLacksError, MissingExtraError
from ztdeploy.core.processor import ONEDNN_LIMIT, REPORT
from ztdeploy.jobs import doctor
from ztdeploy.jobs.doctor import Finding, examine
from ztdeploy.target.backends import base
from ztdeploy.target.backends.onnxruntime import OnnxRuntimeBackend
from ztdeploy.target.backends.openvino import OpenVinoBackend
from ztdeploy.target.backends.tensorrt import backend as trt
from ztdeploy.target.backends.tensorrt.backend import TensorRtBackend
from ztdeploy.target.backends.tensorrt.cuda import Device
from ztdeploy.target.backends.tensorrt.rtx import TensorRtRtxBackend
from ztdeploy.target.plugins import library

SUBJECTS = [
    "python",
    "processor",
    "int8 engines",
    "memory",
    "disk",
    "building bundles",
    "backend onnxruntime",
    "backend openvino",
    "gpu",
    "backend tensorrt",
    "compiling plugins",
    "backend tensorrt-rtx",
]
ORIN = Device(name="Orin", capability="8.7", driver="12.6")
NO_DRIVER = EnvironmentLacksError("no NVIDIA driver here", "a machine with a GPU", "run this on the device")
BROKEN = EnvironmentLacksError("'it' cannot be loaded (libx.so)", "its libraries", "run: pip install --force-reinstall")


def finding(subject: str) -> Finding:
    (found,) = [one for one in examine().findings if one.subject == subject]
    return found


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the machine has; each is a value, or an error that is raised instead."""

    def have(*, gpu: Any = ORIN, rtx: Any = "1.2.0", tensorrt: Any = "10.3.0", lacks: Any = ()) -> None:
        for backend, version in ((TensorRtRtxBackend, rtx), (TensorRtBackend, tensorrt)):
            failing = isinstance(version, Exception)
            loaded = raising(version) if failing else lambda _, found=version: SimpleNamespace(__version__=found)
            monkeypatch.setattr(backend, "runtime", loaded)
        monkeypatch.setattr(trt, "open_device", raising(gpu) if isinstance(gpu, Exception) else lambda: gpu)
        monkeypatch.setattr(trt, "what_is_missing", lambda: list(lacks))

    return have


Have = Callable[..., None]


def test_every_subject_has_one_line() -> None:
    found = examine().findings
    subjects = [one.subject for one in found]
    assert subjects[: len(SUBJECTS)] == SUBJECTS
    assert len(set(subjects)) == len(subjects)
    for one in found:
        assert one.state in ("ok", "missing", "note")
        assert one.found
        assert one.found.isprintable()
        assert one.state != "missing" or one.remedy, f"{one.subject}: what to do?"
        assert one.state != "ok" or not one.remedy


# -------------------- GPU


def test_a_gpu_is_described(machine: Have) -> None:
    machine()
    assert finding("gpu") == Finding("gpu", "ok", "Orin, compute capability 8.7, driver for CUDA 12.6")


def test_no_gpu_is_no_fault(machine: Have) -> None:
    machine(gpu=NO_DRIVER)
    found = finding("gpu")
    assert (found.state, found.found) == ("note", "no NVIDIA driver here")
    assert "not to build" in found.remedy


# -------------------- OpenVINO


@pytest.mark.parametrize(("bf16", "words"), [(True, "2026.4.1; fp32 and bf16"), (False, "does not compute in bf16")])
def test_openvino_says_in_which_precisions_it_computes_here(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, words: str
) -> None:
    version = SimpleNamespace(__version__="2026.4.1-22982-e213a147")
    monkeypatch.setattr(OpenVinoBackend, "runtime", lambda _: version)
    monkeypatch.setenv(REPORT, "avx2 avx512_bf16" if bf16 else "avx2")
    monkeypatch.delenv(ONEDNN_LIMIT, raising=False)
    found = finding("backend openvino")
    assert found.state == "ok"
    assert words in found.found
    assert "22982" not in found.found


@pytest.mark.parametrize(
    ("error", "state", "remedy"),
    [
        (MissingExtraError("openvino", "openvino", "the backend openvino"), "note", "pip install 'ztdeploy[openvino]'"),
        (BROKEN, "missing", "run: pip install --force-reinstall"),
    ],
)
def test_without_openvino_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, error: EnvironmentLacksError, state: str, remedy: str
) -> None:
    monkeypatch.setattr(OpenVinoBackend, "runtime", raising(error))
    found = finding("backend openvino")
    assert (found.state, found.remedy) == (state, remedy)


# -------------------- TensorRT-RTX


def test_rtx_says_what_it_builds_for(machine: Have) -> None:
    machine(gpu=NO_DRIVER)
    found, buildable = finding("backend tensorrt-rtx"), ", ".join(TensorRtRtxBackend.buildable)
    assert found == Finding("backend tensorrt-rtx", "ok", f"1.2.0; builds for compute capabilities {buildable}")


def test_rtx_that_does_not_load_says_what_to_run(machine: Have) -> None:
    machine(rtx=BROKEN)
    assert finding("backend tensorrt-rtx") == Finding("backend tensorrt-rtx", "missing", BROKEN.given, BROKEN.fix)
    machine(rtx=MissingExtraError("rtx", "tensorrt-rtx", "the backend tensorrt-rtx"))
    found = finding("backend tensorrt-rtx")
    assert (found.state, found.remedy) == ("note", "pip install 'ztdeploy[tensorrt-rtx]'")


# -------------------- TensorRT


def test_tensorrt_builds_for_the_gpu_here(machine: Have) -> None:
    machine()
    assert finding("backend tensorrt") == Finding("backend tensorrt", "ok", "10.3.0; builds for the GPU here")


def test_tensorrt_is_only_needed_on_boards(machine: Have) -> None:
    machine(tensorrt=MissingExtraError("tensorrt", "tensorrt", "the backend tensorrt"))
    found = finding("backend tensorrt")
    assert (found.state, found.found) == ("note", "not installed")
    assert "ztdeploy finalize" in found.remedy


def test_tensorrt_that_does_not_load_is_missing(machine: Have) -> None:
    machine(tensorrt=BROKEN)
    assert finding("backend tensorrt") == Finding("backend tensorrt", "missing", BROKEN.given, BROKEN.fix)


def test_tensorrt_without_a_gpu_builds_nothing(machine: Have) -> None:
    machine(gpu=NO_DRIVER)
    found = finding("backend tensorrt")
    assert (found.state, found.found) == ("note", "10.3.0, but no NVIDIA driver here")
    assert found.remedy


# -------------------- compilers


def test_all_that_compiles_plugins_is_there(machine: Have) -> None:
    machine()
    found = finding("compiling plugins")
    assert found == Finding("compiling plugins", "ok", "CMake, nvcc and TensorRT's headers")


def test_what_compiling_plugins_lacks_is_listed(machine: Have) -> None:
    machine(lacks=("CMake: install the package 'cmake'", "nvcc: install the CUDA toolkit"))
    found = finding("compiling plugins")
    assert (found.state, found.remedy) == ("note", "only needed on a board, by finalize")
    assert found.found == "lacks CMake: install the package 'cmake'; nvcc: install the CUDA toolkit"


def test_what_is_missing_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    monkeypatch.setattr(library, "NVCC_FALLBACK", tmp_path / "nvcc")
    assert [word in finding("compiling plugins").found for word in ("CMake", "nvcc", "headers")] == [True] * 3
    for tool in ("cmake", "nvcc"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    (tmp_path / "NvInferRuntime.h").touch()
    assert finding("compiling plugins").state == "ok"


# -------------------- whatever the machine is like


def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, OnnxRuntimeBackend.__module__, None)
    monkeypatch.setattr(trt, "open_device", raising(NO_DRIVER))
    monkeypatch.setenv("PATH", "")


def unknown_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.sysconf", raising(ValueError("unrecognized configuration name")))


def no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "read_text", raising(FileNotFoundError("/proc/cpuinfo")))


def installed(monkeypatch: pytest.MonkeyPatch, package: Path, text: str) -> None:
    """A package that is found before any other of its name, and forgotten after the test."""
    package.mkdir()
    (package / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(sys.modules, package.name, None)  # noted, so that what is imported here goes at the end
    del sys.modules[package.name]


def rtx_without_its_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Unpacked in part: the packages are there, the libraries are not."""
    installed(monkeypatch, tmp_path / "tensorrt_rtx_libs", "")
    installed(monkeypatch, tmp_path / "tensorrt_rtx_bindings", "__version__ = '1.0'")


def another_module_called_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(monkeypatch, tmp_path / "tensorrt", "")


def a_module_without_a_spec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("tensorrt")
    module.__spec__ = None
    monkeypatch.setitem(sys.modules, "tensorrt", module)


def folder_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()


def headers_at_an_impossible_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", "x" * 300)


FINE = (nothing_installed, unknown_memory, no_proc)
FATAL = (
    rtx_without_its_libraries,
    another_module_called_tensorrt,
    a_module_without_a_spec,
    folder_that_is_gone,
    headers_at_an_impossible_place,
)


@pytest.mark.parametrize("odd", [*FINE, *FATAL], ids=lambda odd: odd.__name__)
def test_no_machine_is_so_odd_that_there_is_no_report(
    odd: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    odd(monkeypatch, tmp_path)
    assert [one.subject for one in examine().findings][: len(SUBJECTS)] == SUBJECTS


def test_without_anything_installed_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nothing_installed(monkeypatch, tmp_path)
    found = {one.subject: one for one in examine().findings}
    assert found["building bundles"].remedy == "pip install 'ztdeploy[build]'"
    assert found["backend onnxruntime"].remedy == "run: pip install ztdeploy"
    assert "ztdeploy[tensorrt-rtx]" in found["backend tensorrt-rtx"].remedy
    assert found["backend tensorrt"].state == found["gpu"].state == found["compiling plugins"].state == "note"
