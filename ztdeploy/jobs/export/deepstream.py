"""A classifier or a source of vectors for DeepStream: configurations of its plugins nvdspreprocess and nvinfer.

    config_preprocess.txt   nvdspreprocess: which part of a frame is scaled to the model's input
    config_infer.txt        nvinfer: the engine, its input and its output
    model.onnx              the graph, which takes pixels as fp32 from 0 to 255 and normalises them itself
    build-engine.sh         makes the engine of it on the board, with the graph's own types
    labels.txt              names of the classes, where the bundle has any

Both plugins know one factor for all channels, and nvinfer scales whole frames alone. So the graph normalises, and
nvdspreprocess is given the part of a frame that the bundle's pre-processing lets the model see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.errors import InputError
from ztdeploy.core.files import write
from ztdeploy.core.manifest import Manifest, VariantRecord
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.core.text import printable
from ztdeploy.jobs.export.parts import (
    LABELS,
    MODEL,
    WEIGHTS,
    ExportedModel,
    Served,
    label_names,
    remarks_on,
    write_model,
)
from ztdeploy.jobs.export.target import Target
from ztdeploy.target.backends.base import Backend
from ztdeploy.target.runtime.preprocess import seen_box

INFER, PREPROCESS, SCRIPT, ENGINE = "config_infer.txt", "config_preprocess.txt", "build-engine.sh", "model.engine"
HEAD = "# Written by ztdeploy export. Not run: no DeepStream was at hand.\n"
#: Sizes of frames that a part is given for; the first is what the configuration says.
FRAMES = ((1920, 1080), (1280, 720), (3840, 2160))
#: Color formats by channels, of both plugins: RGB and grey.
_COLORS = {3: 0, 1: 2}
#: Filters of NvBufSurfTransform on the GPU. Pillow's filters average over all that becomes one pixel, as of these only
#: the third does, which is super-sampling.
_FILTERS = {"nearest": 0}
_AVERAGING = 3
_LIBRARY = "/opt/nvidia/deepstream/deepstream/lib/gst-plugins/libcustom2d_preprocess.so"
#: What links nvdspreprocess to nvinfer.
_ID = 1


class DeepStreamFolders(Target):
    """The default variant, or the one asked for."""

    title, suits = "DeepStream", "a profile for TensorRT"
    remedy = "build with --profile jetson-orin as well"
    one_variant = True

    def takes(self, backend: Backend, profile: HardwareProfile) -> bool:
        return backend.trtexec

    def served(self, bundle: Bundle, asked: Served) -> Served:
        model = bundle.manifest.model
        likely = model.gives == "logits" and model.activation != "none"
        return replace(super().served(bundle, asked), form="floats", layout="nchw", likely=likely)

    def check(self, bundle: Bundle, chosen: Sequence[VariantRecord], profile: str) -> None:
        spec = bundle.manifest.preprocess
        if spec.channels not in _COLORS:
            raise InputError(
                f"a model of {spec.channels} channels for DeepStream", "3 (RGB) or 1 (grey)", "export with --to triton"
            )
        for variant in chosen:
            if variant.graphs[profile].image_input != "uint8":
                raise InputError(
                    f"profile '{profile}', whose graphs leave normalisation to others, for DeepStream",
                    "a graph that takes pixels: DeepStream knows no deviation of each channel",
                    'set image_input = "uint8" in the profile, and build again',
                )
        for name in label_names(bundle) or ():
            if ";" in name or not name.strip():
                raise InputError(
                    f"the class name '{name}' for DeepStream, whose file of labels divides them by ';'",
                    "names without it",
                    "build again with other --class-names",
                )
        part_of(FRAMES[0], spec)

    def strange(self, held: Sequence[Path]) -> str | None:
        names = {path.name for path in held if not path.is_symlink()}
        strange = sorted({path.name for path in held} - {INFER, PREPROCESS, SCRIPT, LABELS, MODEL, WEIGHTS, ENGINE})
        if strange:
            return f"holds '{printable(strange[0])}'"
        return None if INFER in names else f"has no {INFER}"

    def last(self, bundle: Bundle, first: VariantRecord) -> str:
        return INFER

    def write(
        self, folder: Path, bundle: Bundle, variant: VariantRecord, profile: str, served: Served
    ) -> tuple[ExportedModel, list[str]]:
        from ztdeploy.host.board_files import shapes_of, shell_script, trtexec_command

        manifest, options, batch = bundle.manifest, bundle.manifest.profiles[profile], variant.graphs[profile].batch
        model = write_model(bundle, variant, profile, folder / MODEL, served)
        labels = label_names(bundle) if served.likely else None
        if labels is not None:
            write(folder / LABELS, ";".join(labels) + "\n")
        height, width, channels = manifest.preprocess.shape
        largest = batch or max(options.batch.sizes)
        arguments = [f"--onnx={MODEL}", f"--saveEngine={ENGINE}"]
        if options.tensorrt is not None:
            arguments.append(f"--memPoolSize=workspace:{options.tensorrt.workspace_mib}M")
        if batch is None:
            arguments += shapes_of(model.input.name, (channels, height, width), largest)
        write(folder / SCRIPT, shell_script(_INTRODUCTION, [trtexec_command(arguments)]), executable=True)
        infer = infer_settings(manifest, model, largest, labelled=labels is not None, likely=served.likely)
        write(folder / INFER, HEAD + _text(infer))
        head = HEAD + "".join(f"# {line}\n" for line in _other_frames(manifest.preprocess))
        write(folder / PREPROCESS, head + _text(preprocess_settings(manifest.preprocess, model, largest)))
        return model, [*remarks_on(manifest, variant.graphs[profile]), _PIXELS]


_INTRODUCTION = """\
# Written by ztdeploy export. Builds the engine that config_infer.txt names, on the board that runs it.
#
#   TRTEXEC   where trtexec is, if not on the PATH nor where JetPack puts it
"""
_PIXELS = "DeepStream scales frames by its own filters: pixels differ from the bundle's, see docs/howto/deepstream.md"


def part_of(frame: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int, int, int]:
    """The part of a frame that the model sees, in whole pixels: left, top, width, height.

    Args:
        frame: width and height.

    Raises:
        InputError: it reaches beyond the frame, where the bundle's pre-processing would put black.
    """
    box = seen_box(*frame, spec)
    left, top, right, bottom = map(round, box)
    if left < 0 or top < 0 or right > frame[0] or bottom > frame[1]:
        raise InputError(
            f"pre-processing that resizes to {spec.resize} and crops to {spec.image_size} for DeepStream",
            "a crop inside the resized image: nvdspreprocess adds no border",
            "build again with a crop_pct of at most 1",
        )
    return left, top, right - left, bottom - top


def infer_settings(
    manifest: Manifest, model: ExportedModel, batch: int, *, labelled: bool, likely: bool
) -> dict[str, dict[str, object]]:
    """The groups of nvinfer's configuration. Classes are for it to name; all else it attaches as it is."""
    height, width, channels = manifest.preprocess.shape
    how = {"network-type": 1, "classifier-threshold": 0.0} if likely else {"network-type": 100}
    return {
        "property": {
            "gie-unique-id": _ID,
            "model-engine-file": ENGINE,
            "batch-size": batch,
            "process-mode": 1,
            "input-tensor-from-meta": 1,
            "infer-dims": _listed(channels, height, width),
            "network-input-order": 0,
            "model-color-format": _COLORS[channels],
            "net-scale-factor": 1.0,
            "output-blob-names": model.output.name,
            "output-tensor-meta": 1,
            **how,
            **({"labelfile-path": LABELS} if labelled else {}),
        }
    }


def preprocess_settings(spec: PreprocessSpec, model: ExportedModel, batch: int) -> dict[str, dict[str, object]]:
    """The groups of nvdspreprocess's configuration: pixels as they are, of a part of each frame."""
    height, width, channels = spec.shape
    return {
        "property": {
            "enable": 1,
            "target-unique-ids": _ID,
            "unique-id": 5,
            "process-on-frame": 1,
            "processing-width": width,
            "processing-height": height,
            "maintain-aspect-ratio": 0,
            "symmetric-padding": 0,
            "scaling-buf-pool-size": 6,
            "tensor-buf-pool-size": 6,
            "scaling-pool-compute-hw": 1,
            "scaling-filter": _FILTERS.get(spec.interpolation, _AVERAGING),
            "network-input-order": 0,
            "network-input-shape": _listed(batch, channels, height, width),
            "network-color-format": _COLORS[channels],
            "tensor-data-type": 0,
            "tensor-name": model.input.name,
            "custom-lib-path": _LIBRARY,
            "custom-tensor-preparation-function": "CustomTensorPreparation",
        },
        "user-configs": {"pixel-normalization-factor": 1.0, "offsets": _listed(*[0] * channels)},
        "group-0": {
            "src-ids": 0,
            "custom-input-transformation-function": "CustomAsyncTransformation",
            "process-on-roi": 1,
            "roi-params-src-0": _listed(*part_of(FRAMES[0], spec)),
        },
    }


def _other_frames(spec: PreprocessSpec) -> list[str]:
    (width, height), *others = FRAMES
    lines = [f"roi-params-src-0 is for frames of {width} x {height}, as nvstreammux hands them on. Others:"]
    return lines + [f"  {w} x {h}: {_listed(*part_of((w, h), spec))}" for w, h in others]


def _listed(*values: int) -> str:
    return ";".join(map(str, values))


def _text(groups: Mapping[str, Mapping[str, object]]) -> str:
    """Groups of keys as GLib reads them."""
    lines = {name: [f"{key}={value}\n" for key, value in keys.items()] for name, keys in groups.items()}
    return "\n".join("".join([f"[{name}]\n", *of_group]) for name, of_group in lines.items())
