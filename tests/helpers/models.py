"""Tiny timm models with weights that make attention anything but flat, and what a block shows of itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ztdeploy.core.methods import METHODS
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.plan import LayerPlan
from ztdeploy.core.preprocess_spec import ImageSize, PreprocessSpec
from ztdeploy.core.schedule import LayerSpec, PruningSchedule
from ztdeploy.host.models.loading import LoadedModel, load_model
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning import layer_class, pruning_layer
from ztdeploy.host.pruning.layer import PruningLayer
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.host.pruning.trained import frozen, random_part

#: Handing such small tensors to other threads takes longer than computing them, much longer on a busy machine.
torch.set_num_threads(1)

IMAGE_SIZE = 32
PREPROCESS = PreprocessSpec(image_size=IMAGE_SIZE, resize=36, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

#: Arguments of `tiny_vit`, with the number of prefix tokens that each has.
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "class-token": ({}, 1),
    "registers": ({"reg_tokens": 4}, 5),
    "average-pool": ({"class_token": False, "global_pool": "avg"}, 0),
    "registers-only": ({"class_token": False, "reg_tokens": 2, "global_pool": "avg"}, 2),
    "distilled": ({"distilled": True}, 2),
    "qk-norm-layer-scale": ({"qk_norm": True, "init_values": 0.5}, 1),
    "attention-pool": ({"class_token": False, "global_pool": "map"}, 0),
    "pre-norm-no-embed-class": ({"pre_norm": True, "no_embed_class": True}, 1),
}


def loaded(name: str, **asked: Any) -> LoadedModel:
    """The model of a name, with other fields of `ModelSource` as they are asked for."""
    return load_model(ModelSource(name=name, **asked))


def tiny_vit(
    seed: int = 0,
    *,
    depth: int = 4,
    patch_size: int = 8,
    image_size: int | tuple[int, int] = IMAGE_SIZE,
    distilled: bool = False,
    **arguments: Any,
) -> Any:
    """A randomised `VisionTransformer` in evaluation mode: 32x32 images, 3 heads of 16, 7 classes.

    Every parameter is drawn anew, LayerScale, norms, tokens and biases included, so that none of them can be
    ignored without a test noticing.
    """
    kind = VisionTransformerDistilled if distilled else VisionTransformer
    sizes = {"img_size": image_size, "patch_size": patch_size, "embed_dim": 48, "num_heads": 3, "num_classes": 7}
    return randomised(kind(**{**sizes, "depth": depth, **arguments}), seed)


def randomised(model: Any, seed: int = 0) -> Any:
    """In evaluation mode, with every parameter drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "gamma" in name or "lambda" in name:
                parameter.copy_(0.5 + 0.2 * noise)
            elif ("norm" in name or ".bn" in name) and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif name.startswith("rope"):
                parameter.add_(0.1 * noise)
            elif name.endswith("bias_table"):
                parameter.copy_(noise)
            elif parameter.dim() >= 2 and "token" not in name and "pos" not in name:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * (1.5 / fan_in**0.5))
            else:
                parameter.copy_(0.5 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def variant(name: str, seed: int = 0, **arguments: Any) -> Any:
    """The model of one line of `VARIANTS`."""
    return tiny_vit(seed, **VARIANTS[name][0], **arguments)


def schedule(method: str = "zero-tprune", *layers: LayerSpec) -> PruningSchedule:
    """By default two pruning layers in the middle of a four-block model, with both stages at work."""
    chosen = layers or (
        LayerSpec(block=2, keep_ratio=0.7, iterations=3),
        LayerSpec(block=3, keep_ratio=0.6, iterations=1),
    )
    return PruningSchedule(name="test", method=method, layers=chosen)


def pruned(model: nn.Module, method: str = "zero-tprune", *layers: LayerSpec) -> PrunedModel:
    return PrunedModel(adapted(model), schedule(method, *layers))


def adapted(model: nn.Module, image_size: ImageSize | int = IMAGE_SIZE) -> VitAdapter:
    """An adapter whose pruning layers have random weights where they have any."""
    adapter = VitAdapter(model, image_size)
    adapter.pruning_weights = None
    return adapter


def layer_of(method: str, plan: LayerPlan, width: int, heads: int) -> PruningLayer:
    """A layer by itself; its trained part, if it has one, has random weights."""
    trained = frozen(random_part(layer_class(method), width, heads)) if METHODS[method].trained else None
    return pruning_layer(method, plan, trained=trained)


def images(batch: int, seed: int = 0) -> Tensor:
    """fp32 `[B, 3, 32, 32]`, unlike each other."""
    return torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def pixels(batch: int, seed: int = 0) -> Tensor:
    """uint8 `[B, 32, 32, 3]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, generator=generator)


def takes(method: str, plan: LayerPlan) -> bool:
    """Whether a method can do what a plan asks for."""
    facts = METHODS[method]
    too_many = plan.tokens_in - plan.tokens_out > (plan.tokens_in - plan.prefix_tokens) // 2
    return not (facts.only_by_similarity and too_many) and not (facts.needs_class_token and not plan.class_token)


def fits(method: str, name: str) -> bool:
    """Whether a method can prune a line of `VARIANTS`."""
    return VARIANTS[name][0].get("class_token", True) or not METHODS[method].needs_class_token


def layer_plan(
    patches: int,
    kept: int,
    *,
    prefix: int = 1,
    class_token: bool | None = None,
    similarity_drop: int = 0,
    iterations: int = 1,
    block: int = 0,
) -> LayerPlan:
    """A layer's integers, counted in patch tokens."""
    return LayerPlan(
        block=block,
        tokens_in=prefix + patches,
        tokens_out=prefix + kept,
        prefix_tokens=prefix,
        class_token=prefix > 0 if class_token is None else class_token,
        similarity_drop=similarity_drop,
        iterations=iterations,
    )


def random_attention(generator: np.random.Generator, batch: int, heads: int, tokens: int) -> np.ndarray:
    """fp64 `[B, H, N, N]`, rows sum to 1; from nearly flat heads to heads that pile up on a few tokens."""
    sharpness = generator.uniform(0.05, 3.0, (batch, heads, 1, 1))
    popularity = generator.normal(size=(batch, heads, 1, tokens)) * generator.uniform(0, 2, (batch, heads, 1, 1))
    logits = sharpness * generator.normal(size=(batch, heads, tokens, tokens)) + popularity
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


class Salient(nn.Module):
    """A yes or no for each of 8 x 8 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = tiny_vit(num_classes=0)
        self.head = nn.ConvTranspose2d(48, 1, 2, 2)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.vit.forward_features(images)[:, 1:]
        found: Tensor = self.head(tokens.transpose(1, 2).unflatten(2, (4, 4)))
        return found
