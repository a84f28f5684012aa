"""`ztdeploy models`: searching, and what can be done with a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_cli import Run
from test_cli import run as run


def test_what_can_be_done_with_a_model(run: Run, tmp_path: Path) -> None:
    text = run("models", "--check", "vit_small_patch14_dinov2", cwd=tmp_path)
    assert (text.code, text.err) == (0, "")
    for words in ("518 x 518", "1370: 1369 patches", "5, 7, 10", "embedding of 384", "GMACs"):
        assert words in text.out
    data = run("models", "--check", "dinov3_s", "--image-size", "448", "--json", cwd=tmp_path).json()["check"]
    assert (data["family"], data["image_size"]) == ("eva", 448)
    assert (data["architecture"]["patch_tokens"], data["architecture"]["prefix_tokens"]) == (784, 5)
    assert data["pruned_gmacs"] < data["gmacs"]
    assert "ats" not in data["methods"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("swin_tiny_patch4_window7_224", ["swin_tiny_patch4_window7_224", "windows"]),
        ("vit_dwee_patch16_reg1_gap_256", ["DiffAttention"]),
        ("vit_smal_patch16_224", ["did you mean"]),
    ],
)
def test_why_not(run: Run, tmp_path: Path, name: str, words: list[str]) -> None:
    text = run("models", "--check", name, cwd=tmp_path)
    assert text.code == 3
    assert all(word in text.err for word in words)
    data = run("models", "--check", name, "--json", cwd=tmp_path)
    assert data.code == 3
    assert data.json() == {"message": data.error.removeprefix("error: "), "exit_code": 3}


def test_searching_finds_timms_names_too(run: Run, tmp_path: Path) -> None:
    found = run("models", "dinov3", "--json", cwd=tmp_path).json()["models"]
    assert {"dinov3_s", "vit_large_patch16_dinov3"} <= {row["name"] for row in found}
    assert {row["family"] for row in found} == {"eva"}
    assert run("models", "no-such-thing", "--json", cwd=tmp_path).json()["models"] == []
