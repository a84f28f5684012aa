"""The wheel as a device gets it: what is in it, what it installs, and that it works away from any checkout."""

from __future__ import annotations

import email.parser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import HANG_S, result_in

import ztdeploy
from ztdeploy.core.data import parse_toml

pytestmark = pytest.mark.long

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
SIZE_LIMIT_MB = 250
SOURCES = ("ztdeploy", "profiles", "plugins", "cpp", "schemas", "pyproject.toml", "README.md", "LICENSE")
_NO_NETWORK = re.compile(
    r"dns error|failed to fetch|error sending request|connection|network|timed out|name resolution|could not find a "
    r"version|offline|temporary failure|unreachable|proxy",
    re.IGNORECASE,
)


def uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.is_file() else shutil.which("uv")


def must(command: list[str | Path], cwd: Path) -> None:
    """Run a command that may need the network; where there is none, skip."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode != 0 and _NO_NETWORK.search(done.stderr + done.stdout):
        pytest.skip(f"no network for '{' '.join(map(str, command[:4]))}': {(done.stderr or done.stdout)[-300:]}")
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that nothing is written into the checkout."""
    if not (CHECKOUT / "pyproject.toml").is_file():
        pytest.skip("no checkout to build a wheel from")
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    builder = uv()
    command = [builder, "build", "--wheel"] if builder else [sys.executable, "-m", "pip", "wheel", "--no-deps", "."]
    must([*command, "--out-dir" if builder else "--wheel-dir", "dist"], folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel: Path, names: list[str]) -> Message:
    (name,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    with zipfile.ZipFile(wheel) as archive:
        return email.parser.Parser().parsestr(archive.read(name).decode())


def test_contents(wheel: Path, names: list[str]) -> None:
    assert wheel.name == f"ztdeploy-{ztdeploy.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 10e6
    package, shared = CHECKOUT / "ztdeploy", CHECKOUT / "ztdeploy" / "host" / "assets"
    sources = {path.relative_to(CHECKOUT).as_posix() for path in package.rglob("*.py")}
    assert sources <= set(names)
    assert "ztdeploy/py.typed" in names
    for folder in ("profiles", "plugins", "cpp", "schemas"):
        data = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / folder).rglob("*") if path.is_file()}
        shipped = {f"ztdeploy/data/{name}" for name in data if "__pycache__" not in name}
        assert shipped
        assert shipped <= set(names)
    assets = {path.relative_to(CHECKOUT).as_posix() for path in shared.rglob("*") if path.is_file()}
    assert {name for name in assets if "__pycache__" not in name} <= set(names)
    assert {"ztdeploy/host/assets/digits/model.safetensors", "ztdeploy/host/assets/digits/labels.json"} <= assets
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert len(names) == len(set(names))


def test_nothing_else_is_in_it(names: list[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"ztdeploy", f"ztdeploy-{ztdeploy.__version__}.dist-info"}
    for name in names:
        parts = Path(name).parts
        assert not {"tests", "benchmarks", "scripts", "__pycache__", ".git"} & set(parts), name
        assert not name.endswith((".pyc", ".so", ".dll", ".toml.orig", ".onnx")), name


def test_metadata(metadata: Message) -> None:
    assert metadata["Version"] == ztdeploy.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    required = metadata.get_all("Requires-Dist") or []
    base = {re.split(r"[<>=!;\[ ]", line)[0] for line in required if "extra ==" not in line}
    assert base == {"numpy", "pillow", "pydantic", "rich", "typer", "onnxruntime", "tomli"}
    extras = set(metadata.get_all("Provides-Extra") or [])
    project = parse_toml((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert extras == set(project["optional-dependencies"])
    host = {re.split(r"[<>=!;\[ ]", line)[0] for line in required if re.search(r"extra == ['\"]build['\"]", line)}
    assert {"torch", "timm", "onnx", "safetensors"} <= host


# Installed.


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, what it requires, and the runtime in the version that builds bundles here."""
    folder = tmp_path_factory.mktemp("installed")
    wanted = [str(wheel), f"onnxruntime=={version('onnxruntime')}"]
    environment, installer = folder / "venv", uv()
    if installer:
        must([installer, "venv", "--quiet", "--python", sys.executable, environment], folder)
        must([installer, "pip", "install", "--quiet", "--python", environment / "bin" / "python", *wanted], folder)
    else:
        must([sys.executable, "-m", "venv", environment], folder)
        must([environment / "bin" / "python", "-m", "pip", "install", "--quiet", *wanted], folder)
    return environment


def run_installed(installed: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The installed command in an environment that knows nothing of the checkout."""
    environment = {"PATH": f"{installed / 'bin'}:/usr/bin:/bin", "HOME": str(cwd), "LANG": "C.UTF-8"}
    return subprocess.run(
        [installed / "bin" / "ztdeploy", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


def as_json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return result_in(done.stdout)


def packages(installed: Path) -> Path:
    (folder,) = (installed / "lib").glob("python3*/site-packages")
    return folder


def test_nothing_of_the_host_half_is_installed(installed: Path) -> None:
    found = {path.name.lower() for path in packages(installed).iterdir()}
    assert "onnxruntime" in found
    for name in ("torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxscript", "safetensors", "sklearn", "tests"):
        assert name not in found
    assert not [name for name in found if name.startswith(("nvidia", "triton"))]


def test_installed_size(installed: Path) -> None:
    """The README promises it."""
    files = [path for path in packages(installed).rglob("*") if path.is_file() and not path.is_symlink()]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    assert 20 < megabytes < SIZE_LIMIT_MB


def test_it_is_the_wheel_that_runs(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed / "bin" / "python", "-c", "import ztdeploy; print(ztdeploy.__file__)"],
        cwd=tmp_path,
        env={"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(installed)
    assert run_installed(installed, "--version", cwd=tmp_path).stdout == f"ztdeploy {ztdeploy.__version__}\n"


def test_doctor_profiles_and_models(installed: Path, tmp_path: Path) -> None:
    findings = {
        f["subject"]: f for f in as_json(run_installed(installed, "doctor", "--json", cwd=tmp_path))["findings"]
    }
    assert findings["backend onnxruntime"]["state"] == "ok"
    assert findings["building bundles"]["state"] == "missing"
    assert findings["building bundles"]["remedy"] == "pip install 'ztdeploy[build]'"
    profiles = as_json(run_installed(installed, "profiles", "list", "--json", cwd=tmp_path))["profiles"]
    assert {profile["name"] for profile in profiles} == {path.stem for path in (CHECKOUT / "profiles").glob("*.toml")}
    shown = run_installed(installed, "profiles", "show", "cpu", cwd=tmp_path)
    assert shown.stdout.strip() == (CHECKOUT / "profiles" / "cpu.toml").read_text().strip()
    assert as_json(run_installed(installed, "models", "--json", cwd=tmp_path))["models"]


def test_verify_run_and_inspect(installed: Path, digits_bundle: Path, digit_images: list[Path], tmp_path: Path) -> None:
    report = as_json(run_installed(installed, "verify", digits_bundle, "--json", cwd=tmp_path))
    assert set(report["variants"]) == {"keep-0.70 (cpu)", "keep-0.50 (cpu)", "dense (cpu)"}
    image = shutil.copy(digit_images[0], tmp_path / "photo.png")
    for keep_ratio in ("0.7", "0.5", "1"):
        arguments = ("run", digits_bundle, image, "--keep-ratio", keep_ratio, "--json")
        (answer,) = as_json(run_installed(installed, *arguments, cwd=tmp_path))["images"]
        assert answer["labels"][0]["name"] == digit_images[0].stem[-1]
    text = run_installed(installed, "inspect", digits_bundle, cwd=tmp_path)
    assert (text.returncode, text.stderr) == (0, "")
    assert "keep-0.70, block by block" in text.stdout


def test_finalize(installed: Path, bundle_copy: Path, tmp_path: Path) -> None:
    done = as_json(run_installed(installed, "finalize", bundle_copy, "--json", cwd=tmp_path))
    assert len(done["rebuilt"]) == 3
    as_json(run_installed(installed, "verify", bundle_copy, "--json", cwd=tmp_path))


def test_building_names_the_extra(installed: Path, tmp_path: Path) -> None:
    done = run_installed(installed, "build", "-m", "vit_digits", "-p", "cpu", cwd=tmp_path)
    assert done.returncode == 6
    assert done.stderr.splitlines()[-1].endswith("run: pip install 'ztdeploy[build]'")
    malformed = run_installed(installed, "bogus", cwd=tmp_path)
    assert malformed.returncode == 2
    assert "Traceback" not in malformed.stderr
