"""What kinds of export share: a graph as a service wants it, what makes its input, and how it is proved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.errors import InputError, MissingExtraError, OutputError, ParityError
from ztdeploy.core.files import disk_errors, write
from ztdeploy.core.folders import check_folder_path, check_writable, content_of
from ztdeploy.core.manifest import GraphRecord, Manifest, VariantRecord
from ztdeploy.core.names import IMAGE, IMAGE_EMBEDS, LOGITS, SERVED
from ztdeploy.core.records import Record
from ztdeploy.core.text import printable
from ztdeploy.target.backends import get_backend, load_graph
from ztdeploy.target.backends.base import Runner, RunsInServers
from ztdeploy.target.runtime.parity import LOGIT_TOLERANCE, golden_pixels
from ztdeploy.target.runtime.postprocess import probabilities
from ztdeploy.target.runtime.preprocess import normalise
from ztdeploy.target.runtime.runner import class_names, load_engine

if TYPE_CHECKING:
    import onnx_ir as ir

    from ztdeploy.host.graph.drop_in import InputForm, Layout

MODEL, PROCESSOR, LABELS = "model.onnx", "preprocessor_config.json", "labels.txt"
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
    opsets: dict[str, int] = Field(default_factory=dict)  #: of a graph, by domain; "" is ONNX's own
    ir_version: int | None = None  #: of a graph
    images: int = 0  #: golden images that a graph's outputs were compared on with the engine's
    difference: float | None = None  #: the largest of any image; of int8 that of the median image; None: not compared
    tolerance: float | None = None


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

    input_name: str = ""  #: "": the name that suits the kind of export
    output_name: str | None = None  #: None: as the library transformers names what the model gives
    layout: Layout | None = None  #: None: "nchw", of pixels "nhwc"
    form: InputForm = "normalised"
    likely: bool = False  #: the output is probabilities, by the activation that the manifest names


def write_model(bundle: Bundle, variant: VariantRecord, profile: str, file: Path, served: Served) -> ExportedModel:
    """Write a variant's graph as a service wants it, and compare it with the engine.

    Raises:
        InputError: a name that a value inside the graph has, or pixels for a graph that takes none.
        MissingExtraError, BundleError, EnvironmentLacksError, ParityError: see `export_bundle`.
    """
    model = _load(bundle, variant.graphs[profile])
    import onnx_ir as ir

    from ztdeploy.host.graph.drop_in import drop_in

    layout = served.layout or ("nhwc" if served.form == "pixels" else "nchw")
    given = served.output_name or output_of(bundle.manifest)
    preprocess = bundle.manifest.preprocess
    activation = bundle.manifest.model.activation if served.likely else "none"
    drop_in(
        model,
        preprocess,
        taken=served.input_name,
        given=given,
        layout=layout,
        form=served.form,
        activation=activation,
    )
    model.graph.name, model.doc_string = bundle.name, f"variant {variant.name} for {profile}"
    weights = (value.const_value for value in model.graph.initializers.values())
    size = sum(weight.nbytes for weight in weights if weight is not None)
    with disk_errors(file):
        ir.save(model, file, external_data=WEIGHTS if size > EMBEDDED_BYTES else None)
    difference, tolerance, images = _compare(bundle, variant, profile, file, model, served)
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


def _load(bundle: Bundle, graph: GraphRecord) -> ir.Model:
    """A graph with its weights in memory; all its files have the hashes of the manifest."""
    try:
        import onnx_ir as ir
    except ImportError as error:
        raise MissingExtraError("onnx_ir", "build", "exporting a graph") from error
    bundle.verify_files(bundle.files_of_graph(graph.file))
    model = ir.load(bundle.path(graph.file))
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):  # its own reader refuses files with several names, as in a store
            content = np.fromfile(tensor.path, np.uint8, tensor.length or tensor.nbytes, offset=tensor.offset or 0)
            numbers = content.view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
            value.const_value = ir.Tensor(numbers, dtype=tensor.dtype, name=tensor.name)
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


def label_names(bundle: Bundle) -> list[str] | None:
    """Names of the classes of a model that gives logits, harmless in any text; None where it has none."""
    names = class_names(bundle) if bundle.manifest.model.gives == "logits" else None
    return None if names is None else [printable(name) for name in names]


def service_name(bundle: Bundle, variant: VariantRecord) -> str:
    """The name that clients call a variant by."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{bundle.name}-{variant.name}").lstrip(".")


def takes_pixels(bundle: Bundle, variant: VariantRecord, profile: str, served: Served) -> Served:
    """The input of a service to which clients send pixels, where the graph takes them."""
    pixels = variant.graphs[profile].image_input == "uint8"
    return replace(served, layout="nhwc", form="pixels") if pixels else replace(served, layout="nchw")


def remarks_on(manifest: Manifest, graph: GraphRecord) -> list[str]:
    prefix, remarks = manifest.model.architecture.prefix_tokens, []
    if manifest.model.gives == "features" and prefix:
        remarks.append(f"the output holds patches alone: the {prefix} tokens ahead of them are left out")
    if graph.batch is not None:
        remarks.append(f"the batch is fixed at {graph.batch}")
    return remarks


def _compare(
    bundle: Bundle, variant: VariantRecord, profile: str, file: Path, model: ir.Model, served: Served
) -> tuple[float, float, int]:
    """Run the golden images, one by one as ranges of int8 depend on a call, and hold them against the engine's answers,
    or where the bundle has no engine against its graph's.
    """
    given, spec, graph = golden_pixels(bundle), bundle.manifest.preprocess, variant.graphs[profile]
    taken = _facts(model.graph.inputs[0])
    feeds: NDArray[Any] = given.transpose(0, 3, 1, 2) if served.form != "normalised" else normalise(given, spec)
    feeds = feeds.transpose(0, 2, 3, 1) if taken.shape[-1] == spec.channels else feeds
    differences, largest = [], 1.0
    with closing(_runner(bundle, variant, profile, file)) as runner, _answers(bundle, variant, profile) as answer:
        for at in range(len(given)):
            feed = np.repeat(feeds[at : at + 1], graph.batch or 1, axis=0).astype(taken.dtype, order="C")
            (found,) = runner.infer({taken.name: feed}).values()
            wanted: NDArray[Any] = answer(given[at : at + 1])
            likely = probabilities(wanted, bundle.manifest.model.activation) if served.likely else None
            wanted = wanted if likely is None else likely
            differences.append(float(np.abs(found[:1] - wanted).max()))
            largest = max(largest, float(np.abs(wanted).max()))
    tolerance = LOGIT_TOLERANCE[graph.precision] * largest
    difference = float(np.median(differences) if graph.precision == "int8" else max(differences))
    if not difference <= tolerance:  # NaN, too
        raise ParityError(
            f"the exported graph of '{variant.name}' differs from its engine by {difference:.2e}",
            f"at most {tolerance:.2e}",
            "report it with the model and tool versions",
        )
    return difference, tolerance, len(given)


def _runner(bundle: Bundle, variant: VariantRecord, profile: str, file: Path) -> Runner:
    """What runs an exported graph as a server does."""
    engine, backend = variant.engines.get(profile), get_backend(bundle.manifest.profiles[profile].backend)
    if engine is not None and isinstance(backend, RunsInServers):
        return backend.load_as_served(file, engine=bundle.path(engine.file), threads=1)
    return load_graph(file, 1)


@contextmanager
def _answers(
    bundle: Bundle, variant: VariantRecord, profile: str
) -> Iterator[Callable[[NDArray[np.uint8]], NDArray[np.float32]]]:
    """What gives the answer to pixels of one image: the engine, or where there is none the bundle's graph."""
    if profile in variant.engines:
        with load_engine(bundle, variant=variant.name, profile=profile) as engine:
            yield lambda pixels: engine.infer(pixels).logits
        return
    graph = variant.graphs[profile]
    with closing(load_graph(bundle.path(graph.file), 1)) as runner:

        def answer(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            taken = pixels if graph.image_input == "uint8" else normalise(pixels, bundle.manifest.preprocess)
            found = runner.infer({IMAGE: np.repeat(taken, graph.batch or 1, axis=0)})
            return np.asarray(found[LOGITS][:1], np.float32)

        yield answer


def _facts(value: ir.Value) -> Tensor:
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
    return Tensor(name=str(value.name), dtype=value.dtype.numpy().name, shape=shape)
