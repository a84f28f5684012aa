"""The notebooks: they run, and lie in the repository without what they show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.processes import CHECKOUT

pytest.importorskip("nbclient", reason="the extra [docs] is not installed")

NOTEBOOKS = sorted((CHECKOUT / "docs").glob("**/*.ipynb"))
BUILD = 'ztdeploy.build(\\"vit_digits\\",'


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_stored_without_outputs(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_runs_and_shows_pictures(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the site, but for a method whose graphs are made in less time."""
    text = path.read_text(encoding="utf-8")
    assert BUILD in text
    path = tmp_path / path.name
    path.write_text(text.replace(BUILD, f"{BUILD} method='slice',"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(CHECKOUT / "scripts"))
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    from reference.notebooks import as_page

    page, pictures = as_page(path)
    assert page.startswith("# ")
    assert "% right" in page
    assert pictures
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS
