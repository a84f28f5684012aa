"""`build` with several profiles of which some fail: the others ship, and what failed is named wherever one looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import result_in, run_ztdeploy

import ztdeploy.host.proof
import ztdeploy.jobs.engines
import ztdeploy.jobs.gate
import ztdeploy.jobs.graphs
from ztdeploy.cli.app import run
from ztdeploy.core.bundle import WEIGHTS_FILE, read_bundle, sha256_of
from ztdeploy.core.errors import BundleError, EnvironmentLacksError, ModelError, OutputError, ParityError, ZtdeployError
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.target.backends.onnxruntime import OnnxRuntimeBackend

BUILD = ("build", "-m", "vit_digits", "-k", "0.7")
GATE = ("--calib", str(ASSETS / "digits"))
Patch = pytest.MonkeyPatch
LONG = pytest.mark.long


def failing(where: Any, name: str, error: ZtdeployError, concerns: Callable[..., bool]) -> Callable[[Patch], None]:
    """A step of a build that fails for some of its arguments."""

    def patch(monkeypatch: Patch) -> None:
        original = getattr(where, name)

        def step(*arguments: Any, **named: Any) -> Any:
            if concerns(*arguments, **named):
                raise error
            return original(*arguments, **named)

        monkeypatch.setattr(where, name, step)

    return patch


def of_int8(*arguments: Any, **named: Any) -> bool:
    """Whether a step is about int8, by the records and requests that it is given."""
    given = [*arguments, *named.values()]
    precisions = {getattr(one, "precision", None) for one in given}
    return "int8" in precisions or "cpu-int8" in {getattr(one, "profile", None) for one in given}


#: The step that fails for `cpu-int8`: what to patch, what else to ask for, and the exit code for itself.
STEPS: dict[str, tuple[Callable[[Patch], None], tuple[str, ...], int]] = {
    "check": (
        failing(OnnxRuntimeBackend, "check_can_build", EnvironmentLacksError("no luck", "luck", "wait"), of_int8),
        (),
        6,
    ),
    "graph": (failing(ztdeploy.jobs.graphs, "specialise", ModelError("no luck", "luck", "wait"), of_int8), (), 3),
    "engine": (failing(OnnxRuntimeBackend, "build", BundleError("no luck", "luck", "wait"), of_int8), (), 4),
    "proof": (
        failing(ztdeploy.host.proof, "prove_products", ParityError("no luck", "luck", "wait"), lambda *_: True),
        (),
        5,
    ),
    "gate": (failing(ztdeploy.jobs.gate, "evaluate_bundle", ParityError("no luck", "luck", "wait"), of_int8), GATE, 5),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `cpu` gives by itself."""
    out = tmp_path_factory.mktemp("partly") / "alone"
    assert run([*BUILD, "-p", "cpu", "-o", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    "step",
    [
        "check",
        pytest.param("graph", marks=LONG),
        pytest.param("engine", marks=LONG),
        pytest.param("proof", marks=LONG),
        "gate",
    ],
)
def test_the_others_ship_as_if_they_had_been_asked_for_alone(
    step: str, alone: Path, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    patch, more, code = STEPS[step]
    patch(monkeypatch)
    out = tmp_path / "out"
    order = ("-p", "cpu-int8", "-p", "cpu") if step in ("check", "engine") else ("-p", "cpu", "-p", "cpu-int8")
    assert run([*BUILD, *order, *more, "-o", str(out)]) == 9
    said = capsys.readouterr().err
    bundle = read_bundle(out)
    bundle.verify_files()
    (failed,) = bundle.manifest.failed
    assert (failed.profile, failed.exit_code) == ("cpu-int8", code)
    assert "no luck" in failed.given
    assert list(bundle.manifest.profiles) == ["cpu"]
    assert all(variant.engines["cpu"].parity is not None for variant in bundle.manifest.variants)
    line = "profile 'cpu-int8' was not built:"
    assert line in said
    assert line in (out / "README.md").read_text()
    assert run(["inspect", str(out)]) == 0
    assert line in capsys.readouterr().out
    assert run(["run", str(out), str(ASSETS / "digits" / "images"), "--profile", "cpu-int8"]) == 3
    assert line in capsys.readouterr().err, "and who asks for it is told why it is not there"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    on_disk = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert on_disk == {*bundle.manifest.files, "manifest.json"}
    wanted = {path.relative_to(alone).as_posix() for path in alone.rglob("*") if path.is_file()}
    assert on_disk == wanted
    assert sha256_of(out / WEIGHTS_FILE) == sha256_of(alone / WEIGHTS_FILE), "nothing of what failed is left in it"


def test_if_all_fail_the_first_one_decides_and_nothing_is_left(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in ("engine", "proof"):
        STEPS[step][0](monkeypatch)
    failing(ztdeploy.jobs.engines, "build_engine", ParityError("none", "one", "wait"), lambda *_: True)(monkeypatch)
    assert run([*BUILD, "-p", "cpu", "-p", "cpu-int8", "-o", str(tmp_path / "out"), "--json"]) == 5
    captured = capsys.readouterr()
    assert "error: none; expected one; wait" in captured.err
    assert result_in(captured.out)["exit_code"] == 5
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_nobodys_own_fault(tmp_path: Path, monkeypatch: Patch) -> None:
    failing(OnnxRuntimeBackend, "build", OutputError("full", "space", "free some"), of_int8)(monkeypatch)
    assert run([*BUILD, "-p", "cpu", "-p", "cpu-int8", "-o", str(tmp_path / "out")]) == 3
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_is_known_before_anything_is_traced(tmp_path: Path) -> None:
    """All profiles lack it: no model is even loaded. One has what it takes: it ships."""
    lacking = ("-p", "cpu-openvino", "-p", "cpu-openvino-bf16")
    done = run_ztdeploy(*BUILD, *lacking, "-o", "out", cwd=tmp_path, hidden="openvino")
    assert done.code == 6, done
    assert "loading" not in done.err
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])
    done = run_ztdeploy(*BUILD, *lacking, "-p", "cpu", "-o", "out", "--json", cwd=tmp_path, hidden="openvino")
    assert done.code == 9, done
    assert [one["profile"] for one in done.json()["failed"]] == ["cpu-openvino", "cpu-openvino-bf16"]
