"""Files for people who build engines by hand on a board: a trtexec script, and the plugins' sources.

ztdeploy never runs them: `finalize` compiles the plugins of the installed package.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ztdeploy.core.files import write
from ztdeploy.core.manifest import GraphRecord, Manifest
from ztdeploy.core.names import IMAGE
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.core.profile import HardwareProfile, data_folder
from ztdeploy.target.backends import backend_of

SCRIPT = "trtexec.sh"
_SOURCES = ("*.cu", "*.cuh", "*.h", "*.cpp", "CMakeLists.txt", "README.md")


def write_board_files(folder: Path, manifest: Manifest) -> list[str]:
    """Add a script and the plugins' sources to a bundle that has profiles of standard TensorRT.

    Returns:
        The files that were written, relative to the folder.
    """
    boards = [profile for profile in manifest.profiles.values() if backend_of(profile).trtexec]
    if not boards:
        return []
    write(folder / SCRIPT, trtexec_script(manifest, boards), executable=True)
    source, names = data_folder("plugins"), [SCRIPT]
    for path in (path for pattern in _SOURCES for path in source.rglob(pattern)):
        names.append(f"plugins/{path.relative_to(source).as_posix()}")
        write(folder / names[-1], path.read_bytes())
    return names


def trtexec_script(manifest: Manifest, boards: list[HardwareProfile]) -> str:
    """A POSIX shell script that builds and times every engine without Python."""
    commands = [
        command
        for profile in boards
        for variant in manifest.variants
        for command in _commands(variant.name, variant.graphs[profile.name], profile, manifest.preprocess)
    ]
    return shell_script(_INTRODUCTION, commands)


def shell_script(introduction: str, commands: Sequence[str]) -> str:
    """A POSIX shell script that finds trtexec, and runs commands such as `trtexec_command` in its own folder."""
    return "\n".join((f"#!/bin/sh\n{introduction}{_FINDING}" + "\n".join(commands), ""))


def trtexec_command(arguments: Sequence[str]) -> str:
    """A call of trtexec, which takes a graph's types as they are."""
    return f'"$TRTEXEC" $TYPED --noTF32 {" ".join(map(shlex.quote, arguments))}'


def shapes_of(name: str, sides: Sequence[int], largest: int) -> list[str]:
    """The options for batches from 1 to the largest of an input."""
    shape = "x".join(map(str, sides))
    return [f"--{kind}Shapes={name}:{n}x{shape}" for kind, n in (("min", 1), ("opt", largest), ("max", largest))]


def _commands(variant: str, graph: GraphRecord, profile: HardwareProfile, spec: PreprocessSpec) -> list[str]:
    workspace = profile.tensorrt.workspace_mib if profile.tensorrt else 1024
    plain = [f"--onnx={graph.file}", f"--memPoolSize=workspace:{workspace}M", *_shapes(graph, profile, spec)]
    commands = [trtexec_command([*plain, f"--saveEngine={variant}.{profile.name}.engine"])]
    if graph.plugin_file is not None:
        own = [f"--onnx={graph.plugin_file}", *plain[1:], f"--saveEngine={variant}.{profile.name}.plugins.engine"]
        commands.append(f'if [ -n "$PLUGINS" ]; then {trtexec_command(own)} --dynamicPlugins="$PLUGINS"; fi')
    return commands


def _shapes(graph: GraphRecord, profile: HardwareProfile, spec: PreprocessSpec) -> list[str]:
    if graph.batch is not None:
        return []
    height, width, channels = spec.shape
    sides = (height, width, channels) if graph.image_input == "uint8" else (channels, height, width)
    return shapes_of(IMAGE, sides, profile.batch.sizes[-1])


_INTRODUCTION = """\
# Builds and times this bundle's engines with trtexec, for boards without Python. With ztdeploy on the board, use
# `ztdeploy finalize .` instead: it also proves each engine against the golden outputs, and keeps the faster kind.
#
#   TRTEXEC   where trtexec is, if not on the PATH nor where JetPack puts it
#   PLUGINS   the compiled plugin library (plugins/README.md says how), to build the engines with plugin nodes, too
"""
_FINDING = """\
set -eu
absolute() { case "$1" in /* | "") echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
if [ -z "${TRTEXEC:-}" ]; then
    TRTEXEC=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)
fi
case "$TRTEXEC" in */*) TRTEXEC=$(absolute "$TRTEXEC") ;; esac
PLUGINS=$(absolute "${PLUGINS:-}")
CDPATH='' cd -- "$(dirname -- "$0")"
# Types are in the graphs. TensorRT 10 has to be told so; later ones know nothing else, and may not know the flag.
if "$TRTEXEC" --help 2>&1 | grep -q stronglyTyped; then TYPED=--stronglyTyped; else TYPED=; fi

"""
