"""`ztdeploy show` as people meet it: what it writes, says and refuses."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.bundles import edit
from helpers.processes import Done
from PIL import Image

import ztdeploy

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]


def show(*arguments: str | Path, cwd: Path) -> Done:
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "ztdeploy", "show", *map(str, arguments)],
        cwd=cwd,
        env={**shell, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


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
    assert len(page.images) == 2 * 2 * 4
    for image in page.images:
        assert set(image) == {"src", "alt"}
        kind, data = str(image["src"]).split(",", 1)
        assert kind == "data:image/jpeg;base64"
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


def test_a_table_and_a_folder_in_use(digits_bundle: Path, digit_images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "shown"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "show.html").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        done = show(digits_bundle, digit_images[0], "--out", out, cwd=tmp_path)
        assert done.code == 0, done
    assert re.search(r"keep-0\.70 .* 45, 32, 23", done.out)
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
        ("BUNDLE IMAGE -k 0.9 --out shown", 4, "keep ratio 0.9"),
        ("BUNDLE IMAGE -k many --out shown", 3, "--keep-ratio 'many'"),
        ("BUNDLE IMAGE -p none --out shown", 4, "none"),
        ("absent IMAGE --out shown", 4, "manifest.json"),
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
