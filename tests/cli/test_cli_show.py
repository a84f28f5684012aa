"""`ztdeploy show` as people meet it: what it writes, says and refuses."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bundles import edit, linked_copy
from helpers.processes import Done, run_ztdeploy
from PIL import Image

import ztdeploy
from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.model_source import ModelSource

NOTES = ("importance", "survivors", "group", "partner", "similarity")


def show(*arguments: str | Path, cwd: Path) -> Done:
    return run_ztdeploy("show", *arguments, cwd=cwd)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))


def test_what_is_written_and_said(digits_bundle: Path, digit_images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "<img src=x onerror=y>.png").write_bytes(digit_images[0].read_bytes())
    images = (digit_images[1], tmp_path / "<img src=x onerror=y>.png")
    done = show(digits_bundle, *images, "--out", "shown", "--json", cwd=tmp_path)
    assert (done.code, done.err) == (0, ""), done
    found: dict[str, Any] = done.json()
    assert [one["image"] for one in found["images"]] == list(map(str, images))
    names = {Path(one["sheet"]).name for one in found["images"]} | {"show.html"}
    assert {path.name for path in (tmp_path / "shown").iterdir()} == names
    assert found["page"] == "shown/show.html"
    for one in found["images"]:
        with Image.open(tmp_path / one["sheet"]) as sheet:
            assert sheet.format == "PNG"
            assert sheet.width > 1000
        assert [seen["variant"] for seen in one["variants"]] == ["keep-0.70", "keep-0.50"]
    page = Page((tmp_path / "shown" / "show.html").read_text())
    assert "script" not in page.tags
    assert len(page.images) == 2 * 2 * (1 + 2 * 3), "the input, and per layer what stays and a map"
    for image in page.images:
        assert set(image) == {"src", "alt"}
        kind, data = str(image["src"]).split(",", 1)
        assert kind in ("data:image/jpeg;base64", "data:image/png;base64")
        Image.open(io.BytesIO(base64.b64decode(data))).verify()


def test_kept_patches_are_the_runners(digits_bundle: Path, digit_images: list[Path], tmp_path: Path) -> None:
    found = show(digits_bundle, digit_images[3], "-k", "0.5", "-k", "1", "-o", "shown", "--json", cwd=tmp_path).json()
    ((seen,),) = [one["variants"] for one in found["images"]]
    with ztdeploy.load(digits_bundle, keep_ratio=0.5) as runner:
        said = runner(digit_images[3])[0]
    assert [layer["kept_patches"] for layer in seen["layers"]] == [sorted(layer.tolist()) for layer in said.kept]
    assert [layer["block"] for layer in seen["layers"]] == [2, 5, 8]
    assert [layer["merged_patches"] for layer in seen["layers"]] == [[], [], []]
    assert seen["labels"][0]["index"] == said.labels[0].index


def test_reasons_are_those_of_pytorch(digits_bundle: Path, digit_images: list[Path], tmp_path: Path) -> None:
    from ztdeploy.host.export import Deployable
    from ztdeploy.host.models.loading import load_model
    from ztdeploy.host.pruning.pruned_model import PrunedModel
    from ztdeploy.target.runtime.preprocess import load_pixels

    images = digit_images[2:6]
    found = show(digits_bundle, *images, "-k", "0.7", "-o", "shown", "--json", cwd=tmp_path).json()
    model = load_model(ModelSource(name="vit_digits"))
    schedule = read_bundle(digits_bundle).variant(0.7).schedule
    with PrunedModel(model.adapter, schedule) as pruned, torch.no_grad():
        pixels = torch.from_numpy(load_pixels(images, model.preprocess))
        (_, *kept), notes = pruned.noted(Deployable(pruned, model.preprocess, "uint8").normalise(pixels))
    for index, one in enumerate(found["images"]):
        ((seen,), places) = one["variants"], [None, *range(64)]
        assert seen["doubt"] is None
        for layer, stay in zip(seen["layers"], kept, strict=True):
            own = {note: notes[f"blocks.{layer['block']}/prune/{note}"][index].tolist() for note in NOTES}
            gone = set(range(len(places))) - set(stay[index].tolist())
            alike = {token for token in gone if own["survivors"][token] == 0}
            assert layer["dropped_by_similarity"] == sorted(places[token] for token in alike)
            assert layer["dropped_by_importance"] == sorted(places[token] for token in gone - alike)
            pairs = {places[a]: (places[b], s) for a, b, s in zip(own["group"], own["partner"], own["similarity"])}  # noqa: B905
            assert [patch for patch, _, _ in layer["pairs"]] == sorted(
                layer["dropped_by_similarity"], key=lambda patch: -pairs[patch][1]
            )
            for patch, partner, similarity in layer["pairs"]:
                assert (partner, pytest.approx(similarity, abs=1e-4)) == pairs[patch]
            squared = own["importance"]  # as graphs leave out the root, which changes no ranking, so does the module
            ranked = {p: squared[t] ** 0.5 for t, p in enumerate(places) if p is not None and t not in alike}
            mean = sum(ranked.values()) / len(ranked)
            shown = {patch: value for patch, value in enumerate(layer["importance"]) if value is not None}
            assert shown == {patch: pytest.approx(value / mean, rel=2e-3) for patch, value in ranked.items()}
            places = [places[token] for token in stay[index].tolist()]


def test_the_stages_of_a_cascade_that_ran_on_each_image(
    cascade_bundle: Path, digit_images: list[Path], tmp_path: Path
) -> None:
    """What each kept is what its variant keeps, for images regrouped between stages; reasons come with it."""

    def choosy(manifest: Any) -> None:
        manifest["cascade"]["settings"]["cpu"]["thresholds"] = [0.8, 0.85]

    bundle, images = edit(linked_copy(cascade_bundle, tmp_path / "bundle"), choosy), digit_images[100:110]
    arguments = (*images, "--cascade", "-p", "cpu", "-o", "shown", "--json")
    found = show(bundle, *arguments, cwd=tmp_path).json()["images"]
    chain, answered, whole = ["keep-0.50", "keep-0.70", "dense"], list[str](), dict[str, Any]()
    with ztdeploy.load(bundle, variant="dense", profile="cpu") as runner:
        for name in chain:
            runner.switch(variant=name)
            whole[name] = runner(images)
    for image, one in enumerate(found):
        ran = [seen["variant"] for seen in one["variants"]]
        answered.append(ran[-1])
        assert (one["answered_by"], ran) == (ran[-1], chain[: len(ran)])
        for seen in one["variants"]:
            said = whole[seen["variant"]][image]
            assert [layer["kept_patches"] for layer in seen["layers"]] == [sorted(kept.tolist()) for kept in said.kept]
            assert seen["labels"][0]["index"] == said.labels[0].index
            assert (seen["threshold"] is None) == (seen["confidence"] is None) == (seen["variant"] == "dense")
            if seen["threshold"]:
                assert (seen["confidence"] >= seen["threshold"]) == (seen["variant"] == ran[-1])
            assert seen["doubt"] is None
            assert all(layer["pairs"] is not None for layer in seen["layers"])
    assert {"keep-0.50", "dense"} <= set(answered)
    page = (tmp_path / "shown" / "show.html").read_text()
    assert page.count("goes on</p>") == sum(map(chain.index, answered))


def test_a_bundle_of_an_older_version(bundle_copy: Path, digit_images: list[Path], tmp_path: Path) -> None:
    def without_notes(manifest: Any) -> None:
        for variant in manifest["variants"]:
            for graph in variant["graphs"].values():
                del graph["notes_file"]

    edit(bundle_copy, without_notes)
    done = show(bundle_copy, digit_images[0], "--out", "shown", cwd=tmp_path)
    assert done.code == 0, done
    assert re.search(r"keep-0\.70\t.*\t45, 32, 23\t-", done.out)
    assert "keep-0.70 and 1 more: Why patches went" in done.err
    page = (tmp_path / "shown" / "show.html").read_text()
    assert page.count("build it again with this version") == 2
    assert len(Page(page).images) == 2 * 4
    found = show(bundle_copy, digit_images[0], "--out", "shown", "--json", cwd=tmp_path).json()
    layer = found["images"][0]["variants"][0]["layers"][0]
    assert len(layer["kept_patches"]) == 45
    assert [layer[key] for key in ("dropped_by_similarity", "dropped_by_importance", "pairs", "importance")] == [
        None
    ] * 4


def test_a_graph_that_chooses_otherwise_explains_nothing(
    bundle_copy: Path, digit_images: list[Path], tmp_path: Path
) -> None:
    def of_the_other(manifest: Any) -> None:
        graphs = {variant["name"]: variant["graphs"]["cpu"] for variant in manifest["variants"]}
        graphs["keep-0.70"]["notes_file"] = graphs["keep-0.50"]["notes_file"]

    edit(bundle_copy, of_the_other)
    found = show(bundle_copy, digit_images[0], "-k", "0.7", "--out", "shown", "--json", cwd=tmp_path).json()
    (seen,) = found["images"][0]["variants"]
    assert seen["doubt"].startswith("From block 3 on there are no reasons")
    assert [layer["pairs"] for layer in seen["layers"]] == [None] * 3
    with ztdeploy.load(bundle_copy, keep_ratio=0.7) as runner:
        kept = runner(digit_images[0])[0].kept
    assert [layer["kept_patches"] for layer in seen["layers"]] == [sorted(layer.tolist()) for layer in kept]
    assert "From block 3 on there are no reasons" in (tmp_path / "shown" / "show.html").read_text()


def test_a_graph_with_notes_that_has_changed(bundle_copy: Path, digit_images: list[Path], tmp_path: Path) -> None:
    noted = bundle_copy / str(read_bundle(bundle_copy).variant(0.7).graphs["cpu"].notes_file)
    noted.write_bytes(noted.read_bytes()[:-1])
    done = show(bundle_copy, digit_images[0], "--out", "shown", cwd=tmp_path)
    assert (done.code, done.out, len(done.err.splitlines())) == (4, "", 1), done
    assert "has changed since the build" in done.error
    assert not (tmp_path / "shown").exists()


def test_a_graph_with_notes_that_cannot_be_run_here(
    bundle_copy: Path, digit_images: list[Path], tmp_path: Path
) -> None:
    name = str(read_bundle(bundle_copy).variant(0.7).graphs["cpu"].notes_file)
    (bundle_copy / name).write_bytes(b"no graph")

    def listed(manifest: Any) -> None:
        manifest["files"][name] = {"sha256": hashlib.sha256(b"no graph").hexdigest(), "bytes": 8}

    done = show(edit(bundle_copy, listed), digit_images[0], "-k", "0.7", "--out", "shown", cwd=tmp_path)
    assert done.code == 0, done
    assert re.search(r"Why patches went is not known: .*cannot be run", done.err)
    assert re.search(r"keep-0\.70\t.*\t45, 32, 23\t-", done.out)


def test_a_table_and_a_folder_in_use(digits_bundle: Path, digit_images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "shown"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "show.html").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        done = show(digits_bundle, digit_images[0], "--out", out, cwd=tmp_path)
        assert done.code == 0, done
    assert re.search(r"keep-0\.70\t.*\t45, 32, 23\t2\d \+ 2\d", done.out)
    assert done.err.endswith("show.html and 1 PNG\n")
    assert {path.name for path in out.iterdir()} == {"notes.txt", "show.html", f"{digit_images[0].stem}.show.png"}
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "show.html").is_symlink()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("BUNDLE IMAGE torn.png --out shown", 3, "torn.png"),
        ("BUNDLE absent.png --out shown", 3, "does not exist"),
        ("BUNDLE IMAGE --out torn.png", 3, "is a file"),
        ("BUNDLE IMAGE --out torn.png/below", 3, "lies below the file"),
        ("BUNDLE IMAGE -k 1 --out shown", 3, "a variant that prunes"),
        ("BUNDLE IMAGE -k 0.9 --out shown", 3, "keep ratio 0.9"),
        ("BUNDLE IMAGE -k many --out shown", 3, "--keep-ratio many"),
        ("BUNDLE IMAGE -p none --out shown", 3, "none"),
        ("BUNDLE IMAGE --cascade --out shown", 3, "has no cascade"),
        ("BUNDLE IMAGE --cascade -k 0.5 --out shown", 3, "beside a cascade"),
        ("absent IMAGE --out shown", 3, "absent"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: str, code: int, words: str, digits_bundle: Path, digit_images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "torn.png").write_bytes(digit_images[0].read_bytes()[:60])
    places = {"BUNDLE": digits_bundle, "IMAGE": digit_images[0]}
    done = show(*(places.get(word, word) for word in arguments.split()), cwd=tmp_path)
    assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1), done
    assert words in done.error
    assert [path.name for path in tmp_path.iterdir()] == ["torn.png"]


def test_a_bundle_without_a_pruned_variant(bundle_copy: Path, digit_images: list[Path], tmp_path: Path) -> None:
    def only_dense(manifest: Any) -> None:
        manifest["variants"] = [one for one in manifest["variants"] if one["name"] == "dense"]
        manifest["default_variant"] = "dense"

    done = show(edit(bundle_copy, only_dense), digit_images[0], "--out", "shown", cwd=tmp_path)
    assert (done.code, done.out, len(done.err.splitlines())) == (3, "", 1), done
    assert "only the dense variant" in done.error
    assert not (tmp_path / "shown").exists()


def test_a_folder_where_a_file_goes(digits_bundle: Path, digit_images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "shown" / "show.html").mkdir(parents=True)
    done = show(digits_bundle, digit_images[0], "--out", "shown", cwd=tmp_path)
    assert (done.code, done.out) == (3, "")
    assert "is a folder" in done.error


def test_no_image_and_no_out(digits_bundle: Path, digit_images: list[Path], tmp_path: Path) -> None:
    assert show(digits_bundle, "--out", "shown", cwd=tmp_path).code == 2
    assert show(digits_bundle, digit_images[0], cwd=tmp_path).code == 2
    assert list(tmp_path.iterdir()) == []
