"""ztdeploy export"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ztdeploy.cli.help import DEPLOY, OUTPUT
from ztdeploy.cli.options import (
    BundleArgument,
    KeepRatioOption,
    ProfileOption,
    SignedByOption,
    VariantOption,
    argument,
    demand_signature,
    flag,
    option,
    path,
    word,
)
from ztdeploy.cli.output import answer, note, progress_bar, table, warn
from ztdeploy.jobs.export import TARGETS, export_bundle

if TYPE_CHECKING:
    from ztdeploy.host.graph.drop_in import InputForm
    from ztdeploy.jobs.export.parts import ExportReport, Tensor


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=DEPLOY)(export)


def export(
    bundle: BundleArgument,
    out: Annotated[Path, argument("DIR", path, "Folder to write.")],
    to: Annotated[str, option("--to KIND", tuple(TARGETS), OUTPUT, f"What to write: {', '.join(TARGETS)}.")],
    keep_ratio: KeepRatioOption = None,
    variant: VariantOption = None,
    profile: ProfileOption = None,
    signed_by: SignedByOption = None,
    input_name: Annotated[
        str | None,
        option("--input-name NAME", word, OUTPUT, "Name of the input. [default: image; of onnx pixel_values]"),
    ] = None,
    output_name: Annotated[
        str | None, option("--output-name NAME", word, OUTPUT, "Name of the output. [default: by what the model gives]")
    ] = None,
    layout: Annotated[
        Literal["nchw", "nhwc"] | None,
        option("--layout NAME", ("nchw", "nhwc"), OUTPUT, "Of the input. [default: nchw; of pixels nhwc]"),
    ] = None,
    pixels: Annotated[bool, flag("--pixels", OUTPUT, "Take pixels, uint8, which the graph normalises.")] = False,
    force: Annotated[bool, flag("--force", OUTPUT, "Replace an older export.")] = False,
) -> None:
    """Write variants as programs of others load them, checked against the bundle's engines.

    --to onnx writes one variant as a plain ONNX file. Its input is float32, normalised; beside it lies the
    preprocessor_config.json that makes it. --to triton writes a model repository of Triton Inference Server, --to
    openvino one of OpenVINO Model Server, with all variants, or one; clients send pixels. --to deepstream writes one
    variant with configurations of DeepStream, --to ros2 a package with a node for ROS 2.

    Examples:
        # Write the default variant with the names of transformers.
        ztdeploy export quickstart --to onnx service
        # Write another variant, which takes pixels, in the place of the first.
        ztdeploy export quickstart --to onnx service -k 0.7 --pixels --force
        # Write all variants for Triton.
        ztdeploy export quickstart --to triton models
    """
    from ztdeploy.jobs.export.parts import Served

    demand_signature(signed_by)
    form: InputForm = "pixels" if pixels else "normalised"
    with progress_bar() as progress:
        report = export_bundle(
            bundle,
            out,
            to,
            keep_ratio=keep_ratio,
            variant=variant,
            profile=profile,
            served=Served(input_name or "", output_name, layout, form),
            force=force,
            progress=progress,
        )
    answer(report, lambda: _show(report))
    note(f"wrote {_written(report)} to {report.folder}")


def _show(report: ExportReport) -> None:
    for model in report.models:
        rows = [("input", _words(model.input)), ("output", _words(model.output))]
        if model.opsets:
            opsets = ", ".join(f"{domain or 'ONNX'} {version}" for domain, version in model.opsets.items())
            rows.append(("opsets", f"{opsets}; IR version {model.ir_version}"))
        if model.difference is not None:
            allowed = f"of {model.tolerance:.1e} allowed, on {model.images} images"
            rows.append(("difference", f"{model.difference:.1e} {allowed}"))
        table(f"{model.name}: {model.variant} ({report.profile})", [("", "left"), ("", "left")], rows)
    for line in report.notes:
        warn(line)


def _written(report: ExportReport) -> str:
    folders = sorted({file.partition("/")[0] for file in report.files})
    return ", ".join(folders)


def _words(tensor: Tensor) -> str:
    return f"{tensor.name}: {tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
