"""Resolve what a user typed to the source of a model: a name, a folder, a repository of the hub, files of weights.

Folders have the layout of timm or `transformers`. Only configurations are read here.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from ztdeploy.core.data import read_json
from ztdeploy.core.errors import CheckpointError, InputError, ModelError, WeightsUnavailableError
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.text import printable
from ztdeploy.host.models.catalogue import CATALOGUE, CatalogueEntry
from ztdeploy.host.models.descriptions import CONFIGURATIONS, Description, describe, describe_hub
from ztdeploy.host.models.hf_folder import CONFIG, KINDS, HubConfig
from ztdeploy.host.models.hf_processor import INEXACT, SQUASHED

if TYPE_CHECKING:
    from torch import nn

    from ztdeploy.host.models.checkpoint import Tables

IMAGENET = Path("imagenet")  #: stands for the names of ImageNet-1k instead of a file
LOCAL, HUB, HF = "local-dir", "hf-hub", "hf"  #: a folder, a repository of the hub, either of the two
_HUB_ALIAS = "hf_hub"  #: timm's former name
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
_NOTHING_SAID = Description("timm", None)
#: Usual names of files of weights; the first one that exists is taken.
_WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("pytorch_model.pth", "model.pth", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
_INDEX = ".index.json"
_SUFFIXES = (".safetensors", ".pth", ".ckpt", ".pt", ".bin", ".pth.tar")
_MOST_INDEX = 16 * 2**20
_LISTED = 5


@dataclass(frozen=True)
class Source:
    """The source of a model."""

    name: str  #: a short name, or timm's
    kind: Literal["pretrained", "checkpoint", "shipped", "random"]
    files: tuple[Path, ...] = ()  #: files of weights (several: shards); empty for timm's own or random weights
    origin: str = ""  #: the name of these files
    arguments: Mapping[str, Any] = field(default_factory=dict)  #: arguments for timm from the files' configuration
    description: Description = _NOTHING_SAID
    remarks: tuple[str, ...] = ()
    model: nn.Module | None = None  #: a user's own, with its weights
    whole: nn.Module | None = None  #: a user's module that takes the images, with that model in it; None: the model
    hub: HubConfig | None = None  #: of a model of transformers; None: timm's, or one of ours

    @property
    def is_timms(self) -> bool:
        """Whether these are timm's own weights."""
        return self.kind == "pretrained" and not self.files

    @property
    def is_foreign(self) -> bool:
        """Whether the weights are files that come neither from timm nor from the package."""
        return bool(self.files) and self.kind != "shipped"

    @property
    def entry(self) -> CatalogueEntry | None:
        return CATALOGUE.get(self.name)

    @property
    def timm_name(self) -> str:
        return self.entry.timm_name if self.entry else self.name

    @property
    def shipped(self) -> Path | None:
        return self.entry.shipped if self.entry else None

    @property
    def published_name(self) -> str:
        """timm's name of the weights, where the configuration has it."""
        tag = self.description.tag
        return f"{self.timm_name}.{tag}" if tag and "." not in self.timm_name else self.timm_name


def source_of(asked: ModelSource) -> Source:
    """Resolve what was typed; only names with `hf-hub:` ask the hub.

    Raises:
        ModelError: an unknown kind of place, or weights of a model that timm does not have.
        CheckpointError: a folder without weights, or with a damaged configuration.
        WeightsUnavailableError: the repository is neither on the hub nor in its cache.
    """
    name, checkpoint = asked.name, asked.checkpoint
    if ":" in name:
        return _of_place(asked)
    if "/" in name and Path(name).is_dir():
        raise ModelError(f"model '{printable(name)}', which is a folder", "a name", f"give --model {LOCAL}:{name}")
    if checkpoint is not None:
        return _of_checkpoint(name, checkpoint)
    shipped = Source(name, "shipped").shipped
    if asked.weights == "pretrained" and shipped is not None:
        return Source(name, "shipped", (shipped / _WEIGHTS[0],), _WEIGHTS[0])
    return Source(name, asked.weights)


def check_source(asked: ModelSource) -> None:
    """What can be told of a source before PyTorch is imported, and without asking the hub.

    Raises:
        InputError: a file that does not exist; or what `source_of` raises.
    """
    named = {"--checkpoint": asked.checkpoint, "--class-names": asked.class_names, "--text-head": asked.text_head}
    for option, path in named.items():
        if isinstance(path, Path) and path != IMAGENET and not os.path.exists(path):  # noqa: PTH110 - as check_exists
            raise InputError(f"{option} '{path}' does not exist", "a file", "check the path")
    kind, _, place = asked.name.partition(":")
    if kind not in (HUB, _HUB_ALIAS) and not (kind == HF and _REPOSITORY.fullmatch(place) and not Path(place).is_dir()):
        source_of(asked)


def files_behind(asked: ModelSource) -> list[Path]:
    """All files that decide which model is made; none for models of timm and of the package.

    Raises:
        ZtdeployError: see `source_of`.
    """
    source = source_of(asked)
    if source.kind == "shipped":
        return []
    folders = dict.fromkeys(path.parent for path in source.files)
    beside = [folder / file for folder in folders for file in CONFIGURATIONS if (folder / file).is_file()]
    return [*source.files, *beside]


def _of_place(asked: ModelSource) -> Source:
    kind, _, place = asked.name.partition(":")
    wanted = asked.weights == "pretrained" and asked.checkpoint is None
    if kind not in (LOCAL, HUB, _HUB_ALIAS, HF) or not place:
        raise ModelError(
            f"model '{printable(kind)}:{printable(place)}'",
            f"a name, {HF}:DIR_OR_NAME, {LOCAL}:DIR or {HUB}:OWNER/NAME",
            "correct --model",
        )
    folder, local = Path(place), kind == LOCAL or (kind == HF and Path(place).is_dir())
    if not local and kind == HF and not _REPOSITORY.fullmatch(place):
        raise ModelError(f"'{printable(place)}' is not a folder, and no name of the hub", "either", "check the path")
    if not local:
        folder = fetched(place, CONFIGURATIONS, _WEIGHTS if wanted else ())
    elif not folder.is_dir():
        raise ModelError(f"'{folder}' is not a folder", f"a folder with weights and {CONFIG}", "check the path")
    source = _described(folder, place)
    if asked.checkpoint is not None:
        files = files_of(asked.checkpoint)
        return replace(source, kind="checkpoint", files=files, origin=asked.checkpoint.name)
    if not wanted:
        return source
    files = weights_in(folder)
    origin = files[0].name if local else f"{HUB}:{place}"
    return replace(source, kind="checkpoint" if local else "pretrained", files=files, origin=origin)


def _described(folder: Path, place: str) -> Source:
    """What the configuration in a folder says, with random weights."""
    hub = describe_hub(folder, place)
    if hub is not None:
        config, said = hub
        remarks: tuple[str, ...] = (INEXACT,) if KINDS[config.kind].processor == "DINOv3ViT" else ()
        remarks += (SQUASHED,) if said.preprocess.get("squashed") else ()
        return Source(config.made, "random", description=said, hub=config, remarks=remarks)
    said_by_timm = describe(folder)
    if said_by_timm is None or said_by_timm.architecture is None:
        raise ModelError(
            f"'{place}' without a {CONFIG} that names a model",
            f"{CONFIG} as timm or transformers write it",
            "give --model NAME --checkpoint DIR",
        )
    arguments = {**said_by_timm.geometry, **said_by_timm.arguments}
    return Source(said_by_timm.architecture, "random", arguments=arguments, description=said_by_timm)


def _of_checkpoint(name: str, checkpoint: Path) -> Source:
    """The source for a file or a folder of weights."""
    whole, files, origin = checkpoint.is_dir(), files_of(checkpoint), checkpoint.name
    folder = checkpoint if whole else checkpoint.parent
    if whole:
        origin = files[0].name if len(files) == 1 else checkpoint.resolve().name
    plain = Source(name, "checkpoint", files, origin)
    if plain.entry is not None and not plain.entry.in_timm:
        return plain
    try:
        said = describe(folder)
    except CheckpointError:
        if whole:
            raise
        return plain  # another file of that name
    if said is None:
        return plain
    if said.library == "transformers":
        return replace(plain, arguments=said.arguments, description=said)
    if said.architecture == plain.timm_name.partition(".")[0]:
        return replace(plain, arguments=said.geometry, description=said)
    if whole:
        raise ModelError(
            f"model '{name}', and weights of '{said.architecture}' by their {CONFIG}",
            "one model",
            f"give --model {LOCAL}:{folder}",
        )
    return replace(plain, remarks=(f"the {CONFIG} beside it is of another model: not used",))


# -------------------- files


def weights_in(folder: Path) -> tuple[Path, ...]:
    """The file of weights in a folder, or the shards of its index.

    Raises:
        CheckpointError: there is none, or several without a usual name.
    """
    usual = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if usual is not None:
        return files_of(usual)
    found = [path for suffix in _SUFFIXES for path in sorted(folder.glob(f"*{suffix}"))]
    if len(found) != 1:
        names = ", ".join(f"'{path.name}'" for path in found[:_LISTED]) or "no such file"
        raise CheckpointError(
            f"folder '{folder}' with {names}", f"one file of weights, such as '{_WEIGHTS[0]}'", "give --checkpoint FILE"
        )
    return tuple(found)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of weights: a folder's, the shards of an index, or the file itself.

    Raises:
        CheckpointError: see `weights_in` and `shards_of`.
    """
    if path.is_dir():
        return weights_in(path)
    return shards_of(path) if path.name.endswith(_INDEX) else (path,)


def shards_of(index: Path) -> tuple[Path, ...]:
    """The shards that a file `*.index.json` names beside it.

    Raises:
        CheckpointError: it is no such index, or a shard does not lie beside it.
    """
    expected = "an index of shards, with a 'weight_map'"
    data = read_json(index, _MOST_INDEX, what="index", error=CheckpointError, expected=expected)
    shards = data.get("weight_map") if isinstance(data, dict) else None
    names = sorted({name for name in shards.values() if isinstance(name, str)}) if isinstance(shards, dict) else []
    plain = (name == Path(name).name and "\0" not in name and name not in ("", ".", "..") for name in names)
    if not names or not all(plain):
        raise CheckpointError(f"index '{index}' names no files beside it", expected, "download the folder again")
    return tuple(index.with_name(name) for name in names)


def read_all(files: tuple[Path, ...]) -> Tables:
    """The tables of one file, or the joint table of several shards.

    Raises:
        CheckpointError: see `checkpoint.read_tables`.
    """
    from ztdeploy.host.models.checkpoint import read_tables

    if len(files) == 1:
        return read_tables(files[0])
    return {"": {name: tensor for file in files for name, tensor in read_tables(file).get("", {}).items()}}


# -------------------- the hub


def reachable(timeout_s: float = 3.0) -> bool:
    """Whether the hub answers; its own client would retry for most of a minute."""
    from huggingface_hub.constants import ENDPOINT

    parts = urlsplit(os.environ.get("HTTPS_PROXY") or ENDPOINT)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def fetched(repository: str, configurations: tuple[str, ...], weights: tuple[str, ...] = ()) -> Path:
    """Fetch files of a repository into the hub's cache, and return their folder.

    Args:
        repository: `OWNER/NAME`, or `OWNER/NAME@REVISION`.
        configurations: names of files that are fetched if they exist.
        weights: names of files; the first that exists is fetched, and with an index its shards.

    Raises:
        ModelError: the name is not valid for a repository.
        WeightsUnavailableError: the hub cannot be reached and nothing is cached, or the files do not exist.
    """
    import huggingface_hub.constants
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    name, _, revision = repository.partition("@")
    offline = huggingface_hub.constants.HF_HUB_OFFLINE or not reachable()
    absent = WeightsUnavailableError(
        f"'{repository}' is neither cached nor to be had from the model hub",
        "a cached or downloadable repository of weights",
        f"download it where there is a network, and give --model {LOCAL}:DIR",
    )

    def get(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(name, file, revision=revision or None, local_files_only=offline))
        except EntryNotFoundError:  # or, without the hub, not cached
            return None
        except HFValidationError as error:
            raise ModelError(
                f"'{repository}'", "a repository such as 'timm/vit_tiny_patch16_224.augreg_in21k'", "correct it"
            ) from error
        except (OSError, ValueError) as error:
            raise absent from error

    found = [path for file in configurations if (path := get(file)) is not None]
    chosen = next((path for file in weights if (path := get(file)) is not None), None)
    if not found or (weights and chosen is None):
        raise absent
    if chosen is not None and chosen.suffix == ".json" and not all(get(shard.name) for shard in shards_of(chosen)):
        raise absent
    return found[0].parent
