"""Variants of a bundle for programs of others: a file for each kind, and a line in `TARGETS`."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from ztdeploy.core.progress import Progress, silent

if TYPE_CHECKING:
    from ztdeploy.jobs.export.parts import ExportReport, Served
    from ztdeploy.jobs.export.target import Target

#: `"name": "module:Class"`, where the class derives from `target.Target` and `name` is what `--to` takes.
TARGETS: dict[str, str] = {
    "onnx": "ztdeploy.jobs.export.onnx_file:OnnxFile",
    "triton": "ztdeploy.jobs.export.triton:TritonRepository",
    "openvino": "ztdeploy.jobs.export.model_server:ModelServerRepository",
    "deepstream": "ztdeploy.jobs.export.deepstream:DeepStreamFolders",
    "ros2": "ztdeploy.jobs.export.ros2:Ros2Package",
}


def export_bundle(
    root: Path,
    out: Path,
    to: str,
    *,
    keep_ratio: float | None = None,
    variant: str | None = None,
    profile: str | None = None,
    served: Served | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Write variants of a bundle as another program loads them.

    Args:
        out: a folder that does not exist; with `force`, an older export of the same kind may be replaced.
        to: a name of `TARGETS`. What it writes, and of which variants where none is asked for, its class says.
        profile: the engines or graphs to write; None: the first profile that suits.
        served: names, layout and type of the model's input and output.

    Raises:
        InputError: no such variant or profile, none that suits, a name that the program cannot be given, or a kind of
            model that it does not have.
        OutputError: the folder exists or cannot be written.
        MissingExtraError: the package onnx-ir is not installed.
        BundleError: the bundle is damaged.
        EnvironmentLacksError: this machine cannot run the engines that an exported graph is compared with.
        ParityError: an exported graph gives something else than its engine.
    """
    from ztdeploy.core.bundle import read_bundle
    from ztdeploy.core.folders import files_of, new_folder
    from ztdeploy.jobs.export.parts import ExportReport, Served, check_names, check_out

    target: Target = resolve_name(TARGETS[to])()
    served = served or Served()
    bundle = read_bundle(root)
    asked = keep_ratio is not None or variant is not None or target.one_variant
    chosen = [bundle.variant(keep_ratio, variant)] if asked else list(bundle.manifest.variants)
    profile = target.profile(bundle, profile)
    served = target.served(bundle, served)
    check_names(bundle, served)
    target.check(bundle, chosen, profile)
    check_out(out, target.strange, force=force)
    models, notes = [], dict[str, None]()
    with new_folder(out, last=target.last(bundle, chosen[0])) as folder:
        for done, one in enumerate(chosen):
            progress(f"writing {one.name}", done, len(chosen))
            model, said = target.write(folder, bundle, one, profile, served)
            models.append(model)
            notes |= dict.fromkeys(said)
        notes |= dict.fromkeys(target.finish(folder, bundle, models, profile))
        files = {name: (folder / name).stat().st_size for name in files_of(folder)}
    return ExportReport(folder=str(out), files=files, profile=profile, models=tuple(models), notes=tuple(notes))
