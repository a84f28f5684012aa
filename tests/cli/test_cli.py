"""The command line as people meet it: real processes, real exit codes, real files."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import HANG_S, Done, run_forked

import ztdeploy

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
VERBS = ("build", "run", "verify", "finalize", "inspect", "bench", "eval", "show", "sweep", "report", "compare")
VERBS += ("models", "doctor", "quickstart", "profiles")
PROFILES = {path.stem for path in (CHECKOUT / "profiles").glob("*.toml")}

Run = Callable[..., Done]


def environment(**extra: str) -> dict[str, str]:
    """A shell's, without what steers ztdeploy, with the package importable, and with no model hub to talk to."""
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name}
    return {**shell, "PYTHONPATH": str(CHECKOUT), "HF_HUB_OFFLINE": "1", "COLUMNS": "100", **extra}


def start(*arguments: str | Path, cwd: Path, **extra: str) -> subprocess.Popen[str]:
    """`ztdeploy ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "ztdeploy", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(**extra), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run_alone(*arguments: str | Path, cwd: Path, **extra: str) -> Done:
    """`ztdeploy ARGUMENTS` in a process of its own, to its end."""
    process = start(*arguments, cwd=cwd, **extra)
    out, err = process.communicate(timeout=HANG_S)
    return Done(process.returncode, out, err)


@pytest.fixture(scope="module")
def run() -> Run:
    """`run_alone`, but quick: forked from a process that has imported what takes long."""

    def run_preloaded(*arguments: str | Path, cwd: Path, **extra: str) -> Done:
        return run_forked(*arguments, cwd=cwd, environment=environment(**extra))

    return run_preloaded


def tree(folder: Path) -> dict[str, int]:
    """Everything in a folder, hidden or not."""
    return {str(path.relative_to(folder)): path.lstat().st_size if path.is_file() else -1 for path in folder.rglob("*")}


def check_error(done: Done, code: int, *words: str) -> None:
    """One line that says value; expectation; fix, and nothing else that a person would have to wade through."""
    assert done.code == code, done
    lines = done.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, done.err
    assert lines[-1] == errors[0]
    assert re.fullmatch(r"error: \S.*; expected \S.*; \S.*", errors[0]), errors[0]
    assert all(line.startswith(("loading ", "warning: ", "hashing ", "running ")) for line in lines[:-1]), done.err
    assert len(errors[0]) < 600
    assert "this is a bug" not in errors[0]
    for word in words:
        assert word in errors[0], errors[0]
    assert done.out == ""


# Help, and what is malformed before anything runs.


def test_help_lists_every_verb_and_the_exit_codes(run: Run, tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    for verb in VERBS:
        assert re.search(rf"^\W*{verb}\s+[A-Z]", done.out, re.MULTILINE), verb
    text = " ".join(done.out.split())
    for code, meaning in ((2, "malformed"), (3, "unusable input"), (4, "damaged bundle"), (130, "interrupted")):
        assert re.search(rf"{code} {meaning}", text)
    assert run("-h", cwd=tmp_path).out == done.out


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("build", "--model --profile --out --keep-ratio --method --preset --schedule --checkpoint --weights --force"),
        ("run", "BUNDLE IMAGE --keep-ratio --variant --profile --threads --top"),
        ("verify", "BUNDLE --profile"),
        ("finalize", "BUNDLE --profile"),
        ("inspect", "BUNDLE --keep-ratio --variant"),
        (
            "bench",
            "BUNDLE --keep-ratio --variant --profile --batch --threads --warmup --duration --iterations --rounds --out",
        ),
        ("show", "BUNDLE IMAGE --out --keep-ratio --profile"),
        ("models", ""),
        ("doctor", ""),
        ("quickstart", "--out --force"),
        ("profiles", "list show check"),
        ("profiles list", ""),
        ("profiles show", "PROFILE"),
        ("profiles check", "FILE"),
    ],
)
def test_help_of_every_verb(run: Run, verb: str, options: str, tmp_path: Path) -> None:
    done = run(*verb.split(), "--help", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert f"Usage: ztdeploy {verb} " in done.out
    for option in options.split() + ([] if verb == "profiles" else ["--json"]):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", done.out), option


def test_version(tmp_path: Path) -> None:
    done = run_alone("--version", cwd=tmp_path)
    assert (done.code, done.out, done.err) == (0, f"ztdeploy {ztdeploy.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("bogus", "bogus"),
        ("build", "--model"),
        ("run", "BUNDLE"),
        ("run bundle", "IMAGE"),
        ("build -m vit_digits -p cpu --bogus", "--bogus"),
        ("build -m vit_digits -p cpu --weights none", "'none' is not one of 'pretrained', 'random'"),
        ("build -m vit_digits -p cpu --preset none", "'none' is not one of 'default', 'paper'"),
        ("profiles bogus", "bogus"),
    ],
)
def test_malformed_command_lines_exit_2(run: Run, arguments: str, words: str, tmp_path: Path) -> None:
    done = run(*arguments.split(), cwd=tmp_path)
    assert done.code == 2, done
    assert done.out == ""
    assert words in done.err
    assert "Usage: ztdeploy" in done.err
    assert len(done.err.splitlines()) == 1
    assert "Traceback" not in done.err
    assert "bug" not in done.err
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("arguments", [[], ["profiles"]])
def test_nothing_asked_for_shows_the_help(run: Run, arguments: list[str], tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.code == 2
    assert "Usage: ztdeploy" in done.out + done.err
    assert "error: " not in done.err


def test_python_m_and_the_launcher_are_one_program(tmp_path: Path) -> None:
    launcher = CHECKOUT / "cli.py"
    if not launcher.is_file():
        pytest.skip("cli.py lies in a checkout only")
    done = subprocess.run(
        [sys.executable, launcher, "--version"], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"ztdeploy {ztdeploy.__version__}\n")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    """As in `ztdeploy profiles list | head -1`."""
    with start("profiles", "list", cwd=tmp_path) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == ""
        assert child.wait(60) == 0


def test_an_error_that_nobody_reads_any_more(tmp_path: Path) -> None:
    with start("inspect", "absent", "--json", cwd=tmp_path) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read().count("\n") == 1
        assert child.wait(60) == 3


# What needs no bundle.


def test_profiles_list(run: Run, tmp_path: Path) -> None:
    text, data = run("profiles", "list", cwd=tmp_path), run("profiles", "list", "--json", cwd=tmp_path)
    assert (text.code, text.err, data.code, data.err) == (0, "", 0, "")
    profiles = data.json()["profiles"]
    assert {profile["name"] for profile in profiles} == PROFILES
    title, heads, *rows = [line.split("\t") for line in text.out.splitlines()]
    assert (title[0][0], heads[:2]) == ("#", ["profile", "device"])
    assert [row[:2] for row in rows] == [[one["name"], one["title"]] for one in profiles], "a line each, for cut"


def test_profiles_show_prints_what_check_accepts(run: Run, tmp_path: Path) -> None:
    shown = run("profiles", "show", "jetson-orin", cwd=tmp_path)
    assert (shown.code, shown.err) == (0, "")
    (tmp_path / "mine.toml").write_text(shown.out)
    checked = run("profiles", "check", "mine.toml", cwd=tmp_path)
    assert (checked.code, checked.err) == (0, "")
    assert "'mine' is valid" in checked.out
    assert run("profiles", "show", "mine.toml", cwd=tmp_path).out == shown.out
    data = run("profiles", "show", "mine.toml", "--json", cwd=tmp_path).json()
    assert (data["name"], data["backend"], data["tensorrt"]["compute_capabilities"]) == ("mine", "tensorrt", ["8.7"])
    assert run("profiles", "check", "cpu", "--json", cwd=tmp_path).json() == {
        "profile": "cpu",
        "valid": True,
        "engines_can_be_built": True,
    }


def test_models(run: Run, tmp_path: Path) -> None:
    text, data = run("models", cwd=tmp_path), run("models", "--json", cwd=tmp_path)
    assert (text.code, text.err, data.code, data.err) == (0, "", 0, "")
    names = [entry["name"] for entry in data.json()["models"]]
    assert {"vit_digits", "deit_t", "deit_s", "deit_b"} <= set(names)
    for entry in data.json()["models"]:
        assert entry["name"] in text.out
        assert entry["timm_name"] in text.out
        assert entry["about"] in text.out


def test_doctor(run: Run, tmp_path: Path) -> None:
    text, data = run("doctor", cwd=tmp_path), run("doctor", "--json", cwd=tmp_path)
    assert (text.code, text.err, data.code, data.err) == (0, "", 0, "")
    findings = {finding["subject"]: finding for finding in data.json()["findings"]}
    assert findings["backend onnxruntime"]["state"] == "ok"
    assert findings["building bundles"]["state"] == "ok"
    assert findings["python"]["found"].startswith(".".join(map(str, sys.version_info[:3])))
    for finding in findings.values():
        assert finding["subject"] in text.out
        assert finding["state"] in ("ok", "note", "missing")
        assert finding["state"] == "ok" or finding["found"]


# What needs a bundle.


def test_inspect(run: Run, digits_bundle: Path, tmp_path: Path) -> None:
    text, data = run("inspect", digits_bundle, cwd=tmp_path), run("inspect", digits_bundle, "--json", cwd=tmp_path)
    assert (text.code, text.err, data.code, data.err) == (0, "", 0, "")
    manifest = data.json()
    assert [variant["name"] for variant in manifest["variants"]] == ["keep-0.70", "keep-0.50", "dense"]
    assert manifest["schema_version"] == 5
    assert manifest["model"]["architecture"]["depth"] == 12
    for variant in manifest["variants"]:
        assert variant["name"] in text.out
        assert f"{variant['gmacs']:.3f}" in text.out
        assert variant["engines"]["cpu"]["parity"]["images"] > 0
    assert "keep-0.70, block by block" in text.out
    for block in range(12):
        assert re.search(rf"^blocks\.{block}\t", text.out, re.MULTILINE)


def test_options_are_built_and_shown_and_said_to_keep_plugins_out(run: Run, tmp_path: Path) -> None:
    (tmp_path / "dot.toml").write_text(f"method = 'zero-tprune'\n{LAYER}[options]\nmetric = 'dot'\njoin = 'mean'\n")
    arguments = ("-m", "vit_digits", "-p", "cpu", "-p", "jetson-orin", "--out", "bundle")
    built = run("build", *arguments, "--schedule", "dot.toml", cwd=tmp_path)
    assert built.code == 0, built.err
    said = "profile 'jetson-orin': variant 'dot' has plain operators only: the plugins do not know its option metric"
    (line,) = [line for line in built.err.splitlines() if "plain operators only" in line]
    assert line == f"warning: {said}"
    shown = run("inspect", "bundle", cwd=tmp_path)
    assert "zero-tprune (join = mean, metric = dot)" in shown.out
    assert shown.out.count("no plugins (option metric)") == 1
    manifest = run("inspect", "bundle", "--json", cwd=tmp_path).json()
    lacks = {"kind": "plugins", "profile": "jetson-orin", "variant": "dot", "reason": "metric"}
    assert lacks in manifest["missing"]
    dot, dense = manifest["variants"]
    assert dot["schedule"]["options"]["metric"] == "dot"
    graphs = dot["graphs"]["jetson-orin"], dot["graphs"]["cpu"], dense["graphs"]["jetson-orin"]
    assert [graph["plain_for"] for graph in graphs] == [["metric"], [], []]
    assert graphs[0]["plugin_file"] is None


def test_inspect_another_variant(run: Run, digits_bundle: Path, tmp_path: Path) -> None:
    by_ratio = run("inspect", digits_bundle, "--keep-ratio", "0.5", cwd=tmp_path)
    assert "keep-0.50, block by block" in by_ratio.out
    assert run("inspect", digits_bundle, "--variant", "keep-0.50", cwd=tmp_path).out == by_ratio.out


def test_verify(run: Run, digits_bundle: Path, tmp_path: Path) -> None:
    text, data = run("verify", digits_bundle, cwd=tmp_path), run("verify", digits_bundle, "--json", cwd=tmp_path)
    assert (text.code, data.code, data.err) == (0, 0, "")
    assert text.err.splitlines()[-1] == "verified"
    report = data.json()
    assert set(report["variants"]) == {"keep-0.70 (cpu)", "keep-0.50 (cpu)", "dense (cpu)"}
    for name, record in report["variants"].items():
        assert name in text.out
        assert record["max_logit_difference"] <= record["logit_tolerance"]
        assert [layer["identical"] + layer["ties"] for layer in record["layers"]] == [record["images"]] * len(
            record["layers"]
        )
    assert f"{report['files']} files intact" in text.out
    only = run("verify", digits_bundle, "--profile", "cpu", "--json", cwd=tmp_path).json()
    assert set(only["variants"]) == {"keep-0.70", "keep-0.50", "dense"}


def test_verify_says_when_nothing_could_be_run(run: Run, digits_bundle: Path, tmp_path: Path) -> None:
    done = run("verify", digits_bundle, "--profile", "jetson-orin", cwd=tmp_path)
    assert done.code == 0
    assert "no engine in the bundle could be run here" in done.err.splitlines()[-1]


def test_run(run: Run, digits_bundle: Path, digit_images: list[Path], tmp_path: Path) -> None:
    images = digit_images[::10]
    text = run("run", digits_bundle, *images, "--top", "2", cwd=tmp_path)
    data = run("run", digits_bundle, *images, "--top", "2", "--keep-ratio", "0.5", "--json", cwd=tmp_path)
    assert (text.code, data.code, data.err) == (0, 0, "")
    lines = [line.split("\t") for line in text.out.splitlines()]
    assert [line[0] for line in lines] == list(map(str, images))
    assert all(1 >= float(line[2]) >= float(line[4]) > 0 for line in lines), "path, and two labels with their chances"
    found = data.json()
    assert found["variant"] == "keep-0.50"
    answers = found["images"]
    assert [answer["image"] for answer in answers] == [str(image) for image in images]
    right = sum(answer["labels"][0]["name"] == Path(answer["image"]).stem[-1] for answer in answers)
    assert right >= 0.9 * len(images)
    for answer in answers:
        assert answer["kept_patches"] == [32, 16, 8]
        assert len(answer["labels"]) == 2
        assert answer["labels"][0]["probability"] >= answer["labels"][1]["probability"] > 0


def test_run_inside_the_bundle_and_with_an_odd_name(run: Run, bundle_copy: Path, digit_images: list[Path]) -> None:
    """The bundle's own README says `ztdeploy run .`; square brackets are markup to the library that draws tables."""
    odd = shutil.copy(digit_images[0], bundle_copy.parent / "a [bold]digit ü.png")
    named = bundle_copy.rename(bundle_copy.with_name("bundle [red]"))
    inside = run("run", ".", odd, cwd=named)
    outside = run("run", named, odd, cwd=named.parent)
    assert inside.code == 0
    assert "a [bold]digit ü.png" in inside.out
    assert inside.out == outside.out


# Building.


@pytest.fixture(scope="module")
def built(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """One build in a process of its own, in a folder that is otherwise empty."""
    folder = tmp_path_factory.mktemp("built")
    return folder, run("build", "-m", "vit_digits", "-p", "cpu", "--keep-ratio", "0.7", "--out", "digits", cwd=folder)


@pytest.mark.long
def test_build(run: Run, built: tuple[Path, Done], digit_images: list[Path]) -> None:
    folder, done = built
    assert done.code == 0, done
    assert [path.name for path in folder.iterdir()] == ["digits"]
    for variant in ("keep-0.70", "dense"):
        assert variant in done.out
        for step in ("exporting", "building", "proving"):
            assert any(line.startswith(f"{step} {variant}") for line in done.err.splitlines())
    assert done.err.splitlines()[-1] == "wrote digits; next: ztdeploy run digits PHOTO"
    assert "Warning" not in done.err
    assert run("verify", "digits", cwd=folder).code == 0
    (answer,) = run("run", "digits", digit_images[0], "--json", cwd=folder).json()["images"]
    assert answer["labels"][0]["name"] == digit_images[0].stem[-1]
    assert f"ztdeploy {ztdeploy.__version__}" in (folder / "digits" / "README.md").read_text()


@pytest.mark.long
def test_build_refuses_an_existing_folder_and_force_replaces_it(built: tuple[Path, Done], run: Run) -> None:
    folder, _ = built
    before = tree(folder)
    request = ("build", "-m", "vit_digits", "-p", "cpu", "--keep-ratio", "1", "--out", "digits")
    check_error(run(*request, cwd=folder), 3, "'digits' exists", "--force")
    assert tree(folder) == before
    done = run(*request, "--force", "--json", cwd=folder)
    assert (done.code, done.err) == (0, "")
    assert done.json()["bundle"] == "digits"
    assert [variant["name"] for variant in done.json()["variants"]] == ["dense"]
    assert [path.name for path in folder.iterdir()] == ["digits"]
    assert not list((folder / "digits" / "graphs").glob("keep-*"))
    assert [v["name"] for v in run("inspect", "digits", "--json", cwd=folder).json()["variants"]] == ["dense"]


def test_force_replaces_bundles_only(run: Run, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    before = tree(tmp_path)
    done = run("build", "-m", "vit_digits", "-p", "cpu", "-o", "precious", "--force", cwd=tmp_path)
    check_error(done, 3, "'precious' exists and is not a bundle")
    assert tree(tmp_path) == before


def test_an_empty_folder_is_filled_with_a_shell_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `ztdeploy build --out .` does: renaming would leave the shell in a folder that is gone."""
    from ztdeploy.core.bundle import new_bundle_folder

    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    with new_bundle_folder(Path(), force=False) as folder:
        (folder / "manifest.json").touch()
        (folder / "graphs").mkdir()
        (folder / "graphs" / "dense.onnx").touch()
    assert sorted(path.name for path in inside.iterdir()) == ["graphs", "manifest.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


# Bad input to a build, found before PyTorch is imported.


def test_keep_ratios_are_checked_first(tmp_path: Path) -> None:
    done = run_alone("build", "-m", "vit_digits", "-p", "cpu", "-k", "0", cwd=tmp_path)
    check_error(done, 3, "--keep-ratio 0")
    assert "loading" not in done.err


@pytest.mark.parametrize(
    ("profile", "text", "words"),
    [
        ("cpuu", None, ["'cpuu'", "did you mean 'cpu'?"]),
        ("toaster", None, ["'toaster'", "choose from:", "raspberry-pi5"]),
        ("absent.toml", None, ["'absent.toml' cannot be read"]),
        ("mine.toml", 'title = "t"\nbackend = "onnxruntime"\nopsett = 20\n', ["'opsett'", "did you mean 'opset'?"]),
        (
            "mine.toml",
            'title = "t"\nbackend = "onnxruntime"\n[batch]\ndynamik = true\n',
            ["'batch.dynamik'", "did you mean 'dynamic'?"],
        ),
        ("mine.toml", 'title = "t"\nbackend = "onnxruntime"\nopset = 3\n', ["opset", "got 3"]),
        ("mine.toml", 'title = "t"\nbackend = "onnxruntime"\nkeep_ratios = [1.5]\n', ["keep_ratios", "1.5"]),
        ("mine.toml", 'title = "t"\n', ["backend", "required"]),
        ("mine.toml", "title = \n", ["cannot be read", "line 1"]),
    ],
)
def test_bad_profiles(run: Run, profile: str, text: str | None, words: list[str], tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / profile).write_text(text)
    before = tree(tmp_path)
    done = run("build", "-m", "vit_digits", "-p", profile, "-o", "out", cwd=tmp_path)
    check_error(done, 3, *words)
    assert tree(tmp_path) == before
    check_error(run("profiles", "check", profile, cwd=tmp_path), 3, *words)


# Bad input to a build, found after it.

LAYER = "[[layer]]\nblock = 3\nkeep_ratio = 0.5\n"
GOOD = ("-m", "vit_digits", "-p", "cpu", "-o", "out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-m", "deit_x", "-p", "cpu"), ["model 'deit_x'", "did you mean 'deit_t'?"]),
        (("-m", "????", "-p", "cpu"), ["model '????'", "ztdeploy models"]),
        (("-m", "resnet18", "-p", "cpu", "--weights", "random"), ["resnet18", "families"]),
        ((*GOOD, "-k", "0"), ["--keep-ratio 0", "up to 1"]),
        ((*GOOD, "-k", "1.5"), ["--keep-ratio 1.5", "up to 1"]),
        ((*GOOD, "-k", "-0.5"), ["--keep-ratio -0.5", "up to 1"]),
        ((*GOOD, "-k", "nan"), ["--keep-ratio nan", "up to 1"]),
        ((*GOOD, "--method", "zero-tprun"), ["method 'zero-tprun'", "did you mean 'zero-tprune'?"]),
        ((*GOOD, "--image-size", "100"), ["image size 100", "32"]),
        ((*GOOD, "--checkpoint", "absent.pth"), ["--checkpoint 'absent.pth'"]),
    ],
)
def test_bad_requests(arguments: tuple[str, ...], words: list[str], run: Run, tmp_path: Path) -> None:
    check_error(run("build", *arguments, cwd=tmp_path), 3, *words)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[layer]]\nblock = 99\nkeep_ratio = 0.5\n", ["block 99", "from 1 to 12"]),
        ("[[layer]]\nblock = 6\nkeep_ratio = 0.5\n[[layer]]\nblock = 6\nkeep_ratio = 0.5\n", ["block 6 after block 6"]),
        ("[[layer]]\nblock = 3\nkeep_ratio = 0\n", ["keep_ratio", "greater than 0", "got 0"]),
        ("[[layer]]\nblock = 3\nkeep_ratio = nan\n", ["keep_ratio", "got nan"]),
        ("[[layer]]\nblock = 3\nkeep_ratio = 0.5\nsimilarity_drop = 60\n", ["similarity_drop 60", "at most 32"]),
        ("[[layer]]\nblock = 3\nkeep_ratio = 0.5\nkeep = 1\n", ["layer.0.keep"]),
        ("method = 'slise'\n[[layer]]\nblock = 3\nkeep_ratio = 0.5\n", ["'slise'", "did you mean 'slice'?"]),
        (f"{LAYER}[options]\nmetrik = 'dot'\n", ["unknown option 'metrik'", "did you mean 'metric'?"]),
        (f"{LAYER}[options]\nmetric = 'dod'\n", ["option metric = dod", "cosine, dot", "did you mean 'dot'?"]),
        (f"{LAYER}[options]\nmetric = 'dot'\n", ["option metric", "partner", "choose zero-tprune"]),
        ("name = 'dense'\n[[layer]]\nblock = 3\nkeep_ratio = 0.5\n", ["two variants named 'dense'"]),
        ("[[layer\n", ["cannot be read"]),
        (None, ["cannot be read", "no such file"]),
    ],
)
def test_bad_schedules(text: str | None, words: list[str], run: Run, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "mine.toml").write_text(text)
    before = tree(tmp_path)
    check_error(run("build", *GOOD, "--schedule", "mine.toml", cwd=tmp_path), 3, *words)
    assert tree(tmp_path) == before


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def write_checkpoint(kind: str, folder: Path) -> str:
    """A checkpoint with something wrong in it; the file's name."""
    import torch
    from safetensors.torch import load_file, save_file

    from ztdeploy.host.models.catalogue import CATALOGUE

    shipped = CATALOGUE["vit_digits"].shipped
    assert shipped is not None
    name = "weights.pth" if kind.endswith("pth") else "weights.safetensors"
    path, good = folder / name, shipped / "model.safetensors"
    if kind == "corrupt safetensors":
        path.write_bytes(b"\x10" + bytes(7) + b"garbage")
    elif kind == "truncated safetensors":
        path.write_bytes(good.read_bytes()[:-1000])
    elif kind == "corrupt pth":
        path.write_bytes(b"PK\x03\x04garbage")
    elif kind == "malicious pth":
        torch.save({"head.weight": Touch(folder / "OWNED")}, path)
    elif kind == "malicious old pth":
        path.write_bytes(pickle.dumps({"head.weight": Touch(folder / "OWNED")}, protocol=2))
    elif kind == "not a table pth":
        torch.save([torch.zeros(3)], path)
    elif kind == "unrelated safetensors":
        save_file({"a": torch.zeros(3)}, path)
    else:
        state = load_file(good)
        if kind == "misshaped safetensors":
            state["head.weight"] = state["head.weight"][:5].clone()
        else:
            state["head.weight"][0, 0] = float("nan")
        save_file(state, path)
    return name


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("corrupt safetensors", ["'weights.safetensors' cannot be read"]),
        ("truncated safetensors", ["'weights.safetensors' cannot be read"]),
        ("corrupt pth", ["'weights.pth' cannot be read"]),
        ("malicious pth", ["'weights.pth'", "nothing in it was run"]),
        ("malicious old pth", ["'weights.pth'", "nothing in it was run"]),
        ("not a table pth", ["'weights.pth'", "state_dict"]),
        ("unrelated safetensors", ["152 missing: cls_token", "1 unexpected: a", "--model"]),
        ("misshaped safetensors", ["head.bias [10] instead of [5]"]),
        ("nan safetensors", ["'head.weight'", "NaN"]),
    ],
)
def test_bad_checkpoints(kind: str, words: list[str], run: Run, tmp_path: Path) -> None:
    name = write_checkpoint(kind, tmp_path)
    before = tree(tmp_path)
    check_error(run("build", *GOOD, "--checkpoint", name, cwd=tmp_path), 3, *words)
    assert tree(tmp_path) == before


def test_the_malicious_checkpoint_would_have_run(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    write_checkpoint("malicious old pth", tmp_path)
    pickle.loads((tmp_path / "weights.pth").read_bytes())
    assert (tmp_path / "OWNED").exists()


def test_weights_that_cannot_be_had(run: Run, tmp_path: Path) -> None:
    done = run("build", "-m", "deit_t", "-p", "cpu", cwd=tmp_path)
    check_error(done, 6, "deit_tiny_patch16_224", "--checkpoint", "--weights random")
    assert tree(tmp_path) == {}


def test_an_output_folder_below_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = run("build", *GOOD[:-1], "file/out", cwd=tmp_path)
    check_error(done, 3, "file", "--out")
    assert list(tree(tmp_path)) == ["file"]


def test_errors_as_json_and_with_a_traceback(run: Run, tmp_path: Path) -> None:
    done = run("build", *GOOD, "--method", "none", "--json", cwd=tmp_path)
    assert done.code == 3
    assert done.json()["exit_code"] == 3
    assert done.err == f"error: {done.json()['message']}\n"
    debug = run("--debug", "build", *GOOD, "--method", "none", cwd=tmp_path)
    assert debug.code == 3
    assert "Traceback (most recent call last)" in debug.err
    assert "ScheduleError" in debug.err
    assert debug.err.splitlines()[-1] == done.err.strip()


# Bad images and bad bundles.


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("truncated.jpg", ["'truncated.jpg'", "cannot be decoded"]),
        ("text.png", ["'text.png' is not an image"]),
        ("empty.png", ["'empty.png' is empty"]),
        ("absent.png", ["'absent.png' does not exist"]),
    ],
)
def test_bad_images(
    run: Run, name: str, words: list[str], digits_bundle: Path, digit_images: list[Path], tmp_path: Path
) -> None:
    from ztdeploy.host.models.catalogue import ASSETS

    photo = next((ASSETS / "photos").glob("*.jpg")).read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(photo[: len(photo) // 2])
    (tmp_path / "text.png").write_text("hello\n")
    (tmp_path / "empty.png").touch()
    before = tree(tmp_path)
    check_error(run("run", digits_bundle, digit_images[0], name, cwd=tmp_path), 3, *words)
    assert tree(tmp_path) == before


def test_bad_image_as_json_and_with_a_traceback(run: Run, digits_bundle: Path, tmp_path: Path) -> None:
    done = run("run", digits_bundle, "absent.png", "--json", cwd=tmp_path)
    assert done.code == 3
    assert done.json()["exit_code"] == 3
    assert done.err == f"error: {done.json()['message']}\n"
    for debug in (
        run("--debug", "run", digits_bundle, "absent.png", cwd=tmp_path),
        run("run", digits_bundle, "absent.png", cwd=tmp_path, ZTDEPLOY_DEBUG="1"),
    ):
        assert debug.code == 3
        assert "Traceback (most recent call last)" in debug.err
        assert debug.err.splitlines()[-1] == done.err.strip()


@pytest.mark.parametrize("verb", ["run", "verify"])
@pytest.mark.parametrize("file", ["graphs/weights.safetensors", "graphs/keep-0.70.cpu.onnx", "classes.txt"])
def test_a_changed_byte(
    run: Run, verb: str, file: str, bundle_copy: Path, digit_images: list[Path], tmp_path: Path
) -> None:
    content = bytearray((bundle_copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle_copy / file).write_bytes(content)
    arguments = [digit_images[0]] if verb == "run" else []
    check_error(run(verb, bundle_copy, *arguments, cwd=tmp_path), 4, file, "has changed", "sha256")


@pytest.mark.parametrize("file", ["golden/dense.npz", "README.md", "graphs/dense.fp32.onnx"])
def test_verify_finds_what_run_does_not_need(run: Run, file: str, bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / file).unlink()
    check_error(run("verify", bundle_copy, cwd=tmp_path), 4, file, "is missing")


def edit(bundle: Path, change: Callable[[Any], None]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def _newer(manifest: Any) -> None:
    manifest["schema_version"] += 1
    manifest["something_new"] = {}


def _engine_outside(manifest: Any) -> None:
    manifest["variants"][0]["engines"]["cpu"]["file"] = "../outside.onnx"
    manifest["files"]["../outside.onnx"] = {"sha256": "0" * 64, "bytes": 1}


def _absolute_classes(manifest: Any) -> None:
    manifest["class_names"] = "/etc/passwd"


def _unlisted_engine(manifest: Any) -> None:
    del manifest["files"][manifest["variants"][0]["engines"]["cpu"]["file"]]


def _unknown_key(manifest: Any) -> None:
    manifest["surprise"] = 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_newer, ["schema version 6", "version 5", "upgrade ztdeploy"]),
        (_engine_outside, ["leaves the bundle"]),
        (_absolute_classes, ["class_names", "leaves the bundle"]),
        (_unlisted_engine, ["keep-0.70.cpu.onnx", "without listing it"]),
        (_unknown_key, ["damaged at surprise"]),
    ],
)
def test_bad_manifests(
    run: Run,
    change: Callable[[Any], None],
    words: list[str],
    bundle_copy: Path,
    digit_images: list[Path],
    tmp_path: Path,
) -> None:
    edit(bundle_copy, change)
    done = run("run", bundle_copy, digit_images[0], cwd=tmp_path)
    check_error(done, 4, *words)
    verified = run("verify", bundle_copy, cwd=tmp_path)
    check_error(verified, 4)
    assert verified.err.splitlines()[-1] == done.err.splitlines()[-1]


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff"])
def test_manifests_that_are_no_manifests(run: Run, text: str, bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "manifest.json").write_bytes(text.encode("latin-1"))
    check_error(run("inspect", bundle_copy, cwd=tmp_path), 4, "manifest.json' is damaged")


def test_a_link_that_leads_out_of_the_bundle(
    run: Run, bundle_copy: Path, digit_images: list[Path], tmp_path: Path
) -> None:
    """For reading, where what it leads to has the right hash; as a hub's client lays out what it has downloaded."""
    file = bundle_copy / "graphs" / "weights.safetensors"
    outside = file.rename(tmp_path / "weights.safetensors")
    file.symlink_to(outside)
    assert run("run", bundle_copy, digit_images[0], cwd=tmp_path).code == 0
    outside.write_bytes(outside.read_bytes() + b"0")
    check_error(run("run", bundle_copy, digit_images[0], cwd=tmp_path), 4, "leads outside the bundle")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--keep-ratio", "0.6"), ["keep ratio 0.6", "one of: 0.7, 0.5, 1"]),
        (("--variant", "keep-0.60"), ["variant 'keep-0.60'", "one of:"]),
        (("--profile", "cpuu"), ["profile 'cpuu'", "did you mean 'cpu'?"]),
        (("--profile", "jetson-orin"), ["no engine for profile 'jetson-orin'", "on the device", "ztdeploy finalize"]),
    ],
)
def test_what_a_bundle_does_not_hold(
    run: Run,
    arguments: tuple[str, ...],
    words: list[str],
    digits_bundle: Path,
    digit_images: list[Path],
    tmp_path: Path,
) -> None:
    check_error(run("run", digits_bundle, digit_images[0], *arguments, cwd=tmp_path), 3, *words)


@pytest.mark.parametrize("verb", ["run", "verify", "finalize", "inspect", "bench"])
def test_no_bundle_at_all(run: Run, verb: str, digit_images: list[Path], tmp_path: Path) -> None:
    arguments = [digit_images[0]] if verb == "run" else []
    check_error(run(verb, tmp_path, *arguments, cwd=tmp_path), 3, "has no manifest.json")
    done = run(verb, "absent", *arguments, "--json", cwd=tmp_path)
    assert done.code == 3
    assert done.json()["exit_code"] == 3
    assert tree(tmp_path) == {}
