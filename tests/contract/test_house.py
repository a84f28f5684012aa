"""The house of `docs/explanation/architecture.md`: six rooms, imports downwards, no cycles, one class per name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import grimp
import pytest

import ztdeploy

PACKAGE = Path(ztdeploy.__file__).parent
ROOMS = ("cli", "jobs", "host", "report", "target", "core")


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """By module: the modules of this package that it imports, inside functions as well."""
    graph = grimp.build_graph("ztdeploy", cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def test_nothing_lies_beside_the_rooms() -> None:
    found = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert found == {*ROOMS, "__init__.py", "__main__.py", "version.py", "py.typed"}


def test_imports_go_downwards_only(imports: dict[str, set[str]]) -> None:
    def room(module: str) -> int | None:
        name = module.split(".")[1] if "." in module else ""
        return ROOMS.index(name) if name in ROOMS else None

    upwards = [
        (importer, imported)
        for importer, several in imports.items()
        for imported in several
        if (above := room(importer)) is not None and (below := room(imported)) is not None and below < above
    ]
    assert upwards == []


def test_no_two_files_import_each_other_by_any_way(imports: dict[str, set[str]]) -> None:
    """Files are taken away as long as one imports none that is left; what then is left stands in a cycle."""
    left = {module: set(several) for module, several in imports.items()}
    while leaves := {module for module, several in left.items() if not several & left.keys()}:
        left = {module: several for module, several in left.items() if module not in leaves}
    assert sorted(left) == []


def test_two_classes_of_one_name_do_not_exist() -> None:
    places = defaultdict[str, list[str]](list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(PACKAGE).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
