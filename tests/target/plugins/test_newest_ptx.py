"""Which PTX a driver reads, which compiled plugins are ours, and what stands against ahead-of-time plugins."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from helpers.errors import refused

from ztdeploy.core.errors import EngineMismatchError, EnvironmentLacksError, MissingExtraError
from ztdeploy.target.backends.tensorrt import plugins
from ztdeploy.target.backends.tensorrt.cuda import Device
from ztdeploy.target.backends.tensorrt.plugins import ahead_of_time_plugins, cache_folder, compiled_before, newest_ptx

OURS = "libztdeploy_plugins-sm87-0123456789abcdef.so"


@pytest.mark.parametrize(
    ("cuda", "isa"),
    [
        ("11.4", (7, 4)),
        ("11.8", (7, 8)),
        ("12.0", (8, 0)),
        ("12.4", (8, 4)),
        ("12.5", (8, 5)),
        ("12.6", (8, 5)),  # brought no new one
        ("12.7", (8, 6)),
        ("12.8", (8, 7)),
        ("12.9", (8, 8)),
        ("13.0", (9, 0)),
        ("13.2", (9, 2)),
    ],
)
def test_the_newest_ptx_of_a_driver(cuda: str, isa: tuple[int, int]) -> None:
    """NVIDIA's PTX ISA manual, release notes."""
    assert newest_ptx(cuda) == isa


# -------------------- libraries that were compiled before


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, with one library in it that nothing may look into."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "ztdeploy" / "plugins"
    folder.mkdir(parents=True)
    assert cache_folder() == folder
    (folder / OURS).write_bytes(b"")
    return folder


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    """What was checked, and for which major version; it always passes."""
    calls: list[tuple[Path, int]] = []
    monkeypatch.setattr(plugins, "check_library", lambda path, tensorrt_major: calls.append((path, tensorrt_major)))
    return calls


def test_the_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/ztdeploy/target/plugins")


def test_one_of_ours_is_found_and_checked(cache: Path, checked: list[tuple[Path, int]]) -> None:
    assert compiled_before("10.3.0.30", OURS) == cache / OURS
    assert checked == [(cache / OURS, 10)]


def test_one_that_is_not_there_is_not_found(cache: Path, checked: list[tuple[Path, int]]) -> None:
    assert compiled_before("10.3.0.30", OURS.replace("87", "86")) is None
    assert checked == []


@pytest.mark.parametrize(
    "identity",
    [
        f"../{OURS}",
        f"../plugins/{OURS}",
        f"./{OURS}",
        f"sub/{OURS}",
        f"{OURS}/..",
        f"/tmp/{OURS}",
        "libevil.so",
        "libztdeploy_plugins.so",
        f"{OURS}.bak",
        f"{OURS}\n",
        f" {OURS}",
        OURS.replace("abcdef", "ABCDEF"),
        OURS.replace("abcdef", "abcde"),
        OURS.replace("sm87", "sm"),
        OURS.replace("sm87", "sm../87"),
        "ahead-of-time 0123456789abcdef",
        "",
        "..",
    ],
)
def test_a_name_from_a_bundle_chooses_among_our_files_only(
    identity: str, cache: Path, checked: list[tuple[Path, int]], tmp_path: Path
) -> None:
    """A file of that name is there: it is the name that is refused."""
    if identity.strip("./ \n") and not identity.startswith("/"):
        place = cache / identity
        if not place.resolve().exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"")
    assert compiled_before("10.3.0.30", identity) is None
    assert checked == [], "its code would have run"


def test_one_for_another_tensorrt_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: compiled_before("11.0.0", OURS), OURS, "no usable plugin library", kind=EnvironmentLacksError)


# -------------------- loading them


class Registry:
    def __init__(self, *, accepts: bool = True) -> None:
        self.accepts, self.loaded = accepts, list[str]()

    def get_plugin_registry(self) -> Registry:
        return self

    def load_library(self, path: str) -> bool:
        self.loaded.append(path)
        return self.accepts


def test_a_library_at_hand_needs_no_compiler(
    cache: Path, checked: list[tuple[Path, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "plugin_library", lambda _: pytest.fail("compiled"))
    registry = Registry()
    plugins.load_plugins(registry, "10.3.0", Path("bundle/graphs/x.engine"), OURS)
    assert registry.loaded == [str(cache / OURS)]


def test_plugins_of_another_package_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = OURS.replace("abcdef", "fedcba")
    now = SimpleNamespace(identity=OURS, library=cache / OURS)
    monkeypatch.setattr(plugins, "plugin_library", lambda _: now)
    registry = Registry()
    refused(
        lambda: plugins.load_plugins(registry, "10.3.0", Path("bundle/graphs/x.engine"), other),
        "'x.engine'",
        other,
        OURS,
        "ztdeploy finalize bundle",
        kind=EngineMismatchError,
    )
    assert registry.loaded == []


def test_a_library_that_does_not_register_is_refused(cache: Path, checked: list[tuple[Path, int]]) -> None:
    refused(
        lambda: plugins.load_plugins(Registry(accepts=False), "10.3.0", Path("bundle/graphs/x.engine"), OURS),
        "refuses the plugin library",
        OURS,
        kind=EnvironmentLacksError,
    )


# -------------------- ahead of time


def install(monkeypatch: pytest.MonkeyPatch, version: str, *, plugin: bool = True, aot: bool = True) -> None:
    """A TensorRT of some version, which has a plugin module or not."""
    tensorrt, module = ModuleType("tensorrt"), ModuleType("tensorrt.plugin")
    tensorrt.__version__ = version  # type: ignore[attr-defined]
    if aot:
        module.aot_impl = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", module if plugin else None)


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(name="Orin", capability="8.7", integrated=True, driver="12.6")
    monkeypatch.setattr(plugins, "open_device", lambda: device)


def test_without_tensorrt_it_says_what_to_install(orin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    refused(ahead_of_time_plugins, "'tensorrt'", "pip install 'ztdeploy[tensorrt]'", kind=MissingExtraError)


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0.30", "10.8.0.43"])
def test_an_old_tensorrt_is_refused(version: str, orin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version)
    refused(ahead_of_time_plugins, f"TensorRT {version}", "TensorRT 10.9 or newer", kind=EnvironmentLacksError)


@pytest.mark.parametrize("lacking", ["plugin", "aot"])
def test_a_tensorrt_built_without_the_module_is_refused(
    lacking: str, orin: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10.13.2.6", **{lacking: False})
    refused(ahead_of_time_plugins, "has no ahead-of-time plugins", kind=EnvironmentLacksError)


def test_the_ptx_is_one_that_the_driver_reads(orin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    install(monkeypatch, "10.13.2.6")

    def compile_ptx(sm: str, **options: Any) -> SimpleNamespace:
        asked.append({"sm": sm, **options})
        return SimpleNamespace(text="PTX")

    monkeypatch.setattr(plugins, "compile_ptx", compile_ptx)
    found = ahead_of_time_plugins()
    assert asked == [{"sm": "sm_87", "max_isa": (8, 5)}]
    assert found.library is None
    assert found.ahead_of_time is not None
    assert (found.ahead_of_time.sm, found.ahead_of_time.max_isa) == ("sm_87", (8, 5))
    assert found.identity == ahead_of_time_plugins().identity
    monkeypatch.setattr(plugins, "compile_ptx", lambda sm, **_: SimpleNamespace(text="other PTX"))
    assert ahead_of_time_plugins().identity != found.identity
