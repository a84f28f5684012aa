"""Fixtures that several folders of tests share."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import processes
from helpers.fake_device import FakeDevice, c_compiler, make_device
from helpers.processes import end_preloaded, end_started
from PIL import Image

from ztdeploy.core.locks import only_one
from ztdeploy.core.model_source import ModelSource

#: Files that take minutes and would be collected late. Workers begin with them, so that none waits at the end.
FIRST = ("docs/test_what_readers_type.py", "tests/test_readme.py", "test_tensorrt_build.py", "test_openvino.py")


def pytest_configure(config: pytest.Config) -> None:
    """Workers share the cores out, so that threads of one do not wait for those of another."""
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        gc.disable()  # until all is imported and collected
    if worker is not None and hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]
        if own:
            os.sched_setaffinity(0, own)


@pytest.hookimpl(tryfirst=True)  # ahead of what chooses by `-m`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Parameters that a test's marker `short` leaves out belong to the long tail."""
    for item in items:
        short = item.get_closest_marker("short")
        if short is not None and not any(word in item.name for word in short.args):
            item.add_marker(pytest.mark.long)
    items.sort(key=lambda item: not item.path.as_posix().endswith(FIRST))


def pytest_collection_finish() -> None:
    """Garbage is sought in what tests make, and not time and again in PyTorch's modules and ten thousand tests."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Libraries report what Python does not free at its end."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> Iterator[None]:
    """A shell starts what runs in the background with SIGINT ignored, and every child inherits that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _children_end() -> Iterator[None]:
    """What a test has started ends with it, however it ends."""
    yield
    end_started()


@pytest.fixture(scope="session", autouse=True)
def _preloaded_ends() -> Iterator[None]:
    """The process that commands are forked from ends with pytest."""
    yield
    end_preloaded()


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder with a trained DeiT-Tiny and labelled photographs."""
    folder = os.environ.get("ZTDEPLOY_REALDATA")
    if not folder:
        pytest.skip("ZTDEPLOY_REALDATA is not set: no trained DeiT-Tiny and photographs here")
    path = Path(folder)
    assert (path / "labels.json").is_file(), f"ZTDEPLOY_REALDATA={folder} holds no labels.json"
    return path


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of one run of pytest share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def _traces(common: Path) -> Iterator[None]:
    """Where all processes of the run find and leave traces that a build keeps nowhere: one takes seconds, and many
    tests want the same.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "SHARED", common)
        patch.setattr(
            "ztdeploy.jobs.build.trace_store",
            lambda cache, **_: importlib.import_module("ztdeploy.host.traces").TraceStore(cache or common / "traces"),
        )
        yield


@pytest.fixture(scope="session")
def digits_bundle(common: Path, _traces: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the shipped model: keep ratios 0.7, 0.5 and dense, with cpu engines. Never change it in place.

    Its method is the paper's, whose three layers with two stages show most; the variants' names are those of ratios.
    Each process has its own copy.
    """
    return own_copy("digits", common, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def cascade_bundle(
    common: Path, _traces: None, digit_images: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same with a cascade of all three, calibrated on 100 digits for an agreement of 0.95. Never change it."""
    from ztdeploy.core.cascade import CascadeGoal
    from ztdeploy.core.manifest import GateLimits
    from ztdeploy.jobs.request import Gate

    folder = tmp_path_factory.mktemp("cascade")
    images = folder / "some digits"
    images.mkdir()
    for image in digit_images[:100]:
        shutil.copy(image, images)
    asked = {"gate": Gate(images, GateLimits()), "cascade": CascadeGoal(agreement=0.95)}
    return own_copy("cascade", common, folder, **asked)


def own_copy(name: str, common: Path, folder: Path, **asked: Any) -> Path:
    """A copy of a bundle that all processes share, which the first of them builds."""
    from ztdeploy.core.keep_ratio import uniform_schedule
    from ztdeploy.jobs.build import BuildRequest, build

    built = common / "bundles" / name
    with only_one(common / f"{name}.lock"):
        if not built.exists():
            build(
                BuildRequest(
                    model=ModelSource(name="vit_digits"),
                    profiles=("cpu", "jetson-orin"),
                    schedules=tuple(
                        uniform_schedule(ratio, 12, method="zero-tprune").model_copy(update={"name": name})
                        for ratio, name in ((0.7, "keep-0.70"), (0.5, "keep-0.50"))
                    ),
                    out=built,
                    **asked,
                )
            )
    return Path(shutil.copytree(built, folder / name))


@pytest.fixture
def bundle_copy(digits_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the shipped model's bundle, to be damaged."""
    return Path(shutil.copytree(digits_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def digit_images() -> list[Path]:
    """The held-out digits; a file's name ends in its label."""
    from ztdeploy.host.models.catalogue import ASSETS

    return sorted((ASSETS / "digits" / "images").glob("*.png"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder, as the one that it runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def slow_images(tmp_path: Path) -> Path:
    """Images that take a while to decode: 64 names of one large file."""
    folder = tmp_path / "slow"
    folder.mkdir()
    Image.effect_noise((1600, 1600), 80).convert("RGB").save(folder / "000.jpg")
    for index in range(1, 64):
        (folder / f"{index:03d}.jpg").hardlink_to(folder / "000.jpg")
    return folder


@pytest.fixture(scope="session")
def fake_device(tmp_path_factory: pytest.TempPathFactory) -> FakeDevice:
    """A Jetson Orin that isn't there, for child processes."""
    if c_compiler() is None:
        pytest.skip("no C compiler here: the fake device's driver is written in C")
    return make_device(tmp_path_factory.mktemp("device"))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that anybody may enter; pytest's own may only its owner."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def children(monkeypatch):
    """The processes that a measurement starts."""
    started, popen = [], subprocess.Popen

    def recording(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", recording)
    return started
