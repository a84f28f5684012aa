"""How long a model's export takes: tracing one engine's graph at full size, without weights files and proofs.

    python -m benchmarks.export [--models deit_t deit_s ...] [--methods zero-tprune novelty-merge] [--keep-ratio 0.7]

Prints one row of a Markdown table as soon as it is measured. Random weights; the model is made before the clock runs,
and a first trace of the smallest model pays for what the exporter imports.
"""

from __future__ import annotations

import argparse
import time

from benchmarks.machine import describe_machine
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.model_source import ModelSource
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec
from ztdeploy.host.models.loading import LoadedModel, load_model
from ztdeploy.host.pruning.pruned_model import PrunedModel

MODELS = (
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "vit_base_patch16_224",
    "vit_base_patch16_384",
    "vit_base_patch14_dinov2",
    "vit_base_patch16_clip_224",
    "vit_large_patch14_clip_224",
    "vit_base_patch16_siglip_224",
    "eva02_base_patch14_224",
    "beit_base_patch16_224",
    "lvvit_s",
)
HEAD = "\n".join(
    [
        "| model | image | tokens | blocks | method | seconds | CPU seconds |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=["zero-tprune"])
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    arguments = parser.parse_args()
    export_seconds(
        load_model(ModelSource(name=MODELS[0], weights="random")), arguments.methods[0], arguments.keep_ratio
    )
    print(f"{describe_machine()}; keep ratio {arguments.keep_ratio:g}\n\n{HEAD}", flush=True)
    for name in arguments.models:
        model = load_model(ModelSource(name=name, weights="random"))
        for method in arguments.methods:
            print(row(model, method, *export_seconds(model, method, arguments.keep_ratio)), flush=True)


def export_seconds(model: LoadedModel, method: str, keep_ratio: float) -> tuple[float, float]:
    """Wall and CPU seconds of one export, passes included."""
    schedule = default_schedule(keep_ratio, model.adapter.architecture, method=method)
    spec = GraphSpec(opset=20, image_input="uint8", batch=None)
    wall, processor = time.perf_counter(), time.process_time()
    with PrunedModel(model.adapter, schedule) as pruned:
        export_onnx(pruned, model.preprocess, spec, noted=True)
    return time.perf_counter() - wall, time.process_time() - processor


def row(model: LoadedModel, method: str, seconds: float, processor_seconds: float) -> str:
    sizes = model.adapter.architecture
    cells = (model.name, model.preprocess.image_size, sizes.tokens, sizes.depth, method)
    return f"| {' | '.join(map(str, cells))} | {seconds:.1f} | {processor_seconds:.1f} |"


if __name__ == "__main__":
    main()
