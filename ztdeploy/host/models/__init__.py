"""Model sources and families. `loading.load_model` shows the whole job on one screen.

- where a model comes from: `catalogue` (short names), `sources` (names, folders, the hub), `descriptions` (what the
  configuration files beside weights say);
- files of weights: `checkpoint`, over `stored_tensors` (safetensors), `torch_file` and `inert_pickle` (torch.save);
- matching the tensors of a file to a model: `layouts`, `dialects`, `shapes`;
- models of transformers: `hf_folder` and `hf_processor` (its files), `hf_making`, `hf_model` (one module around each);
- other facts about a model: `facts` (pre-processing, classes, activation), `text_head`;
- families: `adapter`, and one file for each family in the table below.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from ztdeploy.core.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from ztdeploy.host.models.adapter import ModelAdapter

#: Model families. To add one, write a file here with a subclass of `ModelAdapter`, and add a line
#: `"family": "module:Class"`. The first family whose `model_class` a model is an instance of adapts it.
FAMILIES: dict[str, str] = {
    "vit": "ztdeploy.host.models.vit:VitAdapter",
    "eva": "ztdeploy.host.models.eva:EvaAdapter",
    "beit": "ztdeploy.host.models.beit:BeitAdapter",
    "lvvit": "ztdeploy.host.models.lvvit:LvVitAdapter",
    "transformers": "ztdeploy.host.models.hf_adapter:HubAdapter",
}

_WINDOWS = "its attention stays within windows of the image, which need every patch in its place"
_STAGES = "it shrinks the grid of patches between its stages, which needs every patch in its place"
_CONVOLUTION = "convolutions among its blocks need every patch in its place"
_NETWORK = "it is no plain vision transformer: what lies between its blocks needs the whole grid of patches"
#: Why models cannot be pruned soundly, by the module of timm that defines them.
REFUSED: dict[str, str] = {
    "cait": "talking heads mix attention before and behind its softmax, and patches are frozen at the end",
    "convit": "its gated attention is a sum with a fixed one between places of the whole grid",
    "crossvit": "two branches with patches of two sizes exchange class tokens",
    "focalnet": "it has no attention between patches, but modulation by convolutions",
    "naflexvit": "its number of patches depends on the image; a graph needs one that is fixed",
    "tnt": "each patch is a transformer of its own pixels beside the outer one",
    "vision_transformer_hybrid": "a convolutional network stands in for its patch embedding, whose cost is unknown",
    "vision_transformer_relpos": "its relative position bias is a module of its own that no adapter gathers per image",
    "volo": "its outlook attention mixes neighbouring patches, and it shrinks the grid",
    "xcit": "its attention is between channels: no patch attends to another",
    **dict.fromkeys(("coat", "mobilevit", "nextvit", "vitamin"), _CONVOLUTION),
    **dict.fromkeys(("davit", "gcvit", "hieradet_sam2", "maxxvit", "nest", "swin_transformer"), _WINDOWS),
    **dict.fromkeys(("swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit", "twins"), _WINDOWS),
    **dict.fromkeys(("vision_transformer_sam",), _WINDOWS),
    **dict.fromkeys(("deepseek_vit", "efficientformer", "efficientformer_v2", "hiera", "levit", "mvitv2"), _STAGES),
    **dict.fromkeys(("pit", "pvt_v2", "visformer"), _STAGES),
}


def families() -> list[type[ModelAdapter]]:
    """The adapters of all families, imported."""
    return [resolve_name(reference) for reference in FAMILIES.values()]


def adapt(model: nn.Module, image_size: int | tuple[int, int]) -> ModelAdapter:
    """The adapter of a model's family.

    Raises:
        ModelError: no family accepts it, with the reason.
    """
    for family in families():
        if isinstance(model, family.model_class):
            return family(model, image_size)
    raise refused(f"a model of class {type(model).__name__}", type(model).__module__)


def refused(what: str, module: str) -> ModelError:
    """The error for a model that belongs to no family.

    Args:
        module: the module that defines the model, such as `timm.models.swin_transformer`.
    """
    return ModelError(
        f"{what} cannot be pruned: {REFUSED.get(module.rpartition('.')[2], _NETWORK)}",
        f"one of the families {', '.join(FAMILIES)}",
        "run 'ztdeploy models'",
    )
