"""What holds for the options of every verb."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from helpers.bundles import edit, linked_copy
from helpers.options import QUICK
from helpers.signing import key_pair, signed
from typer.main import get_command

from ztdeploy import cli
from ztdeploy.cli import app
from ztdeploy.cli.help import takes_one
from ztdeploy.core.progress import silent
from ztdeploy.jobs.request import BuildRequest
from ztdeploy.report.compare.comparison import Criteria
from ztdeploy.report.tune.records import TuneRequest
from ztdeploy.target.evaluate.eval_report import EvalRequest
from ztdeploy.target.install import install_bundle
from ztdeploy.target.measure.bench_report import BenchRequest
from ztdeploy.target.measure.sweep_report import SweepRequest


def commands_of(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command, behind the words that lead there."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands_of(inner, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


COMMANDS = dict(commands_of(get_command(app.app)))
SINGLE = [(path, one.opts[-1]) for path, command in COMMANDS.items() for one in command.params if takes_one(one)]


@pytest.mark.parametrize(("path", "option"), SINGLE, ids=lambda one: one if isinstance(one, str) else " ".join(one))
def test_what_names_one_thing_is_never_dropped(
    path: tuple[str, ...], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run([*path, option, "one", option, "other"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert option in line
    assert "it is given twice and takes one value" in line


def test_there_are_such_options() -> None:
    assert len(SINGLE) > 30
    assert (("sweep",), "--profile") in SINGLE
    assert (("build",), "--profile") not in SINGLE, "which takes several"


def test_of_numbers_the_last_one_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["bench", "nowhere", "--rounds", "3", "--rounds", "6"]) == 3
    assert "'nowhere' has no manifest.json" in capsys.readouterr().err


VERB = """
import typer

def register(app):
    app.command(help="Greet somebody.")(greet)

def greet(name: str) -> None:
    typer.echo(f"hello {name}")
"""


def test_a_verb_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "greet.py").write_text(VERB)
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    monkeypatch.setattr(app, "VERBS", (*app.VERBS, "greet"))
    monkeypatch.setattr(app, "app", app.application())
    assert app.run(["greet", "somebody"]) == 0
    assert capsys.readouterr().out == "hello somebody\n"
    assert app.run(["--help"]) == 0
    assert "Greet somebody." in capsys.readouterr().out
    assert app.run(["greet"]) == 2


# What `--help` promises.

EXAMPLES = [
    (path, line)
    for path, command in COMMANDS.items()
    for line in (command.epilog or "").splitlines()
    if line.startswith("ztdeploy ")
]
HOST = ("build", "tune", "quickstart", "models", "sweep --model")
BOARDS = ("remote",)  # which tests/jobs/remote has
SLOW = ("bench", "compare", "sweep --bundle", "report", "finalize")


def starting(*words: str) -> list[str]:
    return [line for _, line in EXAMPLES if line.removeprefix("ztdeploy ").startswith(words)]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_verb_has_two_examples_and_speaks_of_every_option(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert len([line for where, line in EXAMPLES if where == path]) >= 2
    assert all(len(line) <= 78 for line in command.epilog.splitlines())
    assert not [one.name for one in command.params if not one.help]
    panels = [one.rich_help_panel for one in command.params if one.param_type_name == "option"]
    assert set(panels) <= {"Model", "Pruning", "Targets", "Quality", "Measuring", "Output"}


def test_whatever_opens_a_bundle_can_demand_a_signature() -> None:
    names = {path: {one.name for one in command.params} for path, command in COMMANDS.items()}
    assert [path for path, own in names.items() if "bundle" in own and "signed_by" not in own] == [("sign",)]


@pytest.mark.parametrize(("path", "line"), EXAMPLES, ids=lambda one: one if isinstance(one, str) else "")
def test_every_example_can_be_parsed(path: tuple[str, ...], line: str) -> None:
    words = shlex.split(line.partition(" > ")[0])
    assert tuple(words[1 : len(path) + 1]) == path
    COMMANDS[path].make_context(path[-1], words[len(path) + 1 :])


@pytest.fixture
def as_told(
    bundle_copy: Path,
    cascade_bundle: Path,
    digit_images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with what the examples name."""
    folder = tmp_path / "told"
    (folder / "photos").mkdir(parents=True)
    shutil.move(bundle_copy, folder / "quickstart")
    linked_copy(cascade_bundle, folder / "unsure")
    fleet = key_pair(folder, "fleet")
    door = edit(linked_copy(cascade_bundle, folder / "door"), lambda manifest: manifest.update(created="2026-01-01"))
    install_bundle(signed(door, fleet), folder / "live" / "door", silent)
    (folder / "password.txt").write_text("of a key that has one")
    shutil.copy(digit_images[0], folder / "photo.jpg")
    for image in digit_images[:12]:
        shutil.copy(image, folder / "photos" / f"{image.stem}.jpg")
    monkeypatch.chdir(folder)
    return folder


def follow(lines: list[str]) -> None:
    for line in lines:
        typed = shlex.split(line.partition(" > ")[0])
        words = [word for one in typed for word in (sorted(map(str, Path().glob(one))) if "*" in one else [one])]
        with open(line.partition(" > ")[2] or os.devnull, "w") as out, redirect_stdout(out):  # noqa: PTH123
            quick = () if "--iterations" in words else QUICK.get(words[1], ())
            assert app.run([*words[1:], *quick]) == 0, line


def test_examples_without_pytorch_work_as_they_stand(as_told: Path) -> None:
    follow([line for _, line in EXAMPLES if line not in starting(*HOST, *SLOW, *BOARDS)])
    assert (as_told / "shown" / "show.html").is_file()
    assert (as_told / "eval.html").is_file()


@pytest.mark.long
def test_examples_that_measure_work_as_they_stand(as_told: Path) -> None:
    """But for how long they measure."""
    follow(starting("bench", "sweep --bundle", "report", "finalize"))
    for name in ("before.json", "after.json"):
        shutil.copy("bench.json", name)
    follow(starting("compare"))


#: Runs commands with PyTorch out of reach, so that whatever needs it fails otherwise.
WITHOUT_PYTORCH = """
import json, sys
sys.modules.update(dict.fromkeys(("torch", "timm", "onnx", "onnx_ir", "onnxscript", "transformers", "optuna")))
from ztdeploy.cli.app import run
for words in json.loads(sys.argv[1]):
    print(f"# {run(words)}", file=sys.stderr)
"""
_DIGITS = ["-m", "vit_digits"]
#: What can be known of a command line from its words, from paths, and from the tables of core.
BEFORE = [
    (["build", *_DIGITS, "-p", "cpuu"], 3, "did you mean 'cpu'?"),
    (["build", *_DIGITS, "-p", "mine.toml"], 3, "mine.toml"),
    (["build", *_DIGITS, "-p", "cpu", "-k", "0.7,2"], 3, "--keep-ratio 2"),
    (["build", *_DIGITS, "-p", "cpu", "--method", "tomee"], 3, "did you mean 'tome'?"),
    (["build", *_DIGITS, "-p", "cpu", "--schedule", "none.toml"], 3, "none.toml"),
    (["build", *_DIGITS, "-p", "cpu", "--checkpoint", "none.pth"], 3, "--checkpoint 'none.pth'"),
    (["build", *_DIGITS, "-p", "cpu", "--class-names", "none.txt"], 3, "--class-names 'none.txt'"),
    (["build", *_DIGITS, "-p", "cpu", "--text-head", "none.safetensors"], 3, "--text-head"),
    (["build", *_DIGITS, "-p", "cpu", "--calib", "none"], 3, "'none' does not exist"),
    (["build", *_DIGITS, "-p", "cpu", "--precision", "auto", "--calib", "none"], 3, "'none' does not exist"),
    (["build", *_DIGITS, "-p", "cpu", "--max-drop", "1"], 3, "--calib"),
    (["build", *_DIGITS, "-p", "cpu", "-o", "file/out"], 3, "file"),
    (["build", "-m", "local-dir:none", "-p", "cpu"], 3, "'none' is not a folder"),
    (["build", *_DIGITS, "-p", "cpu", "--image-size", "7"], 3, "--image-size '7'"),
    (["build", *_DIGITS, "-p", "cpu", "--preset", "papers"], 2, "did you mean 'paper'?"),
    (["quickstart", "-o", "file/out"], 3, "file"),
    (["sweep"], 3, "--model"),
    (["sweep", *_DIGITS], 3, "profile"),
    (["sweep", *_DIGITS, "-p", "cpuu"], 3, "did you mean 'cpu'?"),
    (["sweep", *_DIGITS, "-p", "cpu", "--method", "tomee"], 3, "did you mean 'tome'?"),
    (["sweep", *_DIGITS, "-p", "cpu", "--batch", "4000"], 3, "--batch 4000"),
    (["sweep", *_DIGITS, "-p", "cpu", "--data", "none"], 3, "'none' does not exist"),
    (["sweep", *_DIGITS, "-p", "cpu", "--checkpoint", "none.pth"], 3, "none.pth"),
    (["sweep", "--bundle", "none"], 3, "'none' has no manifest.json"),
    (["tune", *_DIGITS, "-d", "none"], 3, "'none' does not exist"),
    (["tune", *_DIGITS, "-d", ".", "--method", "slice"], 3, "--method"),
    (["tune", *_DIGITS, "-d", ".", "-b", "speedup=2"], 3, "--profile"),
    (["tune", *_DIGITS, "-d", ".", "-b", "speedup=2", "-p", "cpuu"], 3, "did you mean 'cpu'?"),
    (["tune", *_DIGITS, "-d", ".", "--checkpoint", "none.pth"], 3, "--checkpoint 'none.pth'"),
    (["models", "--check", "deit_s", "--image-size", "x"], 3, "--image-size 'x'"),
]


def test_what_can_be_known_is_said_before_pytorch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = [sys.executable, "-c", WITHOUT_PYTORCH, json.dumps([words for words, _, _ in BEFORE])]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "# "))]
    assert len(said) == 2 * len(BEFORE), done.stderr
    for (words, code, fragment), error, left in zip(BEFORE, said[::2], said[1::2], strict=True):
        assert (left, fragment in error) == (f"# {code}", True), (words, error)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


REQUESTS = {
    "bench": (BenchRequest, {"seed", "all_variants"}),
    "eval": (EvalRequest, {"cascade"}),
    "sweep": (SweepRequest, {"seed"}),
    "tune": (TuneRequest, set()),
    "build": (BuildRequest, {"gate", "cache", "module", "backbone"}),
    "compare": (Criteria, {"seed"}),
}


@pytest.mark.parametrize("verb", REQUESTS)
def test_a_request_is_made_of_options_of_its_names(verb: str) -> None:
    kind, others = REQUESTS[verb]
    assert set(signature(kind).parameters) - {one.name for one in COMMANDS[(verb,)].params} == others


@pytest.mark.parametrize(
    ("words", "typed", "offered"),
    [
        (["build", "--profile"], "cpu,jetson-orin-", ["cpu,jetson-orin-nano"]),
        (["build", "--method"], "tom", ["tome"]),
        (["build", "--schedule"], "deit_t-reduction-3", ["deit_t-reduction-35"]),
        (["build", "--model"], "deit_", ["deit_t", "deit_s", "deit_b", "deit_s_distilled"]),
        (["build", "--preset"], "p", ["paper"]),
        (["bench", "BUNDLE", "--variant"], "dense,keep-0.", ["dense,keep-0.70", "dense,keep-0.50"]),
        (["bench", "nowhere", "--variant"], "", []),
    ],
)
def test_completion_offers_names(words: list[str], typed: str, offered: list[str], digits_bundle: Path) -> None:
    verb, *given, option = [str(digits_bundle) if word == "BUNDLE" else word for word in words]
    command = COMMANDS[(verb,)]
    context = command.make_context(verb, given, resilient_parsing=True)
    (found,) = [one for one in command.params if option in one.opts]
    assert [one.value for one in found.shell_complete(context, typed)] == offered
