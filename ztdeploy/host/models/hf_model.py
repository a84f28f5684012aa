"""Vision towers of the library `transformers`, and one module around each that takes images and gives one tensor.

The library is imported on use, since that takes seconds. Its attention is reached through its own `AttentionInterface`:
a function of ours is registered there under a name, and models are told that name. Nothing of a model's code is copied.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ztdeploy.core.errors import MissingExtraError
from ztdeploy.core.names import BLOCKS
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.host.models.adapter import check_divides
from ztdeploy.host.models.hf_folder import DEPTH, SEGMENTATION

#: The name under which `attend` is registered in the library.
ATTENTION = "ztdeploy"
#: Modules of classifiers; their input is the embedding.
_HEADS = ("classifier", "cls_classifier", "distillation_classifier")
#: Outputs of the library's models, the one that a model answers with first.
_ANSWERS = ("logits", "predicted_depth", "image_embeds", "pooler_output")


@dataclass(frozen=True)
class Parts:
    """Where the parts of a class of towers are, as paths from the tower or from a block."""

    blocks: str = "layers"
    norm: str = "layernorm"  #: the final norm
    attention: str = "attention"
    attention_norm: str = "layernorm_before"
    branch_end: str = "dropout"  #: what is called last in the attention branch, before the residual is added
    projections: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")  #: of the attention
    mlp: str = "mlp"  #: what gives all that the MLP's branch adds
    projection: str = "embeddings.patch_embeddings.projection"
    rotary: str = ""  #: the argument of a block for tables of rotary angles, with a row per patch
    bias: str = ""  #: the module of a block that makes a bias for the relative position of two patches


_DINO = Parts("encoder.layer", attention_norm="norm1", branch_end="drop_path")
_CLIP = Parts(
    blocks="encoder.layers",
    norm="post_layernorm",
    attention="self_attn",
    attention_norm="layer_norm1",
    branch_end="self_attn",
    projection="embeddings.patch_embedding",
)
#: Classes of towers. To add one, add a line here and in `hf_folder.KINDS`.
TOWERS: Mapping[str, Parts] = {
    **dict.fromkeys(("ViTModel", "DeiTModel", "ViTMSNModel", "ViTMAEModel"), Parts()),
    **dict.fromkeys(("Dinov2Model", "Dinov2WithRegistersModel"), _DINO),
    **dict.fromkeys(("Dinov2Backbone", "Dinov2WithRegistersBackbone"), _DINO),
    "DPTModel": Parts(
        blocks="encoder.layer",
        attention="attention.attention",
        branch_end="attention.output.dropout",
        projections=("query", "key", "value"),
        mlp="output.dropout",
    ),
    "DINOv3ViTModel": replace(
        _DINO, blocks="model.layer", norm="norm", projection="embeddings.patch_embeddings", rotary="position_embeddings"
    ),
    **dict.fromkeys(("CLIPVisionModel", "SiglipVisionModel"), _CLIP),
    "BeitModel": Parts(branch_end="drop_path", bias="relative_position_bias"),
}


def is_tower(part: nn.Module) -> bool:
    return type(part).__name__ in TOWERS and type(part).__module__.startswith("transformers.")


def library() -> Any:
    """The library, with `attend` registered.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        found: Any = import_module("transformers")
        found.AttentionInterface.register(ATTENTION, attend)
    except ImportError as error:
        raise MissingExtraError("transformers", "transformers", "a model of transformers (hf:)") from error
    return found


class Reach:
    """What is taken from an attention module, and added to it, while it runs; held by the module as `reach`."""

    def __init__(self) -> None:
        self.attention: list[Callable[[Tensor], None]] = []
        self.biases: list[Callable[[], Tensor | None]] = []


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as the library asks for it; the matrix is computed only where somebody takes it.

    Args:
        query, key, value: `[B, H, N, d]`.
        attention_mask: added to the logits, `[B or 1, H or 1, N or 1, N]`.

    Returns:
        `[B, N, H, d]`, and the attention matrix `[B, H, N, N]` where it was computed.
    """
    reach: Reach | None = getattr(module, "reach", None)
    for bias in reach.biases if reach is not None else ():
        if (added := bias()) is not None:
            attention_mask = added if attention_mask is None else attention_mask + added
    if reach is None or not reach.attention:
        joined = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
        )
        return joined.transpose(1, 2), None
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = (query * factor) @ key.transpose(-2, -1)
    matrix = (logits if attention_mask is None else logits + attention_mask).softmax(-1)
    for take in reach.attention:
        take(matrix)
    return (functional.dropout(matrix, dropout) @ value).transpose(1, 2), matrix


class PatchGrid(NamedTuple):
    """The patches of a tower, as other parts of this package ask timm's models for them."""

    proj: nn.Conv2d
    patch_size: tuple[int, int]
    grid_size: tuple[int, int]

    @property
    def num_patches(self) -> int:
        return self.grid_size[0] * self.grid_size[1]


class HubModel(nn.Module):
    """A model of the library for images of one size, with the attributes that are asked of timm's models."""

    def __init__(self, whole: Any, image_size: ImageSize | None) -> None:
        """
        Args:
            whole: a model of a class in `hf_folder.KINDS`; changed in place.
            image_size: None: that of its configuration.

        Raises:
            ModelError: patches do not cover the image.
        """
        super().__init__()
        tower: Any = next(part for part in whole.modules() if is_tower(part))
        self.parts = TOWERS[type(tower).__name__]
        self.whole, self.head = whole, nn.Identity()
        self._tower = [tower]  # in a list: no second name for the same module
        self.image_size = image_size = image_size or self.published_size
        projection = tower.get_submodule(self.parts.projection)
        height, width = projection.kernel_size
        if image_size != self.published_size:
            check_divides(image_size, (height, width))
        grid = (image_size.height // height, image_size.width // width)
        self.patch_embed = PatchGrid(projection, (height, width), grid)
        self.embed_dim, self.num_heads = self.config.hidden_size, self.config.num_attention_heads
        self.num_classes = getattr(whole, self._heads[0]).out_features if self._heads else 0
        library()  # which knows the name of `attend` from then on
        tower.set_attn_implementation(ATTENTION)
        for block in self.blocks:
            vars(block.get_submodule(self.parts.attention))["reach"] = Reach()
        if hasattr(tower.embeddings, "random_masking"):  # of MAE's pre-training; it would shuffle the patches
            vars(tower.embeddings)["random_masking"] = _unmasked
        if isinstance(pooling := getattr(getattr(tower, "head", None), "attention", None), nn.MultiheadAttention):
            vars(pooling)["forward"] = MethodType(_pooled, pooling)
        self._options: dict[str, bool] = {}
        with torch.no_grad():
            self._resample()
            self._fix_tables()

    @property
    def tower(self) -> Any:
        """The library's model of the blocks and all around them; its `last_hidden_state` is all tokens."""
        return self._tower[0]

    @property
    def blocks(self) -> list[Any]:
        """The tower's blocks; each takes and returns tokens `[B, N, D]`."""
        return list(self.tower.get_submodule(self.parts.blocks))

    @property
    def scopes(self) -> Mapping[str, str]:
        """The path of the blocks in this module, and what graphs call it."""
        path = next(path for path, part in self.named_modules() if part is self.tower)
        return {f"{path}.{self.parts.blocks}": BLOCKS}

    @property
    def config(self) -> Any:
        """The tower's configuration."""
        return self.tower.config

    @property
    def final_norm(self) -> nn.Module:
        """The norm behind the last block."""
        found: nn.Module = self.tower.get_submodule(self.parts.norm)
        return found

    @property
    def num_prefix_tokens(self) -> int:
        """Number of class, distillation and register tokens, which lie ahead of the patches."""
        registers = self.tower.embeddings.register_tokens.shape[1] if self._has("register_tokens") else 0
        return self._positions_ahead + int(registers)

    @property
    def _positions_ahead(self) -> int:
        """Number of tokens ahead of the patches that have a position: registers have none."""
        return sum(map(self._has, ("cls_token", "class_embedding", "distillation_token")))

    def _has(self, name: str) -> bool:
        return getattr(self.tower.embeddings, name, None) is not None

    @property
    def published_size(self) -> ImageSize:
        """The image size of the library's configuration."""
        size = self.config.image_size
        return ImageSize.of(tuple(size) if isinstance(size, (list, tuple)) else size)

    @property
    def resampled(self) -> bool:
        """Whether absolute positions were resampled to another grid."""
        return isinstance(getattr(self.tower.embeddings, "tables", None), _Tables)

    @property
    def is_dense(self) -> bool:
        """Whether the model gives maps."""
        return type(self.whole).__name__.endswith((DEPTH, SEGMENTATION))

    @property
    def answers(self) -> bool:
        """Whether the model gives one vector per image, and not only tokens."""
        return bool(self._heads) or getattr(self.tower, "use_head", True)

    @property
    def reads_class_token(self) -> bool:
        """Whether what the model answers with comes from its class token."""
        tower = self.tower
        if type(tower).__name__ == "BeitModel" and tower.pooler is not None:
            return not self.config.use_mean_pooling
        return self._positions_ahead > 0 and type(self.whole).__name__ != "CLIPForImageClassification"

    @property
    def read_tokens(self) -> int | None:
        """How many of the first tokens the model answers with; None: all of them."""
        name = type(self.whole).__name__
        if not self.reads_class_token or (name.startswith("Dinov2") and self.whole is not self.tower):
            return None
        return 2 if hasattr(self.whole, "distillation_classifier") else 1

    @property
    def _heads(self) -> list[str]:
        return [name for name in _HEADS if isinstance(getattr(self.whole, name, None), nn.Linear)]

    def forward(self, images: Tensor) -> Tensor:
        """From `[B, C, H, W]` to logits `[B, classes]`, or without a head to the embedding `[B, D]`; of a dense model
        to a map."""
        output = self.whole(pixel_values=images, **self._options)
        answer = next((found for name in _ANSWERS if (found := getattr(output, name, None)) is not None), None)
        answer = output.last_hidden_state[:, 0] if answer is None else answer
        result: Tensor = self.head(answer)
        return result

    def forward_features(self, images: Tensor) -> Tensor:
        """The last tokens of the tower, prefix tokens included, `[B, N, D]`."""
        tokens: Tensor = self.tower(pixel_values=images, **self._options).last_hidden_state
        return tokens

    def reset_classifier(self, _classes: int) -> None:
        """Take the heads away, so that the model gives what they were given."""
        for name in self._heads:
            setattr(self.whole, name, nn.Identity())
        self.num_classes = 0

    def extra_repr(self) -> str:
        """What the modules do not show and decides what the model computes, such as the base of rotary angles."""
        return f"{type(self.whole).__name__}, {self.image_size}, {json.dumps(self.config.to_dict(), sort_keys=True)}"

    def _resample(self) -> None:
        """Resample absolute positions to the grid of this model's images, by the library's own code, once."""
        embeddings = self.tower.embeddings
        method = getattr(embeddings, "interpolate_pos_encoding", None)
        absolute = self._has("position_embeddings") or self._has("position_embedding")
        if method is None or not absolute or self.published_size == self.image_size:
            return
        tokens = torch.zeros(1, self._positions_ahead + self.patch_embed.num_patches, self.embed_dim)
        _replace(embeddings, "interpolate_pos_encoding", method(tokens, *self.image_size), trained=True)
        if "interpolate_pos_encoding" in inspect.signature(embeddings.forward).parameters:
            self._options = {"interpolate_pos_encoding": True}

    def _fix_tables(self) -> None:
        """Compute rotary angles and relative biases once, by the library's own code; it would do so on each call."""
        if self.parts.rotary:
            rotary = self.tower.rope_embeddings
            _replace(rotary, "forward", rotary(torch.zeros(1, 1, *self.image_size)))
        modules = [getattr(block, self.parts.bias) for block in self.blocks] if self.parts.bias else []
        for module in (*modules, getattr(self.tower, "shared_position_bias", None)):
            if module is not None:
                _replace(module, "forward", module(self.patch_embed.grid_size))


class _Tables(nn.Module):
    """Tables that depend on nothing but the image size, in the place of a method that computes them on each call."""

    def __init__(self, tables: tuple[Tensor, ...], *, trained: bool) -> None:
        super().__init__()
        self.count = len(tables)
        for index, table in enumerate(tables):
            if trained:
                self.register_parameter(f"table{index}", nn.Parameter(table.clone()))
            else:
                self.register_buffer(f"table{index}", table.clone(), persistent=False)

    def forward(self, *_arguments: Any, **_named: Any) -> Any:
        tables = tuple(getattr(self, f"table{index}") for index in range(self.count))
        return tables if self.count > 1 else tables[0]


def _replace(module: nn.Module, method: str, tables: Any, *, trained: bool = False) -> None:
    """Let a method of a module return tables; what an instance has is found ahead of the method of its class."""
    held = _Tables(tables if isinstance(tables, tuple) else (tables,), trained=trained)
    module.add_module("tables", held)
    vars(module)[method] = held.forward


def _unmasked(sequence: Tensor, noise: Tensor | None = None) -> tuple[Tensor, None, None]:
    return sequence, None, None


def _pooled(self: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
    """What PyTorch's module gives for `[B, N, D]`, batch first in every step, as static shapes need it."""

    def heads(tensor: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        split = (*tensor.shape[:2], self.num_heads, self.head_dim)
        return functional.linear(tensor, weight, bias).view(split).transpose(1, 2)

    weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
    queries, keys, values = map(heads, (query, key, value), weights, biases)
    joined = functional.scaled_dot_product_attention(queries, keys, values)
    return self.out_proj(joined.transpose(1, 2).flatten(2)), None
