"""Kernels compiled to PTX without a GPU and without the CUDA toolkit: NVRTC, called through ctypes.

PTX is finished by the device's driver, which refuses PTX that is newer than itself. So a device names the newest PTX
ISA that it takes, and of the NVRTC libraries at hand the newest that stays within it compiles.
"""

from __future__ import annotations

import ctypes
import math
import re
import sys
from collections.abc import Callable
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from ctypes.util import find_library
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ztdeploy.core.errors import EnvironmentLacksError, InputError
from ztdeploy.core.profile import data_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

Version = tuple[int, int]

#: Where toolkits and JetPack put their libraries.
SYSTEM_FOLDERS = ("/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/*/lib", "/usr/lib/*-linux-gnu", "/usr/lib64")
INSTALL = "run: pip install nvidia-cuda-nvrtc-cu12==12.6.85 nvidia-cuda-runtime-cu12==12.6.77, or install CUDA's NVRTC"
_FP32_MAX = 3.4028235e38
_PROBE = 'extern "C" __global__ void probe() {}'


@dataclass(frozen=True)
class Nvrtc:
    """An NVRTC library, its CUDA version, and the CUDA headers that belong to it."""

    library: Path
    version: Version
    include: Path


@dataclass(frozen=True)
class Ptx:
    """PTX of all kernels."""

    text: str
    sm: str
    isa: Version
    compiler: Nvrtc


def nvrtc_versions() -> tuple[Nvrtc, ...]:
    """The NVRTC libraries that load here and have their headers beside them, newest first."""
    found: dict[Version, Nvrtc] = {}
    for path in _library_paths():
        include = _headers_of(path)
        version = _version_of(path)
        if include is not None and version is not None:
            found.setdefault(version, Nvrtc(path, version, include))
    return tuple(found[version] for version in sorted(found, reverse=True))


def compile_ptx(
    sm: str, *, max_isa: Version | None = None, variance_min: float = 0.01, variance_max: float = 0.7
) -> Ptx:
    """Compile `plugins/kernels` for one GPU architecture.

    Args:
        sm: such as `"sm_87"`.
        max_isa: the newest PTX ISA that the device's driver takes, such as `(8, 5)` for CUDA 12.6; None: any.
        variance_min: lower limit of the head filter in the single-launch kernels, where it is compiled in.
        variance_max: upper limit.

    Raises:
        InputError: `sm` is not a name of an architecture, or a limit is not a number.
        EnvironmentLacksError: no NVRTC is at hand, or none that knows `sm` and stays within `max_isa`.
    """
    if not re.fullmatch(r"sm_\d{2,3}[af]?", sm):
        raise InputError(f"architecture '{sm}'", "a name such as 'sm_87'", "give the GPU's compute capability")
    limits = {"ZT_VARIANCE_MIN": _literal(variance_min), "ZT_VARIANCE_MAX": _literal(variance_max)}
    compiler = choose_nvrtc(sm, max_isa)
    folder = data_folder("plugins") / "kernels"
    source = (folder / "kernels.cu").read_text(encoding="utf-8")
    defines = [f"-D{name}={value}" for name, value in limits.items()]
    includes = [f"-I{folder}", f"-I{compiler.include}", f"-I{compiler.include / 'cccl'}"]
    text = _compile(compiler, source, sm, ["--std=c++17", *defines, *includes])
    return Ptx(text, sm, isa_of(text), compiler)


def choose_nvrtc(sm: str, max_isa: Version | None) -> Nvrtc:
    """The newest NVRTC that knows `sm` and whose PTX is not newer than `max_isa`."""
    candidates = nvrtc_versions()
    if not candidates:
        raise EnvironmentLacksError("no NVRTC library with CUDA headers is installed", "one", INSTALL)
    seen = []
    for nvrtc in candidates:
        name = f"NVRTC {_dotted(nvrtc.version)}"
        if not _knows(nvrtc, sm):
            seen.append(f"{name} does not know {sm}")
            continue
        isa = isa_of(_compile(nvrtc, _PROBE, sm, []))
        if max_isa is None or isa <= max_isa:
            return nvrtc
        seen.append(f"{name} emits PTX {_dotted(isa)}")
    limit = "" if max_isa is None else f" with PTX ISA {_dotted(max_isa)} or older"
    raise EnvironmentLacksError("; ".join(seen), f"an NVRTC that compiles for {sm}{limit}", INSTALL)


def isa_of(ptx: str) -> Version:
    """The PTX ISA that a text declares in its `.version` line."""
    found = re.search(r"^\.version\s+(\d+)\.(\d+)", ptx, re.MULTILINE)
    if found is None:
        raise InputError("PTX without a .version line", "the text that a compiler wrote", "compile it again")
    return int(found[1]), int(found[2])


def kernel_names(ptx: str) -> tuple[str, ...]:
    """The entry points of a PTX text."""
    return tuple(sorted(re.findall(r"^\s*(?:\.visible\s+)?\.entry\s+(\w+)", ptx, re.MULTILINE)))


def _library_paths() -> Iterator[Path]:
    """Candidates, wheels first: their version is what was asked for when they were installed."""
    folders = [folder for entry in sys.path if entry for folder in Path(entry).glob("nvidia/*/lib")]
    for pattern in SYSTEM_FOLDERS:
        folders += Path("/").glob(pattern.lstrip("/"))
    for folder in folders:
        yield from sorted(folder.glob("libnvrtc.so*"), reverse=True)
    name = find_library("nvrtc")
    if name is not None:
        yield Path(name)


def _headers_of(library: Path) -> Path | None:
    lib = library.resolve().parent
    near = [
        lib.parent / "include",
        lib.parent.parent / "cuda_runtime" / "include",
        lib.parent.parent.parent / "include",
    ]
    system = sorted(Path("/usr/local").glob("cuda*/include"), reverse=True)
    return next((folder for folder in [*near, *system] if (folder / "cuda_fp16.h").is_file()), None)


@cache
def _load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


@cache
def _version_of(path: Path) -> Version | None:
    major, minor = c_int(), c_int()
    try:
        if _load(path).nvrtcVersion(byref(major), byref(minor)) != 0:
            return None
    except (OSError, AttributeError):  # not loadable here, or not NVRTC
        return None
    return major.value, minor.value


def _knows(nvrtc: Nvrtc, sm: str) -> bool:
    library, count = _load(nvrtc.library), c_int()
    _check(library, library.nvrtcGetNumSupportedArchs(byref(count)), "list its architectures")
    known = (c_int * count.value)()
    _check(library, library.nvrtcGetSupportedArchs(known), "list its architectures")
    return int(re.sub(r"\D", "", sm)) in list(known)


def _compile(nvrtc: Nvrtc, source: str, sm: str, options: list[str]) -> str:
    library = _load(nvrtc.library)
    arguments = [f"--gpu-architecture={sm.replace('sm_', 'compute_')}", *options]
    encoded = (c_char_p * len(arguments))(*(argument.encode() for argument in arguments))
    with _program(library, source) as program:
        if library.nvrtcCompileProgram(program, len(arguments), encoded) != 0:
            log = _text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
            raise EnvironmentLacksError(
                f"NVRTC {_dotted(nvrtc.version)} refuses the kernels for {sm}: {log.strip()[:400]}",
                "headers of the same CUDA version beside it, and unchanged kernels",
                INSTALL,
            )
        return _text(library.nvrtcGetPTXSize, library.nvrtcGetPTX, program)


@contextmanager
def _program(library: ctypes.CDLL, source: str) -> Iterator[c_void_p]:
    program = c_void_p()
    create = library.nvrtcCreateProgram
    create.argtypes = [POINTER(c_void_p), c_char_p, c_char_p, c_int, c_void_p, c_void_p]
    _check(library, create(byref(program), source.encode(), b"kernels.cu", 0, None, None), "take the kernels")
    try:
        yield program
    finally:
        library.nvrtcDestroyProgram(byref(program))


def _text(size_of: Callable[..., int], read: Callable[..., int], program: c_void_p) -> str:
    size = c_size_t()
    size_of(program, byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    read(program, buffer)
    return buffer.value.decode(errors="replace")


def _check(library: ctypes.CDLL, code: int, purpose: str) -> None:
    if code:
        library.nvrtcGetErrorString.restype = c_char_p
        reason = library.nvrtcGetErrorString(code).decode()
        raise EnvironmentLacksError(f"NVRTC cannot {purpose}: {reason}", "a working NVRTC library", INSTALL)


def _literal(value: float) -> str:
    """A number as C++ writes it in fp32; infinity is the largest number."""
    if math.isnan(value):
        raise InputError("a limit of the head filter that is not a number", "a number", "choose another limit")
    return f"{float(min(max(value, -_FP32_MAX), _FP32_MAX))!r}f"


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
