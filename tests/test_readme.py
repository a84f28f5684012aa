"""What the documents tell people to type: every command is parsed or run, every Python block runs, every link leads
somewhere."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import io
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import ztdeploy
from ztdeploy.cli.app import app, run
from ztdeploy.core.data import parse_toml

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
README = CHECKOUT / "README.md"
DOCUMENTS = [
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "plugins/*.md", "benchmarks/*.md")
    for path in sorted(CHECKOUT.glob(pattern))
]
SHELL = ("sh", "bash", "shell", "console")
FOREIGN = {"cd", "git", "source", ".", "export", "scp", "rsync", "ssh", "cat", "ls", "docker", "nvpmodel", "sudo"}
# Run by tests of plugins or of C++; only on boards or servers; slow.
FOREIGN |= {"minisign", "pip", "cmake", "trtexec", "qemu-x86_64", "ztdeploy-run", "tritonserver"}
#: Verbs that need neither PyTorch nor the network: these are run, not only parsed.
RUNNABLE = ("run", "verify", "finalize", "inspect", "profiles", "models", "doctor")
#: What Python of the documents is run with, so that it takes no network and no time.
STAND_INS = {
    '"deit_s", keep_ratio=0.7)': '"vit_digits", keep_ratio=0.7, method="zero-tprune")',  # which the shared traces have
    '"deit_s"': '"vit_digits"',
    "vit_tiny_patch16_224": "test_vit",
    "randn(2, 3, 224, 224": "randn(2, 3, 160, 160",
}
STAND_INS |= {"trials=50": "trials=4", "limit=500": "limit=50", "duration=5": "iterations=10"}
_IMAGES = (".jpg", ".jpeg", ".png", ".webp")

pytestmark = pytest.mark.skipif(not README.is_file(), reason="the documents lie in a checkout only")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(CHECKOUT)}:{self.line}"


def blocks(document: Path, *languages: str) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    found = re.finditer(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(document, text.count("\n", 0, match.start()) + 1, match[2], match[3])
        for match in found
        if match[2] in languages
    ]


def commands(block: Block) -> Iterator[list[str]]:
    """The command lines of a block, without prompts, comments, variables set for one command, and what others print."""
    for line in block.text.replace("\\\n", " ").splitlines():
        typed = line.strip()
        if block.language == "console":
            if not typed.startswith("$ "):
                continue
            typed = typed[2:]
        for part in re.split(r"\s(?:&&|\|\||\||;)\s", typed):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


def inline_commands(document: Path) -> list[list[str]]:
    """Commands in running text, such as `make test`; what has placeholders in it is left out."""
    text = re.sub(r"^( *)```.*?^\1```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`((?:ztdeploy|make|python -m|pip install) [^`]+)`", text)
    return [shlex.split(span) for span in spans if not re.search(r"\b[A-Z]{2,}\b(?!=)|\.\.\.|<", span)]


def ztdeploy_arguments(words: list[str]) -> list[str] | None:
    """What follows the program's name; None where the command is another program."""
    name = Path(words[0]).name
    if name == "ztdeploy":
        return words[1:]
    if re.fullmatch(r"python[\d.]*", name) and words[1:3] == ["-m", "ztdeploy"]:
        return words[3:]
    if re.fullmatch(r"python[\d.]*", name) and words[1:2] == ["cli.py"]:
        return words[2:]
    return None


def parse(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Parse a command line without running it.

    Returns:
        The verbs, and the values of the last verb's parameters.
    """
    command: Any = typer.main.get_command(app)
    verbs: list[str] = []
    parameters: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        while True:
            try:
                context = command.make_context("ztdeploy", list(arguments))
            except typer.Exit:  # --help and --version answer at once
                return verbs, {}
            if not hasattr(command, "resolve_command"):
                parameters = dict(context.params)
                return verbs, parameters
            rest = [*(getattr(context, "_protected_args", None) or []), *context.args]
            if not rest:
                return verbs, {}
            verb, command, arguments = command.resolve_command(context, rest)
            verbs.append(str(verb))


def known_verbs() -> set[str]:
    command: Any = typer.main.get_command(app)
    return {name for name, verb in command.commands.items() if not verb.hidden}


def makefile_targets() -> set[str]:
    text = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][\w-]*):", text, re.MULTILINE))


def check_install(words: list[str]) -> None:
    """The extras that are asked for exist."""
    project = parse_toml((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        if match := re.fullmatch(r"(?:ztdeploy(?:-[\d.]+-py3-none-any\.whl)?|\.)\[([\w,-]+)\]", word):
            assert set(match[1].split(",")) <= set(project["optional-dependencies"]), word
        else:
            assert "[" not in word, f"'{word}' is not ours"


def check_command(words: list[str]) -> None:
    arguments, name = ztdeploy_arguments(words), Path(words[0]).name
    if arguments is not None:
        parse(arguments)
    elif name == "make":
        targets = [word for word in words[1:] if "=" not in word]
        assert set(targets) <= makefile_targets(), words
        variables = [word.partition("=")[0] for word in words[1:] if "=" in word]
        makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
        assert all(f"{variable} ?=" in makefile for variable in variables), words
    elif re.fullmatch(r"python[\d.]*", name) and words[1:2] == ["-m"] and words[2] not in ("pip", "venv"):
        path = CHECKOUT / words[2].replace(".", "/")
        exists = path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
        assert exists or importlib.util.find_spec(words[2].partition(".")[0]) is not None, words
    elif re.fullmatch(r"python[\d.]*", name) and words[1:2] and words[1].endswith(".py"):
        assert (CHECKOUT / words[1]).is_file(), words
    elif name == "uvx":
        assert words[1] == "--from"
        check_install(words[2:3])
        parse(words[words.index("ztdeploy") + 1 :])
    elif "install" in words[:4]:
        check_install(words[words.index("install") + 1 :])
    else:
        tool = words[0].startswith((".venv/bin/", "bin/")) or name in ("pytest", "ruff", "mypy", "pre-commit", "uv")
        tool = tool or words[1:3] == ["-m", "venv"]
        assert name in FOREIGN or tool, f"'{' '.join(words)}': teach this test how to check it"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, as the reader's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZTDEPLOY_DEBUG", raising=False)
    return tmp_path


def provide_bundle(name: str | Path, digits_bundle: Path) -> None:
    """Put a copy of the digits' bundle where a document expects one."""
    path = Path(name)
    assert not path.is_absolute(), f"'{path}' is nowhere but on the writer's machine"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(digits_bundle, path)


def provide_image(name: str | Path, digit_images: list[Path]) -> None:
    path = Path(name)
    assert not path.is_absolute(), f"'{path}' is nowhere but on the writer's machine"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(digit_images[0], path)


def provide_named(parameters: dict[str, Any], digits_bundle: Path, digit_images: list[Path]) -> None:
    """The files that a command line names."""
    if "bundle" in parameters:
        provide_bundle(parameters["bundle"], digits_bundle)
    for image in parameters.get("images") or ():
        provide_image(image, digit_images)


def runnable(verbs: list[str], parameters: dict[str, Any]) -> bool:
    """Whether a parsed command works on the digits' bundle as it stands."""
    built = {None, 1.0, 0.7, 0.5}
    needed = ("variant", "profile", "name", "file", "cascade", "check", "maps", "on", "signed_by")
    named = [parameters.get(name) for name in needed]
    return bool(verbs) and verbs[0] in RUNNABLE and parameters.get("keep_ratio") in built and not any(named)


ALL_BLOCKS = [block for document in DOCUMENTS for block in blocks(document, *SHELL)]


def test_the_readme_has_what_these_tests_are_for() -> None:
    typed = [ztdeploy_arguments(words) for block in blocks(README, *SHELL) for words in commands(block)]
    verbs = {arguments[0] for arguments in typed if arguments}
    assert {"build", "eval", "run"} <= verbs
    assert blocks(README, "python")


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 700


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=str)
def test_commands_exist_and_take_these_options(block: Block) -> None:
    found = list(commands(block))
    assert found
    for words in found:
        check_command(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_commands_in_running_text(document: Path) -> None:
    for words in inline_commands(document):
        if ztdeploy_arguments(words) == words[1:2] and words[1] in known_verbs():
            continue  # "`ztdeploy eval`" names the verb
        check_command(words)


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=str)
def test_commands_run(
    block: Block,
    place: Path,
    digits_bundle: Path,
    digit_images: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in commands(block):
        arguments = ztdeploy_arguments(words)
        if arguments is None:
            continue
        verbs, parameters = parse(arguments)
        if runnable(verbs, parameters):
            provide_named(parameters, digits_bundle, digit_images)
            assert run(arguments) == 0, f"{' '.join(words)}: {capsys.readouterr().err}"


def names_in(source: str) -> tuple[set[str], set[str]]:
    """The bundles and the images that Python source names: what is loaded, and what ends like an image."""
    bundles, images = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(_IMAGES):
            images.add(node.value)
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("load", "evaluate", "bench", "read_bundle", "verify_bundle", "finalize_bundle"):
                bundles.add(str(node.args[0].value))
    return bundles, images


def execute(source: str, digits_bundle: Path, digit_images: list[Path], namespace: dict[str, Any]) -> None:
    """Run a document's Python on the digits and their model; of the jobs beneath `ztdeploy.build`, only the imports."""
    for published, tiny in STAND_INS.items():
        source = source.replace(published, tiny)
    if '"photos"' in source and not Path("photos").exists():
        shutil.copytree(digit_images[0].parent, "photos")
    source = re.sub(r"keep_ratio=0\.[89]", "keep_ratio=0.7", source)  # the digits' bundle has it, and traces are shared
    bundles, images = names_in(source)
    tree = ast.parse(source)
    if "ztdeploy.jobs.build" in source:
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for bundle in bundles:
        provide_bundle(bundle, digits_bundle)
    for image in images:
        provide_image(image, digit_images)
    exec(compile(tree, "document", "exec"), namespace)


#: Those of the longest document, and of one that needs what its commands write, run in
#: tests/docs/test_what_readers_type.py, as all do among the commands.
_AMONG_COMMANDS = ("python", "cascade", "image-search")
PYTHON_DOCUMENTS = [
    document for document in DOCUMENTS if blocks(document, "python") and document.stem not in _AMONG_COMMANDS
]


@pytest.mark.parametrize("document", PYTHON_DOCUMENTS, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_python_runs(
    document: Path, place: Path, digits_bundle: Path, digit_images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Block after block in one namespace, as a reader would paste them."""
    namespace: dict[str, Any] = {"__name__": "document"}
    for block in blocks(document, "python"):
        execute(block.text, digits_bundle, digit_images, namespace)
    if document == README:
        assert capsys.readouterr().out.startswith(digit_images[0].stem[-1]), "it prints the predicted class"


@pytest.mark.parametrize(
    "documented",
    [
        ztdeploy,
        ztdeploy.build,
        ztdeploy.load,
        ztdeploy.BundleRunner.__call__,
        ztdeploy.evaluate,
        ztdeploy.bench,
        pytest.param(ztdeploy.prune, marks=pytest.mark.long),
        pytest.param(ztdeploy.tune, marks=pytest.mark.long),
    ],
    ids=lambda documented: documented.__name__,
)
def test_examples_in_docstrings_run(
    documented: Any, place: Path, digits_bundle: Path, digit_images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    import timm
    import torch

    found = re.search(r"^    .*\n(?:(?:    .*)?\n)*", inspect.getdoc(documented) or "", re.MULTILINE)
    assert found is not None
    source = textwrap.dedent(found[0])
    namespace: dict[str, Any] = {"ztdeploy": ztdeploy, "timm": timm, "torch": torch}
    namespace["runner"] = ztdeploy.load(digits_bundle)
    execute(source, digits_bundle, digit_images, namespace)
    if "prediction" in namespace:
        assert namespace["prediction"].label in set("0123456789")


def test_the_readme_inside_a_bundle_works(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, in the bundle's folder; tests/contract/test_wheel.py builds and installs the wheel."""
    monkeypatch.chdir(bundle_copy)
    indented = [line[4:] for line in Path("README.md").read_text(encoding="utf-8").splitlines() if line[:4] == "    "]
    typed = [shlex.split(line) for line in indented if line.startswith(("ztdeploy ", "pip "))]
    assert [words[:2] for words in typed] == [["pip", "install"], ["ztdeploy", "verify"], ["ztdeploy", "run"]]
    assert typed[0][2] == f"ztdeploy-{ztdeploy.__version__}-py3-none-any.whl"
    for words in typed[1:]:
        assert run(words[1:]) == 0, capsys.readouterr().err
    namespace: dict[str, Any] = {}
    exec("\n".join(line for line in indented if not line.startswith(("ztdeploy ", "pip "))), namespace)
    assert namespace["prediction"].labels[0].name == Path(typed[2][3]).stem[-1]
    other = re.findall(
        r"^- `([\w-]+)`: `(pip install .*)`$", Path("README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [profile for profile, _ in other] == ["jetson-orin"], "whose runtime is another one"
    check_command(shlex.split(other[0][1]))


@pytest.mark.parametrize(
    "block", [block for document in DOCUMENTS for block in blocks(document, "toml")], ids=lambda block: str(block)
)
def test_toml_is_a_schedule_or_a_profile(block: Block) -> None:
    from ztdeploy.core.profile import parse_profile
    from ztdeploy.core.schedule import parse_schedule
    from ztdeploy.target.measure.replay_report import LoadTimeline

    data = parse_toml(block.text)
    if "layer" in data:
        assert parse_schedule(data, Path("document.toml")).layers
    elif "phase" in data:
        assert LoadTimeline.model_validate(data).seconds
    elif "backend" in data:
        assert parse_profile(data, Path("document.toml")).title


def test_the_table_of_verbs_is_complete() -> None:
    """Each verb of the command line has a row in the table of verbs, and no other has one."""
    verbs = known_verbs()
    text = (CHECKOUT / "docs/index.md").read_text(encoding="utf-8")
    table = re.search(r"^\| verb \|.*?\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None
    assert set(re.findall(r"^\| `(\w+)` \|", table[1], re.MULTILINE)) == verbs


def test_the_table_of_profiles_is_complete() -> None:
    from ztdeploy.core.profile import profile_names

    text = (CHECKOUT / "docs/explanation/targets.md").read_text(encoding="utf-8")
    table = re.search(r"^\| profile \|.*?\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None
    rows = [row.split("|")[1] for row in table[1].splitlines()[1:]]
    assert sorted(name for row in rows for name in re.findall(r"`([\w-]+)`", row)) == profile_names()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (document.parent / target.partition("#")[0]).exists(), target
