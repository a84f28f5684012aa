"""A model repository of Triton Inference Server, which runs variants in the back end of their profile's runtime.

A folder for each variant, as Triton's documents of the model repository and of the model configuration have it:

    NAME/config.pbtxt               inputs, outputs, batching, instances, and what warms it up
    NAME/labels.txt                 names of the classes, where the bundle has any
    NAME/preprocessor_config.json   makes an image processor of transformers give the pixels
    NAME/warmup/image               a golden image
    NAME/1/model.onnx               the graph with its weights; of TensorRT `model.plan`, the engine
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.files import copy_file, make_folder, read_text, write
from ztdeploy.core.manifest import EngineRecord, VariantRecord
from ztdeploy.core.names import LOGITS
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.core.text import printable
from ztdeploy.jobs.export.parts import (
    LABELS,
    ExportedModel,
    Served,
    Tensor,
    label_names,
    remarks_on,
    service_name,
    takes_pixels,
    write_model,
    write_processor,
)
from ztdeploy.jobs.export.target import Target
from ztdeploy.target.backends import get_backend
from ztdeploy.target.backends.base import Backend, InTriton, TakesPlugins
from ztdeploy.target.runtime.interface import Interface
from ztdeploy.target.runtime.parity import golden_pixels, golden_reference
from ztdeploy.target.runtime.preprocess import normalise
from ztdeploy.target.runtime.runner import engine_of

CONFIGURATION, WARM_UP = "config.pbtxt", "warmup/image"
#: The first line of a configuration, by which a folder is known to be ours.
WRITTEN = "# Written by ztdeploy export"
#: Triton's names of the types of tensors.
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "int32": "TYPE_INT32"}


class Word(str):
    """A value of an enumeration or a truth value, which stands in a configuration without quotes."""


class TritonRepository(Target):
    """All variants, or the one asked for. Graphs that take pixels take them from clients."""

    title, suits = "Triton", "a profile for ONNX Runtime, OpenVINO or TensorRT"
    remedy = "build with --profile cpu as well"

    def takes(self, backend: Backend, profile: HardwareProfile) -> bool:
        return backend.in_triton(profile) is not None

    def check(self, bundle: Bundle, chosen: Sequence[VariantRecord], profile: str) -> None:
        for variant in chosen:
            engine_of(bundle, variant, profile)

    def strange(self, held: Sequence[Path]) -> str | None:
        for entry in held:
            configuration = entry / CONFIGURATION
            ours = entry.is_dir() and not entry.is_symlink() and configuration.is_file()
            if not ours or not read_text(configuration).startswith(WRITTEN):
                return f"holds '{printable(entry.name)}', which ztdeploy did not write"
        return None

    def last(self, bundle: Bundle, first: VariantRecord) -> str:
        return f"{service_name(bundle, first)}/{CONFIGURATION}"

    def write(
        self, folder: Path, bundle: Bundle, variant: VariantRecord, profile: str, served: Served
    ) -> tuple[ExportedModel, list[str]]:
        name, how = service_name(bundle, variant), _in_triton(bundle, profile)
        served, folder = takes_pixels(bundle, variant, profile, served), folder / name
        make_folder(folder / "1")
        notes = [*remarks_on(bundle.manifest, variant.graphs[profile]), *how.notes]
        if how.takes_engines:
            model, outputs, said = _write_engine(bundle, variant, profile, folder / "1" / how.model)
            notes += said
        else:
            model = write_model(bundle, variant, profile, folder / "1" / how.model, served)
            outputs = [model.output]
        labels = label_names(bundle)
        if labels is not None:
            write(folder / LABELS, "".join(f"{label}\n" for label in labels))
        batch, image = variant.graphs[profile].batch, golden_pixels(bundle)[:1]
        values = image if model.input.dtype == "uint8" else normalise(image, bundle.manifest.preprocess)
        write(folder / WARM_UP, np.repeat(values, batch or 1, axis=0).tobytes())
        text = configuration(
            name, how, bundle.manifest.profiles[profile], batch, model.input, outputs, labelled=labels is not None
        )
        write(folder / CONFIGURATION, f"{WRITTEN} of '{bundle.name}', {variant.name} for {profile}.\n{text}")
        notes += write_processor(folder, bundle.manifest, pixels=served.form == "pixels")
        return model.model_copy(update={"name": name}), notes


def _in_triton(bundle: Bundle, profile: str) -> InTriton:
    options = bundle.manifest.profiles[profile]
    found = get_backend(options.backend).in_triton(options)
    assert found is not None  # `takes` was asked
    return found


def _write_engine(
    bundle: Bundle, variant: VariantRecord, profile: str, file: Path
) -> tuple[ExportedModel, list[Tensor], list[str]]:
    """Copy an engine as it is, with all its outputs: Triton loads none whose configuration lacks one."""
    engine = engine_of(bundle, variant, profile)
    bundle.verify_files(engine.files)
    copy_file(bundle.path(engine.file), file)
    facts = Interface(bundle.manifest, variant, profile).signature
    answer = golden_reference(bundle, variant).logits.shape[1:]
    first = "batch" if variant.graphs[profile].batch is None else int(variant.graphs[profile].batch or 1)
    (taken,), outputs = (
        [Tensor(name=one.name, dtype=one.dtype, shape=(first, *(size or 0 for size in one.shape[1:]))) for one in side]
        for side in (facts.inputs, facts.outputs)
    )
    outputs = [one.model_copy(update={"shape": (first, *answer)}) if one.name == LOGITS else one for one in outputs]
    model = ExportedModel(name=file.name, variant=variant.name, input=taken, output=outputs[0])
    return model, outputs, _needs(engine)


def _needs(engine: EngineRecord) -> list[str]:
    """What the machine of a server must have for an engine."""
    built, backend = engine.fingerprint, get_backend(engine.backend)
    notes = [f"the engines need {built.runtime} {built.runtime_version} in the server, on {built.device}"]
    if built.plugins is not None and isinstance(backend, TakesPlugins):
        library = backend.library_of(built.plugins)
        notes.append(f"start Triton with --backend-config={backend.name},plugins={library}, on the machine of finalize")
    return notes


def configuration(
    name: str,
    how: InTriton,
    profile: HardwareProfile,
    batch: int | None,
    taken: Tensor,
    outputs: Sequence[Tensor],
    *,
    labelled: bool,
) -> str:
    """A model configuration as text of protocol buffers.

    Args:
        batch: that of the graph; None: any, and Triton may join requests up to the profile's largest batch.
        outputs: the model's answer first.
        labelled: Triton names the classes that a client asks for.
    """
    joins = batch is None and how.joins
    largest = max(profile.batch.sizes) if joins else 0
    ranges = range(how.optimization_profiles if batch is None else 0)
    parameters = {how.threads: profile.threads} if how.threads and profile.threads else {}
    sizes = [size if isinstance(size, int) else 1 for size in taken.shape[joins:]]
    image = {**_tensor(taken, joins=joins), "dims": sizes, "input_data_file": Path(WARM_UP).name}
    label_file = {"label_filename": LABELS} if labelled else {}
    return _text(
        {
            "name": name,
            "backend": profile.backend,  # Triton calls it as we do
            "default_model_filename": how.model,
            "max_batch_size": largest,
            "input": [{"name": taken.name, **_tensor(taken, joins=joins)}],
            "output": [
                {"name": one.name, **_tensor(one, joins=joins), **(label_file if one is outputs[0] else {})}
                for one in outputs
            ],
            **({"dynamic_batching": {}} if largest > 1 else {}),
            "instance_group": [{"count": 1, "kind": Word(how.kind), "profile": [str(index) for index in ranges]}],
            "parameters": [
                {"key": key, "value": {"string_value": str(value)}}
                for key, value in {**dict(how.parameters), **parameters}.items()
            ],
            "model_warmup": [
                {
                    "name": "golden image",
                    "batch_size": 1 if joins else 0,
                    "inputs": [{"key": taken.name, "value": image}],
                }
            ],
        }
    )


def _tensor(tensor: Tensor, *, joins: bool) -> dict[str, Any]:
    """Type and sizes; without the axis of images, where Triton has it from `max_batch_size`."""
    sizes = [size if isinstance(size, int) else -1 for size in tensor.shape[joins:]]
    return {"data_type": Word(_TYPES[tensor.dtype]), "dims": sizes}


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
