"""The whole sweep: what is built once, what fails alone, what is refused, and what a second run does."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.errors import refused

import ztdeploy.host.tracing
from ztdeploy.core.bundle import MANIFEST, read_bundle
from ztdeploy.core.errors import (
    CheckpointError,
    EnvironmentLacksError,
    InputError,
    ModelError,
    OutputError,
    ProfileError,
    ScheduleError,
)
from ztdeploy.core.methods import DEFAULT_METHOD
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import ImageSize, PreprocessOptions
from ztdeploy.core.progress import silent
from ztdeploy.jobs import build as pipeline
from ztdeploy.jobs import bundle_cache
from ztdeploy.jobs.build import BuildRequest
from ztdeploy.jobs.bundle_cache import buildable_bundle, bundle_key, cached_bundle
from ztdeploy.jobs.sweep import sweep
from ztdeploy.report.sweep_folder import PREVIOUS, REPORT
from ztdeploy.target.measure.sweep_report import SweepRequest, read_any_report, rows

#: A method that is quickly traced.
DIGITS = BuildRequest(
    model=ModelSource(name="vit_digits"), profiles=("cpu",), methods=("slice",), keep_ratios=(0.7,), out=Path()
)
DENSE = replace(DIGITS, methods=(DEFAULT_METHOD,), keep_ratios=(1.0,))
QUICK = {"threads": (1,), "warmup_s": 0.0, "duration_s": 0.05, "rounds": 2, "details": False}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache that the tests of this file fill as they go."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def exports(monkeypatch) -> list[int]:
    """Counts traces: the number of pruning layers of each."""
    found, export = [], ztdeploy.host.tracing.export_onnx

    def counting(pruned, *arguments, **named):
        found.append(len(pruned.token_plan.layers))
        return export(pruned, *arguments, **named)

    monkeypatch.setattr(ztdeploy.host.tracing, "export_onnx", counting)
    return found


# Nothing is traced twice.


def test_a_build_uses_no_cache_unless_asked():
    assert DIGITS.cache is None


def test_only_what_is_new_is_traced(cache, exports):
    dense = cached_bundle(DENSE, cache, silent)
    assert exports == [0]
    assert cached_bundle(replace(DENSE, out=Path("elsewhere")), cache, silent).root == dense.root
    assert exports == [0]
    first = cached_bundle(DIGITS, cache, silent)
    assert exports == [0, 3], "the new one alone"
    assert [one.name for one in first.manifest.variants] == ["slice-keep-0.70", "dense"]
    assert first.root != dense.root
    shutil.rmtree(first.root)
    rebuilt = cached_bundle(DIGITS, cache, silent)
    assert exports == [0, 3], "a bundle that is lost costs no trace"
    assert rebuilt.manifest.files == first.manifest.files, "and has the same bytes from the cache"


def copied(digits_bundle, calls):
    """In place of `build`: a bundle that is there already."""

    def build_copy(request, progress=silent):
        calls.append(request)
        shutil.copytree(digits_bundle, request.out)
        return read_bundle(request.out)

    return build_copy


@pytest.mark.parametrize("file", ["graphs/weights.safetensors", "graphs/dense.onnx", MANIFEST, "golden/pixels.npy"])
def test_a_damaged_bundle_is_built_again(file, digits_bundle, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(bundle_cache, "build", copied(digits_bundle, calls))
    bundle = cached_bundle(DIGITS, tmp_path, silent)
    path = bundle.root / (file if (bundle.root / file).exists() else next(iter(bundle.manifest.files)))
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    cached_bundle(DIGITS, tmp_path, silent).verify_files()
    assert len(calls) == 2
    assert calls[0].cache == tmp_path / "traces"
    cached_bundle(DIGITS, tmp_path, silent)
    assert len(calls) == 2


def test_two_at_once_build_once(digits_bundle, tmp_path, monkeypatch):
    calls, started, steps = [], threading.Event(), []
    copy = copied(digits_bundle, calls)

    def slow(request, progress=silent):
        started.set()
        while not steps:  # until the other one waits
            pass
        return copy(request)

    monkeypatch.setattr(bundle_cache, "build", slow)
    thread = threading.Thread(target=cached_bundle, args=(DIGITS, tmp_path, silent))
    thread.start()
    assert started.wait(20)
    found = cached_bundle(DIGITS, tmp_path, lambda *step: steps.append(step))
    thread.join()
    assert len(calls) == 1
    assert "waiting for another process" in steps[0][0]
    found.verify_files()


def test_what_decides_a_bundles_content(tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"1")
    profile = tmp_path / "cpu.toml"
    profile.write_text('title = "x"\nbackend = "onnxruntime"\n')
    requests = [
        DIGITS,
        replace(DIGITS, model=ModelSource(name="deit_s")),
        replace(DIGITS, model=ModelSource(name="vit_digits", weights="random")),
        replace(DIGITS, model=ModelSource(name="vit_digits", checkpoint=weights)),
        replace(DIGITS, model=ModelSource(name="vit_digits", image_size=64)),
        replace(DIGITS, model=ModelSource(name="vit_digits", preprocess=PreprocessOptions(crop_pct=1.0))),
        replace(DIGITS, keep_ratios=(0.7, 0.5)),
        replace(DIGITS, methods=("wpr",)),
        replace(DIGITS, preset="paper"),
        replace(DIGITS, profiles=(str(profile),)),
    ]
    keys = [bundle_key(request) for request in requests]
    assert len(set(keys)) == len(keys)
    assert bundle_key(replace(DIGITS, out=tmp_path, force=True, cache=tmp_path)) == keys[0]
    weights.write_bytes(b"2")
    profile.write_text('title = "x"\nbackend = "onnxruntime"\nopset = 19\n')
    assert bundle_key(requests[3]) != keys[3]
    assert bundle_key(requests[-1]) != keys[-1]
    missing = replace(DIGITS, model=ModelSource(name="vit_digits", checkpoint=tmp_path / "none.pth"))
    refused(lambda: bundle_key(missing), "none.pth", kind=CheckpointError)


# What cannot be built.


@pytest.fixture
def broken_wpr(monkeypatch):
    """A method whose layers cannot be made."""
    from ztdeploy.host.pruning import wpr_only

    def fail(*_arguments):
        raise ModelError("a model without what 'wpr' needs", "another", "choose another method")

    monkeypatch.setattr(wpr_only.WprOnly, "__init__", fail)


def test_a_variant_that_cannot_be_built_leaves_the_others(cache, exports, broken_wpr):
    cached_bundle(DIGITS, cache, silent)
    exports.clear()
    bundle, unbuilt = buildable_bundle(replace(DIGITS, methods=("wpr", "slice")), cache, silent)
    assert [one.name for one in bundle.manifest.variants] == ["slice-keep-0.70", "dense"]
    assert [one.variant for one in unbuilt] == ["wpr-keep-0.70"]
    assert "choose another method" in str(unbuilt[0].error)
    assert exports == [], "and nothing is traced for it that was traced before"
    assert not list(cache.glob("trial-*"))


def test_dense_alone_where_no_variant_can_be_built(cache, broken_wpr):
    bundle, unbuilt = buildable_bundle(replace(DIGITS, methods=("wpr",)), cache, silent)
    assert [one.name for one in bundle.manifest.variants] == ["dense"]
    assert len(unbuilt) == 1


def test_failures_are_in_the_report_and_other_image_sizes_go_on(digits_bundle, tmp_path, monkeypatch):
    def build_some(request, cache, progress):
        if request.model.image_size == (48, 48):
            raise ModelError("image size 48", "32", "leave --image-size out")
        return read_bundle(digits_bundle), (bundle_cache.Unbuilt("slice-keep-0.70", ModelError("a", "b", "c")),)

    monkeypatch.setattr("ztdeploy.jobs.sweep.buildable_bundle", build_some)
    request = SweepRequest(
        model=ModelSource(name="vit_digits"), profile="cpu", keep_ratios=(0.7,), image_sizes=(48, 32), **QUICK
    )
    report = sweep(request.model_copy(update={"methods": ("zero-tprune",)}), tmp_path / "out", cache=tmp_path)
    assert [failure.message for failure in report.failures] == [
        "at 48 px: image size 48; expected 32; leave --image-size out",
        "slice-keep-0.70 at 32 px: a; expected b; c",
    ]
    assert [one.facts.name for one in rows(report)] == ["dense", "keep-0.70"]
    alone = request.model_copy(update={"image_sizes": (ImageSize(48, 48),)})
    refused(lambda: sweep(alone, tmp_path / "other", cache=tmp_path), "image size 48", kind=ModelError)
    assert not (tmp_path / "other").exists()


# What is refused before anything is built.


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ({"model": None}, InputError, ["neither a model nor a bundle"]),
        ({"bundle": Path("bundle")}, InputError, ["with a bundle", "--bundle DIR"]),
        ({"profile": None}, InputError, ["no profile"]),
        ({"profile": "cup"}, ProfileError, ["'cpu'"]),
        ({"profile": "jetson-orin"}, EnvironmentLacksError, ["jetson-orin"]),
        ({"methods": ("slize",)}, ScheduleError, ["did you mean 'slice'?"]),
        ({"keep_ratios": (0.0,)}, ScheduleError, ["keep ratio 0"]),
        ({"batches": (9,)}, InputError, ["--batch 9", "up to 8"]),
        ({"rounds": 0}, InputError, ["--rounds = 0"]),
    ],
)
def test_refusals(asked, kind, words, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "new_bundle_folder", lambda *_: pytest.fail("something is built"))
    request = SweepRequest(**{"model": ModelSource(name="vit_digits"), "profile": "cpu", **asked})
    refused(lambda: sweep(request, tmp_path / "out", cache=tmp_path / "cache"), *words, kind=kind)
    assert list(tmp_path.iterdir()) == []


def test_a_profile_with_a_fixed_batch(tmp_path):
    profile = tmp_path / "fixed.toml"
    profile.write_text('title = "x"\nbackend = "onnxruntime"\n[batch]\ndynamic = false\nsizes = [1, 8]\n')
    request = SweepRequest(model=ModelSource(name="vit_digits"), profile=str(profile), batches=(8,))
    refused(lambda: sweep(request, tmp_path / "out", cache=tmp_path), "--batch 8", "take 1 images", kind=InputError)


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ({"image_sizes": (64,)}, InputError, ["--image-size with a bundle"]),
        ({"preset": "paper"}, InputError, ["--preset with a bundle"]),
        ({"keep_ratios": (0.6,)}, InputError, ["keep ratio 0.6", "0.7, 0.5, 1"]),
        ({"methods": ("slice",)}, InputError, ["--method slice", "zero-tprune"]),
        ({"profile": "raspberry-pi5"}, InputError, ["raspberry-pi5"]),
        ({"profile": "jetson-orin"}, InputError, ["no engine"]),
        ({"batches": (9,)}, None, []),
    ],
)
def test_refusals_of_a_bundle(asked, kind, words, digits_bundle, tmp_path):
    request = SweepRequest(model=None, bundle=digits_bundle, **{**QUICK, **asked})
    if kind is None:  # what only its engines know is a failure of the group
        report = sweep(request, tmp_path / "out")
        assert (report.runs, len(report.failures)) == ((), 1)
        assert "--batch 9" in report.failures[0].message
        return
    refused(lambda: sweep(request, tmp_path / "out"), *words, kind=kind)
    assert list(tmp_path.iterdir()) == []


# Again.


def test_a_second_run_measures_nothing_and_another_request_everything(digits_bundle, tmp_path, children):
    request = SweepRequest(model=None, bundle=digits_bundle, keep_ratios=(0.7,), **QUICK)
    out, notes = tmp_path / "out", []
    first = sweep(request, out, note=notes.append)
    assert (first.progress, notes) == ("complete", [])
    assert [one.facts.name for one in rows(first)] == ["dense", "keep-0.70"]
    assert read_any_report(out / REPORT) == first
    started = len(children)
    assert sweep(request, out, note=notes.append) == first
    assert len(children) == started
    assert notes == ["kept from before: 1 of 1 groups of configurations; --fresh measures all again"]
    longer = request.model_copy(update={"rounds": 3})
    second = sweep(longer, out, note=notes.append)
    assert "measuring all anew: it was asked for with other values of rounds" in notes[-1]
    assert read_any_report(out / PREVIOUS) == first
    assert all(len(one.turns) == 3 for one in second.runs[0].configurations)
    sweep(longer, out, fresh=True, note=notes.append)
    assert "--fresh" in notes[-1]
    assert read_any_report(out / PREVIOUS) == second


def test_a_group_in_which_a_process_died_is_measured_again(bundle_copy, tmp_path):
    request = SweepRequest(model=None, bundle=bundle_copy, keep_ratios=(0.7,), **QUICK)
    out = tmp_path / "out"
    manifest = (bundle_copy / MANIFEST).read_text()
    version = read_bundle(bundle_copy).manifest.dense.engines["cpu"].fingerprint.runtime_version
    head, mark, tail = manifest.partition('"name": "dense"')
    (bundle_copy / MANIFEST).write_text(
        head.replace(f'"runtime_version": "{version}"', '"runtime_version": "0.1"') + mark + tail
    )
    report = sweep(request, out)
    assert [one.failure is None for one in report.runs[0].configurations] == [True, False]
    (bundle_copy / MANIFEST).write_text(manifest)
    report = sweep(request, out)
    assert [one.failure for one in report.runs[0].configurations] == [None, None]
    refused(lambda: sweep(request, bundle_copy), "something else than a sweep", kind=OutputError)
