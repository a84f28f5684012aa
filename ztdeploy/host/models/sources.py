"""Where a model comes from, by what somebody typed: a name, a folder, a repository of the hub, files of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ztdeploy.core.errors import CheckpointError, ModelError
from ztdeploy.core.manifest import WeightsSource
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.text import printable
from ztdeploy.host.models import hub
from ztdeploy.host.models.catalogue import CATALOGUE
from ztdeploy.host.models.descriptions import CONFIG, PREPROCESSOR, Description, describe
from ztdeploy.host.models.folders import WEIGHTS, files_of, weights_in

LOCAL, HUB = "local-dir", "hf-hub"
_HUB_ALIAS = "hf_hub"  #: what timm called it

Kind = Literal["pretrained", "checkpoint", "shipped", "random"]


@dataclass(frozen=True)
class Source:
    """What to make a model of."""

    name: str  #: a short name, or timm's
    kind: Kind
    files: tuple[Path, ...] = ()  #: of weights, shards of one table where several; none: timm's own weights, or random
    origin: str = ""  #: what these files are called
    arguments: Mapping[str, Any] = field(default_factory=dict)  #: for timm, that the files' configuration asks for
    description: Description | None = None
    remarks: tuple[str, ...] = ()

    @property
    def is_timms(self) -> bool:
        """Whether the weights are those that timm's name stands for."""
        return self.kind == "pretrained" and not self.files

    @property
    def is_foreign(self) -> bool:
        """Whether the weights are files from outside of timm and of the package."""
        return bool(self.files) and self.kind != "shipped"

    @property
    def timm_name(self) -> str:
        entry = CATALOGUE.get(self.name)
        return entry.timm_name if entry else self.name

    @property
    def shipped(self) -> Path | None:
        entry = CATALOGUE.get(self.name)
        return entry.shipped if entry else None

    @property
    def published_name(self) -> str:
        """timm's name for the weights, where the files' configuration says which these are."""
        tag = self.description.tag if self.description is not None else None
        return f"{self.timm_name}.{tag}" if tag and "." not in self.timm_name else self.timm_name

    def class_names(self, model: Any) -> Sequence[str] | None:
        """What the files call the classes; timm's own repositories of ImageNet's 1000 do not say it.

        Args:
            model: that the files are of.
        """
        from ztdeploy.host.models.class_names import published_names

        if self.description is not None and self.description.class_names is not None:
            return self.description.class_names
        return published_names(model) if self.origin.startswith(f"{HUB}:timm/") else None


def source_of(asked: ModelSource) -> Source:
    """Resolve what was typed; the hub is asked where it is named, and nothing is read but configurations.

    Raises:
        ModelError: a place of no known kind, or one that says of which model its weights are and timm has none such.
        CheckpointError: a folder without weights, or with a damaged configuration.
        WeightsUnavailableError: neither the hub nor its cache has it.
    """
    name, checkpoint, weights = asked.name, asked.checkpoint, asked.weights
    kind, colon, place = name.partition(":")
    if colon:
        return _of_place(kind, place, checkpoint, weights)
    if "/" in name and Path(name).is_dir():
        raise ModelError(f"model '{printable(name)}', which is a folder", "a name", f"give --model {LOCAL}:{name}")
    if checkpoint is not None:
        return _of_checkpoint(name, checkpoint)
    entry = CATALOGUE.get(name)
    if weights == "pretrained" and entry is not None and entry.shipped is not None:
        return Source(name, "shipped", (entry.shipped / WEIGHTS[0],), WEIGHTS[0])
    return Source(name, weights)


def files_behind(asked: ModelSource) -> list[Path]:
    """All files that decide what model comes of what was typed; none for timm's own and those of the package.

    Raises:
        ZtdeployError: see `source_of`.
    """
    source = source_of(asked)
    if source.kind == "shipped":
        return []
    folders = dict.fromkeys(path.parent for path in source.files)
    beside = [folder / file for folder in folders for file in (CONFIG, PREPROCESSOR) if (folder / file).is_file()]
    return [*source.files, *beside]


def folder_word(name: str) -> str:
    """What a model is called in the name of a folder: its own name, or the last part of its place."""
    return Path(name.partition(":")[2].partition("@")[0] or name).name or "model"


def _of_place(kind: str, place: str, checkpoint: Path | None, weights: WeightsSource) -> Source:
    wanted = weights == "pretrained" and checkpoint is None
    if kind not in (LOCAL, HUB, _HUB_ALIAS) or not place:
        raise ModelError(
            f"model '{printable(kind)}:{printable(place)}'",
            f"a name, {LOCAL}:DIR or {HUB}:OWNER/NAME",
            "correct --model",
        )
    if kind == LOCAL:
        folder, origin = Path(place), ""
        if not folder.is_dir():
            raise ModelError(f"'{folder}' is not a folder", f"a folder with weights and {CONFIG}", "check the path")
    else:
        folder, origin = hub.fetched(place, (CONFIG, PREPROCESSOR), WEIGHTS if wanted else ()), f"{HUB}:{place}"
    description = describe(folder)
    if description is None or description.architecture is None:
        raise ModelError(
            f"'{place}' without a {CONFIG} that names one of timm's models",
            f"{CONFIG} as timm writes it, or transformers for ViT, DeiT, DINOv2, CLIP and SigLIP",
            "give --model NAME --checkpoint DIR",
        )
    arguments = {**description.geometry, **description.arguments}
    if checkpoint is not None:
        files = files_of(checkpoint)
        return Source(description.architecture, "checkpoint", files, checkpoint.name, arguments, description)
    if not wanted:
        return Source(description.architecture, "random", arguments=arguments, description=description)
    files = weights_in(folder)
    return Source(
        description.architecture,
        "checkpoint" if kind == LOCAL else "pretrained",
        files,
        origin or files[0].name,
        arguments,
        description,
    )


def _of_checkpoint(name: str, checkpoint: Path) -> Source:
    """A file or a folder of weights, for a model of that name."""
    whole, files, origin = checkpoint.is_dir(), files_of(checkpoint), checkpoint.name
    folder = checkpoint if whole else checkpoint.parent
    if whole:
        origin = files[0].name if len(files) == 1 else checkpoint.resolve().name
    plain = Source(name, "checkpoint", files, origin)
    entry = CATALOGUE.get(name)
    if entry is not None and (entry.shipped is not None or entry.family == "lvvit"):  # of which timm has none
        return plain
    try:
        description = describe(folder)
    except CheckpointError:
        if whole:
            raise
        return plain  # a file of that name that is no configuration of these weights
    if description is None:
        return plain
    architecture = plain.timm_name.partition(".")[0]
    if description.library == "transformers":
        return replace(plain, arguments=description.arguments, description=description)
    if description.architecture == architecture:
        return replace(plain, arguments=description.geometry, description=description)
    if whole:
        raise ModelError(
            f"model '{name}', and weights of '{description.architecture}' by their {CONFIG}",
            "one model",
            f"give --model {LOCAL}:{folder}",
        )
    return replace(plain, remarks=(f"the {CONFIG} beside it is of another model: not used",))
