"""A Jetson that isn't there: a driver, a TensorRT and a toolchain for child processes to find.

`FakeDevice.environment` is what a process on that device has around it. How the parts misbehave on demand is written
at the top of `fake_cuda.c`, of `python/tensorrt/__init__.py` and of `toolchain/cmake`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import ztdeploy
from helpers.processes import HANG_S, Done
from ztdeploy.target.plugins.library import plugin_abi

HERE = Path(__file__).parent
CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
#: What a board has no wheels of, or no room for.
HIDDEN = "torch torchvision timm onnx onnx_ir onnxscript onnx_graphsurgeon safetensors"
VERSION, DEVICE = "10.3.0", "sm_87 Orin"


@dataclass(frozen=True)
class FakeDevice:
    """One board; what is compiled or kept on it lies in its folder."""

    folder: Path

    def environment(self, *, tools: bool = True, **extra: str) -> dict[str, str]:
        """
        Args:
            tools: whether CMake, nvcc and TensorRT's headers are installed.
        """
        shell = {
            name: value for name, value in os.environ.items() if not name.startswith(("ZTDEPLOY", "FAKE_", "CUDA"))
        }
        return {
            **shell,
            "PYTHONPATH": os.pathsep.join([str(HERE / "python"), str(CHECKOUT)]),
            "LD_LIBRARY_PATH": str(self.folder / "driver"),
            "PATH": str(self.folder / ("toolchain" if tools else "empty")),
            "TENSORRT_ROOT": str(self.folder / ("sdk" if tools else "empty")),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "FAKE_PLUGIN_LIBRARY": str(self.folder / "plugins.so"),
            "FAKE_TRT_CACHE": str(self.folder / "parsed"),
            "FAKE_TRT_VERSION": VERSION,
            "FAKE_HIDDEN": HIDDEN,
            "COLUMNS": "100",
            **extra,
        }

    def python(self, *arguments: str | Path, given: str | None = None, tools: bool = True, **extra: str) -> Done:
        """`python ARGUMENTS` on the device."""
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=self.environment(tools=tools, **extra),
            cwd=self.folder,
            input=given,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def ztdeploy(self, *arguments: str | Path, tools: bool = True, **extra: str) -> Done:
        return self.python("-m", "ztdeploy", *arguments, tools=tools, **extra)


def c_compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def make_device(folder: Path) -> FakeDevice:
    """Compile what takes compiling."""
    for name in ("driver", "empty", "sdk", "cache", "parsed", "toolchain"):
        (folder / name).mkdir()
    for tool in (HERE / "toolchain").iterdir():
        shutil.copyfile(tool, folder / "toolchain" / tool.name)
        (folder / "toolchain" / tool.name).chmod(0o755)
    (folder / "sdk" / "NvInferRuntime.h").touch()
    (folder / "sdk" / "NvInferVersion.h").write_text("#define NV_TENSORRT_MAJOR 10\n#define NV_TENSORRT_MINOR 3\n")
    _compile(HERE / "fake_cuda.c", folder / "driver" / "libcuda.so.1", "-pthread")
    _compile(HERE / "fake_plugins.c", folder / "plugins.so", f'-DZT_PLUGIN_ABI="{plugin_abi()}"')
    return FakeDevice(folder)


def _compile(source: Path, library: Path, *flags: str) -> None:
    compiler = c_compiler()
    assert compiler is not None, "no C compiler"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", *flags, str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
