"""Make a model by its name: from the package, from a family of our own, or from timm."""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub.constants
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ztdeploy.core.errors import ModelError, WeightsUnavailableError, nearest
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.text import first_line
from ztdeploy.host.models import families, refused, sources
from ztdeploy.host.models.catalogue import CATALOGUE, near_short_name
from ztdeploy.host.models.facts import published_names

RANDOM_SEED = 0
_AS_PUBLISHED: Mapping[str, Any] = {}
#: Words for widths in timm's names, and how many models of a width are compared with a checkpoint.
_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1152: "so400m", 1280: "huge", 1408: "giant"}
_TRIED = 30


class Created(NamedTuple):
    """A model, and the facts that its name implies."""

    model: nn.Module
    config: Mapping[str, Any]  #: pre-processing under timm's keys
    class_names: Sequence[str] | None


def sketch(name: str, size: ImageSize | None = None, arguments: Mapping[str, Any] = _AS_PUBLISHED) -> nn.Module:
    """Make a model on the meta device, without values and within milliseconds.

    Raises:
        ModelError: the model is unknown, belongs to no family, or cannot be made at that size.
    """
    with torch.device("meta"):
        return make(name, size, arguments, pretrained=False).model.eval()


def make(name: str, size: ImageSize | None, arguments: Mapping[str, Any], *, pretrained: bool) -> Created:
    """Make a model by its name.

    Args:
        name: a short name, or timm's.
        size: image size; None: the model's own.
        arguments: timm's arguments that differ from the published model.
        pretrained: whether timm's weights are loaded; otherwise weights are random, with `RANDOM_SEED`.

    Raises:
        ModelError: the model is unknown, belongs to no family, or cannot be made with these arguments.
        WeightsUnavailableError: timm's weights are not cached and cannot be fetched.
    """
    entry = CATALOGUE.get(name)
    timm_name = entry.timm_name if entry else name
    torch.manual_seed(RANDOM_SEED)
    if entry is not None and entry.shipped is not None:
        return _shipped(name, entry.shipped, size, arguments)
    for family in families():
        if timm_name in family.own_models:
            if pretrained:
                raise _no_weights(timm_name, "are on no model hub", "its published checkpoint")
            model: Any = family.make(timm_name, size, arguments)
            return Created(model, dict(model.pretrained_cfg), published_names(model))
    modules = [module for family in families() for module in family.timm_modules]
    if not timm.is_model(timm_name):
        known = [one for module in modules for one in timm.list_models(module=module)]
        near = near_short_name(name) or nearest(name, known, 0.5)
        fix = f"did you mean '{near}'?" if near else "run 'ztdeploy models'"
        raise ModelError(f"model '{name}'", "a short name or a name that timm knows", fix)
    module = timm.model_entrypoint(timm_name).__module__
    if module.rpartition(".")[2] not in modules:
        raise refused(f"model '{name}'", module)
    if size is not None:
        arguments = {**arguments, "img_size": size.height if size.height == size.width else tuple(size)}
    return _of_timm(timm_name, arguments, pretrained=pretrained)


def sibling_of(state: dict[str, Tensor], name: str) -> str | None:
    """The nearest model name whose names and shapes equal those of a checkpoint, without heads."""
    weight = state.get("patch_embed.proj.weight")
    if weight is None or weight.dim() != 4:
        return None
    width = _WIDTHS.get(weight.shape[0])
    alike = timm.list_models(f"*{width}*patch{weight.shape[-1]}*") if width else []
    alike.sort(key=lambda one: -difflib.SequenceMatcher(None, one, name).ratio())
    candidates = [one for one in CATALOGUE if one != name] + alike[:_TRIED]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return next((one for one in candidates if _trunk(sketch(one).state_dict()) == _trunk(state)), None)


def _trunk(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in state.items() if not key.startswith("head")}


def _shipped(name: str, folder: Path, size: ImageSize | None, arguments: Mapping[str, Any]) -> Created:
    facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    own_size = ImageSize.of(facts["architecture"]["img_size"])
    if size not in (None, own_size):
        raise ModelError(f"image size {size} for '{name}'", str(own_size), "leave --image-size out")
    config = {**facts["preprocessing"], "input_size": (3, *own_size)}
    return Created(VisionTransformer(**{**facts["architecture"], **arguments}), config, tuple(facts["classes"]))


def _of_timm(name: str, arguments: Mapping[str, Any], *, pretrained: bool) -> Created:
    if strange := sorted(arguments.keys() - _arguments_of_models()):
        raise ModelError(
            f"'{name}' with '{strange[0][:80]}', which says nothing about a model",
            "arguments of the model's class",
            "remove it from model_args in config.json",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm warns about renamed models
            model = _download(name, arguments) if pretrained else timm.create_model(name, **arguments)
    except (TypeError, AssertionError, ValueError, RuntimeError, LookupError, ArithmeticError, AttributeError) as error:
        options = ", ".join(f"{option} {value}" for option, value in arguments.items())
        raise ModelError(
            f"timm cannot make '{name}'{f' with {options}' if options else ''} ({first_line(error)})",
            "a vision transformer and a size that its patch size divides",
            "change --model or --image-size",
        ) from error
    return Created(model, resolve_model_data_config(model), published_names(model))


def _arguments_of_models() -> frozenset[str]:
    """Arguments of models that a configuration may set. Others of timm's read files or ask the hub."""
    makers = (family.model_class for family in families() if family.timm_modules)
    return frozenset(name for maker in makers for name in signature(maker).parameters)


def _download(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Load weights from the hub or its cache, without waiting for a hub that cannot be reached."""
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = offline or not sources.reachable()
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, **arguments)
    except (OSError, RuntimeError, LookupError) as error:
        reason = str(error).lower()
        if not isinstance(error, OSError) and ("pretrained" not in reason or "invalid pretrained tag" in reason):
            raise
        where = "are neither cached nor to be had from the model hub"
        raise _no_weights(name, where, "a cached or downloadable checkpoint") from error
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = offline
    return model


def _no_weights(name: str, why: str, expected: str) -> WeightsUnavailableError:
    fix = "give --checkpoint FILE, or --weights random to measure latency only"
    return WeightsUnavailableError(f"pretrained weights of '{name}' {why}", expected, fix)
