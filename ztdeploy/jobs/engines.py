"""Building an engine of a bundle in the making."""

from __future__ import annotations

import onnx_ir as ir

from ztdeploy.core.files import move
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.manifest import EngineRecord
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.jobs.graphs import Graphs
from ztdeploy.target.backends import backend_of


def build_engine(graphs: Graphs, part: str, profile: HardwareProfile) -> EngineRecord:
    """Build an engine beside its graph; weights that it shares with the graphs are not stored again.

    Args:
        part: the name of a variant, or of a piece of the cascade.

    Raises:
        ZtdeployError: whatever the profile's runtime refuses.
    """
    backend, folder = backend_of(profile), graphs.folder
    final = folder / "graphs" / f"{part}.{profile.name}{backend.suffix}"
    with scratch_folder(folder) as scratch:
        record = graphs.record(part, profile)
        built = backend.build(folder / record.file, record, profile, scratch / final.name)
        if built.weights is None:
            move(built.file, final)
        else:
            graphs.weights.attach(final, ir.load(built.file))
    return EngineRecord(
        profile=profile.name,
        backend=profile.backend,
        file=final.relative_to(folder).as_posix(),
        fingerprint=built.fingerprint,
    )
