"""Write variants of a bundle as services of others load them: plain ONNX files, and what makes their input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.errors import InputError, MissingExtraError, OutputError, ParityError
from ztdeploy.core.files import disk_errors, write
from ztdeploy.core.folders import check_folder_path, check_writable, content_of, new_folder
from ztdeploy.core.manifest import GraphRecord, Manifest, VariantRecord
from ztdeploy.core.names import IMAGE_EMBEDS, PIXEL_VALUES, SERVED
from ztdeploy.core.progress import Progress, silent
from ztdeploy.core.records import Record
from ztdeploy.core.text import printable
from ztdeploy.target.backends import get_backend, load_graph
from ztdeploy.target.runtime.parity import LOGIT_TOLERANCE, golden_pixels
from ztdeploy.target.runtime.preprocess import normalise
from ztdeploy.target.runtime.runner import load_engine

if TYPE_CHECKING:
    import onnx_ir as ir

    from ztdeploy.host.graph.drop_in import Layout

MODEL, PROCESSOR = "model.onnx", "preprocessor_config.json"
#: Beside the model, where its weights are too large for one file: protobuf ends at 2 GiB.
WEIGHTS = "model.onnx_data"
EMBEDDED_BYTES = 2**30
#: What services may call a tensor.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
#: The class of `transformers` whose embedding lies beside that of text.
_PROJECTED = "CLIPVisionModelWithProjection"


class Tensor(Record):
    name: str
    dtype: str
    shape: tuple[int | str, ...]  #: text: any length


class ExportedModel(Record):
    """A variant, as a service loads it."""

    name: str  #: of its folder, where there are several; otherwise of its file
    variant: str
    input: Tensor
    output: Tensor
    opsets: dict[str, int]  #: by domain; "" is ONNX's own
    ir_version: int
    images: int  #: golden images that its outputs were compared on with the engine's
    difference: float  #: the largest of any image; of int8 that of the median image
    tolerance: float


class ExportReport(Record):
    """A folder for a service, and what is in it."""

    folder: str
    files: dict[str, int]  #: bytes by name
    profile: str
    models: tuple[ExportedModel, ...]
    notes: tuple[str, ...] = ()  #: what differs from what a service may expect


@dataclass(frozen=True)
class Served:
    """How a service wants a model."""

    input_name: str = PIXEL_VALUES
    output_name: str | None = None  #: None: as the library transformers names what the model gives
    layout: Layout | None = None  #: None: "nchw", of `pixels` "nhwc"
    pixels: bool = False  #: the input is uint8, and the graph normalises it; otherwise fp32 and normalised


def export_onnx_folder(
    root: Path,
    out: Path,
    *,
    keep_ratio: float | None = None,
    variant: str | None = None,
    profile: str | None = None,
    served: Served = Served(),
    force: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Write `MODEL`, in which nothing but the image goes in and nothing but the answer comes out, and `PROCESSOR`.

    Args:
        out: a folder that does not exist; with `force` an older export may be replaced.

    Raises:
        InputError: no such variant or profile, none whose engines are ONNX graphs, or a name that cannot be given.
        OutputError: the folder exists or cannot be written.
        MissingExtraError: the package onnx-ir is not installed.
        BundleError: the bundle is damaged.
        ParityError: the graph gives something else than the engine.
    """
    bundle = read_bundle(root)
    chosen, profile = bundle.variant(keep_ratio, variant), onnx_profile(bundle, profile)
    check_names(bundle, served)
    check_out(out, _strange, force=force)
    with new_folder(out, last=MODEL) as folder:
        progress(f"writing {MODEL}", 0, 1)
        model = write_model(bundle, chosen, profile, folder / MODEL, served)
        notes = write_processor(folder, bundle.manifest, pixels=served.pixels)
        files = {path.name: path.stat().st_size for path in content_of(folder)}
    remarks = remarks_on(bundle.manifest, chosen.graphs[profile])
    return ExportReport(folder=str(out), files=files, profile=profile, models=(model,), notes=(*remarks, *notes))


def write_model(bundle: Bundle, variant: VariantRecord, profile: str, file: Path, served: Served) -> ExportedModel:
    """Write a variant's graph as a service wants it, and compare it with the engine.

    Raises:
        InputError: a name that a value inside the graph has, or pixels for a graph that takes none.
        MissingExtraError, BundleError, ParityError: see `export_onnx_folder`.
    """
    model = _load(bundle, variant.graphs[profile])
    import onnx_ir as ir

    from ztdeploy.host.graph.drop_in import drop_in

    layout = served.layout or ("nhwc" if served.pixels else "nchw")
    given = served.output_name or output_of(bundle.manifest)
    preprocess = bundle.manifest.preprocess
    drop_in(model, preprocess, taken=served.input_name, given=given, layout=layout, pixels=served.pixels)
    model.graph.name, model.doc_string = bundle.name, f"variant {variant.name} for {profile}"
    weights = (value.const_value for value in model.graph.initializers.values())
    size = sum(weight.nbytes for weight in weights if weight is not None)
    with disk_errors(file):
        ir.save(model, file, external_data=WEIGHTS if size > EMBEDDED_BYTES else None)
    difference, tolerance, images = _compare(bundle, variant, profile, file, model)
    return ExportedModel(
        name=file.name,
        variant=variant.name,
        input=_facts(model.graph.inputs[0]),
        output=_facts(model.graph.outputs[0]),
        opsets=dict(model.graph.opset_imports),
        ir_version=model.ir_version,
        images=images,
        difference=difference,
        tolerance=tolerance,
    )


def output_of(manifest: Manifest) -> str:
    """What the library transformers calls an output such as a bundle's."""
    model = manifest.model
    if model.gives == "embedding" and model.timm_name == _PROJECTED:
        return IMAGE_EMBEDS
    return SERVED.get(model.gives, SERVED["logits"])


def onnx_profile(bundle: Bundle, wanted: str | None) -> str:
    """The profile asked for, or the first whose engines are graphs of ONNX."""
    profiles = bundle.manifest.profiles
    fitting = [name for name, one in profiles.items() if get_backend(one.backend).suffix == Path(MODEL).suffix]
    name = bundle.profile_name(wanted) if wanted is not None or not fitting else fitting[0]
    if name not in fitting:
        raise InputError(
            f"profile '{name}' of {bundle.root}, whose engines are no ONNX files",
            f"one of: {', '.join(fitting)}" if fitting else "a profile for ONNX Runtime",
            "choose it with --profile" if fitting else "build with --profile cpu as well",
        )
    return name


def check_names(bundle: Bundle, served: Served) -> None:
    """
    Raises:
        InputError: names that a tensor of a service cannot have.
    """
    names = (served.input_name, served.output_name or output_of(bundle.manifest))
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"the name {name[:80]!a} of a tensor", "letters, digits and _, at most 64", "give another name"
            )
    if len(set(names)) < len(names):
        raise InputError(f"the name '{names[0]}' of both input and output", "two names", "give another --output-name")


def check_out(out: Path, strange: Callable[[Sequence[Path]], str | None], *, force: bool) -> None:
    """
    Args:
        strange: says what an older export would not hold among the entries of a folder, or lack.

    Raises:
        OutputError: it is a link or no folder, cannot be written, or holds what is not to be replaced.
    """
    check_folder_path(out)
    with disk_errors(out):
        if out.is_symlink():
            raise OutputError(f"'{out}' is a link", "a folder's own path", "choose another folder")
        held = content_of(out) if out.is_dir() else []
    if held and not force:
        raise OutputError(f"'{out}' exists", "a folder that does not exist yet", "choose another, or add --force")
    if held and (problem := strange(held)):
        raise OutputError(f"'{out}' {problem}", "an older export and nothing else", "choose another folder")
    check_writable(out)


def _strange(held: Sequence[Path]) -> str | None:
    names = {path.name for path in held}
    strange = sorted(names - {MODEL, WEIGHTS, PROCESSOR})
    if strange:
        return f"holds '{printable(strange[0])}'"
    return None if MODEL in names else f"has no {MODEL}"


def _load(bundle: Bundle, graph: GraphRecord) -> ir.Model:
    """A graph with its weights in memory; all its files have the hashes of the manifest."""
    try:
        import onnx_ir as ir
    except ImportError as error:
        raise MissingExtraError("onnx_ir", "build", "exporting a graph") from error
    bundle.verify_files(bundle.files_of_graph(graph.file))
    model = ir.load(bundle.path(graph.file))
    ir.external_data.load_to_model(model)
    return model


def write_processor(folder: Path, manifest: Manifest, *, pixels: bool) -> list[str]:
    """Write `PROCESSOR`, and return what is to be said of it."""
    from ztdeploy.host.models.hf_processor import processor_of

    spec = manifest.preprocess
    said = processor_of(spec, pixels=pixels)
    if said is None:
        return [f"no processor of transformers makes the pixels of this model, so there is no {PROCESSOR}"]
    write(folder / PROCESSOR, json.dumps(said, indent=2).encode() + b"\n")
    if spec.crop_rounding == "even" and said["do_center_crop"]:
        return ["where a crop would start at half a pixel, the processor of transformers may start one pixel earlier"]
    return []


def remarks_on(manifest: Manifest, graph: GraphRecord) -> list[str]:
    prefix, remarks = manifest.model.architecture.prefix_tokens, []
    if manifest.model.gives == "features" and prefix:
        remarks.append(f"the output holds patches alone: the {prefix} tokens ahead of them are left out")
    if graph.batch is not None:
        remarks.append(f"the batch is fixed at {graph.batch}")
    return remarks


def _compare(
    bundle: Bundle, variant: VariantRecord, profile: str, file: Path, model: ir.Model
) -> tuple[float, float, int]:
    """Run the golden images, one by one as ranges of int8 depend on a call, and hold them against the engine's."""
    given, spec = golden_pixels(bundle), bundle.manifest.preprocess
    taken, graph = _facts(model.graph.inputs[0]), variant.graphs[profile]
    channels_last = taken.shape[-1] == spec.channels
    feeds: NDArray[Any] = given.transpose(0, 3, 1, 2) if taken.dtype == "uint8" else normalise(given, spec)
    feeds = feeds.transpose(0, 2, 3, 1) if channels_last else feeds
    differences, largest = [], 1.0
    runner = load_graph(file, 1)
    try:
        with load_engine(bundle, variant=variant.name, profile=profile) as engine:
            for at in range(len(given)):
                feed = np.ascontiguousarray(np.repeat(feeds[at : at + 1], graph.batch or 1, axis=0))
                (found,) = runner.infer({taken.name: feed}).values()
                wanted = engine.infer(given[at : at + 1]).logits
                differences.append(float(np.abs(found[:1] - wanted).max()))
                largest = max(largest, float(np.abs(wanted).max()))
    finally:
        runner.close()
    tolerance = LOGIT_TOLERANCE[graph.precision] * largest
    difference = float(np.median(differences) if graph.precision == "int8" else max(differences))
    if not difference <= tolerance:  # NaN, too
        raise ParityError(
            f"the exported graph of '{variant.name}' differs from its engine by {difference:.2e}",
            f"at most {tolerance:.2e}",
            "report it with the model and tool versions",
        )
    return difference, tolerance, len(given)


def _facts(value: ir.Value) -> Tensor:
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
    return Tensor(name=str(value.name), dtype=value.dtype.numpy().name, shape=shape)
