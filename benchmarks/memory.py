"""Memory of several open variants: weights packed for each engine, or one copy that all of them read.

    python -m benchmarks.memory [--model deit_s]

Prints anonymous memory (which only this process has) and file-backed memory (which the system can share or drop),
and what reading unpacked weights costs in latency. Then, of one int8 engine: the peak of a process that imports, loads
and runs it, stage by stage, against 1.5 times its weights and 60 MB, and what ONNX Runtime takes without ztdeploy.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import asked_model
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.model_source import ModelSource
from ztdeploy.jobs.build import BuildRequest, build

RATIOS = (0.9, 0.7, 0.5)
CHILD = """
import json, sys, time
from statistics import median
import numpy as np, ztdeploy
bundle, mode, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
size = 224
pixels = np.zeros((1, size, size, 3), np.uint8)
runners = []
for ratio in (0.7, 0.9, 0.5, 1.0)[:count]:
    if mode == "shared" and runners:
        runners[0].switch(ratio)
    else:
        runners.append(ztdeploy.load(bundle, keep_ratio=ratio, memory=mode, verify=False))
    runners[-1].infer(pixels)
if mode == "shared":
    runners[0].switch(0.7)
times = []
for _ in range(30):
    before = time.perf_counter(); runners[0].infer(pixels); times.append(1000 * (time.perf_counter() - before))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
megabytes = lambda key: int(status[key].split()[0]) / 1024
print(json.dumps([megabytes("RssAnon"), megabytes("RssFile"), median(times)]))
"""

PEAK = """
import json, sys
def megabytes():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return [int(status[key].split()[0]) / 1024 for key in ("VmHWM", "RssAnon", "RssFile")]
stages = {}
import numpy as np, onnxruntime
stages["Python, NumPy, ONNX Runtime"] = megabytes()
from ztdeploy.target.adaptive.opening import load
stages["and ztdeploy"] = megabytes()
runner = load(sys.argv[1], keep_ratio=0.7, profile=sys.argv[2])
stages["loaded"] = megabytes()
pixels = (np.arange(224 * 224 * 3) % 251).astype(np.uint8).reshape(1, 224, 224, 3)  # numpy.random takes 2 MB itself
for _ in range(20):
    runner.infer(pixels)
stages["20 calls of one image"] = megabytes()
engine = str(runner.bundle.path(runner.variant.engines[sys.argv[2]].file))
print(json.dumps([stages, runner.graph.weights_bytes / 1e6, engine]))
"""

#: The same without us: what no runner can do without.
ALONE = """
import json, sys
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads, options.enable_mem_pattern = int(sys.argv[2]), 1, False
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
pixels = (np.arange(224 * 224 * 3) % 251).astype(np.uint8).reshape(1, 224, 224, 3)
for _ in range(20):
    session.run(None, {"image": pixels})
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([int(status[key].split()[0]) / 1024 for key in ("VmHWM", "RssAnon", "RssFile")]))
"""


def main() -> None:
    model = asked_model(__doc__)
    print(f"{model}: mode, open variants, anonymous MB, file-backed MB, latency at keep ratio 0.7 in ms")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        build(
            BuildRequest(
                model=ModelSource(name=model, weights="random"), profiles=("cpu",), keep_ratios=RATIOS, out=out
            )
        )
        for mode in ("speed", "shared"):
            for count in (1, 2, 4):
                command = [sys.executable, "-c", CHILD, str(out), mode, str(count)]
                anonymous, mapped, latency = json.loads(subprocess.check_output(command))
                print(f"  {mode:7s} {count}  {anonymous:7.0f}  {mapped:7.0f}  {latency:7.1f}")
        _peak(model, "cpu-int8", Path(folder) / "int8")


def _peak(model: str, profile: str, out: Path) -> None:
    """Build one engine, and print what a process has taken at most after each stage."""
    build(
        BuildRequest(model=ModelSource(name=model, weights="random"), profiles=(profile,), keep_ratios=(0.7,), out=out)
    )
    stages, weights, engine = json.loads(subprocess.check_output([sys.executable, "-c", PEAK, str(out), profile]))
    threads = str(usable_threads(0))
    stages["ONNX Runtime by itself"] = json.loads(
        subprocess.check_output([sys.executable, "-c", ALONE, engine, threads])
    )
    print(f"{model} for {profile}, keep ratio 0.7: peak, anonymous, file-backed MB ({1.5 * weights + 60:.0f} wanted)")
    for stage, (peak, anonymous, mapped) in stages.items():
        print(f"  {stage:28s}  {peak:7.1f}  {anonymous:7.1f}  {mapped:7.1f}")


if __name__ == "__main__":
    main()
