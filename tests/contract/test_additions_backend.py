"""A backend is added as the table in CONTRIBUTING.md says, on onnx's reference evaluator: one file and one line, or the
same file in a package of its own. Then its engines are built, proved, run, verified and measured. And nobody else needs
to know a backend by its name.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.errors import refused
from helpers.processes import CHECKOUT, HANG_S, result_in, started

from ztdeploy.core.data import parse_toml
from ztdeploy.core.errors import EnvironmentLacksError
from ztdeploy.core.profile import read_profile
from ztdeploy.jobs.doctor import examine
from ztdeploy.target.backends import BACKENDS, first_that_runs, get_backend, runtime_versions
from ztdeploy.target.backends.base import Backend

FILE = '''
"""Engines are graphs with their weights inside; onnx's reference evaluator runs them in NumPy."""

from pathlib import Path

from ztdeploy.core.bundle import sha256_of
from ztdeploy.target.backends.base import Backend, BuiltEngine, Signature, TensorFacts


class ReferenceBackend(Backend):
    name = "reference"
    module = "onnx"
    extra = "build"
    distributions = ("onnx",)
    suffix = ".reference.onnx"
    concurrent = True

    def build(self, graph, graph_record, profile, out):
        onnx = self.runtime()
        onnx.save(onnx.load(graph), out)
        return BuiltEngine(out, None, self.fingerprint(sha256_of(graph)))

    def load(self, engine, *, threads, memory):
        self.check_fingerprint(engine)
        return ReferenceRunner(engine.file)


class ReferenceRunner:
    def __init__(self, engine):
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(str(engine))
        graph = self._evaluator.proto_.graph
        self.signature = Signature(*(tuple(map(facts, side)) for side in (graph.input, graph.output)))

    def infer(self, feeds):
        names = [output.name for output in self.signature.outputs]
        return dict(zip(names, self._evaluator.run(names, dict(feeds))))

    def close(self):
        self._evaluator = None


def facts(value):
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    shape = tuple(one.dim_value if one.HasField("dim_value") else None for one in tensor.shape.dim)
    return TensorFacts(value.name, tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)
'''
LINE = '    "reference": "ztdeploy.target.backends.reference:ReferenceBackend",\n'
PROFILE = """
title = "Any machine, onnx's reference evaluator"
backend = "reference"
image_input = "uint8"
"""
#: Runs several command lines in one process, since importing torch takes seconds; bench starts processes of its own.
VERBS = """
import contextlib, io, json, pathlib, sys
from ztdeploy.cli import app
from ztdeploy.host.traces import TraceStore
from ztdeploy.jobs import build
build.trace_store = lambda *_, **__: TraceStore(pathlib.Path(sys.argv[2]))
done = []
for line in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = app.run(line)
    done.append((code, out.getvalue()))
print(json.dumps(done))
"""


def by_a_line(folder: Path) -> Path:
    """A copy of the package with one file and one line more."""
    package = Path(shutil.copytree(CHECKOUT / "ztdeploy", folder / "ztdeploy"))
    for data in ("profiles", "plugins"):
        (folder / data).symlink_to(CHECKOUT / data)
    backends = package / "target" / "backends"
    (backends / "reference.py").write_text(FILE)
    table = (backends / "__init__.py").read_text()
    start = "BACKENDS: dict[str, str] = {\n"
    assert table.count(start) == 1
    (backends / "__init__.py").write_text(table.replace(start, start + LINE))
    return folder


def by_a_package(folder: Path) -> Path:
    """What an installed package leaves: a module, and an entry point."""
    (folder / "their_backend.py").write_text(FILE)
    facts = folder / "their_backend-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: their-backend\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[ztdeploy.backends]\nreference = their_backend:ReferenceBackend\n")
    return folder


@pytest.mark.parametrize("added", [by_a_line, by_a_package], ids=lambda added: added.__name__)
@pytest.mark.long
def test_an_added_backend_builds_proves_runs_verifies_and_measures(
    added: Any, common: Path, tmp_path: Path, digit_images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{added(site)}:{CHECKOUT}")
    (tmp_path / "mine.toml").write_text(PROFILE)
    bundle = str(tmp_path / "bundle")
    method = ("--method", "zero-tprune")  # onnx's reference evaluator fails at graphs of novelty-merge, the default
    lines = [
        [
            "build",
            "-m",
            "vit_digits",
            "--profile",
            str(tmp_path / "mine.toml"),
            "-k",
            "0.7",
            "--out",
            bundle,
            "--json",
            *method,
        ],
        ["verify", bundle, "--json"],
        ["run", bundle, str(digit_images[0]), "--json"],
        ["bench", bundle, "--threads", "1", "--rounds", "1", "--iterations", "1", "--warmup", "0", "--json"],
        ["doctor", "--json"],
    ]
    command = [sys.executable, "-c", VERBS, json.dumps(lines), str(common / "traces")]
    child = started(command, stdout=subprocess.PIPE, cwd=tmp_path)
    out, err = child.communicate(timeout=HANG_S)
    assert child.returncode == 0, err
    for line, (code, said) in zip(lines, json.loads(out), strict=True):
        assert code == 0, (line, said, err)
    _, _, run, bench, doctor = (result_in(said) for _, said in json.loads(out))
    assert run["images"][0]["labels"][0]["name"] == digit_images[0].stem.rpartition("_")[2]
    assert bench["bundle"]["backend"] == "reference"
    assert {one["threads"] for one in bench["configurations"]} == {1}
    assert [one["state"] for one in doctor["findings"] if one["subject"] == "backend reference"] == ["ok"]
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    engines = [variant["engines"]["mine"] for variant in manifest["variants"]]
    assert len(engines) == 2
    for engine in engines:
        assert engine["fingerprint"]["runtime"] == "reference"
        assert engine["parity"]["max_logit_difference"] < 1e-3
        assert all(layer["overlap"] == 1 for layer in engine["parity"]["layers"])
    assert "onnx" in manifest["tools"]


def test_one_that_cannot_be_imported_hinders_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "broken", "no_such_module:Backend")
    refused(lambda: get_backend("broken"), "'broken' cannot be imported", "no_such_module", kind=EnvironmentLacksError)
    assert "onnxruntime" in runtime_versions()
    profile = read_profile("cpu").model_copy(update={"backend": "broken"})
    found, reasons = first_that_runs([profile, read_profile("cpu")])
    assert found == read_profile("cpu")
    assert "no_such_module" in reasons
    assert {one.subject: one.state for one in examine().findings}["backend broken"] == "missing"


# -------------------- the table


@pytest.mark.parametrize("name", BACKENDS)
def test_each_backend_of_the_table_is_named_as_its_line_and_has_its_extra(name: str) -> None:
    backend = get_backend(name)
    assert isinstance(backend, Backend)
    assert backend.name == name
    assert backend.distributions
    assert backend.suffix.startswith(".")
    extras = parse_toml((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert not backend.extra or backend.extra in extras


def strings(file: Path) -> Iterator[tuple[int, str]]:
    """The strings of a file that are no documentation."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


#: Folders and tables of settings that are called like a backend.
OTHERS = {
    ("core/profile.py", "tensorrt"),
    ("target/plugins/library.py", "tensorrt"),
    ("jobs/export/__init__.py", "openvino"),  # the folder of a server, whatever engines it runs
}


def test_no_backend_is_known_by_its_name_elsewhere() -> None:
    package = CHECKOUT / "ztdeploy"
    found = []
    for file in package.rglob("*.py"):
        path = file.relative_to(package).as_posix()
        if not path.startswith("target/backends/"):
            known = [(line, text) for line, text in strings(file) if text in BACKENDS and (path, text) not in OTHERS]
            found += [f"{path}:{line}: {text}" for line, text in known]
    assert found == []


def test_no_backends_module_is_imported_elsewhere() -> None:
    """What everybody may import is what all backends share."""
    package, shared = CHECKOUT / "ztdeploy", {"base", "int8"}
    found = []
    for file in package.rglob("*.py"):
        if "target/backends/" in file.as_posix():
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            inside = module.removeprefix("ztdeploy.target.backends").split(".")[1:]
            if module.startswith("ztdeploy.target.backends") and inside and inside[0] not in shared:
                found.append(f"{file.relative_to(package)}: {module}")
    assert found == []
