"""The C++ plugin library: compiled on the device it serves, from the installed package's own sources, and checked."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ztdeploy.core.errors import EnvironmentLacksError, InputError, OutputError
from ztdeploy.core.files import make_folder, move, read_text, remove, write
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.profile import data_folder

#: An Orin Nano needs a few minutes for what a workstation compiles in ten seconds.
CONFIGURE_TIMEOUT_S = 300
COMPILE_TIMEOUT_S = 1800
QUESTION_TIMEOUT_S = 60

#: Files that make a library what it is.
SOURCES = ("*.cpp", "*.cu", "*.cuh", "*.h", "CMakeLists.txt")
#: Where packages and archives of TensorRT put NvInferRuntime.h.
HEADER_FOLDERS = (
    "/usr/include/aarch64-linux-gnu",
    "/usr/include/x86_64-linux-gnu",
    "/usr/include",
    "/usr/local/tensorrt/include",
    "/opt/tensorrt/include",
)
#: JetPack installs nvcc, yet leaves it off the PATH.
NVCC_FALLBACK = Path("/usr/local/cuda/bin/nvcc")
LIBRARY = "libztdeploy_plugins.so"


def build_library(out_dir: Path, *, compute_capability: str) -> Path:
    """Compile the plugin library for one kind of device, or find it compiled already.

    The file's name ends in a hash of the sources, the tools and TensorRT's version, so that nothing stale is found.

    Args:
        out_dir: where the library goes; made if missing.
        compute_capability: such as "8.7" for an Orin.

    Raises:
        InputError: not a compute capability.
        EnvironmentLacksError: CMake, nvcc or TensorRT's headers are missing, the compilation fails, or its result
            cannot be written.
    """
    architecture = _architecture(compute_capability)
    sources = data_folder("plugins")
    cmake, nvcc, headers = _require_tools()
    key = _cache_key(sources, cmake, nvcc, headers, architecture)
    library = out_dir / f"libztdeploy_plugins-sm{architecture}-{key}.so"
    if not library.is_file():
        try:
            make_folder(out_dir)
            _compile(sources, cmake, nvcc, headers, architecture, library)
        except OutputError as error:
            raise EnvironmentLacksError(
                f"the plugin library cannot be made: {error.given}",
                "a writable folder with free space",
                "free space there, or set XDG_CACHE_HOME to another folder",
            ) from error
    check_library(library)
    return library


def what_is_missing() -> list[str]:
    """What `build_library` would miss on this machine, one line each with its remedy; empty if nothing."""
    missing = []
    if shutil.which("cmake") is None:
        missing.append("CMake: install the package 'cmake'")
    if _find_nvcc() is None:
        missing.append("nvcc: install the CUDA toolkit, and put its bin folder on the PATH")
    if find_headers() is None:
        missing.append("TensorRT's headers: install 'libnvinfer-headers-dev', or set TENSORRT_ROOT to its folder")
    return missing


def check_library(path: Path, *, tensorrt_major: int | None = None) -> None:
    """Refuse a library that is not this package's, or was compiled for another TensorRT.

    Loading runs the library's code: never give this a file that came with a bundle.

    Args:
        path: the compiled library.
        tensorrt_major: major version of the TensorRT that will load it, where that is known.

    Raises:
        EnvironmentLacksError: it cannot be loaded, or its versions are not those expected.
    """
    again = f"delete '{path.name}' and build the plugins again"
    try:
        library = ctypes.CDLL(str(path.resolve()))
        library.zt_plugin_version.restype = ctypes.c_char_p
        found = (library.zt_plugin_version() or b"").decode("ascii", "replace")
        built_for = int(library.zt_tensorrt_version())
    except (OSError, AttributeError) as error:  # AttributeError: it exports no such function
        raise EnvironmentLacksError(
            f"'{path}' is no usable plugin library ({str(error)[:200]})", "a library that ztdeploy compiled", again
        ) from error
    if found != plugin_abi():
        raise EnvironmentLacksError(
            f"plugin library '{path}' has version '{found}'", f"'{plugin_abi()}', this package's", again
        )
    if tensorrt_major is not None and built_for // 10_000 != tensorrt_major:
        raise EnvironmentLacksError(
            f"plugin library '{path}' was compiled for TensorRT {built_for // 10_000}",
            f"TensorRT {tensorrt_major}, which is installed here",
            again,
        )


def plugin_abi() -> str:
    """The version that a compiled library must report: the one that the sources of this package state."""
    text = (data_folder("plugins") / "tensorrt" / "version.h").read_text(encoding="utf-8")
    match = re.search(r'^#define ZT_PLUGIN_ABI "([^"]+)"$', text, re.MULTILINE)
    assert match is not None, "version.h states no ZT_PLUGIN_ABI"
    return match[1]


def find_headers() -> Path | None:
    """The folder of TensorRT's headers: TENSORRT_ROOT's if that is set, else the usual places."""
    root = os.environ.get("TENSORRT_ROOT")
    folders = [Path(root), Path(root) / "include"] if root else [Path(folder) for folder in HEADER_FOLDERS]
    return next((folder for folder in folders if (folder / "NvInferRuntime.h").is_file()), None)


def _architecture(compute_capability: str) -> str:
    if not re.fullmatch(r"[1-9]\d?\.\d", compute_capability):
        raise InputError(
            f"compute capability '{compute_capability}'", "two numbers such as '8.7'", "ask the device's data sheet"
        )
    return compute_capability.replace(".", "")


def _require_tools() -> tuple[str, str, Path]:
    cmake, nvcc, headers = shutil.which("cmake"), _find_nvcc(), find_headers()
    if cmake is None or nvcc is None or headers is None:
        subject, remedy = what_is_missing()[0].split(": ", 1)
        raise EnvironmentLacksError(f"{subject} not found", "all that compiles the plugin library", remedy)
    return cmake, nvcc, headers


def _find_nvcc() -> str | None:
    return shutil.which("nvcc") or (str(NVCC_FALLBACK) if NVCC_FALLBACK.is_file() else None)


def _cache_key(sources: Path, cmake: str, nvcc: str, headers: Path, architecture: str) -> str:
    digest = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in sources.rglob(pattern)}):
        digest.update(f"{path.relative_to(sources).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    versions = [
        _run([cmake, "--version"], QUESTION_TIMEOUT_S, "asking CMake's version"),
        _run([nvcc, "--version"], QUESTION_TIMEOUT_S, "asking nvcc's version"),
    ]
    header = headers / "NvInferVersion.h"
    versions.append(header.read_text(encoding="utf-8", errors="replace") if header.is_file() else str(headers))
    digest.update("\0".join([architecture, *versions]).encode())
    return digest.hexdigest()[:16]


def _compile(sources: Path, cmake: str, nvcc: str, headers: Path, architecture: str, library: Path) -> None:
    log = library.with_suffix(".log")
    remove(log)
    with scratch_folder(library.parent) as build:
        configure = [cmake, "-S", str(sources), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"]
        configure += [f"-DTENSORRT_INCLUDE_DIR={headers}"]
        _run(configure, CONFIGURE_TIMEOUT_S, "configuring the plugin library", log)
        compile_all = [cmake, "--build", str(build), "--parallel", str(min(4, os.cpu_count() or 1))]
        _run(compile_all, COMPILE_TIMEOUT_S, "compiling the plugin library", log)
        built = build / LIBRARY
        if not built.is_file():
            raise EnvironmentLacksError(
                f"the build made no '{LIBRARY}'", "a library", f"read '{log}' for what it did instead"
            )
        move(built, library)  # in one step: another process may be waiting for this very file
    remove(log)


def _run(command: Sequence[str], timeout_s: int, what: str, log: Path | None = None) -> str:
    """Run a tool in a process group of its own, so that its compilers end with it.

    Raises:
        EnvironmentLacksError: it cannot be started, takes too long, or fails; the first error it printed is named.
    """
    more = f"; all that it printed is in '{log}'" if log else ""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise EnvironmentLacksError(
            f"{what} failed ({error})", "a tool that starts", f"check '{command[0]}'"
        ) from error
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise EnvironmentLacksError(
            f"{what} took longer than {timeout_s} s", "an end", f"check the machine's load and memory{more}"
        ) from error
    finally:
        if process.poll() is None:  # timed out or interrupted
            _end(process)
    if log is not None:
        write(log, (read_text(log) if log.exists() else "") + output)
    if process.returncode != 0:
        raise EnvironmentLacksError(
            f"{what} failed: {first_error(output)}", f"exit code 0, got {process.returncode}", f"mend that{more}"
        )
    return output


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def first_error(output: str) -> str:
    """The first line of a build's output that states an error; CMake puts its reason on the lines after."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for index, line in enumerate(lines):
        if re.match(r"CMake Error\b", line):
            return " ".join(lines[index : index + 3])[:300]
        if re.search(r"\b(fatal )?error\b\s*[:#]", line, re.IGNORECASE):
            return line[:300]
    return lines[-1][:300] if lines else "it printed nothing"
