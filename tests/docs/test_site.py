"""The documents as a site: a build without warnings means that every link and anchor leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.processes import CHECKOUT

pytest.importorskip("mkdocs", reason="the extra [docs] is not installed")
pytestmark = pytest.mark.skipif(not (CHECKOUT / "mkdocs.yml").is_file(), reason="the documents lie in a checkout only")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site with notebooks as they are, without what they show."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(CHECKOUT / "mkdocs.yml"), strict=True, site_dir=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reference.notebooks.executed", _as_it_is)
        build(config)
    return folder


def _as_it_is(text: str) -> object:
    import nbformat

    return nbformat.reads(text, as_version=4)


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    """What a browser would load: not the links that somebody may follow."""
    loads = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(?:https?:)?//|url\([\"']?https?:|@import")
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        assert not loads.search(path.read_text(encoding="utf-8")), path.relative_to(site)


def test_the_reference_has_all_that_there_is(site: Path) -> None:
    import ztdeploy
    from ztdeploy.cli.app import VERBS
    from ztdeploy.cli.results import RESULTS
    from ztdeploy.core.manifest import Manifest
    from ztdeploy.core.methods import METHODS
    from ztdeploy.core.profile import HardwareProfile, profile_names, schedule_names

    def page(name: str) -> str:
        return (site / "reference" / f"{name}.html").read_text(encoding="utf-8")

    commands = page("command-line")
    assert all(re.search(rf'<h2 id="{verb}[-"]', commands) for verb in VERBS)
    assert "<code>--keep-ratio</code>" in commands
    python = page("python")
    assert all(f"ztdeploy.{name}" in python for name in ztdeploy.__all__ if not name.startswith("__"))
    profiles = page("profiles")
    assert all(f"<code>{name}</code>" in profiles for name in (*profile_names(), *HardwareProfile.model_fields))
    methods = page("methods")
    assert all(f"<code>{name}</code>" in methods for name in (*METHODS, *schedule_names()))
    assert all(f"<code>{name}</code>" in page("manifest") for name in Manifest.model_fields)
    results = page("json")
    assert all(f"<code>{verb}</code>" in results for verb in RESULTS)
    assert 'id="evalreport"' in results
    assert all(error in page("exit-codes") for error in ("BundleError", "ParityError", "MissingExtraError"))
    assert 'such as "8.7"; empty means' in profiles, "what the comment beside a field says"
