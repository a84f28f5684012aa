"""The bundle on disk: written whole or not at all, trusted in nothing, and every changed byte found."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.bundles import edit
from helpers.errors import refused
from helpers.leftovers import dead_folder
from helpers.places import NOBODY, as_nobody, mounted
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

import ztdeploy
from ztdeploy.core.bundle import (
    MANIFEST,
    WEIGHTS_FILE,
    check_output,
    file_records,
    new_bundle_folder,
    read_bundle,
    sha256_of,
    write_manifest,
)
from ztdeploy.core.errors import BundleError, InputError, OutputError
from ztdeploy.core.manifest import SCHEMA_VERSION, BundlePath, Manifest
from ztdeploy.core.records import from_json, to_json
from ztdeploy.target.evaluate.eval_report import EvalRequest
from ztdeploy.target.evaluate.evaluate import plan as plan_eval
from ztdeploy.target.evaluate.explain import explain_bundle
from ztdeploy.target.finalize import finalize_bundle
from ztdeploy.target.measure.bench_report import BenchRequest
from ztdeploy.target.measure.plan import plan_bench
from ztdeploy.target.verify import verify_bundle

BUNDLE_PATH = TypeAdapter(BundlePath)


def silent(*_):
    pass


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def snapshot(folder):
    return {path.relative_to(folder): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def a_bundle(folder):
    """As little as makes a folder a bundle to those who would replace it."""
    (folder / "graphs").mkdir(parents=True)
    (folder / WEIGHTS_FILE).write_bytes(b"old")
    (folder / MANIFEST).write_text(json.dumps({"schema_version": SCHEMA_VERSION}))
    return folder


def write_in(folder):
    (folder / "graphs").mkdir()
    (folder / WEIGHTS_FILE).write_bytes(b"new")


def build_into(out, *, force=False):
    with new_bundle_folder(out, force=force) as folder:
        write_in(folder)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# -------------------- the manifest


def test_a_manifest_survives_a_round_trip(digits_bundle, tmp_path):
    manifest = read_bundle(digits_bundle).manifest
    write_manifest(tmp_path, manifest)
    assert read_bundle(tmp_path).manifest == manifest
    assert names_in(tmp_path) == [MANIFEST]


def test_the_manifest_lists_every_other_file_with_its_hash(digits_bundle):
    bundle = read_bundle(digits_bundle)
    assert bundle.manifest.files == file_records(digits_bundle)
    bundle.verify_files()


def test_the_bundle_stores_its_weights_once(digits_bundle):
    graphs = digits_bundle / "graphs"
    weights = (digits_bundle / WEIGHTS_FILE).stat().st_size
    parameters = 4 * 1_360_000  # fp32, the shipped model
    half = parameters / 2  # fp16, for the Jetson
    assert weights < 1.1 * (parameters + half)
    assert all(path.stat().st_size < weights / 10 for path in graphs.glob("*.onnx"))


@pytest.mark.parametrize(
    "path", ["classes.txt", "graphs/weights.safetensors", "a/..b/c..", "golden/keep-0.70.npz", "Größe/ü.png", "a b"]
)
def test_ordinary_paths_are_accepted(path):
    assert BUNDLE_PATH.validate_python(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "//host/share",
        "..",
        "../x",
        "graphs/../../x",
        "graphs/..",
        "C:/x",
        "C:\\x",
        "..\\x",
        "\\\\host\\x",
        "x\0",
        "a:stream",
        "x\ny",
        "x\x1b[2J",
        "x" * 300,
        "x/" * 3000 + "x",
    ],
    ids=lambda path: repr(path)[:20],
)
def test_paths_that_lead_elsewhere_are_refused(path):
    with pytest.raises(ValidationError):
        BUNDLE_PATH.validate_python(path)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "a", "b.onnx", "", "\\", "C:", "/", "\0", "..."]), max_size=6))
def test_an_accepted_path_stays_inside(parts):
    try:
        path = BUNDLE_PATH.validate_python("/".join(parts))
    except ValidationError:
        return
    assert os.path.normpath("/root/bundle/" + path).startswith("/root/bundle")
    assert not set(path) & {"\\", ":", "\0"}


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_either_a_path_inside_or_refused(text):
    try:
        path = BUNDLE_PATH.validate_python(text)
    except ValidationError:
        return
    assert Path("/root/bundle", path).resolve().is_relative_to("/root/bundle")


@pytest.mark.parametrize(
    "escape",
    [
        lambda m, path: m["files"].update({path: {"sha256": "0" * 64, "bytes": 1}}),
        lambda m, path: m["golden"].update(pixels=path),
        lambda m, path: m["golden"].update(images=[path]),
        lambda m, path: m["golden"]["outputs"].update(dense=path),
        lambda m, path: m.update(class_names=path),
        lambda m, path: m["variants"][0]["graphs"]["cpu"].update(file=path),
        lambda m, path: m["variants"][0]["engines"]["cpu"].update(file=path),
        lambda m, path: m["variants"][0]["engines"]["cpu"].update(weights=path),
    ],
    ids=["files", "pixels", "images", "outputs", "classes", "graph", "engine", "engine-weights"],
)
@pytest.mark.parametrize("path", ["../secret", "/etc/passwd"])
def test_no_field_of_the_manifest_leads_outside(bundle_copy, escape, path):
    edit(bundle_copy, lambda manifest: escape(manifest, path))
    refused(lambda: read_bundle(bundle_copy), "damaged", "leaves the bundle")


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "", "x\ny", "x" * 300])
@pytest.mark.parametrize("field", ["variant", "profile", "engine-profile"])
def test_names_that_become_file_names_cannot_lead_outside(bundle_copy, field, name):
    """`finalize` writes `graphs/VARIANT.PROFILE.onnx`."""

    def change(manifest):
        if field == "variant":
            manifest["variants"][0]["name"] = manifest["default_variant"] = name
            manifest["golden"]["outputs"][name] = manifest["golden"]["pixels"]
        elif field == "profile":
            manifest["profiles"][name] = manifest["profiles"]["cpu"]
            for variant in manifest["variants"]:
                variant["graphs"][name] = variant["graphs"]["cpu"]
        else:
            manifest["variants"][0]["engines"]["cpu"]["profile"] = name

    edit(bundle_copy, change)
    refused(lambda: read_bundle(bundle_copy), "damaged")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe\x00",
        b'"text"',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"schema_version": "one"}',
        b'{"schema_version": %d}' % SCHEMA_VERSION,
        b'{"schema_version": ' + b"9" * 6000 + b"}",
    ],
    ids=lambda text: repr(text)[2:22],
)
def test_a_garbled_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_bytes(text)
    refused(lambda: read_bundle(tmp_path), "damaged", "build the bundle again")


@pytest.mark.parametrize(
    ("version", "fix"),
    [(SCHEMA_VERSION + 1, "upgrade ztdeploy"), (99, "upgrade ztdeploy"), (SCHEMA_VERSION - 1, "build"), (0, "build")],
)
def test_another_schema_version_says_what_to_do(bundle_copy, version, fix):
    edit(bundle_copy, lambda manifest: manifest.update(schema_version=version, something_new=1))
    refused(lambda: read_bundle(bundle_copy), f"schema version {version}", f"version {SCHEMA_VERSION}", fix)


def test_a_huge_manifest_is_refused_without_reading_it(tmp_path):
    with (tmp_path / MANIFEST).open("wb") as file:
        file.truncate(2**40)
    refused(lambda: read_bundle(tmp_path), "bytes", "at most")


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_what_is_no_bundle_is_refused(tmp_path, what):
    path = tmp_path / "thing"
    if what == "empty":
        path.mkdir()
    elif what == "file":
        path.write_text("no folder")
    refused(lambda: read_bundle(path), MANIFEST, "ztdeploy build", kind=InputError)


@pytest.mark.parametrize("key", ["schema_version", "model", "variants", "golden", "files", "profiles"])
def test_a_manifest_without_a_key_is_refused(bundle_copy, key):
    edit(bundle_copy, lambda manifest: manifest.pop(key))
    refused(lambda: read_bundle(bundle_copy), "damaged", key)


def test_an_unknown_key_is_refused(bundle_copy):
    edit(bundle_copy, lambda manifest: manifest.update(execute="rm -rf"))
    refused(lambda: read_bundle(bundle_copy), "damaged", "execute")


def test_what_a_manifest_says_cannot_break_the_line(bundle_copy):
    edit(bundle_copy, lambda manifest: manifest.update({"x\ny\x1b[31m": 1}))
    message = refused(lambda: read_bundle(bundle_copy), "damaged")
    assert message.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "classes.txt",
        "golden/pixels.npy",
        "golden/dense.npz",
        "graphs/keep-0.70.fp32.onnx",
        "graphs/keep-0.70.cpu.onnx",
        WEIGHTS_FILE,
    ],
)
def test_a_file_that_is_used_but_not_listed_is_refused(bundle_copy, name):
    edit(bundle_copy, lambda manifest: manifest["files"].pop(name))
    refused(lambda: ztdeploy.load(bundle_copy), name)


@pytest.mark.parametrize(
    "contradict",
    [
        lambda m: m.update(default_variant="keep-0.99"),
        lambda m: m.update(variants=[v for v in m["variants"] if v["plan"]["layers"]]),
        lambda m: m.update(variants=[]),
        lambda m: m["golden"]["outputs"].pop("dense"),
        lambda m: m["variants"][0]["graphs"].pop("cpu"),
        lambda m: m["variants"][0]["engines"].update(tpu=m["variants"][0]["engines"]["cpu"]),
        lambda m: m["variants"][0]["graphs"]["cpu"].update(batch=0),
        lambda m: m["variants"][0]["graphs"]["cpu"].update(batch=-1),
        lambda m: m["variants"].append(m["variants"][0]),
    ],
    ids=[
        "default-variant",
        "no-dense",
        "no-variants",
        "no-golden-outputs",
        "no-graph",
        "engine-of-no-profile",
        "batch-0",
        "batch-negative",
        "variant-twice",
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(bundle_copy, contradict):
    edit(bundle_copy, contradict)
    refused(lambda: read_bundle(bundle_copy), "build the bundle again")


# -------------------- files


def test_a_changed_byte_in_any_file_is_found(bundle_copy):
    bundle = read_bundle(bundle_copy)
    assert len(bundle.manifest.files) > 12
    for name in bundle.manifest.files:
        intact = (bundle_copy / name).read_bytes()
        flip_byte(bundle_copy / name)
        refused(lambda: verify_bundle(bundle_copy, None, silent), name, "changed since the build")
        refused(lambda name=name: bundle.verify_files([name]), name)
        (bundle_copy / name).write_bytes(intact)
    bundle.verify_files()


@pytest.mark.parametrize(
    "name", ["graphs/keep-0.70.cpu.onnx", "graphs/keep-0.70.fp32.onnx", WEIGHTS_FILE, "classes.txt"]
)
@pytest.mark.parametrize("memory", ["speed", "shared"])
def test_loading_finds_a_changed_byte_in_what_it_reads(bundle_copy, name, memory):
    flip_byte(bundle_copy / name)
    refused(lambda: ztdeploy.load(bundle_copy, memory=memory), name, "changed since the build")


def test_a_file_that_changes_behind_an_early_hash_is_found(bundle_copy):
    bundle, weights = read_bundle(bundle_copy), bundle_copy / WEIGHTS_FILE
    bundle.hash_early(WEIGHTS_FILE)
    bundle.verify_files([WEIGHTS_FILE])
    intact = weights.read_bytes()
    for spoil in (lambda: flip_byte(weights), lambda: weights.write_bytes(b""), weights.unlink):
        bundle.hash_early(WEIGHTS_FILE)
        bundle._hashing[WEIGHTS_FILE].join()
        spoil()
        refused(lambda: bundle.verify_files([WEIGHTS_FILE]), WEIGHTS_FILE)
        bundle.hash_early(WEIGHTS_FILE)  # of a file that is damaged already, or gone
        refused(lambda: bundle.verify_files([WEIGHTS_FILE]), WEIGHTS_FILE)
        weights.write_bytes(intact)
    bundle.verify_files()


def test_loading_does_not_hash_what_it_does_not_read(bundle_copy):
    flip_byte(bundle_copy / "graphs/dense.cpu.onnx")
    with ztdeploy.load(bundle_copy, keep_ratio=0.7) as runner:
        refused(lambda: runner.switch(1), "dense.cpu.onnx", "changed since the build")


@pytest.mark.parametrize("length", [0, 1000])
def test_a_truncated_file_is_found(bundle_copy, length):
    with (bundle_copy / WEIGHTS_FILE).open("r+b") as file:
        file.truncate(length)
    refused(lambda: ztdeploy.load(bundle_copy), WEIGHTS_FILE, "changed since the build")
    refused(lambda: verify_bundle(bundle_copy, None, silent), WEIGHTS_FILE)


@pytest.mark.parametrize("name", ["graphs/keep-0.70.cpu.onnx", WEIGHTS_FILE, "golden/pixels.npy", "README.md"])
def test_a_missing_file_is_found(bundle_copy, name):
    (bundle_copy / name).unlink()
    refused(lambda: verify_bundle(bundle_copy, None, silent), name, "missing", "copy the whole folder again")


def test_a_folder_in_place_of_a_file_is_found(bundle_copy):
    (bundle_copy / "classes.txt").unlink()
    (bundle_copy / "classes.txt").mkdir()
    refused(lambda: read_bundle(bundle_copy).verify_files(), "classes.txt", "it is a folder")


@pytest.mark.parametrize("name", ["classes.txt", WEIGHTS_FILE, MANIFEST])
def test_a_fifo_in_place_of_a_file_is_not_waited_for(bundle_copy, name):
    (bundle_copy / name).unlink()
    os.mkfifo(bundle_copy / name)
    refused(lambda: ztdeploy.load(bundle_copy), name, "FIFO")


def test_a_file_that_nobody_listed_is_left_alone_and_never_read(bundle_copy):
    (bundle_copy / "notes.txt").write_text("mine")
    verify_bundle(bundle_copy, "jetson-orin", silent)
    refused(lambda: read_bundle(bundle_copy).path("notes.txt"), "notes.txt", "listed in the manifest")


@pytest.mark.parametrize("verify", [False, True])
def test_a_link_that_leads_outside_to_another_file_is_refused(bundle_copy, tmp_path, verify):
    (tmp_path / "secret.txt").write_text("secret")
    (bundle_copy / "classes.txt").unlink()
    (bundle_copy / "classes.txt").symlink_to(tmp_path / "secret.txt")
    refused(lambda: ztdeploy.load(bundle_copy, verify=verify), "classes.txt", "leads outside")
    refused(lambda: verify_bundle(bundle_copy, None, silent), "leads outside")


def test_a_linked_folder_that_leads_outside_to_other_files_is_refused(bundle_copy, tmp_path):
    shutil.move(bundle_copy / "golden", tmp_path / "elsewhere")
    flip_byte(tmp_path / "elsewhere" / "pixels.npy")
    (bundle_copy / "golden").symlink_to(tmp_path / "elsewhere")
    refused(lambda: read_bundle(bundle_copy).path("golden/pixels.npy"), "leads outside")


def laid_out_as_by_a_hub(bundle, elsewhere):
    """`snapshots/REVISION/NAME -> ../../blobs/HASH`, as the client of Hugging Face's hub keeps a download."""
    (elsewhere / "blobs").mkdir(parents=True)
    for path in [path for path in bundle.rglob("*") if path.is_file()]:
        blob = elsewhere / "blobs" / sha256_of(path)
        shutil.move(path, blob)
        path.symlink_to(os.path.relpath(blob, path.parent))


def laid_out_as_by_kubernetes(bundle, elsewhere):
    """`NAME -> ..data/NAME`, `..data -> ..2026_01_01`: in one folder, whose inner folders are links, too."""
    data = bundle / "..2026_01_01"
    data.mkdir()
    for path in [path for path in bundle.iterdir() if path != data]:
        shutil.move(path, data / path.name)
    (bundle / "..data").symlink_to(data.name)
    for path in data.iterdir():
        (bundle / path.name).symlink_to(f"..data/{path.name}")


def laid_out_as_by_a_store(bundle, elsewhere):
    """Every file in a folder of its own, as git-annex keeps them; here only the weights, which others read."""
    (elsewhere / "objects").mkdir(parents=True)
    shutil.move(bundle / WEIGHTS_FILE, elsewhere / "objects" / "0123")
    (bundle / WEIGHTS_FILE).symlink_to(elsewhere / "objects" / "0123")


@pytest.mark.parametrize("lay_out", [laid_out_as_by_a_hub, laid_out_as_by_kubernetes, laid_out_as_by_a_store])
@pytest.mark.parametrize("memory", ["speed", "shared"])
@pytest.mark.short("[shared-")
def test_a_bundle_of_links_runs_as_the_bundle_itself(bundle_copy, tmp_path, lay_out, memory):
    pixels = np.load(bundle_copy / "golden" / "pixels.npy")
    with ztdeploy.load(bundle_copy, profile="cpu", memory=memory) as runner:
        expected = runner.infer(pixels).logits
    lay_out(bundle_copy, tmp_path / "elsewhere")
    verify_bundle(bundle_copy, None, silent)
    with ztdeploy.load(bundle_copy, profile="cpu", memory=memory) as runner:
        np.testing.assert_array_equal(runner.infer(pixels).logits, expected)


def test_a_writing_verb_replaces_links_and_leaves_alone_what_they_lead_to(bundle_copy, tmp_path):
    laid_out_as_by_a_hub(bundle_copy, tmp_path / "elsewhere")
    before = snapshot(tmp_path / "elsewhere")
    finalize_bundle(bundle_copy, silent, profile="cpu")
    assert snapshot(tmp_path / "elsewhere") == before
    assert not (bundle_copy / MANIFEST).is_symlink()
    read_bundle(bundle_copy).verify_files()


def test_a_writing_verb_does_not_write_through_a_linked_folder(bundle_copy, tmp_path):
    shutil.move(bundle_copy / "graphs", tmp_path / "elsewhere")
    (bundle_copy / "graphs").symlink_to(tmp_path / "elsewhere")
    before = snapshot(tmp_path / "elsewhere")
    refused(lambda: finalize_bundle(bundle_copy, silent, profile="cpu"), "graphs", "is a link", kind=OutputError)
    assert snapshot(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("name", ["manifest.json.new", "graphs/scratch", ".manifest.json.partial"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_was_prepared_in_a_bundle_is_neither_followed_nor_waited_for(bundle_copy, tmp_path, name, kind):
    (tmp_path / "mine").write_text("mine")
    if kind == "link":
        (bundle_copy / name).symlink_to(tmp_path / "mine")
    else:
        os.mkfifo(bundle_copy / name)
    finalize_bundle(bundle_copy, silent, profile="cpu")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (bundle_copy / name).is_symlink() == (kind == "link")


@pytest.mark.parametrize(
    ("target", "what"), [("nowhere", "missing"), ("classes.txt", "circle"), ("/dev/zero", "a device")]
)
def test_a_link_to_nothing_to_itself_or_to_a_device(bundle_copy, target, what):
    (bundle_copy / "classes.txt").unlink()
    (bundle_copy / "classes.txt").symlink_to(target)
    refused(lambda: read_bundle(bundle_copy).path("classes.txt"), "classes.txt", what)


@pytest.mark.parametrize("root", ["x" * 5000, "a\0b", "file", "file/below", "\ud800", "fifo", "nowhere"])
def test_what_cannot_be_a_bundles_folder(tmp_path, root):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    refused(lambda: read_bundle(tmp_path / root), kind=InputError)


def test_links_inside_the_bundle_and_to_the_bundle_work(bundle_copy, tmp_path):
    shutil.move(bundle_copy / "classes.txt", bundle_copy / "real.txt")
    (bundle_copy / "classes.txt").symlink_to("real.txt")
    (tmp_path / "link").symlink_to(bundle_copy)
    read_bundle(tmp_path / "link").verify_files()


# -------------------- variants and profiles


@pytest.mark.parametrize(
    ("keep_ratio", "name", "found"),
    [(None, None, "keep-0.70"), (0.5, None, "keep-0.50"), (1, None, "dense"), (None, "dense", "dense")],
)
def test_a_variant_is_found_by_keep_ratio_or_name(digits_bundle, keep_ratio, name, found):
    assert read_bundle(digits_bundle).variant(keep_ratio, name).name == found


def test_a_keep_ratio_that_several_variants_share_is_not_guessed(bundle_copy):
    """As in a bundle of two methods: measuring the first of them would answer another question than was asked."""
    edit(bundle_copy, lambda manifest: manifest["variants"][1]["schedule"].update(keep_ratio=0.7))
    bundle = read_bundle(bundle_copy)
    assert [variant.name for variant in bundle.variants_at(0.7)] == ["keep-0.70", "keep-0.50"]
    for ask in (
        lambda: bundle.variant(0.7),
        lambda: ztdeploy.load(bundle_copy, keep_ratio=0.7),
        lambda: plan_bench(BenchRequest(bundle=bundle_copy, keep_ratios=(0.7,)), bundle),
        lambda: plan_eval(EvalRequest(bundle=bundle_copy, data=bundle_copy, keep_ratios=(0.7,)), bundle),
        lambda: explain_bundle(bundle, [], (0.7,)),
    ):
        refused(ask, "keep-0.70, keep-0.50", "--variant keep-0.70", kind=InputError)
    assert bundle.variant(name="keep-0.50").name == "keep-0.50"
    assert [variant.name for variant in bundle.variants((1,), ("keep-0.50",))] == ["dense", "keep-0.50"]
    assert bundle.variants() == list(bundle.manifest.variants)


@pytest.mark.parametrize(("keep_ratio", "name"), [(0.6, None), (float("nan"), None), (None, "sparse"), (0, None)])
def test_an_unknown_variant_lists_those_there_are(digits_bundle, keep_ratio, name):
    refused(lambda: read_bundle(digits_bundle).variant(keep_ratio, name), "has no", "0.7, 0.5, 1", kind=InputError)


def test_the_first_profile_with_engines_is_run(digits_bundle):
    bundle = read_bundle(digits_bundle)
    assert bundle.profile_name(None) == "cpu"
    assert bundle.profile_name("jetson-orin") == "jetson-orin"
    refused(lambda: bundle.profile_name("jetson_orin"), "did you mean 'jetson-orin'?", kind=InputError)


def test_a_bundle_without_any_engine_says_why(bundle_copy):
    edit(bundle_copy, lambda manifest: [variant["engines"].clear() for variant in manifest["variants"]])
    refused(
        lambda: ztdeploy.load(bundle_copy),
        "holds no engine",
        "jetson-orin",
        "ztdeploy finalize",
        "--profile cpu",
        kind=InputError,
    )


# -------------------- writing: whole or not at all


def test_a_new_bundle_appears_whole(tmp_path):
    out = tmp_path / "deep" / "er" / "bundle"
    with new_bundle_folder(out, force=False) as folder:
        write_in(folder)
        assert not out.exists()
        assert folder.is_relative_to(out.parent)  # the same file system, so that renaming is atomic
    assert names_in(out.parent) == ["bundle"]
    assert (out / WEIGHTS_FILE).read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), BundleError("a", "b", "c"), SystemExit(1)])
@pytest.mark.parametrize("force", [False, True])
def test_an_exception_leaves_nothing_and_what_was_there_stays(tmp_path, error, force):
    if force:
        a_bundle(tmp_path / "bundle")
    before = snapshot(tmp_path)

    def build():
        with new_bundle_folder(tmp_path / "bundle", force=force) as folder:
            write_in(folder)
            raise error

    with pytest.raises(type(error)):
        build()
    assert snapshot(tmp_path) == before
    assert names_in(tmp_path) == (["bundle"] if force else [])


@pytest.mark.parametrize("there", ["bundle", "folder", "file"])
def test_what_exists_is_not_replaced(tmp_path, there):
    out = tmp_path / "out"
    if there == "bundle":
        a_bundle(out)
    elif there == "folder":
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
    else:
        out.write_text("years of work")
    before = snapshot(tmp_path)
    refused(lambda: build_into(out), str(out), "exists", kind=OutputError)
    refused(lambda: check_output(out, force=False), "exists", kind=OutputError)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "manifest",
    [None, "{}", '{"name": "My web app", "start_url": "/"}', "not JSON", '{"manifest_version": 3}'],
    ids=["none", "empty", "web-app", "garbage", "browser-extension"],
)
def test_force_never_deletes_what_is_not_a_bundle(tmp_path, manifest):
    """`manifest.json` is a common name: web apps and browser extensions have one, too."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    if manifest is not None:
        (out / MANIFEST).write_text(manifest)
    before = snapshot(tmp_path)
    refused(lambda: build_into(out, force=True), "not a bundle", kind=OutputError)
    assert snapshot(tmp_path) == before


def test_force_never_deletes_a_file(tmp_path):
    (tmp_path / "out").write_text("years of work")
    refused(lambda: build_into(tmp_path / "out", force=True), "is a file", kind=OutputError)
    assert (tmp_path / "out").read_text() == "years of work"


def test_force_replaces_a_bundle(tmp_path):
    out = a_bundle(tmp_path / "out")
    (out / "graphs" / "old.onnx").write_text("old")
    build_into(out, force=True)
    assert snapshot(out).keys() == {Path(WEIGHTS_FILE)}
    assert names_in(tmp_path) == ["out"]


def test_force_replaces_a_real_bundle(bundle_copy):
    build_into(bundle_copy, force=True)
    assert names_in(bundle_copy) == ["graphs"]


def test_force_replaces_a_damaged_bundle(bundle_copy):
    (bundle_copy / MANIFEST).write_text("{")
    build_into(bundle_copy, force=True)
    assert names_in(bundle_copy) == ["graphs"]


@pytest.mark.parametrize("name", ["thesis.txt", "graphs/thesis.onnx", "golden/deep/thesis.txt", "old/manifest.json"])
@pytest.mark.parametrize("link", [False, True])
def test_force_never_deletes_what_somebody_put_into_a_bundle(bundle_copy, name, link):
    path = bundle_copy / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/") if link else path.write_text("years of work")
    before = snapshot(bundle_copy)
    for call in (lambda: check_output(bundle_copy, force=True), lambda: build_into(bundle_copy, force=True)):
        refused(call, name, "not the bundle's", "move it", kind=OutputError)
    assert snapshot(bundle_copy) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("out", ["/", "/proc/x", "/dev/full", "/dev/full/x", "a\0b", "x" * 256, "x" * 5000, "."])
def test_places_that_are_refused_before_anything_is_done(tmp_path, monkeypatch, out, force):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work")
    refused(lambda: check_output(Path(out), force=force), kind=OutputError)
    refused(lambda: build_into(Path(out), force=force), kind=OutputError)
    assert names_in(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("force", [False, True])
def test_an_empty_folder_is_taken(tmp_path, force):
    (tmp_path / "out").mkdir()
    build_into(tmp_path / "out", force=force)
    assert names_in(tmp_path) == ["out"]
    assert (tmp_path / "out" / WEIGHTS_FILE).is_file()


def test_the_current_folder_is_taken_when_it_is_empty(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    build_into(Path())
    assert names_in(tmp_path) == ["here"]
    assert (tmp_path / "here" / WEIGHTS_FILE).is_file()


@pytest.mark.parametrize("target", ["nothing", "empty", "bundle"])
def test_a_link_stays_a_link(tmp_path, target):
    if target == "empty":
        (tmp_path / "real").mkdir()
    elif target == "bundle":
        a_bundle(tmp_path / "real")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    build_into(tmp_path / "out", force=target == "bundle")
    assert (tmp_path / "out").is_symlink()
    assert snapshot(tmp_path / "real").keys() == {Path(WEIGHTS_FILE)}
    assert names_in(tmp_path) == ["out", "real"]


def test_a_failed_rename_puts_the_old_bundle_back(tmp_path, monkeypatch):
    out = a_bundle(tmp_path / "out")
    (out / "graphs" / "dense.onnx").write_bytes(b"old")
    before, rename = snapshot(tmp_path), Path.rename

    def failing(path, target):
        if "new" in path.parts:
            raise OSError(errno.ENOSPC, "full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    refused(lambda: build_into(out, force=True), "the disk is full", kind=OutputError)
    assert snapshot(tmp_path) == before


# -------------------- killed builds

KILLED = """
import sys, time
from pathlib import Path
from ztdeploy.core.bundle import new_bundle_folder
with new_bundle_folder(Path(sys.argv[1]), force=False) as folder:
    (folder / "half.onnx").write_bytes(b"half")
    print(folder.parent.name, flush=True)
    time.sleep(900)
"""


def test_what_a_killed_finalize_left_is_no_ones_work(bundle_copy):
    dead_folder(bundle_copy / "graphs")
    build_into(bundle_copy, force=True)
    assert names_in(bundle_copy) == ["graphs"]


@pytest.mark.parametrize("name", ["bundle", "deit[1]*?"])
def test_a_killed_build_leaves_nothing_at_out_and_the_next_one_cleans_up(tmp_path, name):
    out = tmp_path / name
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(out)], stdout=subprocess.PIPE, text=True)
    with child.stdout:
        partial = child.stdout.readline().strip()
    assert names_in(tmp_path) == [partial]
    build_into(tmp_path / "another")  # a build beside it leaves it alone
    assert names_in(tmp_path) == [partial, "another"]
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists()
    assert partial.startswith(".")
    assert not (tmp_path / partial / MANIFEST).exists()
    build_into(out)
    assert names_in(tmp_path) == sorted(["another", name])


# -------------------- volumes


@pytest.fixture(params=["tmpfs", "bind"])
def volume(tmp_path, request):
    """A mount point, as a container has it: of another file system, or of the same one."""
    out = tmp_path / "volume"
    out.mkdir()
    if request.param == "tmpfs":
        mounted("-t", "tmpfs", "tmpfs", out)
    else:
        (tmp_path / "shared").mkdir()
        mounted("--bind", tmp_path / "shared", out)
    yield out
    subprocess.run(["umount", str(out)], check=True)


def test_a_volume_takes_a_bundle_and_another_one(volume):
    (volume / "lost+found").mkdir()  # what the system puts there
    build_into(volume)
    assert names_in(volume) == ["graphs", "lost+found"]
    (volume / MANIFEST).write_text("{}")
    refused(lambda: build_into(volume), "exists", kind=OutputError)
    build_into(volume, force=True)
    assert names_in(volume) == ["graphs", "lost+found"]
    build_into(volume / "deep" / "bundle")


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_in_one_that_cannot_be_written(open_folder, force):
    out = open_folder / "out"
    if force:
        a_bundle(out)
    else:
        out.mkdir()
    if os.geteuid() == 0:
        for path in [out, *out.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
    open_folder.chmod(0o555)
    try:
        assert as_nobody(lambda: build_into(out, force=force)) == 0
        assert names_in(out) == ["graphs"]
        assert as_nobody(lambda: build_into(open_folder / "other")) == OutputError.exit_code
    finally:
        open_folder.chmod(0o755)


# -------------------- disks


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
        (errno.EPERM, "permission"),
        (errno.ENAMETOOLONG, "too long"),
        (errno.ENOTDIR, "not a folder"),
    ],
)
def test_what_a_disk_refuses_becomes_an_error_that_says_so(tmp_path, code, reason):
    def build():
        with new_bundle_folder(tmp_path / "bundle", force=False) as folder:
            write_in(folder)
            raise OSError(code, os.strerror(code))

    refused(build, str(tmp_path / "bundle"), reason, kind=OutputError)
    assert names_in(tmp_path) == []


def test_an_error_about_something_else_is_not_disguised(tmp_path):
    def build():
        with new_bundle_folder(tmp_path / "bundle", force=False):
            (tmp_path / "weights").read_bytes()

    with pytest.raises(FileNotFoundError, match="weights"):
        build()
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("below", ["bundle", "deep/bundle"])
def test_a_file_where_a_folder_should_be_is_named(tmp_path, below):
    (tmp_path / "file").touch()
    refused(lambda: build_into(tmp_path / "file" / below), str(tmp_path / "file"), kind=OutputError)


def test_the_longest_name_that_there_is(tmp_path):
    build_into(tmp_path / ("x" * 255))
    refused(lambda: build_into(tmp_path / ("x" * 256)), "too long", kind=OutputError)
    assert names_in(tmp_path) == ["x" * 255]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted("-t", "tmpfs", "-o", "size=256k", "tmpfs", disk)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_says_so_and_is_left_as_it_was(small_disk):
    def build():
        with new_bundle_folder(small_disk / "bundle", force=False) as folder:
            for number in range(10):
                (folder / f"{number}.onnx").write_bytes(bytes(100_000))

    refused(build, "the disk is full", kind=OutputError)
    assert names_in(small_disk) == []


def test_a_manifest_is_whole_or_as_before_on_a_full_disk(small_disk, digits_bundle):
    manifest = read_bundle(digits_bundle).manifest
    write_manifest(small_disk, manifest)
    huge = manifest.model_copy(update={"created": "x" * 500_000})
    with pytest.raises(OutputError, match="full"):
        write_manifest(small_disk, huge)
    assert read_bundle(small_disk).manifest == manifest
    assert names_in(small_disk) == [MANIFEST]


def test_a_read_only_disk_says_so(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused(lambda: build_into(small_disk / "bundle"), "read-only", "--out", kind=OutputError)


def test_the_manifests_json_is_stable(digits_bundle):
    """Two reads and writes give the same bytes: manifests can be compared with diff."""
    text = (digits_bundle / MANIFEST).read_text()
    assert to_json(from_json(Manifest, text), indent=1, by_alias=True) + "\n" == text


def test_what_prunes_is_not_dense_whatever_its_schedule_says(bundle_copy):
    """A schedule file may say `keep_ratio = 1` above tables of layers that prune, or nothing at all and have none."""

    def change(manifest):
        for variant in manifest["variants"]:
            variant["schedule"]["keep_ratio"] = 1.0 if variant["plan"]["layers"] else None

    bundle = read_bundle(edit(bundle_copy, change))
    assert [one.keep_ratio for one in bundle.manifest.variants] == [None, None, 1.0]
    assert bundle.variant(keep_ratio=1.0) == bundle.manifest.dense
