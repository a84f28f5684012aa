"""Which files of a folder hold a model's weights, as timm and `transformers` lay them out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ztdeploy.core.data import read_json
from ztdeploy.core.errors import CheckpointError

if TYPE_CHECKING:
    from ztdeploy.host.models.checkpoint import Tables

#: Usual names of files of weights; the first one that exists is taken.
WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("pytorch_model.pth", "model.pth", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
INDEX = ".index.json"
_SUFFIXES = (".safetensors", ".pth", ".ckpt", ".pt", ".bin", ".pth.tar")
_MOST_INDEX = 16 * 2**20
_LISTED = 5


def weights_in(folder: Path) -> tuple[Path, ...]:
    """The file of weights in a folder, or the shards of its index.

    Raises:
        CheckpointError: there is none, or several of which none is called as usual.
    """
    if not folder.is_dir():
        raise CheckpointError(f"'{folder}' is not a folder", "a folder with weights", "check the path")
    usual = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if usual is not None:
        return files_of(usual)
    found = [path for suffix in _SUFFIXES for path in sorted(folder.glob(f"*{suffix}"))]
    if len(found) != 1:
        names = ", ".join(f"'{path.name}'" for path in found[:_LISTED]) or "no such file"
        raise CheckpointError(
            f"folder '{folder}' with {names}", f"one file of weights, such as '{WEIGHTS[0]}'", "give --checkpoint FILE"
        )
    return tuple(found)


def files_of(path: Path) -> tuple[Path, ...]:
    """The weights of a folder, the shards that an index names, or the file itself.

    Raises:
        CheckpointError: see `weights_in` and `shards_of`.
    """
    if path.is_dir():
        return weights_in(path)
    return shards_of(path) if path.name.endswith(INDEX) else (path,)


def shards_of(index: Path) -> tuple[Path, ...]:
    """The files that `*.index.json` names, beside it.

    Raises:
        CheckpointError: it is no such index, or names what does not lie beside it.
    """
    expected = "an index of shards, with a 'weight_map'"
    data = read_json(index, _MOST_INDEX, what="index", error=CheckpointError, expected=expected)
    shards = data.get("weight_map") if isinstance(data, dict) else None
    names = sorted({name for name in shards.values() if isinstance(name, str)}) if isinstance(shards, dict) else []
    if not names or not all(map(_is_plain, names)):
        raise CheckpointError(f"index '{index}' names no files beside it", expected, "download the folder again")
    return tuple(index.with_name(name) for name in names)


def _is_plain(name: str) -> bool:
    return name == Path(name).name and "\0" not in name and name not in ("", ".", "..")


def read_all(files: tuple[Path, ...]) -> Tables:
    """The tables of one file, or the one table that shards make together.

    Raises:
        CheckpointError: see `checkpoint.read_tables`.
    """
    from ztdeploy.host.models.checkpoint import read_tables

    if len(files) == 1:
        return read_tables(files[0])
    return {"": {name: tensor for file in files for name, tensor in read_tables(file).get("", {}).items()}}
