"""A bundle is what was built and computes what it should, and rebuilding its engines is all or nothing."""

from __future__ import annotations

import io
import os
import threading
from functools import partial

import numpy as np
import onnx
import pytest
from helpers.bundles import edit, rewrite
from helpers.errors import refused
from helpers.leftovers import dead_folder, leftovers

import ztdeploy
from ztdeploy.core.bundle import MANIFEST, WEIGHTS_FILE, read_bundle, sha256_of
from ztdeploy.core.errors import (
    EngineMismatchError,
    EnvironmentLacksError,
    InputError,
    OutputError,
    ParityError,
)
from ztdeploy.target import finalize, verify
from ztdeploy.target.finalize import finalize_bundle
from ztdeploy.target.verify import verify_bundle

VARIANTS = ["keep-0.70", "keep-0.50", "dense"]


def silent(*_):
    pass


def verified(bundle, profile=None):
    return verify_bundle(bundle, profile, silent)


def rewrite_golden(bundle, variant, change):
    arrays = dict(np.load(bundle / "golden" / f"{variant}.npz"))
    change(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    rewrite(bundle, f"golden/{variant}.npz", buffer.getvalue())


def rewrite_pixels(bundle, pixels):
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    rewrite(bundle, "golden/pixels.npy", buffer.getvalue())


def snapshot(folder):
    return {str(path.relative_to(folder)): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# -------------------- verify


def test_a_fresh_bundle_is_in_order(digits_bundle):
    steps = []
    report = verify_bundle(digits_bundle, "cpu", lambda *step: steps.append(step))
    assert report.files == len(read_bundle(digits_bundle).manifest.files)
    assert list(report.variants) == VARIANTS
    for name, record in report.variants.items():
        assert 0 < record.images <= 4
        assert record.max_logit_difference <= record.logit_tolerance
        assert [layer.block for layer in record.layers] == ([] if name == "dense" else [2, 5, 8])
    assert [what for what, _, _ in steps] == ["hashing files", *(f"running {name}" for name in VARIANTS)]


def test_verifying_changes_nothing(bundle_copy):
    before = snapshot(bundle_copy)
    verified(bundle_copy)
    assert snapshot(bundle_copy) == before


def test_with_several_profiles_the_report_names_them(digits_bundle):
    assert list(verified(digits_bundle).variants) == [f"{name} (cpu)" for name in VARIANTS]


def test_a_profile_without_engines_is_checked_for_its_files_alone(digits_bundle):
    report = verified(digits_bundle, "jetson-orin")
    assert report.variants == {}
    assert report.files > 12


def test_a_profile_that_is_not_there_names_the_nearest(digits_bundle):
    refused(lambda: verified(digits_bundle, "jetson-orim"), "did you mean 'jetson-orin'?", kind=InputError)


def test_damage_is_found_before_anything_runs(bundle_copy, monkeypatch):
    monkeypatch.setattr(verify, "load_engine", lambda *_, **__: pytest.fail("an engine was loaded"))
    monkeypatch.setattr(verify, "check_preprocessing", lambda _: pytest.fail("an image was read"))
    flip_byte(bundle_copy / "golden" / "dense.npz")
    refused(lambda: verified(bundle_copy), "golden/dense.npz", "changed since the build")


@pytest.mark.parametrize("by", [1, 255])
def test_other_pixels_than_at_build_time_are_found(bundle_copy, by):
    """As where another Pillow resizes differently: one value of 12288 is enough."""
    pixels = np.load(bundle_copy / "golden" / "pixels.npy")
    pixels[2, 5, 7, 1] ^= by
    rewrite_pixels(bundle_copy, pixels)
    refused(lambda: verified(bundle_copy), "pre-processing", "0.01 %", "Pillow", kind=ParityError)


@pytest.mark.parametrize(
    "change", [lambda p: p[:3], lambda p: p[:, :16], lambda p: p.astype(np.float32), lambda p: p[0]]
)
def test_golden_pixels_of_another_kind_are_refused(bundle_copy, change):
    rewrite_pixels(bundle_copy, change(np.load(bundle_copy / "golden" / "pixels.npy")))
    refused(lambda: verified(bundle_copy), "golden", "build the bundle again")


def test_an_engine_that_computes_something_else_is_found(bundle_copy):
    """What it takes and gives is as it should be."""
    name = "graphs/keep-0.50.cpu.onnx"
    model = onnx.load(bundle_copy / name, load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["right" if output == "logits" else output for output in node.output]
    model.graph.node.append(onnx.helper.make_node("Neg", ["right"], ["logits"]))
    rewrite(bundle_copy, name, model.SerializeToString())
    refused(lambda: verified(bundle_copy), "keep-0.50", "logits", kind=ParityError)


def test_another_variants_engine_is_found(bundle_copy):
    """The pruned one's in the dense model's place, hashes and all."""
    rewrite(bundle_copy, "graphs/dense.cpu.onnx", (bundle_copy / "graphs" / "keep-0.50.cpu.onnx").read_bytes())
    refused(lambda: verified(bundle_copy), "dense", "prune/kept")


@pytest.mark.parametrize("wrong", [1e-2, np.nan, np.inf])
def test_other_logits_are_found(bundle_copy, wrong):
    def change(arrays):
        arrays["logits"][1, 3] += wrong

    rewrite_golden(bundle_copy, "keep-0.50", change)
    refused(lambda: verified(bundle_copy), "keep-0.50", "logits", kind=ParityError)


@pytest.mark.parametrize("block", [2, 5, 8])
def test_other_tokens_are_found_and_the_layer_is_named(bundle_copy, block):
    def change(arrays):
        kept = arrays[f"kept.{block}"]
        dropped = next(token for token in range(1, 65) if token not in kept[0])
        kept[0, -1] = dropped
        arrays[f"gap.{block}"][:] = 0.5

    rewrite_golden(bundle_copy, "keep-0.70", change)
    refused(lambda: verified(bundle_copy), "keep-0.70", f"blocks.{block}/prune", "1 of 4", kind=ParityError)


def test_a_tie_is_no_failure_and_is_reported(bundle_copy):
    def change(arrays):
        arrays["kept.2"][0, -1] = next(token for token in range(1, 65) if token not in arrays["kept.2"][0])
        arrays["gap.2"][0] = 1e-7

    rewrite_golden(bundle_copy, "keep-0.70", change)
    record = verified(bundle_copy, "cpu").variants["keep-0.70"]
    assert record.images == 3
    assert (record.layers[0].ties, record.layers[0].identical) == (1, 3)


@pytest.mark.parametrize("missing", ["logits", "kept.5", "gap.8"])
def test_golden_outputs_that_lack_something_are_refused(bundle_copy, missing):
    rewrite_golden(bundle_copy, "keep-0.70", lambda arrays: arrays.pop(missing))
    refused(lambda: verified(bundle_copy), "keep-0.70", missing)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(60), b"\x80\x04N.", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("name", ["golden/pixels.npy", "golden/keep-0.70.npz"])
def test_golden_files_that_cannot_be_read_are_refused(bundle_copy, name, content):
    rewrite(bundle_copy, name, content)
    refused(lambda: verified(bundle_copy), name, "build the bundle again")


@pytest.mark.parametrize("name", ["golden/pixels.npy", "golden/keep-0.70.npz"])
def test_golden_files_never_unpickle(bundle_copy, tmp_path, name):
    proof = tmp_path / "proof"

    class RunsCode:
        def __reduce__(self):
            return type(proof).touch, (proof,)

    buffer = io.BytesIO()
    content = np.array([RunsCode()], dtype=object)
    if name.endswith("npz"):
        np.savez(buffer, logits=content)
    else:
        np.save(buffer, content, allow_pickle=True)
    rewrite(bundle_copy, name, buffer.getvalue())
    refused(lambda: verified(bundle_copy), name)
    assert not proof.exists()


def test_engines_of_another_runtime_say_what_to_run(bundle_copy):
    edit(bundle_copy, other_runtime)
    refused(lambda: verified(bundle_copy), "onnxruntime 1.15.0", "ztdeploy finalize", kind=EngineMismatchError)


def other_runtime(manifest):
    for variant in manifest["variants"]:
        variant["engines"]["cpu"]["fingerprint"]["runtime_version"] = "1.15.0"


# -------------------- finalize


def test_finalize_makes_a_bundle_of_another_runtime_run(bundle_copy):
    pixels = np.load(bundle_copy / "golden" / "pixels.npy")
    before = ztdeploy.load(bundle_copy, threads=1).infer(pixels)
    edit(bundle_copy, other_runtime)
    refused(lambda: ztdeploy.load(bundle_copy), "ztdeploy finalize", kind=EngineMismatchError)
    others = {name: digest for name, digest in snapshot(bundle_copy).items() if ".cpu." not in name}
    steps = []
    report = finalize_bundle(bundle_copy, lambda *step: steps.append(step))
    assert report.rebuilt == tuple(report.chosen) == tuple(f"{name} (cpu)" for name in VARIANTS)
    assert [note.split(":")[0] for note in report.notes] == ["profile 'jetson-orin'"]
    wanted = [(f"{step} {name} (cpu)", i, 3) for i, name in enumerate(VARIANTS) for step in ("building", "proving")]
    assert steps == wanted
    assert list(verified(bundle_copy, "cpu").variants) == VARIANTS
    after = snapshot(bundle_copy)
    assert {name: after[name] for name in others if name != MANIFEST} == {
        name: digest for name, digest in others.items() if name != MANIFEST
    }
    for memory in ("speed", "shared"):
        with ztdeploy.load(bundle_copy, threads=1, memory=memory) as runner:
            np.testing.assert_allclose(runner.infer(pixels).logits, before.logits, atol=1e-4)
    assert leftovers(bundle_copy) == []


def test_finalize_can_be_repeated_and_moved(bundle_copy, tmp_path):
    finalize_bundle(bundle_copy, silent)
    names = sorted(snapshot(bundle_copy))
    moved = bundle_copy.rename(tmp_path / "moved")
    finalize_bundle(moved, silent)
    assert sorted(snapshot(moved)) == names
    verified(moved)


def test_finalize_works_in_a_folder_whose_name_is_not_utf8(bundle_copy, tmp_path):
    moved = bundle_copy.rename(tmp_path / os.fsdecode(b"b\xff\x1b[31m"))
    finalize_bundle(moved, silent)
    verified(moved)


def test_finalize_leaves_what_is_not_its_own_out_of_the_manifest(bundle_copy):
    """Else a photo that was lying about would be missed for ever."""
    before = set(read_bundle(bundle_copy).manifest.files)
    (bundle_copy / "photo.jpg").write_bytes(b"mine")
    (bundle_copy / (MANIFEST + ".new")).write_bytes(b"of a write that was cut off")
    finalize_bundle(bundle_copy, silent)
    assert (bundle_copy / "photo.jpg").read_bytes() == b"mine"
    (bundle_copy / "photo.jpg").unlink()
    verified(bundle_copy, "jetson-orin")
    added = set(read_bundle(bundle_copy).manifest.files) - before
    assert all(name.endswith(".cpu.weights") for name in added)


@pytest.mark.parametrize(
    "name",
    ["classes.txt", "golden/keep-0.70.npz", "golden/pixels.npy", "graphs/dense.fp32.onnx", WEIGHTS_FILE, "README.md"],
)
def test_finalize_never_blesses_damage(bundle_copy, name):
    flip_byte(bundle_copy / name)
    before = snapshot(bundle_copy)
    refused(lambda: finalize_bundle(bundle_copy, silent), name, "changed since the build")
    assert snapshot(bundle_copy) == before


def test_finalize_replaces_engines_that_are_damaged(bundle_copy):
    (bundle_copy / "graphs" / "dense.cpu.onnx").write_bytes(b"damaged")
    finalize_bundle(bundle_copy, silent)
    verified(bundle_copy)


def test_finalize_starts_afresh_after_one_that_was_killed(bundle_copy):
    dead_folder(bundle_copy / "graphs")
    finalize_bundle(bundle_copy, silent)
    assert leftovers(bundle_copy) == []


def test_the_second_of_two_that_finalize_waits(bundle_copy):
    said, first = [], threading.Event()

    def progress(what, done, total):
        said.append(what)
        if not first.is_set():
            first.set()
            second.start()
            while not any("waiting for another process" in one for one in said):  # the second says it, or never ends
                assert second.is_alive()

    second = threading.Thread(target=lambda: finalize_bundle(bundle_copy, progress))
    finalize_bundle(bundle_copy, progress)
    second.join()
    assert said.index("waiting for another process that writes to this bundle") > 0
    verified(bundle_copy)
    assert leftovers(bundle_copy) == []


@pytest.mark.parametrize(
    ("module", "step", "fails_at"),
    [(finalize, "get_backend", 2), (finalize, "check_golden", 3), (finalize, "put_in_place", 1), (os, "fsync", 1)],
    ids=["building", "proving", "moving", "writing-the-manifest"],
)
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ParityError("logits differ", "none", "report it"), ParityError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), OutputError),
    ],
    ids=["parity", "interrupted", "full"],
)
def test_a_failed_finalize_leaves_the_bundle_as_it_was(bundle_copy, monkeypatch, module, step, fails_at, error, kind):
    before, calls = snapshot(bundle_copy), []
    original = getattr(module, step)

    def failing(*arguments):
        calls.append(step)
        if len(calls) == fails_at:
            raise error
        return original(*arguments)

    monkeypatch.setattr(module, step, failing)
    with pytest.raises(kind):
        finalize_bundle(bundle_copy, silent)
    assert snapshot(bundle_copy) == before
    assert leftovers(bundle_copy) == []


def test_finalize_refuses_a_bundle_with_nothing_to_build(bundle_copy):
    def only_jetson(manifest):
        del manifest["profiles"]["cpu"]
        for variant in manifest["variants"]:
            del variant["graphs"]["cpu"]
            variant["engines"].clear()

    edit(bundle_copy, only_jetson)
    refused(lambda: finalize_bundle(bundle_copy, silent), "jetson-orin", "--profile cpu", kind=EnvironmentLacksError)


def test_finalize_for_one_profile_builds_no_other(bundle_copy):
    assert finalize_bundle(bundle_copy, silent, profile="cpu").notes == ()
    call = partial(finalize_bundle, bundle_copy, silent)
    refused(lambda: call(profile="jetson-orin"), "profile 'jetson-orin': not built here", kind=EnvironmentLacksError)
    refused(lambda: call(profile="jetson-orim"), "did you mean 'jetson-orin'?", kind=InputError)


def test_engines_are_chosen_from_nothing_where_no_graph_has_plugins(bundle_copy):
    for engine in finalize_bundle(bundle_copy, silent, profile="cpu").chosen.values():
        assert engine.candidates == ()
        assert engine.fingerprint.plugins is None
        assert engine.parity is not None
    assert read_bundle(bundle_copy).manifest.timing_caches == {}


def test_finalize_writes_nowhere_but_into_the_bundle(bundle_copy, tmp_path):
    """Variants give files their names, and a bundle is untrusted."""

    def escape(manifest):
        manifest["variants"][0]["name"] = manifest["default_variant"] = "../../../evil"
        manifest["golden"]["outputs"]["../../../evil"] = manifest["golden"]["outputs"].pop("keep-0.70")

    edit(bundle_copy, escape)
    refused(lambda: finalize_bundle(bundle_copy, silent), "damaged")
    assert sorted(path.name for path in tmp_path.iterdir()) == [bundle_copy.name]
