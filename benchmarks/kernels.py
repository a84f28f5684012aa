"""The TensorRT plugins' kernels: what the compiler made of them and, on a GPU, what they cost.

    python -m benchmarks.kernels [--sm 75 87 ...] [--json] [--write docs/explanation/kernels.md]
    python -m benchmarks.kernels --times cuda [--out FILE.json]

Registers, static shared memory and spills need nvcc; times need a CUDA GPU and g++ or nvcc's compiler for launch plans.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tests.helpers.cpu_kernels import PATHS, CpuKernels, cpu_kernels
from tests.helpers.kernel_launches import Launch, PageRankOptions, launches_bytes, page_rank_launches, prune_launches
from ztdeploy.core.profile import data_folder

ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "110", "120")
#: `--write` replaces what stands between these lines.
BEGIN, END = "<!-- begin: python -m benchmarks.kernels -->", "<!-- end -->"
#: tokens, heads: DeiT-S at 224 pixels, DeiT-B at 384, ViT-L/14 at 518.
SHAPES = ((197, 6), (577, 12), (1370, 16))
BATCHES = (1, 8, 64)
ITERATIONS = (1, 5, 30)


@dataclass(frozen=True)
class Resources:
    """What one thread or block of a kernel takes."""

    kernel: str
    sm: str
    registers: int
    static_shared: int
    spills: int  #: bytes stored to local memory


def compile_and_read(architectures: Sequence[str]) -> list[Resources]:
    """Compile all kernels with nvcc, and read what ptxas says."""
    source = data_folder("plugins") / "kernels" / "kernels.cu"
    codes = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in architectures]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernels.fatbin"
        command = ["nvcc", "-std=c++17", "-Xptxas", "-v", "-fatbin", *codes, str(source), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"nvcc failed:\n{done.stderr}")
    return list(parse_ptxas(done.stderr))


def parse_ptxas(log: str) -> Iterator[Resources]:
    for part in log.split("Compiling entry function ")[1:]:
        names = re.match(r"'(\w+)' for 'sm_(\w+)'", part)
        registers = re.search(r"Used (\d+) registers", part)
        spills = re.search(r"(\d+) bytes spill stores", part)
        shared = re.search(r"(\d+) bytes smem", part)
        if names is None or registers is None or spills is None:
            sys.exit(f"cannot read what ptxas says:\n{part[:400]}")
        static = int(shared[1]) if shared else 0
        yield Resources(names[1], names[2], int(registers[1]), static, int(spills[1]))


def resource_table(rows: Sequence[Resources]) -> str:
    """Registers by kernel and architecture, and one line each for what should be 0 everywhere."""
    architectures = list(dict.fromkeys(row.sm for row in rows))
    kernels = sorted({row.kernel for row in rows})
    registers = {(row.kernel, row.sm): row.registers for row in rows}
    lines = [
        "| registers per thread | " + " | ".join(f"sm_{sm}" for sm in architectures) + " |",
        "| --- |" + " --- |" * len(architectures),
    ]
    for kernel in kernels:
        cells = (str(registers[kernel, sm]) for sm in architectures)
        lines.append(f"| `{kernel}` | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Most static shared memory of any kernel: {max(row.static_shared for row in rows)} bytes. "
        f"Most spilled to local memory: {max(row.spills for row in rows)} bytes.",
    ]
    return "\n".join(lines)


def time_kernels(device: str) -> dict[str, Any]:
    """Each operator's time per call on a GPU, beside what its memory traffic alone would take.

    On a CPU, which stands in for a GPU where this code is tried, only small shapes, and times that mean nothing.
    """
    on_gpu = device == "cuda"
    if on_gpu:
        from tests.helpers.gpu_kernels import GpuKernels

        kernels: CpuKernels = GpuKernels()
        bandwidth, name = copy_bandwidth(), _gpu_name()
    else:
        kernels, bandwidth, name = cpu_kernels(), 1e4, "CPU in place of a GPU"
    rows = []
    for (tokens, heads), batch, dtype in product(SHAPES, BATCHES, (np.float16, np.float32)):
        if not on_gpu and (tokens > 197 or batch > 1):
            continue
        for iterations in ITERATIONS if on_gpu else (1,):
            rows.append(time_page_rank(kernels, tokens, heads, batch, dtype, iterations, bandwidth))
        rows.append(time_prune(kernels, tokens, heads, batch, dtype, bandwidth))
    return {"device": name, "copy_gb_per_s": bandwidth / 1000, "rows": rows}


def time_page_rank(
    kernels: CpuKernels, tokens: int, heads: int, batch: int, dtype: type, iterations: int, bandwidth: float
) -> dict[str, Any]:
    """One weighted page rank. `limit_us`: what its path must read from the device's memory, or its L2 cache, at the
    speed of the device's memory: the attention matrix once where it is kept in shared memory, else in each iteration.
    """
    size = np.dtype(dtype).itemsize
    plan = kernels.page_rank_plan("auto", tokens, size, iterations, kernels.shared_limit)
    matrix = batch * heads * tokens * tokens * size
    attention = kernels.random((batch, heads, tokens, tokens), dtype)
    launches, _ = page_rank_launches(attention, None, plan, kernels.empty, PageRankOptions(iterations))
    took = microseconds(kernels, launches)
    return {
        "operator": "page rank",
        "tokens": tokens,
        "heads": heads,
        "batch": batch,
        "type": f"fp{8 * size}",
        "iterations": iterations,
        "path": PATHS[plan.path],
        "us": took,
        "once_us": matrix / bandwidth,
        "each_us": iterations * matrix / bandwidth,
    }


def time_prune(
    kernels: CpuKernels, tokens: int, heads: int, batch: int, dtype: type, bandwidth: float
) -> dict[str, Any]:
    """One similarity prune with heads 64 wide; its limit is reading scores and keys once, and writing survivors."""
    plan = kernels.similarity_plan(tokens, 1, 64, kernels.shared_limit)
    scores, keys = kernels.random((batch, tokens), np.float32), kernels.random((batch, heads, tokens, 64), dtype)
    launches, _ = prune_launches(scores, keys, plan, kernels.empty, drop=tokens // 6, prefix_tokens=1)
    return {
        "operator": "similarity prune",
        "tokens": tokens,
        "heads": heads,
        "batch": batch,
        "type": f"fp{8 * np.dtype(dtype).itemsize}",
        "us": microseconds(kernels, launches),
        "once_us": launches_bytes(launches) / bandwidth,
    }


def time_table(report: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"{report['device']} copies {report['copy_gb_per_s']:.0f} GB/s, read and written bytes counted. Beside each",
        "time stand the microseconds in which its input is read once at that speed, and A in each iteration.",
        "",
        "| operator | N | H | batch | type | iterations | path | us | once | each time |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        each = f"{row['each_us']:.1f}" if "each_us" in row else ""
        cells = (row["operator"], row["tokens"], row["heads"], row["batch"], row["type"], row.get("iterations", ""))
        measured = (row.get("path", ""), f"{row['us']:.1f}", f"{row['once_us']:.1f}", each)
        lines.append("| " + " | ".join(map(str, (*cells, *measured))) + " |")
    return "\n".join(lines)


def _gpu_name() -> str:
    import torch

    return str(torch.cuda.get_device_properties(0).name)


def copy_bandwidth() -> float:
    """Bytes per microsecond that a large copy on the GPU reads and writes."""
    import torch

    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / graph_microseconds(lambda: target.copy_(source), 1)


def microseconds(kernels: CpuKernels, launches: Sequence[Launch]) -> float:
    """Median time of launches on a GPU, in a graph of as many repetitions as take about a millisecond."""
    work = partial(kernels.run, launches)
    if type(kernels).__name__ == "CpuKernels":
        began = time.perf_counter()
        work()
        return 1e6 * (time.perf_counter() - began)
    once = graph_microseconds(work, 1, replays=3)
    return graph_microseconds(work, max(1, min(20, int(1000 / once))), replays=10)


def graph_microseconds(work: Callable[[], object], repeats: int, replays: int = 10) -> float:
    """Median time per repetition in a CUDA graph, so that what queues launches does not count."""
    import torch

    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            work()
    graph.replay()
    times: list[float] = []
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1000 * begin.elapsed_time(end) / repeats)
    return median(times)


def replace_section(path: Path, section: str) -> None:
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        sys.exit(f"{path} has no lines '{BEGIN}' and '{END}'")
    path.write_text(f"{before}{BEGIN}\n{section}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sm", nargs="+", default=ARCHITECTURES, help="architectures, such as 87")
    parser.add_argument("--json", action="store_true", help="registers and memory as JSON, and nothing else")
    parser.add_argument("--write", type=Path, help="a Markdown file whose table is replaced")
    parser.add_argument("--times", choices=("cuda", "cpu"), help="time the kernels; cpu only tries this code")
    parser.add_argument("--out", type=Path, help="times as JSON")
    arguments = parser.parse_args()
    if arguments.times:
        times = time_kernels(arguments.times)
        if arguments.out:
            arguments.out.write_text(json.dumps(times, indent=1), encoding="utf-8")
        print(time_table(times))
        return
    if shutil.which("nvcc") is None:
        sys.exit("nvcc is not on the PATH; install the CUDA toolkit, or nvidia-cuda-nvcc from PyPI")
    rows = compile_and_read(arguments.sm)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    table = resource_table(rows)
    print(table)
    if arguments.write:
        replace_section(arguments.write, table)


if __name__ == "__main__":
    main()
