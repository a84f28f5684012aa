"""NumPy twins of the trained parts of pruning layers, written from their papers, and a model run by hand with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import erf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ztdeploy.core.methods import METHODS
from ztdeploy.host.pruning import layer_class

Floats = NDArray[np.float64]
State = Mapping[str, Tensor]
#: From the tokens of one image behind a block, `[N, D]`, to those that the next block gets.
Stage = Callable[[Floats], Floats]


def predictors(method: str, stages: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Random weights as a checkpoint of the shipped model has them, far from those of an untrained layer."""
    generator, trained, state = torch.Generator().manual_seed(seed), METHODS[method].trained, {}
    assert trained is not None
    for stage in range(stages):
        for name, tensor in layer_class(method).untrained(96, 3).state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            scale = 0.3 if tensor.dim() < 2 else tensor.shape[1] ** -0.5
            state[trained.names.format(stage=stage) + name] = tensor + scale * noise
    return state


def by_hand(model: Any, pixels: Tensor, stages: Mapping[int, Stage]) -> Floats:
    """The answers of a timm model in double precision whose blocks (from 0) are followed by stages: `[B, classes]`."""
    model = model.double()
    with torch.no_grad():
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pixels.double()))))
        for index, block in enumerate(model.blocks):
            tokens = block(tokens)
            if index in stages:
                tokens = torch.tensor(np.stack([stages[index](image.numpy()) for image in tokens]))
        answers: Floats = model.forward_head(model.norm(tokens)).numpy()
    model.float()
    return answers


def linear(x: Floats, state: State, name: str) -> Floats:
    weight, bias = (state[f"{name}.{part}"].double().numpy() for part in ("weight", "bias"))
    return x @ weight.T + bias  # type: ignore[no-any-return]


def layer_norm(x: Floats, state: State, name: str) -> Floats:
    weight, bias = (state[f"{name}.{part}"].double().numpy() for part in ("weight", "bias"))
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias  # type: ignore[no-any-return]


def gelu(x: Floats) -> Floats:
    return 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))  # type: ignore[no-any-return]


def log_softmax(x: Floats) -> Floats:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))  # type: ignore[no-any-return]


def dynamic_probabilities(patches: Floats, state: State, name: str) -> Floats:
    """DynamicViT: the log-probability that each patch token stays or goes, `[P, D]` to `[P, 2]`."""
    hidden = gelu(linear(layer_norm(patches, state, f"{name}in_conv.0"), state, f"{name}in_conv.1"))
    half = patches.shape[1] // 2
    everybody = np.repeat(hidden[:, half:].mean(0, keepdims=True), len(patches), 0)
    joined = np.concatenate([hidden[:, :half], everybody], -1)
    for layer in (0, 2):
        joined = gelu(linear(joined, state, f"{name}out_conv.{layer}"))
    return log_softmax(linear(joined, state, f"{name}out_conv.4"))


def dynamic_stage(state: State, name: str, keep: int) -> Stage:
    """The class token, and the `keep` patch tokens with the highest probability of staying, best first."""

    def stage(tokens: Floats) -> Floats:
        ranking = np.argsort(-dynamic_probabilities(tokens[1:], state, name)[:, 0])
        return np.concatenate([tokens[:1], tokens[1:][ranking[:keep]]])

    return stage
