"""Write variants of a bundle as a model repository of Triton Inference Server, whose ONNX Runtime back end runs them.

A folder for each variant, as Triton's documents of the model repository and of the model configuration have it:

    NAME/config.pbtxt               inputs, outputs, batching, instances, and what warms it up
    NAME/labels.txt                 names of the classes, where the bundle has any
    NAME/preprocessor_config.json   makes an image processor of transformers give the pixels
    NAME/warmup/image               a golden image
    NAME/1/model.onnx               the graph with its weights
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.errors import InputError
from ztdeploy.core.files import make_folder, read_text, write
from ztdeploy.core.folders import new_folder
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.names import IMAGE
from ztdeploy.core.profile import HardwareProfile, Int8Options
from ztdeploy.core.progress import Progress, silent
from ztdeploy.core.text import printable
from ztdeploy.jobs.export import (
    MODEL,
    ExportedModel,
    ExportReport,
    Served,
    Tensor,
    check_names,
    check_out,
    onnx_profile,
    remarks_on,
    write_model,
    write_processor,
)
from ztdeploy.target.runtime.parity import golden_pixels
from ztdeploy.target.runtime.preprocess import normalise
from ztdeploy.target.runtime.runner import class_names

CONFIGURATION, LABELS, WARM_UP = "config.pbtxt", "labels.txt", "warmup/image"
#: The first line of a configuration, by which a folder is known to be ours.
WRITTEN = "# Written by ztdeploy export"
_SERVED = Served(IMAGE)
#: Triton's names of the types of tensors.
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}


_OF_BATCH = "int8 ranges are measured over a whole batch: what Triton joins with an image changes its answer a little"


class Word(str):
    """A value of an enumeration or a truth value, which stands in a configuration without quotes."""


def export_triton_repository(
    root: Path,
    out: Path,
    *,
    keep_ratio: float | None = None,
    variant: str | None = None,
    profile: str | None = None,
    served: Served = _SERVED,
    force: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Write a repository with all variants, or with the one asked for. Graphs that take pixels take them from clients.

    Args:
        out: a folder that does not exist; with `force` an older repository of this function may be replaced.
        served: names alone.

    Raises:
        InputError: no such variant or profile, none whose engines are ONNX graphs, a name that cannot be given, or a
            form of the input.
        OutputError: the folder exists or cannot be written.
        MissingExtraError: the package onnx-ir is not installed.
        BundleError: the bundle is damaged.
        ParityError: a graph gives something else than its engine.
    """
    bundle = read_bundle(root)
    asked = keep_ratio is not None or variant is not None
    chosen = [bundle.variant(keep_ratio, variant)] if asked else list(bundle.manifest.variants)
    profile = onnx_profile(bundle, profile)
    chosen = [one for one in chosen if profile in one.graphs]
    check_names(bundle, served)
    if served.layout is not None or served.pixels:
        given = "--pixels" if served.pixels else "--layout"
        raise InputError(
            f"{given} for Triton", "neither --pixels nor --layout: it takes what the bundle does", "leave it out"
        )
    check_out(out, _strange, force=force)
    models, notes = list[ExportedModel](), dict[str, None]()
    first = model_name(bundle, chosen[0])
    with new_folder(out, last=f"{first}/{CONFIGURATION}") as folder:
        for done, one in enumerate(chosen):
            progress(f"writing {model_name(bundle, one)}", done, len(chosen))
            pixels = one.graphs[profile].image_input == "uint8"
            form = replace(served, layout="nhwc" if pixels else "nchw", pixels=pixels)
            said = _write(folder / model_name(bundle, one), bundle, one, profile, form, models)
            notes |= dict.fromkeys([*remarks_on(bundle.manifest, one.graphs[profile]), *said])
        if _depends_on_others(bundle.manifest.profiles[profile]):
            notes |= {_OF_BATCH: None}
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    return ExportReport(folder=str(out), files=files, profile=profile, models=tuple(models), notes=tuple(notes))


def model_name(bundle: Bundle, variant: VariantRecord) -> str:
    """The name that clients call a variant by."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{bundle.name}-{variant.name}").lstrip(".")


def _depends_on_others(profile: HardwareProfile) -> bool:
    """Whether an answer depends on the images that are in its batch."""
    dynamic = profile.precision == "int8" and (profile.int8 or Int8Options()).activations == "dynamic"
    return dynamic and profile.batch.dynamic and max(profile.batch.sizes) > 1


def _strange(held: Sequence[Path]) -> str | None:
    for entry in held:
        configuration = entry / CONFIGURATION
        ours = entry.is_dir() and not entry.is_symlink() and configuration.is_file()
        if not ours or not read_text(configuration).startswith(WRITTEN):
            return f"holds '{printable(entry.name)}', which ztdeploy did not write"
    return None


def _write(
    folder: Path, bundle: Bundle, variant: VariantRecord, profile: str, served: Served, models: list[ExportedModel]
) -> list[str]:
    """Write a variant's folder, add it to `models`, and return what is to be said of it."""
    make_folder(folder / "1")
    model = write_model(bundle, variant, profile, folder / "1" / MODEL, served)
    models.append(model.model_copy(update={"name": folder.name}))
    names = class_names(bundle) if bundle.manifest.model.gives == "logits" else None
    if names is not None:
        write(folder / LABELS, "".join(f"{printable(name)}\n" for name in names))
    batch, image = variant.graphs[profile].batch, golden_pixels(bundle)[:1]
    values = image if served.pixels else normalise(image, bundle.manifest.preprocess)
    write(folder / WARM_UP, np.repeat(values, batch or 1, axis=0).tobytes())
    said = configuration(folder.name, model, bundle.manifest.profiles[profile], batch, labelled=names is not None)
    write(folder / CONFIGURATION, f"{WRITTEN} of '{bundle.name}', {variant.name} for {profile}.\n{said}")
    return write_processor(folder, bundle.manifest, pixels=served.pixels)


def configuration(
    name: str, model: ExportedModel, profile: HardwareProfile, batch: int | None, *, labelled: bool
) -> str:
    """A model configuration as text of protocol buffers.

    Args:
        batch: that of the graph; None: any, and Triton joins requests up to the profile's largest batch.
        labelled: Triton names the classes that a client asks for.
    """
    given = {"name": model.output.name, **_tensor(model.output, batch)}
    image = {"key": model.input.name, "value": {**_tensor(model.input, batch), "input_data_file": Path(WARM_UP).name}}
    parameters = {"intra_op_thread_count": profile.threads} if profile.threads else {}
    return _text(
        {
            "name": name,
            "backend": profile.backend,  # Triton calls it as we do
            "max_batch_size": max(profile.batch.sizes) if batch is None else 0,
            "input": [{"name": model.input.name, **_tensor(model.input, batch)}],
            "output": [given | ({"label_filename": LABELS} if labelled else {})],
            **({"dynamic_batching": {}} if batch is None and max(profile.batch.sizes) > 1 else {}),
            "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
            "parameters": [{"key": key, "value": {"string_value": str(value)}} for key, value in parameters.items()],
            "model_warmup": [{"name": "golden image", "batch_size": 1 if batch is None else 0, "inputs": [image]}],
        }
    )


def _tensor(tensor: Tensor, batch: int | None) -> dict[str, Any]:
    """Type and sizes; without the axis of images, where Triton has it from `max_batch_size`."""
    return {"data_type": Word(_TYPES[tensor.dtype]), "dims": list(tensor.shape[1:] if batch is None else tensor.shape)}


def _text(fields: Mapping[str, Any], indent: str = "") -> str:
    """Fields in the text format of protocol buffers; of a list, each is a field of its own."""
    lines = []
    for key, value in fields.items():
        for one in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
            if isinstance(one, Mapping):
                lines.append(f"{indent}{key} {{\n{_text(one, indent + '  ')}{indent}}}\n")
            else:
                quoted = isinstance(one, str) and not isinstance(one, Word)
                lines.append(f"{indent}{key}: {_quoted(one) if quoted else one}\n")
    return "".join(lines)


def _quoted(text: str) -> str:
    return '"' + "".join(f"\\{one}" if one in '"\\' else one for one in text) + '"'


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
