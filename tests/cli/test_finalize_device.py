"""From the host's bundle to engines on the board: real processes, on a Jetson that is a double (see `fake_device`)."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bundles import edit
from helpers.fake_device import CHECKOUT, DEVICE, VERSION, Done, FakeDevice
from helpers.leftovers import dead_folder, leftovers
from helpers.processes import HANG_S, result_in, started, wait_for
from helpers.triton_config import parsed

from ztdeploy.core.bundle import MANIFEST, read_bundle, sha256_of
from ztdeploy.core.manifest import EngineRecord, GraphRecord, Manifest
from ztdeploy.jobs.export import export_bundle
from ztdeploy.target.backends.tensorrt.plugins import cache_folder as plugin_cache
from ztdeploy.target.bundle_readme import README

PROFILE = "jetson-orin"
PRUNED, DENSE = "keep-0.70", "dense"
LABELS = [f"{PRUNED} ({PROFILE})", f"{DENSE} ({PROFILE})"]
#: Another way of the same: part of the long tail.
long = pytest.mark.long
FAST, SLOW = {"FAKE_TRT_FAST_PLUGINS": "1"}, {"FAKE_TRT_SLOW_PLUGINS": "1"}


@dataclass(frozen=True)
class Finalized:
    """A bundle that was finalized, and how that went. Never change it in place."""

    bundle: Path
    done: Done
    builds: list[dict[str, Any]]
    cmake: list[str]

    @property
    def manifest(self) -> Manifest:
        return read_bundle(self.bundle).manifest

    def engine(self, variant: str) -> EngineRecord:
        return read_bundle(self.bundle).variant(name=variant).engines[PROFILE]


Finalize = Callable[..., Finalized]


def run_finalize(device: FakeDevice, bundle: Path, *arguments: str, **options: Any) -> Finalized:
    log, cmake = bundle.with_suffix(".builds"), bundle.with_suffix(".cmake")
    for path in (log, cmake):
        path.write_text("")
    arguments = arguments or ("--profile", PROFILE)
    paths = {"FAKE_TRT_LOG": str(log), "FAKE_CMAKE_LOG": str(cmake)}
    done = device.ztdeploy("finalize", bundle, "--json", *arguments, **paths, **options)
    builds = [json.loads(line) for line in log.read_text().splitlines()]
    return Finalized(bundle, done, builds, cmake.read_text().splitlines())


def only(variants: tuple[str, ...]) -> Callable[[Any], None]:
    """An edit of the manifest: fewer variants, so that a finalize takes less time."""

    def change(manifest: Any) -> None:
        manifest["variants"] = [variant for variant in manifest["variants"] if variant["name"] in variants]
        manifest["default_variant"] = variants[0]

    return change


def graph_of(bundle: Path, variant: str) -> GraphRecord:
    return read_bundle(bundle).variant(name=variant).graphs[PROFILE]


def name_of(dense: Path) -> str:
    """What messages call the graph of the dense variant."""
    return Path(graph_of(dense, DENSE).file).name


def workspace(mib: int) -> Callable[[Any], None]:
    """An edit of the manifest: so much workspace for builds."""
    return lambda manifest: manifest["profiles"][PROFILE]["tensorrt"].update(workspace_mib=mib)


def copy_of(bundle: Path, folder: Path, *variants: str) -> Path:
    copy = Path(shutil.copytree(bundle, folder / "bundle"))
    return edit(copy, only(variants)) if variants else copy


@pytest.fixture(scope="module")
def from_host(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the host made, as it arrives on the board: one pruned variant and the dense one."""
    return copy_of(digits_bundle, tmp_path_factory.mktemp("host"), PRUNED, DENSE)


@pytest.fixture(scope="module")
def finalized(fake_device: FakeDevice, from_host: Path, tmp_path_factory: pytest.TempPathFactory) -> Finalized:
    """Finalized where plugins are faster than plain graphs."""
    bundle = copy_of(from_host, tmp_path_factory.mktemp("finalized"))
    ready = run_finalize(fake_device, bundle, **FAST)
    assert ready.done.code == 0, ready.done.err
    return ready


@pytest.fixture
def bundle(from_host: Path, tmp_path: Path) -> Path:
    """Both variants, not finalized."""
    return copy_of(from_host, tmp_path)


@pytest.fixture
def dense(from_host: Path, tmp_path: Path) -> Path:
    """The dense variant alone: one engine, which needs no plugins."""
    return copy_of(from_host, tmp_path, DENSE)


@pytest.fixture
def ready(finalized: Finalized, tmp_path: Path) -> Path:
    """A copy of the finalized bundle."""
    return copy_of(finalized.bundle, tmp_path)


def snapshot(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def listed(folder: Path) -> set[str]:
    return {*read_bundle(folder).manifest.files, MANIFEST}


def refused(done: Done, code: int, *words: str) -> str:
    """The message of a refusal: one line, said to people and to programs alike."""
    assert done.code == code, done
    message = done.error
    assert "this is a bug" not in message
    assert "Traceback" not in done.err
    for word in words:
        assert word in message, message
    assert done.out == "" or done.json() == {"message": message.removeprefix("error: "), "exit_code": code}
    return message


# -------------------- what a finalize leaves


def test_both_variants_get_engines_and_the_faster_kind_is_kept(finalized: Finalized) -> None:
    report = finalized.done.json()
    assert report["rebuilt"] == LABELS
    assert report["notes"] == []
    assert [(build["plugins"], build["workspace_mib"] > 64) for build in finalized.builds] == [
        (False, True),
        (True, True),
        (False, True),
    ]
    plain, plugins = finalized.engine(PRUNED).candidates
    assert (plain.plugins, plugins.plugins) == ("none", "library")
    assert plain.median_ms > plugins.median_ms > 0
    assert finalized.engine(DENSE).candidates == ()


def test_engines_say_what_they_are_bound_to(finalized: Finalized, fake_device: FakeDevice) -> None:
    manifest = finalized.manifest
    (library,) = (fake_device.folder / "cache" / "ztdeploy" / "plugins").glob("*.so")
    assert library.name.startswith("libztdeploy_plugins-sm87-")
    for name, source, plugins in (
        (PRUNED, graph_of(finalized.bundle, PRUNED).plugin_file, library.name),
        (DENSE, graph_of(finalized.bundle, DENSE).file, None),
    ):
        assert source is not None
        engine = finalized.engine(name)
        assert engine.file == f"graphs/{name}.{PROFILE}.engine"
        assert engine.backend == engine.fingerprint.runtime == "tensorrt"
        assert engine.fingerprint.runtime_version == VERSION
        assert engine.fingerprint.device == DEVICE
        assert engine.fingerprint.plugins == plugins
        assert engine.fingerprint.graph_sha256 == manifest.files[source].sha256


def test_engines_are_proved(finalized: Finalized) -> None:
    """In fp16, each image on the engine's own choice of tokens."""
    for variant in finalized.manifest.variants:
        parity, drift = variant.engines[PROFILE].parity, variant.graphs[PROFILE].drift
        assert parity is not None
        assert drift is not None
        assert parity.images == 4
        assert parity.gap_tolerance is None
        assert parity.logit_tolerance is not None
        assert drift.emulated
        assert not parity.replayed
        assert 1e-5 < parity.judged == parity.median_logit_difference <= parity.logit_tolerance < 1
        assert [layer.block for layer in parity.layers] == [layer.block for layer in variant.plan.layers]
        assert all(layer.overlap > 0.9 and layer.identical + layer.ties == 4 for layer in parity.layers)


def test_nothing_is_missing_and_nothing_is_left_over(finalized: Finalized, from_host: Path) -> None:
    assert [(one.kind, one.profile) for one in read_bundle(from_host).manifest.missing] == [("engines", PROFILE)]
    assert finalized.manifest.missing == ()
    assert "finalize BUNDLE" in (from_host / README).read_text()
    assert "finalize BUNDLE" not in (finalized.bundle / README).read_text()
    assert set(snapshot(finalized.bundle)) == listed(finalized.bundle)
    read_bundle(finalized.bundle).verify_files()
    added = listed(finalized.bundle) - listed(from_host)
    names = (f"{PRUNED}.{PROFILE}.engine", f"{DENSE}.{PROFILE}.engine", f"timing.{PROFILE}.cache")
    assert added == {f"graphs/{name}" for name in names}
    before, after = snapshot(from_host), snapshot(finalized.bundle)
    assert {name for name in before if after[name] != before[name]} == {MANIFEST, README}


def test_the_library_was_compiled_once_for_this_gpu(finalized: Finalized) -> None:
    configured = [line for line in finalized.cmake if line.startswith("-S")]
    assert len(configured) == 1
    assert "-DCMAKE_CUDA_ARCHITECTURES=87" in configured[0]
    assert len([line for line in finalized.cmake if line.startswith("--build")]) == 1


def test_verifying_lists_the_boards_engines(finalized: Finalized, fake_device: FakeDevice) -> None:
    before = snapshot(finalized.bundle)
    done = fake_device.ztdeploy("verify", finalized.bundle, "--json")
    assert done.code == 0, done.err
    report = done.json()
    assert list(report["variants"]) == [f"{PRUNED} (cpu)", f"{DENSE} (cpu)", *LABELS]
    assert report["not_run"] == {}
    for label, name in zip(LABELS, (PRUNED, DENSE), strict=True):
        parity = finalized.engine(name).parity
        assert parity is not None
        assert report["variants"][label] == parity.model_dump(mode="json")
    assert snapshot(finalized.bundle) == before


@long
def test_a_cascade_gets_its_pieces(
    cascade_bundle: Path, fake_device: FakeDevice, digit_images: list[Path], tmp_path: Path
) -> None:
    """The prefix first; tails are proved behind it, those that prune also with plugins. Then the board runs them."""
    bundle = copy_of(cascade_bundle, tmp_path)
    found = run_finalize(fake_device, bundle, **FAST)
    assert found.done.code == 0, found.done.err
    names = ["keep-0.70", "keep-0.50", "dense", "prefix", "tail.keep-0.50", "tail.keep-0.70", "tail.dense"]
    assert found.done.json()["rebuilt"] == [f"{name} ({PROFILE})" for name in names]
    cascade = found.manifest.cascade
    assert cascade is not None
    assert found.manifest.missing == ()
    tails = [stage.engines[PROFILE] for stage in cascade.stages]
    assert [len(tail.candidates) for tail in tails] == [2, 2, 0]
    assert all(tail.parity is not None for tail in tails)
    done = fake_device.ztdeploy("verify", bundle, "--profile", PROFILE, "--json")
    assert done.code == 0, done.err
    assert list(done.json()["cascade"]) == names[-3:]
    done = fake_device.ztdeploy("run", bundle, *digit_images[:19], "--cascade", "--profile", PROFILE, "--json")
    assert done.code == 0, done.err
    assert sum(done.json()["cascade"]["answered"].values()) == 19


# -------------------- running


def test_the_board_predicts_what_the_cpu_does(
    finalized: Finalized, fake_device: FakeDevice, digit_images: list[Path]
) -> None:
    """More images than fit into the largest batch."""
    images = digit_images[:19]
    answers = {}
    for profile in ("cpu", PROFILE):
        done = fake_device.ztdeploy("run", finalized.bundle, *images, "--profile", profile, "--json")
        assert done.code == 0, done.err
        answers[profile] = done.json()["images"]
        assert done.json()["variant"] == PRUNED
    assert len(answers[PROFILE]) == 19
    for ours, theirs, image in zip(answers[PROFILE], answers["cpu"], images, strict=True):
        assert ours["kept_patches"] == theirs["kept_patches"] == [45, 32, 23]
        assert ours["labels"][0]["name"] == theirs["labels"][0]["name"] == image.stem[-1]
        assert ours["labels"][0]["probability"] == pytest.approx(theirs["labels"][0]["probability"], abs=0.05)


BATCHES = """
import json, sys
import numpy as np
import ztdeploy
from ztdeploy.target.runtime.preprocess import load_pixels
bundle, *images = sys.argv[1:]
with ztdeploy.load(bundle, profile="jetson-orin") as runner:
    pixels = load_pixels(images, runner.bundle.manifest.preprocess)
    single = [runner.infer(pixels[i : i + 1]) for i in range(len(pixels))]
    worst = {}
    for size in (3, 1, 8, 2, 4, 5, 6, 7, 9, 16, 17, 1):
        outputs = runner.infer(pixels[:size])
        assert len(outputs.logits) == size
        for index in range(size):
            difference = float(np.abs(outputs.logits[index] - single[index].logits[0]).max())
            worst[size] = max(worst.get(size, 0), difference)
            for ours, theirs in zip(outputs.kept, single[index].kept):
                assert np.isin(ours[index], theirs[0]).mean() > 0.9
    runner.switch(keep_ratio=1.0)
    dense = runner.infer(pixels[:2]).logits
    runner.switch(keep_ratio=0.7)
    again = runner.infer(pixels[:1]).logits
    assert np.array_equal(again, single[0].logits), "after switching there and back"
    assert not np.array_equal(dense[:1], again)
json.dump(worst, sys.stdout)
"""


def test_batches_of_every_size(finalized: Finalized, fake_device: FakeDevice, digit_images: list[Path]) -> None:
    """One engine with an optimization profile per batch size of the hardware profile, whose limits are enforced."""
    done = fake_device.python("-c", BATCHES, finalized.bundle, *digit_images[:17])
    assert done.code == 0, done.err
    worst = json.loads(done.out)
    assert set(worst) == {*map(str, range(1, 10)), "16", "17"}
    assert max(worst.values()) < 0.1


def test_triton_gets_engines_with_all_that_they_give(finalized: Finalized, tmp_path: Path) -> None:
    report = export_bundle(finalized.bundle, tmp_path / "models", "triton", profile=PROFILE)
    bundle = read_bundle(finalized.bundle)
    profile, notes = bundle.manifest.profiles[PROFILE], "\n".join(report.notes)
    assert f"tensorrt {VERSION} in the server, on {DEVICE}" in notes
    plugins = finalized.engine(PRUNED).fingerprint.plugins
    assert f"--backend-config=tensorrt,plugins={plugin_cache() / plugins}" in notes
    for model in report.models:
        folder, variant = tmp_path / "models" / model.name, bundle.variant(name=model.variant)
        said = parsed((folder / "config.pbtxt").read_text())
        assert (said.backend, said.default_model_filename) == ("tensorrt", "model.plan")
        assert (folder / "1" / "model.plan").read_bytes() == bundle.path(variant.engines[PROFILE].file).read_bytes()
        assert (said.max_batch_size, said.input[0].data_type, list(said.input[0].dims)) == (8, 1, [32, 32, 3])
        (group,) = said.instance_group
        assert (group.kind, list(group.profile)) == (2, [str(index) for index in range(len(profile.batch.sizes))])
        wanted = {"logits": [10]}
        wanted |= {f"blocks.{layer.block}/prune/kept": [layer.tokens_out] for layer in variant.plan.layers}
        assert {one.name: list(one.dims) for one in said.output if "into" not in one.name} == wanted


def test_a_finalized_bundle_can_be_moved(ready: Path, fake_device: FakeDevice, tmp_path: Path) -> None:
    moved = ready.rename(tmp_path / "some where else")
    done = fake_device.ztdeploy("verify", moved, "--profile", PROFILE, "--json")
    assert done.code == 0, done.err
    assert set(done.json()["variants"]) == {PRUNED, DENSE}


def test_the_host_can_still_use_what_the_board_finalized(finalized: Finalized, tmp_path: Path) -> None:
    """Where neither TensorRT nor a GPU is."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-m", "ztdeploy", "verify", str(finalized.bundle), "--json"]
    found = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "tensorrt" in sys.modules:
        pytest.skip("TensorRT is installed here: its engines' own version decides")
    assert found.returncode == 0, found.stderr
    report = result_in(found.stdout)
    assert set(report["variants"]) == {PRUNED, DENSE}
    assert "tensorrt" in report["not_run"][PROFILE]


# -------------------- once more


def test_a_second_finalize_knows_the_timings_and_may_choose_otherwise(
    ready: Path, fake_device: FakeDevice, finalized: Finalized
) -> None:
    again = run_finalize(fake_device, ready, **SLOW)
    assert again.done.code == 0, again.done.err
    assert [build["already_timed"] for build in finalized.builds] == [False, False, False]
    assert [build["known_tactics"] for build in finalized.builds] == [0, 1, 2]
    assert [build["already_timed"] for build in again.builds] == [True, True, True]
    assert not [line for line in again.cmake if line.startswith(("-S", "--build"))], "compiled again"
    engine = again.engine(PRUNED)
    plain, plugins = engine.candidates
    assert plain.median_ms < plugins.median_ms
    assert engine.fingerprint.plugins is None
    assert engine.fingerprint.graph_sha256 == again.manifest.files[graph_of(ready, PRUNED).file].sha256
    assert set(snapshot(ready)) == listed(ready) == listed(finalized.bundle)
    read_bundle(ready).verify_files()


def test_without_a_profile_everything_that_runs_here_is_built(bundle: Path, fake_device: FakeDevice) -> None:
    done = fake_device.ztdeploy("finalize", bundle, **FAST)
    assert done.code == 0, done.err
    assert done.err.splitlines()[-1].startswith("rebuilt and verified 4 engines: ")
    assert "plugins (library)" in done.out
    assert "measured here" in done.out
    assert set(snapshot(bundle)) == listed(bundle)
    read_bundle(bundle).verify_files()


@pytest.mark.parametrize("verb", ["verify", pytest.param("run", marks=long)])
def test_another_tensorrt_version_says_what_to_run(
    finalized: Finalized, fake_device: FakeDevice, digit_images: list[Path], verb: str
) -> None:
    arguments = [digit_images[0]] if verb == "run" else []
    done = fake_device.ztdeploy(verb, finalized.bundle, *arguments, "--profile", PROFILE, FAKE_TRT_VERSION="10.7.0")
    refused(done, 6, "tensorrt 10.3.0", "10.7.0", f"ztdeploy finalize {finalized.bundle}")


def test_another_tensorrt_version_can_finalize_again(ready: Path, fake_device: FakeDevice) -> None:
    """What the older one timed is of no use to it; from 11 on no flag asks for strong typing."""
    again = run_finalize(fake_device, edit(ready, only((DENSE,))), FAKE_TRT_VERSION="11.0.0")
    assert again.done.code == 0, again.done.err
    assert [build["known_tactics"] for build in again.builds] == [0]
    assert again.engine(DENSE).fingerprint.runtime_version == "11.0.0"
    done = fake_device.ztdeploy("verify", ready, "--profile", PROFILE, FAKE_TRT_VERSION="11.0.0")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    "other",
    [
        {"FAKE_CUDA_NAME": "Orin (another)"},
        pytest.param({"FAKE_CUDA_CAPABILITY": "7.2", "FAKE_CUDA_NAME": "Xavier"}, marks=long),
    ],
)
def test_another_device_says_what_to_run(finalized: Finalized, fake_device: FakeDevice, other: dict[str, str]) -> None:
    done = fake_device.ztdeploy("verify", finalized.bundle, "--profile", PROFILE, **other)
    refused(done, 6, DEVICE, other["FAKE_CUDA_NAME"], f"ztdeploy finalize {finalized.bundle}")


def test_a_device_that_the_profile_isnt_for_is_refused(dense: Path, fake_device: FakeDevice) -> None:
    before = snapshot(dense)
    done = run_finalize(fake_device, dense, FAKE_CUDA_CAPABILITY="7.2", FAKE_CUDA_NAME="Xavier").done
    refused(done, 6, "Xavier", "7.2")
    assert snapshot(dense) == before


def test_a_driver_that_fails_is_named(dense: Path, fake_device: FakeDevice) -> None:
    done = run_finalize(fake_device, dense, FAKE_CUDA_FAIL="cuInit", FAKE_CUDA_CODE="100").done
    refused(done, 6, "cuInit", "no CUDA-capable device")


@long
def test_a_library_that_is_gone_is_compiled_again(
    finalized: Finalized, fake_device: FakeDevice, tmp_path: Path
) -> None:
    """As for another user of the same board."""
    done = fake_device.ztdeploy("verify", finalized.bundle, "--profile", PROFILE, XDG_CACHE_HOME=str(tmp_path))
    assert done.code == 0, done.err
    assert len(list(tmp_path.rglob("*.so"))) == 1


@long
def test_an_engine_with_plugins_runs_where_the_tools_have_gone(finalized: Finalized, fake_device: FakeDevice) -> None:
    """The library is compiled already: a service with a bare PATH, or a board tidied up, needs no compiler."""
    done = fake_device.ztdeploy("verify", finalized.bundle, "--profile", PROFILE, tools=False)
    assert done.code == 0, done.err


# -------------------- failures that must leave the bundle alone


@pytest.mark.parametrize("how", [pytest.param("nan", marks=long), "kept"])
def test_wrong_results_are_no_engine(bundle: Path, fake_device: FakeDevice, how: str) -> None:
    before = snapshot(bundle)
    done = run_finalize(fake_device, bundle, FAKE_TRT_WRONG=how).done
    refused(done, 5, PRUNED, "keeps" if how == "kept" else "logits")
    assert snapshot(bundle) == before


def test_an_engine_that_goes_wrong_later_is_found(finalized: Finalized, fake_device: FakeDevice) -> None:
    done = fake_device.ztdeploy("verify", finalized.bundle, "--profile", PROFILE, FAKE_TRT_WRONG="1")
    refused(done, 5, PRUNED, "logits")


def test_out_of_memory_is_tried_with_less_workspace(dense: Path, fake_device: FakeDevice) -> None:
    found = run_finalize(fake_device, edit(dense, workspace(600)), FAKE_TRT_OOM_ABOVE_MIB="200")
    assert found.done.code == 0, found.done.err
    assert [build["workspace_mib"] for build in found.builds] == [600, 300, 150]


@long
def test_out_of_memory_to_the_end_is_an_error(dense: Path, fake_device: FakeDevice) -> None:
    before = snapshot(edit(dense, workspace(130)))
    found = run_finalize(fake_device, dense, FAKE_TRT_OOM_ABOVE_MIB="1")
    refused(found.done, 6, "memory ran out", name_of(dense), "64 MiB")
    assert [build["workspace_mib"] for build in found.builds] == [130, 65, 64]
    assert snapshot(dense) == before


@pytest.mark.parametrize(
    ("number", "word", "tries"),
    [pytest.param(signal.SIGSEGV, "SIGSEGV", 1, marks=long), (signal.SIGKILL, "memory", 2)],
)
def test_a_build_that_dies_is_an_error(
    dense: Path, fake_device: FakeDevice, number: signal.Signals, word: str, tries: int
) -> None:
    """SIGKILL is how Linux ends a process that takes too much memory: less may be enough."""
    before = snapshot(edit(dense, workspace(100)))
    found = run_finalize(fake_device, dense, FAKE_TRT_DIE=str(int(number)))
    refused(found.done, 6, name_of(dense), word)
    assert len(found.builds) == tries
    assert snapshot(dense) == before


def test_a_graph_that_tensorrt_refuses_is_the_bundles_error(dense: Path, fake_device: FakeDevice) -> None:
    before = snapshot(dense)
    refused(run_finalize(fake_device, dense, FAKE_TRT_UNBUILDABLE="1").done, 4, name_of(dense), "Error Code 10")
    assert snapshot(dense) == before


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param({"FAKE_TRT_REFUSE": "1"}, marks=long),
        {"FAKE_CUDA_MEMORY": "5000"},
    ],
    ids=["refuses", "no-memory"],
)
def test_an_engine_that_cannot_run_is_an_error_with_a_remedy(
    dense: Path, fake_device: FakeDevice, trouble: dict[str, str]
) -> None:
    before = snapshot(dense)
    refused(run_finalize(fake_device, dense, **trouble).done, 6)
    assert snapshot(dense) == before


def test_an_interrupted_finalize_leaves_nothing_behind(dense: Path, fake_device: FakeDevice) -> None:
    before = snapshot(dense)
    process = started(
        [sys.executable, "-m", "ztdeploy", "finalize", str(dense), "--profile", PROFILE],
        env=fake_device.environment(FAKE_TRT_SLEEP=str(HANG_S), FAKE_TRT_LOG=str(dense.with_suffix(".builds"))),
    )
    wait_for(dense.with_suffix(".builds").exists, process)
    assert leftovers(dense)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the build gets it as well
    _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, err
    assert snapshot(dense) == before
    assert leftovers(dense) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_killed_finalize_is_cleaned_up_by_the_next(dense: Path, fake_device: FakeDevice) -> None:
    scratch = dead_folder(dense / "graphs")
    (scratch / f"timing.{PROFILE}.cache").write_bytes(b"half a cache")
    found = run_finalize(fake_device, dense)
    assert found.done.code == 0, found.done.err
    assert found.builds[0]["known_tactics"] == 0
    assert not scratch.exists()
    assert set(snapshot(dense)) == listed(dense)


# -------------------- what came over the wire


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage", "code"),
    [
        ("graphs/weights.safetensors", truncate, 4),
        ("plugin graph", Path.unlink, 4),
        pytest.param("golden/dense.npz", truncate, 4, marks=long),
        pytest.param("manifest.json", truncate, 4, marks=long),
        ("manifest.json", Path.unlink, 3),  # a folder without one is no bundle
    ],
)
def test_a_half_copied_bundle_is_refused(
    bundle: Path, fake_device: FakeDevice, name: str, damage: Callable[[Path], None], code: int
) -> None:
    name = graph_of(bundle, PRUNED).plugin_file or "" if name == "plugin graph" else name
    damage(bundle / name)
    before = snapshot(bundle)
    done = run_finalize(fake_device, bundle)
    refused(done.done, code, Path(name).name)
    assert done.builds == []
    assert snapshot(bundle) == before


def test_an_engine_of_a_foreign_hand_is_not_opened(ready: Path, fake_device: FakeDevice) -> None:
    """Its hash doesn't fit; where it was made to fit, TensorRT refuses what it didn't build."""
    name = f"graphs/{DENSE}.{PROFILE}.engine"
    (ready / name).write_bytes(b"not an engine")
    arguments = ("verify", ready, "--profile", PROFILE)
    refused(fake_device.ztdeploy(*arguments), 4, name, "changed")
    record = {"sha256": sha256_of(ready / name), "bytes": len(b"not an engine")}
    edit(ready, lambda manifest: manifest["files"].update({name: record}))
    refused(fake_device.ztdeploy(*arguments), 4, "refuses", f"ztdeploy finalize {ready}")


def test_plugins_that_this_package_does_not_have_are_refused(ready: Path, fake_device: FakeDevice) -> None:
    """As after an upgrade: the identity is that of the sources and tools they were compiled from."""

    def older(manifest: Any) -> None:
        engine = next(v for v in manifest["variants"] if v["name"] == PRUNED)["engines"][PROFILE]
        engine["fingerprint"]["plugins"] = "libztdeploy_plugins-sm87-0123456789abcdef.so"

    edit(ready, older)
    done = fake_device.ztdeploy("verify", ready, "--profile", PROFILE)
    refused(done, 6, "0123456789abcdef", f"ztdeploy finalize {ready}")


# -------------------- boards without what plugins take


def test_without_a_toolchain_the_plain_engine_is_built(bundle: Path, fake_device: FakeDevice) -> None:
    found = run_finalize(fake_device, bundle, tools=False)
    assert found.done.code == 0, found.done.err
    (note,) = found.done.json()["notes"]
    assert note.startswith(f"profile '{PROFILE}': built without plugins: ")
    assert "cmake" in note.lower()
    assert [build["plugins"] for build in found.builds] == [False, False]
    assert found.engine(PRUNED).fingerprint.plugins is None
    assert found.engine(PRUNED).candidates == ()
    assert set(snapshot(bundle)) == listed(bundle)
    done = fake_device.ztdeploy("verify", bundle, "--profile", PROFILE, tools=False)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"FAKE_TRT_WRONG": "1"}, "logits of the median image differ"),
        pytest.param({"FAKE_TRT_DIE": "11"}, "SIGSEGV", marks=long),
        pytest.param({"FAKE_TRT_NO_LIBRARY": "1"}, "registers nothing", marks=long),
        pytest.param({"FAKE_TRT_REFUSE": "1"}, "refused to run", marks=long),
        ({"FAKE_CMAKE_FAIL": "compile", "XDG_CACHE_HOME": "another"}, "launch.cu(12): error"),
        pytest.param({"XDG_CACHE_HOME": "file"}, "is not a folder", marks=long),
    ],
    ids=["wrong", "dies", "refused", "no-run", "uncompilable", "no-cache"],
)
def test_plugins_that_fail_cost_nothing_but_a_note(
    bundle: Path, fake_device: FakeDevice, trouble: dict[str, str], words: str, tmp_path: Path
) -> None:
    """They are an optimisation: the plain engine is kept, the note says why, nothing of them stays in the bundle."""
    (tmp_path / "file").touch()
    elsewhere = {name: str(tmp_path / value) for name, value in trouble.items() if name == "XDG_CACHE_HOME"}
    found = run_finalize(fake_device, bundle, **{**trouble, **elsewhere, "FAKE_TRT_ONLY": "plugins"})
    assert found.done.code == 0, found.done.err
    (note,) = found.done.json()["notes"]
    assert "plugins" in note
    assert words in note
    assert found.engine(PRUNED).fingerprint.plugins is None
    assert set(snapshot(bundle)) == listed(bundle)
    assert not [name for name in listed(bundle) if "with-plugins" in name]


def test_an_option_that_no_plugin_knows_is_noted_where_plugins_could_be_had(
    bundle: Path, fake_device: FakeDevice
) -> None:
    def plain(manifest: Any) -> None:
        for variant in manifest["variants"]:
            graph = variant["graphs"][PROFILE]
            if graph["plugin_file"] is not None:
                graph |= {"plugin_file": None, "plain_for": ["metric"]}

    found = run_finalize(fake_device, edit(bundle, plain))
    assert found.done.code == 0, found.done.err
    (note,) = found.done.json()["notes"]
    assert "plain operators only" in note
    assert "option metric" in note
    assert found.engine(PRUNED).fingerprint.plugins is None


# -------------------- Python of the board


def test_the_target_half_is_python_3_10() -> None:
    """What JetPack 6 brings."""
    rooms = ("cli", "report", "target", "core")
    files = [path for room in rooms for path in (CHECKOUT / "ztdeploy" / room).rglob("*.py")]
    assert len(files) > 40
    for path in files:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def test_logits_of_the_golden_images_are_near(finalized: Finalized) -> None:
    """The numbers on record are no accident: they are those of the engine that was kept."""
    golden = np.load(finalized.bundle / "golden" / f"{PRUNED}.npz")
    parity = finalized.engine(PRUNED).parity
    assert parity is not None
    assert parity.logit_tolerance == pytest.approx(3e-2 * max(1.0, np.abs(golden["logits"]).max()), rel=0.5)
