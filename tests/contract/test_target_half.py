"""The target half runs where the host half's libraries are not: here they are hidden from a child process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.leftovers import leftovers
from helpers.processes import HANG_S, result_in

import ztdeploy

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
HOST_LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnx_graphsurgeon",
    "safetensors",
    "sklearn",
)
#: The folder decides: whatever lies in it is the host half's.
HOST_MODULES = ("ztdeploy.host",)

#: Makes modules unfindable for `import` and for `find_spec` alike, whatever finds them otherwise.
HIDE = f"""
import importlib, io, json, os, pkgutil, sys
from contextlib import redirect_stderr, redirect_stdout

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HOST_LIBRARIES}:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]

def loaded(names):
    return sorted(m for m in sys.modules if any(m == name or m.startswith(name + ".") for name in names))

def command(*arguments):
    from ztdeploy.cli.app import run
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(list(arguments))
    return {{"code": code, "out": out.getvalue(), "err": err.getvalue()}}
"""

JOBS = f"""
bundle, copy, image, another = sys.argv[1:]
report = {{}}
import ztdeploy
for room in ("core", "target", "report", "cli"):
    module = importlib.import_module("ztdeploy." + room)
    for found in pkgutil.walk_packages(module.__path__, module.__name__ + "."):
        importlib.import_module(found.name)
report["after imports"] = loaded({HOST_LIBRARIES + HOST_MODULES})

with ztdeploy.load(bundle, keep_ratio=0.7) as runner:
    first, second = runner([image, another])
    report["0.7"] = [first.labels[0].name, second.labels[0].name, [len(layer) for layer in first.kept]]
    runner.switch(keep_ratio=0.5)
    report["0.5"] = [runner(image)[0].labels[0].name, runner.variant.name]
with ztdeploy.load(bundle, memory="shared") as runner:
    report["shared"] = [runner(image)[0].labels[0].name]
    runner.switch(keep_ratio=1)
    report["shared"].append(runner(another)[0].labels[0].name)

report["run"] = command("run", bundle, image, "--json")
report["verify"] = command("verify", bundle, "--json")
report["inspect"] = command("inspect", bundle)
quick = ("--duration", "0.05", "--rounds", "1", "--warmup", "0", "--no-details", "--out", "../swept", "--json")
report["sweep"] = command("sweep", "--bundle", bundle, "--keep-ratio", "0.5", *quick)
report["eval"] = command("eval", bundle, "-d", os.path.dirname(image), "--limit", "20", "--no-record", "--json")
report["show"] = command("show", bundle, image, "--out", "../shown", "--json")
report["finalize"] = command("finalize", copy, "--json")
report["verify finalized"] = command("verify", copy, "--json")
report["profiles"] = command("profiles", "list", "--json")
report["doctor"] = command("doctor", "--json")
report["python"] = [
    repr(ztdeploy.evaluate(bundle, os.path.dirname(image), limit=4)),
    repr(ztdeploy.bench(bundle, iterations=2, rounds=1, warmup=0)),
]
report["after jobs"] = loaded({HOST_LIBRARIES + HOST_MODULES})

report["models"] = command("models", "--json")
report["build"] = command("build", "-m", "vit_digits", "-p", "cpu", "-o", "out", "--json")
for name, call in (("build", lambda: ztdeploy.build("vit_digits")), ("prune", lambda: ztdeploy.prune(None, 0.7))):
    try:
        call()
    except ztdeploy.ZtdeployError as error:
        report[f"ztdeploy.{{name}}"] = [type(error).__name__, str(error)]
report["quickstart"] = command("quickstart", "--out", "quick")
report["at the end"] = loaded({HOST_LIBRARIES})
json.dump(report, sys.stdout)
"""


def run_python(code: str, *arguments: str | Path, cwd: Path) -> str:
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**shell, "PYTHONPATH": str(CHECKOUT), "ZTDEPLOY_CACHE": str(cwd.parent / "cache")},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("target")


@pytest.fixture(scope="module")
def report(folder: Path, digits_bundle: Path, digit_images: list[Path]) -> dict[str, Any]:
    """What the child did, job by job."""
    copy = shutil.copytree(digits_bundle, folder / "copy")
    images = (digit_images[0], digit_images[-1])
    answer: dict[str, Any] = json.loads(run_python(HIDE + JOBS, digits_bundle, copy, *images, cwd=folder))
    return answer


def test_the_libraries_are_really_hidden(tmp_path: Path) -> None:
    code = HIDE + (
        f"for name in {HOST_LIBRARIES}:\n"
        "    assert importlib.util.find_spec(name) is None\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ModuleNotFoundError:\n"
        "        print(name)\n"
    )
    assert run_python("import importlib.util\n" + code, cwd=tmp_path).split() == list(HOST_LIBRARIES)


def test_nothing_of_the_host_half_is_imported(report: dict[str, Any]) -> None:
    """Not even its own modules that would do no harm, but for the catalogue of names, which `models` prints."""
    assert report["after imports"] == []
    assert report["after jobs"] == []
    assert report["at the end"] == []


def test_loading_running_and_switching(report: dict[str, Any], digit_images: list[Path]) -> None:
    first, last = digit_images[0].stem[-1], digit_images[-1].stem[-1]
    assert report["0.7"] == [first, last, [45, 32, 23]]
    assert report["0.5"] == [first, "keep-0.50"]
    assert report["shared"] == [first, last]
    assert report["run"]["code"] == 0
    assert result_in(report["run"]["out"])["images"][0]["labels"][0]["name"] == first


def test_verifying_and_inspecting(report: dict[str, Any]) -> None:
    assert report["verify"]["code"] == 0
    assert set(result_in(report["verify"]["out"])["variants"]) == {"keep-0.70 (cpu)", "keep-0.50 (cpu)", "dense (cpu)"}
    assert report["inspect"]["code"] == 0
    assert "keep-0.70, block by block" in report["inspect"]["out"]


def test_finalizing(report: dict[str, Any], folder: Path, digits_bundle: Path) -> None:
    """Rebuilt from graphs alone, and proved against the golden outputs, which is on record afterwards."""
    from ztdeploy.core.bundle import read_bundle

    assert report["finalize"]["code"] == 0, report["finalize"]
    rebuilt = result_in(report["finalize"]["out"])["rebuilt"]
    assert rebuilt == ["keep-0.70 (cpu)", "keep-0.50 (cpu)", "dense (cpu)"]
    assert report["verify finalized"]["code"] == 0, report["verify finalized"]
    variants = read_bundle(folder / "copy").manifest.variants
    for variant in variants:
        parity = variant.engines["cpu"].parity
        assert parity is not None
        assert parity.max_logit_difference <= parity.logit_tolerance
    before = {path.name for path in (digits_bundle / "graphs").iterdir()}
    after = {path.name for path in (folder / "copy" / "graphs").iterdir()}
    assert before <= after
    assert leftovers(folder / "copy") == []


def test_sweeping(report: dict[str, Any]) -> None:
    assert report["sweep"]["code"] == 0, report["sweep"]
    (run,) = result_in(report["sweep"]["out"])["runs"]
    assert [one["variant"] for one in run["configurations"]] == ["dense", "keep-0.50"]


def test_evaluating(report: dict[str, Any]) -> None:
    assert report["eval"]["code"] == 0, report["eval"]
    assert result_in(report["eval"]["out"])["data"]["images"] == 20
    evaluated, measured = report["python"]
    assert "on 4 images" in evaluated
    assert "2 of 2 configurations measured" in measured


def test_showing(report: dict[str, Any]) -> None:
    assert report["show"]["code"] == 0, report["show"]
    assert len(result_in(report["show"]["out"])["images"][0]["variants"]) == 2


def test_listing_profiles_and_models(report: dict[str, Any]) -> None:
    assert {profile["name"] for profile in result_in(report["profiles"]["out"])["profiles"]} >= {"cpu", "jetson-orin"}
    assert {model["name"] for model in result_in(report["models"]["out"])["models"]} >= {"vit_digits", "deit_s"}


def test_doctor_says_what_is_missing(report: dict[str, Any]) -> None:
    assert report["doctor"]["code"] == 0
    findings = {finding["subject"]: finding for finding in result_in(report["doctor"]["out"])["findings"]}
    host = findings["building bundles"]
    assert host["state"] == "missing"
    for name in ("torch", "torchvision", "timm", "onnx", "onnx-ir", "onnxscript", "safetensors"):
        assert name in host["found"]
    assert host["remedy"] == "pip install 'ztdeploy[build]'"
    assert findings["backend onnxruntime"]["state"] == "ok"


def test_building_names_the_extra_to_install(report: dict[str, Any], folder: Path) -> None:
    for verb in ("build", "quickstart"):
        assert report[verb]["code"] == 6, report[verb]
        (line,) = [line for line in report[verb]["err"].splitlines() if line.startswith("error: ")]
        assert "'torch'" in line
        assert line.endswith("run: pip install 'ztdeploy[build]'")
        assert "Traceback" not in report[verb]["err"]
    for verb in ("ztdeploy.build", "ztdeploy.prune"):
        kind, message = report[verb]
        assert kind == "MissingExtraError"
        assert message.endswith("run: pip install 'ztdeploy[build]'")
    assert result_in(report["build"]["out"])["exit_code"] == 6
    assert [path.name for path in folder.iterdir()] == ["copy"]


def test_weights_are_hashed_while_what_is_slow_is_imported(tmp_path: Path) -> None:
    """`load` reads the manifest and begins to hash before it imports NumPy; adaptive runners are for who asks."""
    adaptive = ("ztdeploy.target.runtime.runner", "ztdeploy.target.adaptive.cascade")
    slow = ("numpy", "PIL", "onnxruntime", "typer", *adaptive)
    found = f"[name for name in {slow} if name in sys.modules]"
    code = f"import json, sys, ztdeploy; ztdeploy.load; json.dump({found}, sys.stdout)"
    assert json.loads(run_python(code, cwd=tmp_path)) == []


def test_the_command_line_starts_without_what_is_slow(tmp_path: Path) -> None:
    """Typer itself brings Pydantic along once there are arguments to parse."""
    code = (
        HIDE
        + "slow = ('numpy', 'onnxruntime', 'PIL', 'pydantic')\n"
        + "lists = {}\n"
        + "for line in ('--version', '--help', 'build --help', 'run --help', 'profiles list --help'):\n"
        + "    assert command(*line.split())['code'] == 0\n"
        + "    lists[line] = [name for name in slow if name in sys.modules]\n"
        + "json.dump(lists, sys.stdout)"
    )
    lists = json.loads(run_python(code, cwd=tmp_path))
    assert lists["--version"] == lists["--help"] == []
    assert all(set(names) <= {"pydantic"} for names in lists.values())
    # Without hiding: what is there is not imported either.
    unhidden = (
        "import json, sys; from ztdeploy.cli.app import run; run(['--help']); "
        f"print('\\n' + json.dumps([name for name in {HOST_LIBRARIES} if name in sys.modules]))"
    )
    assert run_python(unhidden, cwd=tmp_path).splitlines()[-1] == "[]"


# The same as a contract on the source.


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.is_file():
        pytest.skip("import-linter is not installed")
    shell = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [linter, "--no-cache"], cwd=folder, env={**shell, "PYTHONPATH": str(folder)}, capture_output=True, text=True
    )


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the package and its contracts."""
    if not (CHECKOUT / "pyproject.toml").is_file():
        pytest.skip("the contracts lie in a checkout only")
    folder = tmp_path / "sources"
    ignored = shutil.ignore_patterns("__pycache__", "assets")
    shutil.copytree(CHECKOUT / "ztdeploy", folder / "ztdeploy", ignore=ignored)
    shutil.copy(CHECKOUT / "pyproject.toml", folder)
    return folder


def test_the_contracts_hold(sources: Path) -> None:
    done = lint_imports(sources)
    assert done.returncode == 0, done.stdout
    assert "Contracts: 3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("target/runtime/postprocess.py", "import torch"),
        ("target/backends/int8.py", "import onnx"),
        ("target/measure/turns.py", "from ztdeploy.host.models.loading import load_model"),
        ("core/bundle.py", "from ztdeploy.target.adaptive.opening import load"),
    ],
)
def test_the_contracts_notice(file: str, line: str, sources: Path) -> None:
    path = sources / "ztdeploy" / file
    path.write_text(path.read_text() + f"\n\ndef late() -> None:\n    {line}\n")
    done = lint_imports(sources)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout
