"""What ours is compared with: the same timm model, untouched, in other runtimes, as their own documents say.

Every one takes normalised pixels, and only its own call is timed; ours takes bytes, and normalises them within it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.processes import module_command

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[np.float32]
Infer = Callable[[Array], Array]

PLAIN = "plain export, ONNX Runtime"


@dataclass(frozen=True)
class Job:
    """What a contender is to run. Random weights come from one seed, hence are the same everywhere."""

    model: str
    image_size: int | None  #: None: the model's own
    batch: int
    threads: int
    onnx: Path  #: the plain export


@dataclass(frozen=True)
class Contender:
    """A `measure.turns.Timeable`: one of the table below in a process of its own."""

    variant: str
    job: Job

    def command(self) -> list[str]:
        job = json.dumps({**asdict(self.job), "onnx": str(self.job.onnx)})
        return module_command("benchmarks.contender_worker", self.variant, job)


def read_job(text: str) -> Job:
    values = json.loads(text)
    return Job(**{**values, "onnx": Path(values["onnx"])})


def plain_export(job: Job) -> int:
    """Write the model as PyTorch's own exporter does, without any pass of ours.

    Returns:
        The side of its input in pixels.
    """
    import torch

    from ztdeploy.host.export import quiet_exporter

    module, size = _module(job)
    with torch.no_grad(), quiet_exporter():
        program = torch.onnx.export(module, (torch.randn(job.batch, 3, size, size),), dynamo=True, verbose=False)
        assert program is not None
        program.save(str(job.onnx))
    return size


def pixels_for(job: Job, size: int) -> Array:
    """`[B, 3, S, S]`; the time of a dense model does not depend on what they are."""
    return np.random.default_rng(0).standard_normal((job.batch, 3, size, size), dtype=np.float32)


def in_onnx_runtime(job: Job) -> Infer:
    """Default options, but for the number of threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = ort.InferenceSession(str(job.onnx), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def infer(pixels: Array) -> Array:
        logits: Array = session.run(None, {name: pixels})[0]
        return logits

    return infer


def in_torch(job: Job) -> Infer:
    return _torch(job, lambda module: module)


def in_compiled_torch(job: Job) -> Infer:
    """The default backend, which needs a C++ compiler."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else a pool of processes stays behind
    import torch

    return _torch(job, torch.compile)


def in_openvino(job: Job) -> Infer:
    """In fp32: by default it computes in bf16 wherever the processor can."""
    core = import_module("openvino").Core()
    options = {
        "INFERENCE_NUM_THREADS": job.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(str(job.onnx), "CPU", options).create_infer_request()

    def infer(pixels: Array) -> Array:
        logits: Array = request.infer([pixels])[0]
        return logits

    return infer


#: How each one's `Infer` is made; what cannot run here raises whatever it raises.
CONTENDERS: dict[str, Callable[[Job], Infer]] = {
    PLAIN: in_onnx_runtime,
    "torch eager": in_torch,
    "torch.compile": in_compiled_torch,
    "OpenVINO": in_openvino,
}


def _torch(job: Job, wrap: Callable[[nn.Module], Any]) -> Infer:
    import torch

    torch.set_num_threads(job.threads)
    module = wrap(_module(job)[0])

    def infer(pixels: Array) -> Array:
        with torch.inference_mode():
            logits: Array = module(torch.from_numpy(pixels)).numpy()
        return logits

    return infer


def _module(job: Job) -> tuple[nn.Module, int]:
    """The timm model as it is, and the side of its input in pixels."""
    from ztdeploy.host.models.loading import load_model

    loaded = load_model(ModelSource(name=job.model, weights="random", image_size=job.image_size))
    return loaded.adapter.model, loaded.preprocess.image_size.height


def versions() -> str:
    """Of what takes part beside ONNX Runtime."""
    from ztdeploy.core.cache import installed_versions

    found = installed_versions("torch", "timm", "openvino", "numpy")
    return ", ".join(f"{name} {version}" for name, version in found.items())
