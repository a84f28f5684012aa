"""One plain ONNX file, and the settings of the image processor that makes its input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.names import PIXEL_VALUES
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.core.text import printable
from ztdeploy.jobs.export.parts import (
    MODEL,
    PROCESSOR,
    WEIGHTS,
    ExportedModel,
    Served,
    remarks_on,
    write_model,
    write_processor,
)
from ztdeploy.jobs.export.target import Target
from ztdeploy.target.backends.base import Backend


class OnnxFile(Target):
    """`MODEL`, in which nothing but the image goes in and nothing but the answer comes out, and `PROCESSOR`."""

    title, suits = "a plain ONNX file", "a profile for ONNX Runtime"
    remedy = "build with --profile cpu as well"
    input_name = PIXEL_VALUES
    one_variant = chooses_input = True

    def takes(self, backend: Backend, profile: HardwareProfile) -> bool:
        return backend.suffix == Path(MODEL).suffix

    def strange(self, held: Sequence[Path]) -> str | None:
        names = {path.name for path in held}
        strange = sorted(names - {MODEL, WEIGHTS, PROCESSOR})
        if strange:
            return f"holds '{printable(strange[0])}'"
        return None if MODEL in names else f"has no {MODEL}"

    def last(self, bundle: Bundle, first: VariantRecord) -> str:
        return MODEL

    def write(
        self, folder: Path, bundle: Bundle, variant: VariantRecord, profile: str, served: Served
    ) -> tuple[ExportedModel, list[str]]:
        model = write_model(bundle, variant, profile, folder / MODEL, served)
        notes = write_processor(folder, bundle.manifest, pixels=served.form == "pixels")
        return model, [*remarks_on(bundle.manifest, variant.graphs[profile]), *notes]
