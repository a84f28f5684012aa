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
    VariantOption,
    argument,
    flag,
    option,
    path,
    word,
)
from ztdeploy.cli.output import answer, note, progress_bar, table, warn
from ztdeploy.core.names import PIXEL_VALUES

if TYPE_CHECKING:
    from ztdeploy.jobs.export import ExportReport, Tensor


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=DEPLOY)(export)


def export(
    bundle: BundleArgument,
    out: Annotated[Path, argument("DIR", path, "Folder to write.")],
    to: Annotated[Literal["onnx"], option("--to KIND", ("onnx",), OUTPUT, "onnx: one plain ONNX file.")],
    keep_ratio: KeepRatioOption = None,
    variant: VariantOption = None,
    profile: ProfileOption = None,
    input_name: Annotated[str, option("--input-name NAME", word, OUTPUT, "Name of the input.")] = PIXEL_VALUES,
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
    """Write one variant as a plain ONNX file, as services of others load it.

    Its input is float32, normalised; beside it lies the preprocessor_config.json that makes it. Both are checked
    against the bundle's engine.

    Examples:
        # Write the default variant with the names of transformers.
        ztdeploy export quickstart --to onnx service
        # Write another variant, which takes pixels, in the place of the first.
        ztdeploy export quickstart --to onnx service -k 0.7 --pixels --force
    """
    from ztdeploy.jobs.export import export_onnx_folder

    with progress_bar() as progress:
        report = export_onnx_folder(
            bundle,
            out,
            keep_ratio=keep_ratio,
            variant=variant,
            profile=profile,
            input_name=input_name,
            output_name=output_name,
            layout=layout,
            pixels=pixels,
            force=force,
            progress=progress,
        )
    answer(report, lambda: _show(report))
    note(f"wrote {', '.join(report.files)} to {report.folder}")


def _show(report: ExportReport) -> None:
    opsets = ", ".join(f"{domain or 'ONNX'} {version}" for domain, version in report.opsets.items())
    rows = [
        ("input", _words(report.input)),
        ("output", _words(report.output)),
        ("opsets", f"{opsets}; IR version {report.ir_version}"),
        ("difference", f"{report.difference:.1e} of {report.tolerance:.1e} allowed, on {report.images} images"),
    ]
    table(f"{report.variant} ({report.profile})", [("", "left"), ("", "left")], rows)
    for line in report.notes:
        warn(line)


def _words(tensor: Tensor) -> str:
    return f"{tensor.name}: {tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
