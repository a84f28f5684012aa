"""The TensorRT adapter without TensorRT: compiled against stand-in headers and driven on the CPU, and its build."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.errors import refused
from helpers.processes import HANG_S

from ztdeploy.core.errors import EnvironmentLacksError, InputError
from ztdeploy.target.plugins import NAMESPACE, SIMILARITY_PRUNE, VERSION, WEIGHTED_PAGE_RANK, library

PLUGINS = Path(__file__).parents[3] / "plugins"
STUBS = Path(__file__).parent / "stubs"
EXPORTED = {"getCreators", "setLoggerFinder", "zt_plugin_version", "zt_register_plugins", "zt_tensorrt_version"}
RANK = (
    "iterations=i:30",
    "boost=i:1",
    "filter_heads=i:1",
    "variance_min=f:0.01",
    "variance_max=f:0.7",
    "root_mean_square=i:1",
)
PRUNE = ("drop=i:5", "prefix_tokens=i:1")

Drive = Callable[..., list[str]]

needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
needs_nvcc = pytest.mark.skipif(
    shutil.which("cmake") is None or library._find_nvcc() is None, reason="no CMake and nvcc here"
)


def call(*command: str | Path, check: bool = True) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done.stdout + done.stderr


#: Versions whose declarations the adapter is compiled against: JetPack 6's, JetPack 7's, and the first without weak
#: typing and older plugins.
VERSIONS = {"10.3": (10, 3), "10.13": (10, 13), "11.0": (11, 0)}


def declared(version: tuple[int, int]) -> list[str]:
    return [f"-DSTUB_TENSORRT_MAJOR={version[0]}", f"-DSTUB_TENSORRT_MINOR={version[1]}"]


def build_stub_library(folder: Path, version: tuple[int, int], *defines: str) -> Path:
    """The adapter's plain C++ against the stand-in headers, with a recorder in place of the launches."""
    out = folder / "libadapter.so"
    sources = [*sorted((PLUGINS / "tensorrt").glob("*.cpp")), STUBS / "launch_recorder.cpp"]
    flags = ["-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    flags += ["-Wno-unused-parameter", *declared(version), *defines]
    includes = [f"-I{STUBS}", f"-I{STUBS / 'cuda'}", f"-I{PLUGINS / 'tensorrt'}"]
    call("g++", *flags, *includes, *sources, "-o", out)
    return out


def build_driver(folder: Path, version: tuple[int, int], name: str = "driver") -> Path:
    out = folder / name
    flags = ["-std=c++17", "-rdynamic", "-Wall", "-Wextra", "-Werror", *declared(version)]
    call("g++", *flags, f"-I{STUBS}", f"-I{STUBS / 'cuda'}", STUBS / f"{name}.cpp", "-o", out, "-ldl")
    return out


@pytest.fixture(scope="module", params=VERSIONS)
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a compiled adapter and its driver; the two majors differ in their logger interfaces."""
    folder = tmp_path_factory.mktemp(f"adapter-{request.param}-")
    build_stub_library(folder, VERSIONS[request.param])
    build_driver(folder, VERSIONS[request.param])
    return folder


@pytest.fixture
def drive(adapter: Path) -> Drive:
    def run(command: str, plugin: str, *arguments: str) -> list[str]:
        return call(adapter / "driver", adapter / "libadapter.so", command, plugin, *arguments).splitlines()

    return run


# ------------------------------------------------------------------------------------------------- the plugin classes


@needs_gxx
def test_creators_bear_the_names_of_the_contract(drive: Drive) -> None:
    for plugin, fields in ((WEIGHTED_PAGE_RANK, RANK), (SIMILARITY_PRUNE, PRUNE)):
        assert drive("create", plugin, *fields) == [f"creator: {plugin} {VERSION} {NAMESPACE}", f"made: {plugin}"]


@needs_gxx
@pytest.mark.parametrize(
    ("plugin", "changed", "message"),
    [
        (WEIGHTED_PAGE_RANK, "iterations=i:0", "attribute 'iterations' is 0; expected an integer of at least 1"),
        (WEIGHTED_PAGE_RANK, "iterations=l:4294967297", "is 4294967297; expected an integer of at least 1"),
        (WEIGHTED_PAGE_RANK, "iterations=f:3", "attribute 'iterations' is not an integer"),
        (WEIGHTED_PAGE_RANK, "boost=i:3", "attribute 'boost' is 3; expected an integer from 0 to 2"),
        (WEIGHTED_PAGE_RANK, "filter_heads=n:0", "attribute 'filter_heads' holds 0 values; expected exactly one"),
        (WEIGHTED_PAGE_RANK, "variance_min=i:0", "attribute 'variance_min' is not a float"),
        (WEIGHTED_PAGE_RANK, "variance_min=f:nan", "attribute 'variance_min' is not a number"),
        (WEIGHTED_PAGE_RANK, "variance_min=f:0.9", "variance_min is above variance_max"),
        (SIMILARITY_PRUNE, "drop=i:-1", "attribute 'drop' is -1; expected an integer of at least 1"),
        (SIMILARITY_PRUNE, "prefix_tokens=s:x", "attribute 'prefix_tokens' is not an integer"),
    ],
)
def test_a_bad_attribute_is_refused_and_named(drive: Drive, plugin: str, changed: str, message: str) -> None:
    fields = RANK if plugin == WEIGHTED_PAGE_RANK else PRUNE
    name = changed.split("=")[0]
    lines = drive("create", plugin, *(changed if field.startswith(f"{name}=") else field for field in fields))
    assert lines[-1] == "refused"
    logged = [line for line in lines if line.startswith("log: ")]
    assert len(logged) == 1
    assert logged[0].startswith(f"log: ztdeploy plugins: {plugin}: ")
    assert message in logged[0]


@needs_gxx
@pytest.mark.parametrize("missing", [*RANK, *PRUNE])
def test_every_attribute_is_required(drive: Drive, missing: str) -> None:
    plugin, fields = (WEIGHTED_PAGE_RANK, RANK) if missing in RANK else (SIMILARITY_PRUNE, PRUNE)
    lines = drive("create", plugin, *(field for field in fields if field != missing))
    assert lines[-1] == "refused"
    assert f"attribute '{missing.split('=')[0]}' is missing" in lines[-2]


@needs_gxx
def test_what_a_parser_may_add_or_widen_is_taken(drive: Drive) -> None:
    lines = drive("again", SIMILARITY_PRUNE, "drop=l:7", "prefix_tokens=i:0", "plugin_version=s:1", "other=i:0")
    assert "settings: drop=7 prefix_tokens=0" in lines
    limits = ("variance_min=d:-inf", "variance_max=f:inf")
    kept = tuple(field for field in RANK if not field.startswith("variance"))
    assert drive("create", WEIGHTED_PAGE_RANK, *kept, *limits)[-1] == f"made: {WEIGHTED_PAGE_RANK}"


@needs_gxx
def test_serialised_settings_make_the_same_plugin(drive: Drive) -> None:
    for plugin, fields in ((WEIGHTED_PAGE_RANK, RANK), (SIMILARITY_PRUNE, PRUNE)):
        lines = drive("again", plugin, *fields)
        settings = {line for line in lines if line.startswith("settings: ")}
        assert len(settings) == 1  # of the plugin, of a clone of its copy, and of that one's clone
        assert lines.count("same: 1") == 3
    assert settings == {"settings: drop=5 prefix_tokens=1"}


@needs_gxx
@pytest.mark.parametrize(
    ("plugin", "inputs", "expected"),
    [
        (WEIGHTED_PAGE_RANK, ("[-1,3,50,50]",), "output: 0.0 0.2"),
        (WEIGHTED_PAGE_RANK, ("[-1,3,50,50]", "[-1,50]"), "output: 0.0 0.2"),
        (WEIGHTED_PAGE_RANK, ("[2,3,-1,-1]", "[2,-1]"), "output: 0.0 0.2"),
        (SIMILARITY_PRUNE, ("[-1,50]", "[-1,3,50,16]"), "output: 0.0 0.1"),
    ],
)
def test_the_output_takes_its_extents_from_the_inputs(
    drive: Drive, plugin: str, inputs: tuple[str, ...], expected: str
) -> None:
    lines = drive("shapes", plugin, *(RANK if plugin == WEIGHTED_PAGE_RANK else PRUNE), "--", *inputs)
    assert lines[-3:] == ["code: 0", expected, "types: 0 fp32 of 1"]


@needs_gxx
@pytest.mark.parametrize(
    ("plugin", "inputs", "message"),
    [
        (WEIGHTED_PAGE_RANK, ("[1,3,50]",), "attention has the shape [1, 3, 50]"),
        (WEIGHTED_PAGE_RANK, ("[1,3,50,49]",), "expected [batch, heads, tokens, tokens]"),
        (WEIGHTED_PAGE_RANK, ("[1,3,50,50]", "[1,49]"), "survivors has the shape [1, 49]"),
        (WEIGHTED_PAGE_RANK, ("[1,3,5,5]", "[1,5]", "[1]"), "has 3 inputs"),
        (SIMILARITY_PRUNE, ("[1,50]",), "has 1 inputs; expected scores and keys"),
        (SIMILARITY_PRUNE, ("[1,50]", "[1,3,49,16]"), "do not fit"),
        (SIMILARITY_PRUNE, ("[1,50]", "[1,3,50,160]"), "heads are 160 wide; expected at most 128"),
        (SIMILARITY_PRUNE, ("[1,10]", "[1,3,10,16]"), "cannot drop 5 of 10 tokens with 1 prefix tokens"),
    ],
)
def test_shapes_that_break_the_contract_are_refused(
    drive: Drive, plugin: str, inputs: tuple[str, ...], message: str
) -> None:
    lines = drive("shapes", plugin, *(RANK if plugin == WEIGHTED_PAGE_RANK else PRUNE), "--", *inputs)
    assert "code: 1" in lines
    assert sum(message in line for line in lines) == 1


@needs_gxx
def test_only_linear_fp32_and_fp16_are_supported(drive: Drive) -> None:
    def accepted(plugin: str, inputs: int) -> list[str]:
        fields = RANK if plugin == WEIGHTED_PAGE_RANK else PRUNE
        lines = drive("formats", plugin, *fields, "--", str(inputs))
        return [line.split(":")[1].strip() for line in lines if line.startswith("accepts")]

    assert accepted(WEIGHTED_PAGE_RANK, 1) == ["fp32 fp16", "fp32"]
    assert accepted(WEIGHTED_PAGE_RANK, 2) == ["fp32 fp16", "fp32", "fp32"]
    assert accepted(SIMILARITY_PRUNE, 2) == ["fp32", "fp32 fp16", "fp32"]


@needs_gxx
def test_enqueue_launches_what_it_was_given(drive: Drive) -> None:
    lines = drive("run", WEIGHTED_PAGE_RANK, *RANK, "--", "fp16", "[2,3,50,50]")
    assert "workspace: 1224" in lines
    assert lines[-2:] == [
        "page_rank iterations=30 batch=2 heads=3 tokens=50 fp16 attention=given survivors=null scores=given work=given",
        "enqueue: 0",
    ]
    lines = drive("run", WEIGHTED_PAGE_RANK, *RANK, "--", "fp32", "[2,3,50,50]", "fp32", "[2,50]")
    assert "fp32 attention=given survivors=given" in lines[-2]
    lines = drive("run", SIMILARITY_PRUNE, *PRUNE, "--", "fp32", "[2,50]", "fp16", "[2,3,50,16]")
    assert lines[-2] == ("prune drop=5 batch=2 heads=3 tokens=50 width=16 fp16 scores=given keys=given survivors=given")


@needs_gxx
def test_a_launch_that_fails_is_logged_and_returned(drive: Drive) -> None:
    lines = drive("run", SIMILARITY_PRUNE, *PRUNE, "--", "fp32", "[99,50]", "fp16", "[99,3,50,16]")
    assert lines[-1] == "enqueue: 1"
    assert "the launch for [99, 3, 50, 16] failed: invalid configuration argument" in lines[-2]
    lines = drive("run", SIMILARITY_PRUNE, *PRUNE, "--", "fp32", "[1,8]", "fp16", "[1,3,8,16]")
    assert lines[-1] == "change: 1"  # too few tokens at run time: nothing is launched


@needs_gxx
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm here")
def test_nothing_but_the_entry_points_is_exported(adapter: Path) -> None:
    assert exported_by(adapter / "libadapter.so") == EXPORTED


def exported_by(path: Path) -> set[str]:
    """Names that others may link to, without what g++ adds of the C++ library's own templates."""
    names = {line.split()[-1] for line in call("nm", "-D", "--defined-only", path).splitlines()}
    assert not any("ztdeploy" in name for name in names if name.startswith("_Z"))
    return {name for name in names if not name.startswith("_Z")}


@needs_gxx
def test_the_library_registers_itself_only_when_asked(adapter: Path, tmp_path: Path) -> None:
    both = [f"{name} in {NAMESPACE}" for name in (WEIGHTED_PAGE_RANK, SIMILARITY_PRUNE)]
    host = build_driver(tmp_path, VERSIONS["10.3"], "host")
    static = build_stub_library(tmp_path, VERSIONS["10.3"], "-DZT_STATIC_REGISTRATION")
    assert call(host, static).splitlines() == [*both, "opened: 1"]
    if "-11" not in adapter.name:
        assert call(host, adapter / "libadapter.so").splitlines() == ["opened: 1"]
        assert call(host, adapter / "libadapter.so", "register").splitlines() == ["opened: 1", *both, "registered: 2"]
    alone = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).zt_register_plugins())"
    assert call(sys.executable, "-c", alone, static) == "0\n"  # no TensorRT in that process: opened all the same


# --------------------------------------------------------------------------------------------------- library versions


@needs_gxx
def test_a_library_of_this_version_is_taken(adapter: Path) -> None:
    path = adapter / "libadapter.so"
    library.check_library(path)
    major, rest = divmod(ctypes.CDLL(str(path)).zt_tensorrt_version(), 10_000)
    assert (major, rest // 100) == VERSIONS[adapter.name.split("-")[1]]
    library.check_library(path, tensorrt_major=major)
    refused(
        lambda: library.check_library(path, tensorrt_major=9),
        f"was compiled for TensorRT {major}",
        "expected TensorRT 9",
        kind=EnvironmentLacksError,
    )


@needs_gxx
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            'extern "C" { const char* zt_plugin_version() { return "0.9"; } int zt_tensorrt_version() { return 0; } }',
            "has version '0.9'; expected",
        ),
        ("int unrelated;", "is no usable plugin library"),
    ],
)
def test_a_library_of_another_version_is_refused(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "other.cpp").write_text(source)
    call("g++", "-shared", "-fPIC", tmp_path / "other.cpp", "-o", tmp_path / "libother.so")
    refused(
        lambda: library.check_library(tmp_path / "libother.so"),
        message,
        "build the plugins again",
        kind=EnvironmentLacksError,
    )


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library\n")
    for name in ("text.so", "absent.so"):
        refused(
            lambda name=name: library.check_library(tmp_path / name),  # type: ignore[misc]
            "is no usable plugin library",
            kind=EnvironmentLacksError,
        )


def test_the_abi_has_one_home() -> None:
    assert re.fullmatch(r"\d+\.\d+", library.plugin_abi())
    text = (PLUGINS / "tensorrt" / "version.h").read_text()
    assert f'#define ZT_PLUGIN_NAMESPACE "{NAMESPACE}"' in text
    assert f'#define ZT_PLUGIN_VERSION "{VERSION}"' in text
    for name in (WEIGHTED_PAGE_RANK, SIMILARITY_PRUNE):
        assert any(f'kName = "{name}"' in path.read_text() for path in (PLUGINS / "tensorrt").glob("*.h"))


# ------------------------------------------------------------------------------------------------------ building it


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """A PATH of scripts that the test writes, and a folder that looks like TensorRT's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(library, "NVCC_FALLBACK", tmp_path / "nowhere")
    include = tmp_path / "tensorrt" / "include"
    include.mkdir(parents=True)
    (include / "NvInferRuntime.h").touch()
    monkeypatch.setenv("TENSORRT_ROOT", str(include.parent))

    def write(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)

    write("cmake", "echo cmake version 3.25.1")
    write("nvcc", "echo Cuda compilation tools, release 12.6")
    return write


def build(tmp_path: Path, capability: str = "8.7") -> Path:
    return library.build_library(tmp_path / "out", compute_capability=capability)


def test_missing_tools_are_named(tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.what_is_missing() == []
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path / "bin"))
    refused(lambda: build(tmp_path), "TensorRT's headers not found", "TENSORRT_ROOT", kind=EnvironmentLacksError)
    (tmp_path / "bin" / "nvcc").unlink()
    refused(lambda: build(tmp_path), "nvcc not found", "install the CUDA toolkit", kind=EnvironmentLacksError)
    (tmp_path / "bin" / "cmake").unlink()
    refused(lambda: build(tmp_path), "CMake not found", "install the package 'cmake'", kind=EnvironmentLacksError)
    assert [line.split(":")[0] for line in library.what_is_missing()] == ["CMake", "nvcc", "TensorRT's headers"]


@pytest.mark.parametrize("capability", ["", "87", "sm_87", "8.7; rm", "native", "0.1"])
def test_a_bad_compute_capability_is_refused(tools: Any, tmp_path: Path, capability: str) -> None:
    refused(lambda: build(tmp_path, capability), f"compute capability '{capability}'", kind=InputError)


def test_the_first_error_of_a_build_is_named(tools: Any, tmp_path: Path) -> None:
    answer = 'case "$1" in --version) echo 3.25;; --build) {};; *) {};; esac'
    tools("cmake", answer.format(":", "echo; echo 'CMake Error at CMakeLists.txt:5 (x):'; echo ' no luck'; exit 1"))
    message = refused(lambda: build(tmp_path), "configuring the plugin library failed", kind=EnvironmentLacksError)
    assert "CMake Error at CMakeLists.txt:5 (x): no luck" in message
    assert list((tmp_path / "out").glob("*.log"))  # all that was printed stays
    failing = "echo '[ 1%] Building'; echo 'a.cu(3): error: no such thing'; echo 'b.cu(4): error: more'; exit 2"
    tools("cmake", answer.format(failing, ":"))
    message = refused(lambda: build(tmp_path), "compiling the plugin library failed", kind=EnvironmentLacksError)
    assert "a.cu(3): error: no such thing" in message
    tools("cmake", answer.format(":", ":"))
    refused(lambda: build(tmp_path), "the build made no 'libztdeploy_plugins.so'", kind=EnvironmentLacksError)
    assert not list((tmp_path / "out").glob("*.so"))
    assert not list((tmp_path / "out").glob(".plugins-*"))


def test_a_build_that_hangs_is_ended_with_its_children(
    tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "CONFIGURE_TIMEOUT_S", 1)
    child = tmp_path / "child"
    tools("cmake", f'[ "$1" = --version ] && exit 0; /bin/sleep 900 & echo $! > {child}; wait')
    started = time.monotonic()
    refused(lambda: build(tmp_path), "took longer than 1 s", kind=EnvironmentLacksError)
    assert time.monotonic() - started < 600, "it waited for the child"
    assert not Path(f"/proc/{child.read_text().strip()}/exe").exists()


def test_a_tool_that_does_not_start_is_an_error(tools: Any, tmp_path: Path) -> None:
    (tmp_path / "bin" / "nvcc").write_bytes(b"\x7fELF broken")
    refused(lambda: build(tmp_path), "asking nvcc's version failed", kind=EnvironmentLacksError)


@needs_nvcc
@pytest.mark.skipif(library.find_headers() is not None, reason="TensorRT's headers are installed here")
def test_cmake_without_tensorrt_says_so_in_plain_words(tmp_path: Path) -> None:
    output = call(*configure(tmp_path / "build"), check=False)
    words = " ".join(output.split())
    assert "TensorRT's headers were not found (NvInferRuntime.h). On a Jetson install" in words
    assert "-DTENSORRT_ROOT=" in words


@needs_nvcc
@pytest.mark.long
def test_the_kernels_compile_without_tensorrt(tmp_path: Path) -> None:
    call(*configure(tmp_path / "build"), "-DZT_KERNELS_ONLY=ON")
    call("cmake", "--build", tmp_path / "build")
    assert list((tmp_path / "build").rglob("kernels.cu.o"))


def configure(build_folder: Path) -> list[str | Path]:
    nvcc = library._find_nvcc()
    options = ["-DCMAKE_CUDA_ARCHITECTURES=87", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    return ["cmake", "-S", PLUGINS, "-B", build_folder, *options]


@needs_nvcc
@needs_gxx
@pytest.mark.long
def test_the_whole_library_compiles_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(STUBS))
    path = build(tmp_path)
    made = path.stat().st_mtime_ns
    assert path.name.startswith("libztdeploy_plugins-sm87-")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert build(tmp_path).stat().st_mtime_ns == made
    assert exported_by(path) == EXPORTED
    driver = build_driver(tmp_path, VERSIONS["10.3"])
    lines = call(
        driver, path, "run", SIMILARITY_PRUNE, *PRUNE, "--", "fp32", "[2,50]", "fp16", "[2,3,50,16]"
    ).splitlines()
    assert "workspace: 0" in lines
    if not Path("/dev/nvidiactl").exists():  # with a device, the launch would read the driver's host memory
        assert "the launch for [2, 3, 50, 16] failed: " in lines[-2]
        assert lines[-1] == "enqueue: 1"


# ------------------------------------------------------------------------------------------- against TensorRT's headers


@needs_gxx
def test_the_sources_compile_against_tensorrts_headers() -> None:
    """Of as many versions as there are: folders, with colons between them. Nothing is compiled but the plain C++."""
    folders = [folder for folder in os.environ.get("ZTDEPLOY_TENSORRT_INCLUDE", "").split(os.pathsep) if folder]
    if not folders:
        pytest.skip("ZTDEPLOY_TENSORRT_INCLUDE is not set: no TensorRT headers here")
    includes = [f"-I{STUBS / 'cuda'}", f"-I{PLUGINS / 'tensorrt'}"]
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
    for folder in folders:
        for source in (PLUGINS / "tensorrt").glob("*.cpp"):
            call("g++", *flags, "-isystem", folder, *includes, source)


@pytest.fixture(scope="module")
def real_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    include = os.environ.get("ZTDEPLOY_TENSORRT_INCLUDE", "").split(os.pathsep)[0]
    if not include:
        pytest.skip("ZTDEPLOY_TENSORRT_INCLUDE is not set: no TensorRT headers here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORRT_ROOT", include)
        return library.build_library(tmp_path_factory.mktemp("real"), compute_capability="8.6")


@needs_nvcc
def test_the_library_compiles_against_tensorrts_headers(real_library: Path) -> None:
    assert exported_by(real_library) == EXPORTED


LOADS = """
import ctypes, sys, tempfile
from importlib.util import find_spec
from pathlib import Path
library, graph = sys.argv[1:]
libs = Path(next(iter(find_spec("tensorrt_rtx_libs").submodule_search_locations)))
names = Path(tempfile.mkdtemp())  # the ONNX parser opens a name that the wheel lacks
for name in ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"):
    (names / name).symlink_to(libs / name)
    (names / name[:-2]).symlink_to(libs / name)
for name in ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"):
    ctypes.CDLL(str(names / name), ctypes.RTLD_GLOBAL)
import tensorrt_rtx_bindings as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
assert builder.get_plugin_registry().load_library(library)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
parsed = parser.parse_from_file(graph)
if not parsed:
    sys.exit(str(parser.get_error(0)))
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM86, 0)
config.plugins_to_serialize = [library]
engine = bytes(builder.build_serialized_network(network, config))
assert Path(library).read_bytes()[:4096] in engine
"""


@needs_nvcc
@pytest.mark.parametrize("drop", [5, 40])
def test_tensorrt_rtx_builds_an_engine_with_the_library(real_library: Path, tmp_path: Path, drop: int) -> None:
    pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed here")
    if ctypes.CDLL(str(real_library)).zt_tensorrt_version() // 10_000 == 10:
        pytest.skip("TensorRT 10's logger interfaces are not those of TensorRT-RTX")
    graph = tmp_path / "graph.onnx"
    write_graph(graph, drop)
    done = subprocess.run(  # of its own: TensorRT-RTX ends the process where it cannot go on
        [sys.executable, "-c", LOADS, str(real_library), str(graph)],
        capture_output=True, text=True, timeout=HANG_S, check=False,
    )  # fmt: skip
    if drop == 5:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert "ztdeploy plugins: ZtSimilarityPrune: cannot drop 40 of 50 tokens" in done.stdout + done.stderr


def write_graph(path: Path, drop: int) -> None:
    import onnx
    from onnx import TensorProto, helper

    own = {"domain": NAMESPACE, "plugin_version": VERSION, "plugin_namespace": NAMESPACE}
    settings = {"iterations": 30, "boost": 1, "filter_heads": 1, "root_mean_square": 1}
    limits = {"variance_min": 0.01, "variance_max": 0.7}
    nodes = [
        helper.make_node(WEIGHTED_PAGE_RANK, ["attention"], ["scores"], **settings, **limits, **own),
        helper.make_node(SIMILARITY_PRUNE, ["scores", "keys"], ["survivors"], drop=drop, prefix_tokens=1, **own),
    ]
    inputs = [
        helper.make_tensor_value_info("attention", TensorProto.FLOAT16, [1, 3, 50, 50]),
        helper.make_tensor_value_info("keys", TensorProto.FLOAT16, [1, 3, 50, 16]),
    ]
    outputs = [helper.make_tensor_value_info("survivors", TensorProto.FLOAT, [1, 50])]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(NAMESPACE, 1)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), opset_imports=opsets, ir_version=9), path
    )
