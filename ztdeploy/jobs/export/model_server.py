"""A model repository of OpenVINO Model Server.

As its documents of the model repository and of its parameters have it:

    config.json                     the models, and the options that OpenVINO compiles them with
    NAME/1/model.onnx               the graph with its weights
    NAME/labels.txt                 names of the classes for the client, where the bundle has any
    NAME/preprocessor_config.json   makes an image processor of transformers give the pixels
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.data import read_json
from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.files import make_folder, write
from ztdeploy.core.folders import files_of
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.core.text import printable
from ztdeploy.jobs.export.parts import (
    LABELS,
    MODEL,
    PROCESSOR,
    WEIGHTS,
    ExportedModel,
    Served,
    label_names,
    remarks_on,
    service_name,
    takes_pixels,
    write_model,
    write_processor,
)
from ztdeploy.jobs.export.target import Target
from ztdeploy.target.backends import get_backend
from ztdeploy.target.backends.base import Backend, RunsInServers
from ztdeploy.target.runtime.runner import engine_of

CONFIGURATION = "config.json"
#: What a model's folder may hold.
_FILES = {f"1/{MODEL}", f"1/{WEIGHTS}", LABELS, PROCESSOR}


class ModelServerRepository(Target):
    """All variants, or the one asked for. Graphs that take pixels take them from clients."""

    title, suits = "OpenVINO Model Server", "a profile for OpenVINO"
    remedy = "build with --profile cpu-openvino as well"

    def takes(self, backend: Backend, profile: HardwareProfile) -> bool:
        return isinstance(backend, RunsInServers)

    def check(self, bundle: Bundle, chosen: Sequence[VariantRecord], profile: str) -> None:
        for variant in chosen:
            engine_of(bundle, variant, profile)

    def strange(self, held: Sequence[Path]) -> str | None:
        ours = {CONFIGURATION, *_names_in(held)}
        strange = sorted(path.name for path in held if path.name not in ours or path.is_symlink())
        return f"holds '{printable(strange[0])}', which ztdeploy did not write" if strange else None

    def last(self, bundle: Bundle, first: VariantRecord) -> str:
        return CONFIGURATION

    def write(
        self, folder: Path, bundle: Bundle, variant: VariantRecord, profile: str, served: Served
    ) -> tuple[ExportedModel, list[str]]:
        name, served = service_name(bundle, variant), takes_pixels(bundle, variant, profile, served)
        make_folder(folder / name / "1")
        model = write_model(bundle, variant, profile, folder / name / "1" / MODEL, served)
        if (labels := label_names(bundle)) is not None:
            write(folder / name / LABELS, "".join(f"{label}\n" for label in labels))
        notes = write_processor(folder / name, bundle.manifest, pixels=served.form == "pixels")
        return model.model_copy(update={"name": name}), [*remarks_on(bundle.manifest, variant.graphs[profile]), *notes]

    def finish(self, folder: Path, bundle: Bundle, models: Sequence[ExportedModel], profile: str) -> list[str]:
        models_of = [{"config": configuration(bundle, one, profile)} for one in models]
        write(folder / CONFIGURATION, json.dumps({"model_config_list": models_of}, indent=2).encode() + b"\n")
        return []


def configuration(bundle: Bundle, model: ExportedModel, profile: str) -> dict[str, Any]:
    """What `CONFIGURATION` says of a model: it computes on the CPU, as the bundle's engine does.

    The layout of the input is left open: with one, the server would take JPEG files too, and resize them by itself.
    """
    options = bundle.manifest.profiles[profile]
    backend, engine = get_backend(options.backend), engine_of(bundle, bundle.variant(name=model.variant), profile)
    assert isinstance(backend, RunsInServers)
    plugin = backend.server_options(bundle.path(engine.file), options.threads)
    return {"name": model.name, "base_path": model.name, "target_device": "CPU", "plugin_config": plugin}


def _names_in(held: Sequence[Path]) -> set[str]:
    """The folders that the configuration of an older export names, and that hold nothing else than an export does."""
    files = [path for path in held if path.name == CONFIGURATION and path.is_file() and not path.is_symlink()]
    try:
        entries = read_json(files[0])["model_config_list"] if files else []
        names = {entry["config"]["name"] for entry in entries}
    except (ZtdeployError, KeyError, TypeError):
        return set()
    return {path.name for path in held if path.name in names and path.is_dir() and set(files_of(path)) <= _FILES}
