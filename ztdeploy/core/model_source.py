"""Which model is meant, and how it shall differ from its published form: what every request that loads one says."""

from __future__ import annotations

from pathlib import Path

from ztdeploy.core.manifest import WeightsSource
from ztdeploy.core.preprocess_spec import Activation, ImageSize, Output, PreprocessOptions
from ztdeploy.core.records import Record


class ModelSource(Record):
    """What `host.models.loading.load_model` makes a model of. None stands for what the model was published with."""

    name: str  #: a short name of the catalogue, any name that timm knows, `hf:DIR`, or `hf:OWNER/NAME`
    weights: WeightsSource = "pretrained"  #: those of the hub, its cache or the package; "random" is for latency only
    checkpoint: Path | None = None  #: a file, an index of shards, or a folder that takes the place of `weights`
    image_size: ImageSize | None = None  #: of the input; None: also the square that a checkpoint's positions fit
    preprocess: PreprocessOptions = PreprocessOptions()
    #: A file with a name for each class, "imagenet" for those of ImageNet-1k, or the names themselves.
    class_names: Path | tuple[str, ...] | None = None
    output: Output = "logits"
    text_head: Path | None = None  #: a file of text embeddings that the logits shall come from, see `models.text_head`
    activation: Activation | None = None  #: what the logits mean; None: what the head suggests


def folder_word(name: str) -> str:
    """A model's name as part of a folder's name: its own name, or the last part of its place."""
    return Path(name.partition(":")[2].partition("@")[0] or name).name or "model"
