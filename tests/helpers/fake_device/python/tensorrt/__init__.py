"""A stand-in for the Python interface of TensorRT 10 and 11, as far as ztdeploy uses it, on the fake driver beside it.

Engines really compute: ONNX Runtime runs the graph between its plugin nodes, NumPy the plugin nodes. What the real one
refuses is refused: shapes outside an optimization profile, plugin nodes without their library, engines of another
version or device, half precision without strong typing. Errors go to the logger, in the real one's words.

Environment variables:

FAKE_TRT_VERSION        the version to be, 10.3.0 by default, from 10.0 on; later ones have other flags
FAKE_TRT_CACHE          folder where parsed graphs are kept from one process to the next
FAKE_TRT_LOG            file that gets a line of JSON per build
FAKE_TRT_OOM_ABOVE_MIB  builds with more workspace run out of memory
FAKE_TRT_DIE            number of the signal that ends a build
FAKE_TRT_SLEEP          seconds that a build takes
FAKE_TRT_UNBUILDABLE    1: builds fail for another reason
FAKE_TRT_WRONG          1: engines compute wrong logits; "nan": none at all; "kept": wrong tokens
FAKE_TRT_REFUSE         1: engines refuse to run; "context": there is no memory for an execution context
FAKE_TRT_NO_LIBRARY     1: plugin libraries do not load
FAKE_TRT_ONLY           "plugins" or "plain": the failures above are those of such graphs alone
FAKE_TRT_FAST_PLUGINS, FAKE_TRT_SLOW_PLUGINS  1: which kind of engine is faster
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np

    from tensorrt.running import Engine

__version__ = os.environ.get("FAKE_TRT_VERSION", "10.3.0")

_MAGIC = b"fake TensorRT engine\n"
_COMPILER = Path(__file__).parents[2] / "compiler.py"

#: What the creators of the two plugins take.
_ATTRIBUTES = {
    "ZtWeightedPageRank": {
        "iterations",
        "boost",
        "filter_heads",
        "variance_min",
        "variance_max",
        "root_mean_square",
        "plugin_version",
        "plugin_namespace",
    },
    "ZtSimilarityPrune": {"drop", "prefix_tokens", "plugin_version", "plugin_namespace"},
}


def setting(name: str, plugins: bool | None = None) -> str:
    """A variable's text; none where it is meant for graphs of the other kind."""
    only = os.environ.get("FAKE_TRT_ONLY")
    if plugins is not None and only and (only == "plugins") != plugins:
        return ""
    return os.environ.get(f"FAKE_TRT_{name}", "")


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity: ClassVar = Severity
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
    INFO, VERBOSE = Severity.INFO, Severity.VERBOSE

    def __init__(self) -> None:
        self.ready = True

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError("Tried to call pure virtual function 'ILogger::log'")


class Logger(ILogger):
    def __init__(self, min_severity: Severity = Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    def log(self, severity: Severity, message: str) -> None:
        if severity <= self.min_severity:
            print(f"[TRT] [{severity.name[0]}] {message}", file=sys.stderr)


class DataType(enum.Enum):
    FLOAT, HALF, INT32, UINT8, BOOL = "float32", "float16", "int32", "uint8", "bool"


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


_VERSION = tuple(map(int, __version__.split(".")[:2]))
_FIRST, _AOT, _TYPED, _NEVER = (10, 0), (10, 13), (11, 0), (99, 0)
#: Members by the version that brings them and the one that drops them, of those that NVIDIA's bindings of 10.3, 10.13
#: and 11.0 declare. With weak typing went all that asks for a precision.
_BUILDER_FLAGS = {
    **dict.fromkeys(("FP16", "BF16", "INT8", "FP8", "INT4", "WEIGHTLESS"), (_FIRST, _TYPED)),
    **dict.fromkeys(("OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"), (_FIRST, _TYPED)),
    "FP4": (_AOT, _TYPED),
    **dict.fromkeys(("DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32"), (_FIRST, _NEVER)),
    **dict.fromkeys(("EDITABLE_TIMING_CACHE", "STRICT_NANS", "MONITOR_MEMORY"), (_AOT, _NEVER)),
}
_NETWORK_FLAGS = {
    "EXPLICIT_BATCH": (_FIRST, _TYPED),
    "STRONGLY_TYPED": (_FIRST, _NEVER),  # of 11 without effect
    **dict.fromkeys(("PREFER_AOT_PYTHON_PLUGINS", "PREFER_JIT_PYTHON_PLUGINS"), (_AOT, _NEVER)),
}


def _members(table: dict[str, tuple[tuple[int, int], tuple[int, int]]]) -> dict[str, int]:
    return {name: index for index, (name, (since, until)) in enumerate(table.items()) if since <= _VERSION < until}


BuilderFlag: Any = enum.IntEnum("BuilderFlag", _members(_BUILDER_FLAGS))
NetworkDefinitionCreationFlag: Any = enum.IntEnum("NetworkDefinitionCreationFlag", _members(_NETWORK_FLAGS))


def nptype(kind: DataType) -> type[np.generic]:
    import numpy as np

    return np.dtype(kind.value).type


# -------------------- the device


def driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _device_label() -> str | None:
    """None where CUDA doesn't work."""
    library, name, values = driver(), ctypes.create_string_buffer(256), [ctypes.c_int(), ctypes.c_int()]
    device = ctypes.c_int()
    if library.cuInit(0) or library.cuDeviceGet(ctypes.byref(device), 0):
        return None
    library.cuDeviceGetName(name, len(name), device)
    for which, value in zip((75, 76), values, strict=True):
        library.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return f"sm_{values[0].value}{values[1].value} {name.value.decode()}"


class PluginRegistry:
    """Every builder and every runtime has its own."""

    def __init__(self, logger: ILogger) -> None:
        self.logger, self.libraries = logger, dict[str, Any]()

    def load_library(self, plugin_path: str) -> Any:
        if plugin_path in self.libraries:
            self.logger.log(Severity.ERROR, f"Plugin library {plugin_path} is registered already")
            return None
        try:
            if setting("NO_LIBRARY"):
                raise OSError("undefined symbol: _ZN8nvinfer16Zt")
            library = ctypes.CDLL(str(Path(plugin_path).resolve(strict=True)))
            library.getCreators(ctypes.byref(ctypes.c_int()))
        except (OSError, AttributeError) as error:
            self.logger.log(
                Severity.ERROR, f"[pluginRegistry.cpp::loadLibrary] Error Code 3: API Usage Error ({error})"
            )
            return None
        self.libraries[plugin_path] = library
        return object()

    def knows(self, operator: str) -> bool:
        return bool(self.libraries) and operator in _ATTRIBUTES


# -------------------- building


class HostMemory:
    """Bytes behind the buffer protocol, which Python classes have from 3.12 on only."""

    def __new__(cls, content: bytes) -> Any:
        return memoryview(content)


class Builder:
    def __init__(self, logger: ILogger) -> None:
        assert getattr(logger, "ready", False), "ILogger.__init__ was not called"
        self.logger, self.registry = logger, PluginRegistry(logger)
        if _device_label() is None:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 100")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def get_plugin_registry(self) -> PluginRegistry:
        return self.registry

    def create_network(self, flags: int = 0) -> Network:
        asked = bool(flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return Network(self, asked or _VERSION >= _TYPED)

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig(self.logger)

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> Any:
        description, logger = network.description, self.logger
        plugins = any(description["plugins"])
        _note(network, config, plugins)
        if signal := setting("DIE", plugins):
            os.kill(os.getpid(), int(signal))
        time.sleep(float(setting("SLEEP") or 0))
        if description["half"] and not network.strongly_typed:
            logger.log(Severity.ERROR, "Error Code 4: Types of operands must match unless the network is weakly typed")
            return None
        dynamic = [entry["name"] for entry in description["inputs"] if -1 in entry["shape"]]
        if any(set(profile.shapes) != set(dynamic) for profile in config.profiles) or bool(dynamic) > bool(
            config.profiles
        ):
            logger.log(
                Severity.ERROR, "Network has dynamic or shape inputs, but no optimization profile has been defined."
            )
            return None
        if (limit := setting("OOM_ABOVE_MIB", plugins)) and config.workspace > int(limit) * 2**20:
            logger.log(Severity.ERROR, "Requested amount of GPU memory could not be allocated: out of memory")
            logger.log(Severity.ERROR, "Error Code 10: Internal Error (Could not find any implementation for node)")
            return None
        if setting("UNBUILDABLE", plugins):
            logger.log(Severity.ERROR, "Error Code 10: Internal Error (Could not find any implementation for node X)")
            return None
        print("a line that TensorRT prints by itself")
        config.cache.learn(network.digest)
        profiles = [profile.shapes for profile in config.profiles]
        header = {"version": __version__, "device": _device_label(), "profiles": profiles}
        return HostMemory(_MAGIC + json.dumps(header).encode() + b"\n" + network.content)


def _note(network: Network, config: BuilderConfig, plugins: bool) -> None:
    if not (path := setting("LOG")):
        return
    line = {
        "plugins": plugins,
        "workspace_mib": config.workspace // 2**20,
        "known_tactics": len(config.cache.tactics),
        "already_timed": network.digest in config.cache.tactics,
    }
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


class Network:
    def __init__(self, builder: Builder, strongly_typed: bool) -> None:
        self.builder, self.strongly_typed = builder, strongly_typed
        self.content, self.description, self.digest = b"", dict[str, Any](), ""

    @property
    def num_inputs(self) -> int:
        return len(self.description["inputs"])

    def get_input(self, index: int) -> TensorOfNetwork:
        return TensorOfNetwork(self.description["inputs"][index])


class TensorOfNetwork:
    def __init__(self, entry: dict[str, Any]) -> None:
        self.name, self.shape, self.dtype = entry["name"], tuple(entry["shape"]), DataType(entry["type"])


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        self.network, self.logger, self.errors = network, logger, list[str]()

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> str:
        return self.errors[index]

    def parse_from_file(self, path: str) -> bool:
        content = self._compile(Path(path))
        if content is None:
            return False
        network, registry = self.network, self.network.builder.registry
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            description = json.loads(archive.read("network.json"))
        for node in (node for level in description["plugins"] for node in level):
            attributes = node["attributes"]
            wanted = (attributes.get("plugin_namespace"), attributes.get("plugin_version"))
            if not registry.knows(node["operator"]) or wanted != ("ztdeploy", "1"):
                return self._fail(
                    node, "creator && Plugin not found, are the plugin name, version, and namespace correct?"
                )
            if set(attributes) != _ATTRIBUTES[node["operator"]]:
                return self._fail(node, f"the creator refuses the fields {sorted(attributes)}")
        network.content, network.description = content, description
        network.digest = hashlib.sha256(content).hexdigest()
        return True

    def _compile(self, path: Path) -> bytes | None:
        """In a process that has `onnx`, and only the first time."""
        name = hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()
        out = Path(os.environ["FAKE_TRT_CACHE"]) / name
        if not out.exists():
            partial = out.with_name(f"{name}.{os.getpid()}")
            shell = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FAKE_HIDDEN")}
            command = [sys.executable, str(_COMPILER), str(path), str(partial)]
            done = subprocess.run(command, env=shell, capture_output=True, text=True, check=False)
            if done.returncode or done.stdout:
                self.errors.append(done.stdout or done.stderr)
                self.logger.log(Severity.ERROR, self.errors[-1])
                return None
            partial.replace(out)
        return out.read_bytes()

    def _fail(self, node: dict[str, Any], reason: str) -> bool:
        self.errors.append(
            f"In node 0 with name: {node['name']} and operator: {node['operator']}: INVALID_NODE: {reason}"
        )
        self.logger.log(Severity.ERROR, self.errors[-1])
        return False


class OptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, smallest: Any, best: Any, largest: Any) -> None:
        for low, middle, high in zip(smallest, best, largest, strict=True):
            if not 0 < low <= middle <= high:
                raise ValueError("Shape provided for min, opt and max is inconsistent")
        self.shapes[name] = [list(smallest), list(best), list(largest)]


class TimingCache:
    def __init__(self) -> None:
        self.tactics: list[str] = []

    def learn(self, digest: str) -> None:
        if digest not in self.tactics:
            self.tactics.append(digest)

    def serialize(self) -> Any:
        content = {"version": __version__, "device": _device_label(), "tactics": self.tactics}
        return HostMemory(json.dumps(content).encode())


class BuilderConfig:
    def __init__(self, logger: ILogger) -> None:
        self.logger, self.workspace, self.profiles = logger, 2**40, list[OptimizationProfile]()
        self.cache, self.flags = TimingCache(), {BuilderFlag.TF32}

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        assert pool is MemoryPoolType.WORKSPACE
        self.workspace = size

    def clear_flag(self, flag: enum.IntEnum) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        cache = TimingCache()
        if not content:
            return cache
        try:
            known = json.loads(content)
            cache.tactics = list(known["tactics"])
        except (ValueError, KeyError, TypeError):
            self.logger.log(Severity.ERROR, "Error Code 1: Serialization (the timing cache is corrupt)")
            return None
        cache.origin = (known["version"], known["device"])  # type: ignore[attr-defined]
        return cache

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if getattr(cache, "origin", None) not in (None, (__version__, _device_label())) and not ignore_mismatch:
            self.logger.log(Severity.WARNING, "The timing cache was created elsewhere, and is not used")
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache:
        return self.cache


# -------------------- running


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger, self.registry = logger, PluginRegistry(logger)

    def get_plugin_registry(self) -> PluginRegistry:
        return self.registry

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        try:
            magic, header, archive = content.split(b"\n", 2)
            built = json.loads(header)
            assert magic + b"\n" == _MAGIC
            network = zipfile.ZipFile(io.BytesIO(archive))
            description = json.loads(network.read("network.json"))
        except (ValueError, AssertionError, zipfile.BadZipFile):
            return self._refuse("Serialization assertion magicTag == kPLAN_MAGIC failed. Magic tag does not match")
        if built["version"] != __version__:
            return self._refuse("Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.")
        if built["device"] != _device_label():
            return self._refuse(f"The engine plan file is for {built['device']}, which isn't the device here.")
        for node in (node for level in description["plugins"] for node in level):
            if not self.registry.knows(node["operator"]):
                return self._refuse(f"IPluginCreatorV3One not found for {node['operator']}")
        from tensorrt.running import Engine  # ONNX Runtime takes its time, and building needs none

        return Engine(self, description, built["profiles"], network)

    def _refuse(self, message: str) -> None:
        self.logger.log(Severity.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 1: {message}")
