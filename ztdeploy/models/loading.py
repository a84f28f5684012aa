"""From a model's name to an adapter with weights in it: the package, a file, the hub, or random."""

from __future__ import annotations

import json
import math
import os
import socket
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ztdeploy.errors import MissingExtraError, ModelError, WeightsUnavailableError, did_you_mean
from ztdeploy.models import adapt
from ztdeploy.models.catalogue import CATALOGUE, CatalogueEntry, WeightsSource
from ztdeploy.preprocess_spec import PreprocessSpec

if TYPE_CHECKING:
    from torch import nn

    from ztdeploy.models.adapter import ModelAdapter

RANDOM_SEED = 0


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be pruned, and where it came from."""

    name: str
    timm_name: str
    adapter: ModelAdapter
    preprocess: PreprocessSpec
    class_names: tuple[str, ...] | None
    weights_source: str
    weights_origin: str
    weights_sha256: str
    entry: CatalogueEntry | None


def load_model(
    name: str,
    *,
    weights: WeightsSource = "pretrained",
    checkpoint: Path | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
) -> LoadedModel:
    """Create a model and fill it with weights.

    Args:
        name: a short name of the catalogue, or any name that timm knows.
        weights: "pretrained" (the hub, its cache, or the package), or "random" for latency only.
        checkpoint: a file that takes the place of `weights`.
        image_size: side of the input in pixels, where it shall differ from the model's own.
        crop_pct: image size over the length that the shorter side is resized to, where it shall differ.

    Raises:
        ModelError: unknown, or of a family that cannot be pruned soundly.
        CheckpointError: the file is unusable or does not fit, or a downloaded tensor holds NaN.
        WeightsUnavailableError: the hub cannot be reached and nothing is cached.
    """
    _need_host_half()
    from ztdeploy.models.checkpoint import check_finite, load_strictly, parameters_sha256, read_checkpoint

    entry = CATALOGUE.get(name)
    timm_name = entry.timm_name if entry else name
    state = read_checkpoint(checkpoint) if checkpoint is not None else None  # before the slow part: it may be unusable
    shipped = entry.shipped if entry else None
    if shipped is not None and state is None and weights == "pretrained":
        state, checkpoint = read_checkpoint(shipped / "model.safetensors"), shipped / "model.safetensors"
        source = "shipped"
    else:
        source = "checkpoint" if state is not None else weights
    model, config, class_names = _create(name, timm_name, shipped, image_size, pretrained=source == "pretrained")
    if state is not None:
        assert checkpoint is not None
        load_strictly(model, state, checkpoint)
    elif source == "pretrained":
        check_finite(dict(model.named_parameters()), timm_name)
    origin = (
        checkpoint.name if checkpoint is not None else timm_name if source == "pretrained" else f"seed {RANDOM_SEED}"
    )
    preprocess = _preprocess(config if crop_pct is None else {**config, "crop_pct": crop_pct}, image_size)
    adapter = adapt(model.eval(), preprocess.image_size)
    return LoadedModel(
        name=name,
        timm_name=timm_name,
        adapter=adapter,
        preprocess=preprocess,
        class_names=class_names if class_names and len(class_names) == adapter.architecture.num_classes else None,
        weights_source=source,
        weights_origin=origin,
        weights_sha256=parameters_sha256(model),
        entry=entry,
    )


def _need_host_half() -> None:
    for module in ("torch", "timm", "onnx_ir", "onnxscript", "safetensors"):
        try:
            import_module(module)
        except ImportError as error:
            raise MissingExtraError(module, "build", "building a bundle") from error


def _create(
    name: str, timm_name: str, shipped: Path | None, image_size: int | None, *, pretrained: bool
) -> tuple[nn.Module, dict[str, Any], tuple[str, ...] | None]:
    """The model, its preprocessing in timm's words, and its class names."""
    import timm
    import torch
    from timm.data import resolve_model_data_config

    torch.manual_seed(RANDOM_SEED)
    if shipped is not None:
        facts = json.loads((shipped / "model.json").read_text(encoding="utf-8"))
        if image_size not in (None, facts["architecture"]["img_size"]):
            raise ModelError(
                f"image size {image_size} for '{name}'",
                f"{facts['architecture']['img_size']}",
                "leave --image-size out",
            )
        from timm.models.vision_transformer import VisionTransformer

        config = {**facts["preprocessing"], "input_size": (3, facts["architecture"]["img_size"])}
        return VisionTransformer(**facts["architecture"]), config, tuple(facts["classes"])
    if not timm.is_model(timm_name):
        near = did_you_mean(name, [*CATALOGUE, *timm.list_models("*vit*"), *timm.list_models("*deit*")])
        fix = near if near.startswith("did you mean") else "run 'ztdeploy models'"  # timm knows hundreds
        raise ModelError(f"model '{name}'", "a short name or a name that timm knows", fix)
    arguments: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's remarks on names that have moved
            model = _download(timm_name, arguments) if pretrained else timm.create_model(timm_name, **arguments)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        at_size = f" with image size {image_size}" if image_size else ""
        raise ModelError(
            f"timm cannot make '{timm_name}'{at_size} ({reason})",
            "a vision transformer and a size that its patch size divides",
            "change --model or --image-size",
        ) from error
    return model, resolve_model_data_config(model), _imagenet_names(model)


def _download(timm_name: str, arguments: dict[str, Any]) -> nn.Module:
    """Create a model with weights from the hub or its cache, without waiting for a hub that isn't there."""
    import huggingface_hub.constants
    import timm

    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = offline or not _hub_reachable()
    try:
        model: nn.Module = timm.create_model(timm_name, pretrained=True, **arguments)
    except (OSError, RuntimeError, LookupError) as error:
        reason = str(error).lower()
        if not isinstance(error, OSError) and ("pretrained" not in reason or "invalid pretrained tag" in reason):
            raise
        raise WeightsUnavailableError(
            f"pretrained weights of '{timm_name}' are neither cached nor to be had from the model hub",
            "a cached or downloadable checkpoint",
            "give --checkpoint FILE, or --weights random to measure latency only",
        ) from error
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = offline
    return model


def _hub_reachable(timeout_s: float = 3.0) -> bool:
    """Whether the hub answers at all; its client retries for most of a minute before it says so."""
    from huggingface_hub.constants import ENDPOINT

    parts = urlsplit(os.environ.get("HTTPS_PROXY") or ENDPOINT)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def _preprocess(config: dict[str, Any], image_size: int | None) -> PreprocessSpec:
    """timm's data configuration in our terms."""
    size = image_size or int(config["input_size"][-1])
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ModelError(f"crop mode '{mode}'", "'center' or 'squash'", "choose another model")
    try:
        return PreprocessSpec(
            image_size=size,
            resize=math.floor(size / float(config["crop_pct"])),
            interpolation=config["interpolation"],
            crop_mode=mode,
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )
    except (ValueError, ArithmeticError) as error:  # pydantic's ValidationError is a ValueError
        raise ModelError(
            f"image size {size} with crop_pct {config['crop_pct']}",
            "at most 4096 pixels, resized to at most 8192",
            "change --image-size or --crop-pct",
        ) from error


def _imagenet_names(model: Any) -> tuple[str, ...] | None:
    """Names for the usual 1000 classes; None for any other head."""
    if getattr(model, "num_classes", 0) != 1000:
        return None
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(str(info.index_to_description(index)).split(", ")[0] for index in range(1000))
