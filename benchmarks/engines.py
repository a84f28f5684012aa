"""What building TensorRT-RTX engines costs, without a GPU: time and peak memory of the process that builds.

python -m benchmarks.engines [--model deit_s]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.machine import asked_model
from ztdeploy.core.bundle import Bundle
from ztdeploy.core.model_source import ModelSource
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.backends.tensorrt.backend import options_of
from ztdeploy.target.backends.tensorrt.build import build_engine
from ztdeploy.target.backends.tensorrt.rtx import TensorRtRtxBackend
from ztdeploy.target.backends.tensorrt.worker import BuildAnswer, BuildOrder

PROFILE = """title = "desktop GPU, {precision}"
backend = "tensorrt-rtx"
precision = "{precision}"
[batch]
sizes = [1, 8]
[tensorrt]
workspace_mib = 2048
compute_capabilities = [{capabilities}]
"""
CAPABILITIES = {
    "fp16": '"7.5", "8.0", "8.6", "8.9", "12.0"',
    "bf16": '"8.0", "8.6", "8.9", "12.0"',
    "fp32": '"8.0", "8.6", "8.9", "12.0"',
}


def main() -> None:
    model = asked_model(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        profiles = [_write_profile(folder, precision) for precision in CAPABILITIES]
        bundle = build(
            BuildRequest(ModelSource(name=model, weights="random"), tuple(map(str, profiles)), folder / "bundle")
        )
        for profile in bundle.manifest.profiles:
            for variant in bundle.manifest.variants:
                answer = _rebuild(bundle, variant.name, profile, folder / "engine")
                size = (folder / "engine").stat().st_size / 1e6
                print(
                    f"  {profile:5} {variant.name:10} {answer.seconds:5.1f} s  {answer.peak_rss_mb / 1e3:5.2f} GB"
                    f"  engine {size:6.1f} MB  (at most 10 s and 2 GB wanted)"
                )


def _write_profile(folder: Path, precision: str) -> Path:
    path = folder / f"{precision}.toml"
    path.write_text(PROFILE.format(precision=precision, capabilities=CAPABILITIES[precision]), encoding="utf-8")
    return path


def _rebuild(bundle: Bundle, variant: str, profile: str, engine: Path) -> BuildAnswer:
    graph = bundle.variant(name=variant).graphs[profile]
    hardware = bundle.manifest.profiles[profile]
    return build_engine(
        BuildOrder(
            backend="tensorrt-rtx",
            graph=str(bundle.path(graph.file)),
            engine=str(engine),
            batches=TensorRtRtxBackend().batch_ranges(graph, hardware),
            workspace_mib=options_of(hardware).workspace_mib,
            compute_capabilities=options_of(hardware).compute_capabilities,
        )
    )


if __name__ == "__main__":
    main()
