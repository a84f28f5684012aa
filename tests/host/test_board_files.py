"""What a bundle brings along for boards: a script that any shell runs, and the plugins' sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ValidationError

from ztdeploy.core.bundle import read_bundle, sha256_of
from ztdeploy.core.manifest import Manifest, VariantRecord
from ztdeploy.core.profile import BatchSizes, HardwareProfile, TensorRtOptions, data_folder
from ztdeploy.host.board_files import SCRIPT, trtexec_script, write_board_files

SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]
FAKE = """#!/bin/sh
if [ "$1" = --help ]; then echo "$HELP" >&2; exit 0; fi
{ pwd; printf '%s\\n' "$@"; echo; } >>"$LOG"
exit "${CODE:-0}"
"""
NEW, OLD = "--stronglyTyped  Create a strongly typed network", "--fp16  Enable fp16"


@pytest.fixture(scope="module")
def manifest(digits_bundle: Path) -> Manifest:
    """Variants keep-0.70, keep-0.50 and dense, for cpu and jetson-orin."""
    return read_bundle(digits_bundle).manifest


def board(name: str = "board", **changes: object) -> HardwareProfile:
    values = {"name": name, "title": "Mine", "backend": "tensorrt", "precision": "fp16"}
    return HardwareProfile.model_validate({**values, "batch": BatchSizes(sizes=(1, 4)), **changes})


def for_boards(manifest: Manifest, *boards: HardwareProfile, **graph: object) -> Manifest:
    """The same with other boards, whose graphs are jetson-orin's but for the changes."""
    variants = []
    for variant in manifest.variants:
        changed = variant.graphs["jetson-orin"].model_copy(update=graph)
        variants.append(variant.model_copy(update={"graphs": {one.name: changed for one in boards}}))
    return manifest.model_copy(update={"profiles": {one.name: one for one in boards}, "variants": tuple(variants)})


@dataclass(frozen=True)
class Call:
    folder: Path
    arguments: list[str]

    @property
    def options(self) -> dict[str, str]:
        return {name: value for name, _, value in (one.partition("=") for one in self.arguments)}


@dataclass(frozen=True)
class Shell:
    """Runs scripts where trtexec is a program that notes its arguments."""

    bin: Path
    log: Path

    def run(self, *command: str | Path, cwd: Path, check: bool = True, **extra: str) -> list[Call]:
        self.log.write_text("")
        shell = {"PATH": f"{self.bin}:/usr/bin:/bin", "LOG": str(self.log), "HELP": NEW, **extra}
        done = subprocess.run([str(one) for one in command], cwd=cwd, env=shell, capture_output=True, text=True)
        assert (done.returncode == 0) == check, done.stderr
        assert not check or (done.stdout, done.stderr) == ("", "")
        blocks = [block.splitlines() for block in self.log.read_text().split("\n\n") if block]
        return [Call(Path(folder), arguments) for folder, *arguments in blocks]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "trtexec").write_text(FAKE)
    (folder / "trtexec").chmod(0o755)
    return Shell(folder, tmp_path / "log")


@pytest.fixture
def written(manifest: Manifest, tmp_path: Path) -> Path:
    """A bundle's folder with what boards get; the graphs themselves are not needed."""
    folder = tmp_path / "my bundle"
    folder.mkdir()
    write_board_files(folder, manifest)
    return folder


# -------------------- the script


@pytest.mark.parametrize("name", SHELLS)
def test_every_shell_can_read_it(name: str, written: Path) -> None:
    shell = [name, "sh"] if name == "busybox" else [name]
    done = subprocess.run([*shell, "-n", str(written / SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_says_what_it_is_and_can_be_executed(written: Path) -> None:
    text = (written / SCRIPT).read_text(encoding="utf-8")
    assert text.startswith("#!/bin/sh\n")
    assert text.endswith("\n")
    assert text.isascii()
    assert "\r" not in text
    assert not re.search(r"\[\[|==|\blocal\b|\bfunction\b|\$\(\(|<<<", text), "not POSIX"
    assert os.access(written / SCRIPT, os.X_OK)


def test_every_variant_is_built(written: Path, shell: Shell, manifest: Manifest) -> None:
    calls = shell.run("./trtexec.sh", cwd=written)
    assert [call.options["--saveEngine"] for call in calls] == [
        "keep-0.70.jetson-orin.engine",
        "keep-0.50.jetson-orin.engine",
        "dense.jetson-orin.engine",
    ]
    size = manifest.preprocess.image_size
    for call, variant in zip(calls, manifest.variants, strict=True):
        graph = variant.graphs["jetson-orin"]
        assert call.arguments == [
            "--stronglyTyped",
            "--noTF32",
            f"--onnx={graph.file}",
            "--memPoolSize=workspace:4096M",
            f"--minShapes=image:1x{size}x{size}x3",
            f"--optShapes=image:8x{size}x{size}x3",
            f"--maxShapes=image:8x{size}x{size}x3",
            f"--saveEngine={variant.name}.jetson-orin.engine",
        ]
        assert call.folder == written


def test_the_flag_is_given_where_it_is_known(written: Path, shell: Shell) -> None:
    assert all("--stronglyTyped" in call.arguments for call in shell.run("./trtexec.sh", cwd=written, HELP=NEW))
    calls = shell.run("./trtexec.sh", cwd=written, HELP=OLD)
    assert len(calls) == 3
    assert all(call.arguments[0] == "--noTF32" for call in calls), "an empty argument is one too many"


def test_with_plugins_their_graphs_are_built_too(written: Path, shell: Shell, manifest: Manifest) -> None:
    assert len(shell.run("./trtexec.sh", cwd=written, PLUGINS="")) == 3
    calls = shell.run("./trtexec.sh", cwd=written, PLUGINS="/some where/lib'plugins.so")
    plain, own = ([one for one in calls if ("--dynamicPlugins" in one.options) is given] for given in (False, True))
    assert len(plain) == 3
    twins = {f"{v.name}.jetson-orin.plugins.engine": v.graphs["jetson-orin"].plugin_file for v in manifest.variants[:2]}
    assert {one.options["--saveEngine"]: one.options["--onnx"] for one in own} == twins
    assert "dense.jetson-orin.plugins.engine" not in str(calls), "it has nothing to score"
    for call in own:
        assert call.options["--dynamicPlugins"] == "/some where/lib'plugins.so"
        twin = next(one for one in plain if one.options["--saveEngine"].split(".j")[0] in call.options["--saveEngine"])
        different = ("--onnx", "--saveEngine", "--dynamicPlugins")
        same = [{k: v for k, v in one.options.items() if k not in different} for one in (call, twin)]
        assert same[0] == same[1]


@pytest.mark.parametrize("how", ["./trtexec.sh", "sh", "absolute", "link to the folder"])
def test_it_runs_from_anywhere(how: str, written: Path, shell: Shell, tmp_path: Path) -> None:
    cwd, command = tmp_path, [written.relative_to(tmp_path) / SCRIPT]
    if how == "./trtexec.sh":
        cwd, command = written, [Path(SCRIPT)]
    elif how == "absolute":
        cwd, command = Path("/"), [written / SCRIPT]
    elif how == "link to the folder":
        (tmp_path / "-link").symlink_to(written)
        cwd, command = Path("/"), [tmp_path / "-link" / SCRIPT]
    calls = shell.run("sh", *command, cwd=cwd)
    assert [call.folder.resolve() for call in calls] == 3 * [written]


def test_relative_paths_are_those_of_the_caller(written: Path, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "libplugins.so").touch()
    calls = shell.run("sh", written / SCRIPT, cwd=tmp_path, PLUGINS="libplugins.so", TRTEXEC="bin/trtexec")
    given = {call.options["--dynamicPlugins"] for call in calls if "--dynamicPlugins" in call.options}
    assert given == {str(tmp_path / "libplugins.so")}


def test_cdpath_leads_nowhere_else(written: Path, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / written.name).mkdir(parents=True)
    calls = shell.run("sh", Path(written.name) / SCRIPT, cwd=tmp_path, CDPATH=str(tmp_path / "elsewhere"))
    assert {call.folder for call in calls} == {written}


def test_another_trtexec_may_be_named(written: Path, shell: Shell, tmp_path: Path) -> None:
    other = tmp_path / "my tools"
    shutil.copytree(shell.bin, other)
    (shell.bin / "trtexec").write_text("#!/bin/sh\nexit 9\n")
    assert len(shell.run("./trtexec.sh", cwd=written, TRTEXEC=str(other / "trtexec"))) == 3


def test_the_first_failure_ends_it(written: Path, shell: Shell) -> None:
    assert len(shell.run("./trtexec.sh", cwd=written, check=False, CODE="1")) == 1


def test_without_trtexec_it_fails(written: Path, shell: Shell) -> None:
    (shell.bin / "trtexec").unlink()
    if not Path("/usr/src/tensorrt/bin/trtexec").exists():
        assert shell.run("./trtexec.sh", cwd=written, check=False) == []


def test_float_images_have_channels_in_front(manifest: Manifest, shell: Shell, tmp_path: Path) -> None:
    other = for_boards(manifest, board(), image_input="float32")
    write_board_files(tmp_path, other)
    size = manifest.preprocess.image_size
    for call in shell.run("./trtexec.sh", cwd=tmp_path):
        shapes = [call.options[f"--{kind}Shapes"] for kind in ("min", "opt", "max")]
        assert shapes == [f"image:{batch}x3x{size}x{size}" for batch in (1, 4, 4)]


def test_a_fixed_batch_needs_no_shapes(manifest: Manifest, shell: Shell, tmp_path: Path) -> None:
    write_board_files(tmp_path, for_boards(manifest, board(), batch=2))
    calls = shell.run("./trtexec.sh", cwd=tmp_path)
    assert len(calls) == 3
    assert not [name for call in calls for name in call.options if "Shapes" in name]


def test_each_board_gets_its_engines_and_its_workspace(manifest: Manifest, shell: Shell, tmp_path: Path) -> None:
    small = board("small", tensorrt=TensorRtOptions(workspace_mib=256))
    write_board_files(tmp_path, for_boards(manifest, small, board("plain", tensorrt=None)))
    calls = shell.run("./trtexec.sh", cwd=tmp_path, PLUGINS="/p.so")
    engines = [call.options["--saveEngine"] for call in calls]
    assert len(set(engines)) == len(engines) == 2 * (3 + 2)
    memory = {
        call.options["--saveEngine"].split(".")[-2 - ("plugins" in call.options["--saveEngine"])]: call.options[
            "--memPoolSize"
        ]
        for call in calls
    }
    assert memory == {"small": "workspace:256M", "plain": "workspace:1024M"}


def test_the_same_text_every_time(manifest: Manifest) -> None:
    boards = [manifest.profiles["jetson-orin"]]
    assert trtexec_script(manifest, boards) == trtexec_script(manifest, boards)


@pytest.mark.parametrize("name", ["a b", "a;b", "$(a)", "a'b", "../a", "-a", "a\nb", "ä", ""])
def test_names_that_a_shell_could_misread_are_impossible(name: str, manifest: Manifest) -> None:
    with pytest.raises(ValidationError, match="name"):
        board(name)
    with pytest.raises(ValidationError, match="name"):
        VariantRecord.model_validate({**manifest.variants[0].model_dump(), "name": name})


def test_file_names_are_quoted_all_the_same(manifest: Manifest, shell: Shell, tmp_path: Path) -> None:
    """A bundle's paths may hold nearly anything; our own never do."""
    write_board_files(tmp_path, for_boards(manifest, board(), file="graphs/a b;$(touch oops)'.onnx", plugin_file=None))
    calls = shell.run("./trtexec.sh", cwd=tmp_path)
    assert {call.options["--onnx"] for call in calls} == {"graphs/a b;$(touch oops)'.onnx"}
    assert not (tmp_path / "oops").exists()


# -------------------- the sources


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and "build" not in path.relative_to(folder).parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_plugins_sources_are_all_there(written: Path) -> None:
    copied = files(written / "plugins")
    assert copied == files(data_folder("plugins"))
    assert {"CMakeLists.txt", "README.md"} <= copied.keys()
    assert len(copied) > 15


def test_cmake_finds_all_that_it_names(written: Path) -> None:
    text = (written / "plugins" / "CMakeLists.txt").read_text()
    named = [name for name in re.findall(r"[\w./-]+\.(?:cu|cuh|cpp|h)\b", text) if "NvInfer" not in name]
    assert len(named) >= 3
    for name in named:
        assert (written / "plugins" / name).is_file(), name


def test_nothing_else_is_written(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == ["plugins", SCRIPT]


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_other_bundles_get_nothing(backend: str, manifest: Manifest, tmp_path: Path) -> None:
    write_board_files(tmp_path, for_boards(manifest, board(backend=backend)))
    assert list(tmp_path.iterdir()) == []


# -------------------- a whole bundle


def test_a_bundle_vouches_for_them(digits_bundle: Path, manifest: Manifest) -> None:
    sources = {f"plugins/{name}" for name in files(data_folder("plugins"))}
    for name in (SCRIPT, *sources):
        record = manifest.files[name]
        assert record.sha256 == sha256_of(digits_bundle / name)
        assert record.bytes == (digits_bundle / name).stat().st_size
    assert {name for name in manifest.files if name.startswith("plugins/")} == sources
    assert os.access(digits_bundle / SCRIPT, os.X_OK)
    assert (digits_bundle / SCRIPT).read_text() == trtexec_script(manifest, [manifest.profiles["jetson-orin"]])


def test_a_bundles_script_builds_from_files_that_are_there(digits_bundle: Path, shell: Shell) -> None:
    calls = shell.run(digits_bundle / SCRIPT, cwd=Path("/"), PLUGINS="/p.so")
    assert len(calls) == 5
    for call in calls:
        assert (digits_bundle / call.options["--onnx"]).is_file()
        assert call.folder == digits_bundle
