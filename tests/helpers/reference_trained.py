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


def softmax(x: Floats) -> Floats:
    return np.exp(log_softmax(x))  # type: ignore[no-any-return]


def token_logits(patches: Floats, state: State, inwards: str, outwards: str) -> Floats:
    """DynamicViT's predictor: that each patch token stays or goes, `[P, D]` to `[P, 2]`."""
    hidden = gelu(linear(layer_norm(patches, state, f"{inwards}.0"), state, f"{inwards}.1"))
    half = patches.shape[1] // 2
    everybody = np.repeat(hidden[:, half:].mean(0, keepdims=True), len(patches), 0)
    joined = np.concatenate([hidden[:, :half], everybody], -1)
    for layer in (0, 2):
        joined = gelu(linear(joined, state, f"{outwards}.{layer}"))
    return linear(joined, state, f"{outwards}.4")


def ranking(patches: Floats, state: State, name: str) -> NDArray[np.int64]:
    """Patch tokens by DynamicViT's log-probability of staying, best first."""
    return np.argsort(-log_softmax(token_logits(patches, state, f"{name}in_conv", f"{name}out_conv"))[:, 0])


def dynamic_stage(state: State, stage: int, keep: int) -> Stage:
    """DynamicViT: the class token, and the `keep` best patch tokens, best first."""

    def run(tokens: Floats) -> Floats:
        patches = tokens[1:]
        return np.concatenate([tokens[:1], patches[ranking(patches, state, f"score_predictor.{stage}.")[:keep]]])

    return run


def squeezing_stage(state: State, stage: int, keep: int) -> Stage:
    """dTPS: each token that goes becomes part of the nearest token that stays."""

    def run(tokens: Floats) -> Floats:
        patches = tokens[1:]
        order = ranking(patches, state, f"score_predictor.{stage}.")
        stay, go = patches[order[:keep]], patches[order[keep:]]
        return np.concatenate([tokens[:1], squeezed(stay, go)])

    return run


def squeezed(stay: Floats, go: Floats) -> Floats:
    """TPS: averages of `stay [k, D]`, one token of `go [m, D]` after the other."""
    unit = [tokens / np.linalg.norm(tokens, axis=1, keepdims=True) for tokens in (stay, go)]
    cosines = unit[1] @ unit[0].T
    sums, weights = np.e * stay, np.full(len(stay), np.e)
    for token, row in zip(go, cosines, strict=True):
        host = int(row.argmax())
        sums[host] += np.exp(row[host]) * token
        weights[host] += np.exp(row[host])
    return sums / weights[:, None]  # type: ignore[no-any-return]


def packing_stage(state: State, stage: int, keep: int, *, by_probability: bool) -> Stage:
    """SPViT and HeatViT: `keep` patch tokens, packages of earlier stages, and at the end a package of the others."""
    name = f"score_predictor.{stage}."

    def run(tokens: Floats) -> Floats:
        patches, heads = tokens[1:], state[f"{name}senet.0.weight"].shape[1]
        shares = patches.reshape(len(patches), heads, -1)
        hidden = gelu(linear(shares.mean(-1), state, f"{name}senet.0"))
        weights = 1 / (1 + np.exp(-linear(hidden, state, f"{name}senet.2")))
        logits = np.stack(
            [
                token_logits(shares[:, head], state, f"{name}in_conv.{head}", f"{name}out_conv.{head}")
                for head in range(heads)
            ],
            1,
        )
        means = [(one(logits) * weights[..., None]).sum(1) / weights.sum(1)[:, None] for one in (softmax, log_softmax)]
        chance, scores = means[0][:, 0], means[0 if by_probability else 1] @ [1, -1]
        loose = len(patches) - stage
        order = np.argsort(-scores[:loose])
        go = order[keep:]
        package = (chance[go, None] * patches[go]).sum(0, keepdims=True) / chance[go].sum()
        return np.concatenate([tokens[:1], patches[order[:keep]], patches[loose:], package])

    return run


def halting_answers(model: Any, pixels: Tensor, kept: list[int], scale: float, center: float) -> Floats:
    """A-ViT with a layer behind every block of a timm model, behind each of which so many patch tokens stay."""
    model = model.double()
    answers = []
    with torch.no_grad():
        for tokens in model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pixels.double())))):
            x, sums, rest, answer = tokens[None], np.zeros(len(tokens)), 1.0, torch.zeros(tokens.shape[1]).double()
            for block, count in zip(model.blocks, kept, strict=True):
                x = block(x)
                halts = 1 / (1 + np.exp(-(x[0, :, 0].numpy() * scale - center)))
                sums = sums + halts
                last = block is model.blocks[-1] or sums[0] > 0.99
                answer = answer + (rest if last else halts[0]) * x[0, 0]
                rest = 0.0 if last else rest - halts[0]
                stay = np.concatenate([[0], 1 + np.sort(np.argsort(sums[1:], kind="stable")[:count])])
                x, sums = x[:, stay], sums[stay]
            answers.append(model.forward_head(model.norm(answer[None, None]))[0].numpy())
    model.float()
    return np.stack(answers)
