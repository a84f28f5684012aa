"""Which compiled plugins are ours, and how an engine gets them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.errors import refused

from ztdeploy.core.errors import EngineMismatchError, EnvironmentLacksError
from ztdeploy.target.backends.tensorrt import plugins
from ztdeploy.target.backends.tensorrt.plugins import cache_folder, compiled_before

OURS = "libztdeploy_plugins-sm87-0123456789abcdef.so"


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
    assert cache_folder() == Path("/home/somebody/.cache/ztdeploy/plugins")


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
