"""Every command and every Python block of the documents, one after the other in one folder, as a reader types them.

What is not run is in `NOT_RUN`, with the reason. What takes long, or needs a download, has a stand-in: all models are
the shipped one, and `SMALL` makes measurements short.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import test_readme as documents
from helpers import sweeps
from helpers.options import QUICK
from helpers.processes import CHECKOUT
from helpers.signing import key_pair
from test_readme import DOCUMENTS, SHELL, Block, blocks, commands, parse, ztdeploy_arguments

from ztdeploy.cli.app import run
from ztdeploy.core.methods import METHODS
from ztdeploy.core.records import to_json
from ztdeploy.host.models.catalogue import ASSETS

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not documents.README.is_file(), reason="the documents lie in a checkout only"),
]

#: Command lines that are parsed only, by what is in them.
NOT_RUN = {
    r"finalize .*--profile jetson": "needs the board; tests/cli/test_finalize_device.py has a stand-in for it",
    r"(bench|eval|run) .*--profile jetson": "needs the board",
    r"remote |--on ": "needs a board; tests/jobs/remote has boards on this machine",
    r"compare bench-lab1": "the reports are those of two boards",
    r"eval deit_s-cpu-cpu-int8": "the build before it ships nothing where few images of digits fail",
    r"--precision auto": "times every candidate; tests/cli/test_cli_auto.py types it",
    r"--cascade-min-cosine": "few digits agree so closely; tests/host/test_confidence.py has the parts",
    r"install .*--sign device": "needs a board whose engines are built on it; tests/target/test_install.py has parts",
    r"install --rollback": "needs an earlier version; tests/target/test_install.py goes back",
    r"--text-head": "needs CLIP's weights; tests/host/models/test_text_head.py builds such a model",
}
#: Other programs that documents name, and why no test runs them. What they are given is checked in test_readme.py.
OTHER_PROGRAMS = {
    "cat|cd|export|git|ls|scp|source|ssh": "the shell",
    "ztdeploy-run": "tests/cpp builds and runs it",
    "cmake|trtexec|jetson_clocks|nvpmodel|sudo": "on a board; tests/target/plugins compiles the plugins",
    "docker|tritonserver": "is not there where the project is tested",
    "minisign": "makes keys; tests/core/test_signature.py compares with it",
    "make": "sets up what the tests run in, and runs them",
    "pip|uv|uvx": "installs; tests/contract/test_wheel.py does so",
    "pytest|qemu-x86_64|ruff|mypy|pre-commit": "the tests themselves",
    r"python[\d.]*": "makes environments; benchmarks, studies and training take minutes to hours",
}
#: Options that make a verb short. They stand behind a document's own, and the last one counts.
SMALL = {
    **QUICK,
    "build": ["--force"],  # documents show alternatives, which write the same folder
    "eval": ["--limit", "20"],
    "tune": ["--trials", "3"],
}
#: Values of options that have a stand-in: the shipped model has ten classes, and 40 images show no more than 0.9 and
#: are too few to learn counts from.
STAND_INS = {
    ("--class-names", "imagenet"): "names.txt",
    ("--cascade", "0.98"): "0.9",
    ("--search", "counts"): "curves",
}
KEEP_RATIO = ("-k", "--keep-ratio")
#: Exit codes that say something about the images or the moment, and nothing about the command.
VERDICTS = {"compare": (0, 7), "build": (0, 8, 9)}  # 9: of one profile alone

SCHEDULE = "[[layer]]\nblock = 4\nkeep_ratio = 0.8\n"


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, common: Path) -> Path:
    """A folder to type in. The shipped model is loaded whatever is asked for, from a checkpoint if one is given."""
    from ztdeploy.host.models import loading

    source_of = loading.source_of
    made_here = "tuned.safetensors"  # a document's own model
    monkeypatch.setattr(
        loading,
        "source_of",
        lambda asked: source_of(
            asked if str(asked.checkpoint) == made_here else asked.model_copy(update={"name": "vit_digits"})
        ),
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZTDEPLOY_CACHE", str(common))  # sweeps take traces from where builds leave them
    monkeypatch.delenv("ZTDEPLOY_DEBUG", raising=False)
    return tmp_path


def values(parameters: dict[str, Any], *names: str) -> Iterator[Path]:
    """The paths that options of these names have, whether they take one or several."""
    for name in names:
        value = parameters.get(name)
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None:
                yield Path(str(one))


def provide(parameters: dict[str, Any], digits_bundle: Path, digit_images: list[Path]) -> None:
    """The files that a command line names, where nothing before it has made them."""
    for path in values(parameters, "bundle"):
        make(path, lambda path: shutil.copytree(digits_bundle, path))
    for path in values(parameters, "images"):
        make(path, lambda path: shutil.copy(digit_images[0], path))
    for path in values(parameters, "data", "calib"):
        make(path, lambda path: labelled(path, digit_images))
    for path in values(parameters, "key", "sign", "signed_by"):
        if path.suffix:  # and is no key itself
            make(path, lambda path: key_pair(path.parent, path.stem))
    for path in values(parameters, "checkpoint"):
        make(path, checkpoint)
    for path in values(parameters, "model"):
        if path.name.startswith("local-dir:"):
            make(Path(path.name.removeprefix("local-dir:")), model_folder)
    for path in values(parameters, "class_names"):
        if path.suffix:
            make(path, lambda path: path.write_text("".join(f"{digit}\n" for digit in range(10))))
    for path in values(parameters, "schedules"):
        make(path, lambda path: path.write_text(SCHEDULE))
    for path in values(parameters, "load"):
        make(path, lambda path: path.write_text("[[phase]]\nseconds = 1\nbusy = 1\n"))
    for path in values(parameters, "sweep"):
        make(path, finished_sweep)
    for path in values(parameters, "profile", "profiles"):
        if path.suffix == ".toml":
            make(path, lambda path: shutil.copy(CHECKOUT / "profiles" / "cpu.toml", path))


def make(path: Path, how: Any) -> None:
    assert not path.is_absolute(), f"'{path}' is nowhere but on the writer's machine"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if (CHECKOUT / path).exists():
        path.symlink_to(CHECKOUT / path)
    else:
        how(path)


def labelled(folder: Path, digit_images: list[Path]) -> None:
    for image in digit_images[:40]:
        (folder / image.stem[-1]).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder / image.stem[-1])


def checkpoint(path: Path) -> None:
    from helpers.reference_trained import predictors
    from safetensors.torch import load_file
    from torch import save

    shipped = ASSETS / "digits" / "model.safetensors"
    method = METHODS.get(path.stem)  # whose name a fine-tuned checkpoint has
    if path.suffix in (".pth", ".ckpt"):
        save(load_file(shipped) | (predictors(path.stem) if method is not None and method.trained else {}), path)
    elif path.suffix:
        shutil.copy(shipped, path)
    else:
        path.mkdir()
        shutil.copy(shipped, path)


def model_folder(folder: Path) -> None:
    checkpoint(folder)
    (folder / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')


def finished_sweep(folder: Path) -> None:
    folder.mkdir()
    (folder / "sweep.json").write_text(to_json(sweeps.sweep()))


def not_run(words: list[str]) -> str | None:
    """The reason why no test runs a command."""
    if ztdeploy_arguments(words) is None:
        name = Path(words[0]).name
        return next((reason for names, reason in OTHER_PROGRAMS.items() if re.fullmatch(names, name)), None)
    return next((reason for part, reason in NOT_RUN.items() if re.search(part, " ".join(words))), None)


def stand_ins(words: list[str]) -> list[str]:
    return [
        traced(word) if before in KEEP_RATIO else STAND_INS.get((before, word), word)
        for before, word in zip(["", *words], words, strict=False)
    ]


def traced(ratios: str) -> str:
    """One keep ratio stands for all below 1, so that all documents take the same trace, which takes seconds."""
    return ",".join(dict.fromkeys(re.sub(r"0\.\d+", "0.7", ratio) for ratio in ratios.split(",")))


def typed(document: Path) -> Iterable[Block]:
    return blocks(document, *SHELL, "python")


@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS if any(typed(document))],
    ids=lambda path: path.relative_to(CHECKOUT).as_posix(),
)
def test_a_reader_gets_through(
    document: Path,
    reader: Path,
    digits_bundle: Path,
    digit_images: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    namespace: dict[str, Any] = {"__name__": "document"}
    for block in typed(document):
        if block.language == "python":
            make(Path("photos"), lambda path: labelled(path, digit_images))
            make(Path("model.pth"), checkpoint)
            source = re.sub(r"keep_ratio=0\.\d+", "keep_ratio=0.7", block.text)
            documents.execute(source, digits_bundle, digit_images, namespace)
            continue
        for words in commands(block):
            arguments = ztdeploy_arguments(words)
            if not_run(words) is not None:
                continue
            assert arguments is not None, f"{block}: '{' '.join(words)}': say why it is not run"
            arguments = stand_ins(arguments)
            verbs, parameters = parse(arguments)
            provide(parameters, digits_bundle, digit_images)
            try:
                code = run([*arguments, *SMALL.get(verbs[0] if verbs else "", ())])
            except SystemExit as verdict:  # of a machine that is slower now
                code = verdict.code
            said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            assert code in VERDICTS.get(arguments[0], (0,)), f"{block}: {' '.join(words)}: {said}"


def test_every_reason_is_needed() -> None:
    found = [words for document in DOCUMENTS for block in blocks(document, *SHELL) for words in commands(block)]
    ours = [" ".join(words) for words in found if ztdeploy_arguments(words) is not None]
    for part in NOT_RUN:
        assert any(re.search(part, line) for line in ours), f"'{part}' is in no document"
