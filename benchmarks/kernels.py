"""The TensorRT plugins' kernels: what the compiler made of them and, on a GPU, what they cost.

    python -m benchmarks.kernels [--sm 75 87 ...] [--json] [--write docs/kernels.md]

Registers, static shared memory and spills need nvcc; times need a CUDA GPU, which times launches against the least
that reading the attention matrix once must take.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

from ztdeploy.profile import data_folder

ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "110", "120")
#: `--write` replaces what stands between these lines.
BEGIN, END = "<!-- begin: python -m benchmarks.kernels -->", "<!-- end -->"
#: tokens, heads: DeiT-Tiny and DeiT-S at 224, DeiT-B at 384, ViT-L at 448.
SHAPES = ((197, 3), (197, 6), (577, 12), (1025, 16))


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


def time_table() -> str:
    """Median time of a weighted page rank on this GPU, by path, beside the least that memory allows."""
    import torch

    from tests.helpers.cpu_kernels import PATHS, cpu_kernels
    from tests.helpers.gpu_kernels import GpuKernels, page_rank_launches

    gpu, bandwidth = GpuKernels(), copy_bandwidth()
    lines = [
        f"{torch.cuda.get_device_properties(0).name}; copies {bandwidth / 1000:.0f} GB/s",
        "",
        "| N | H | type | iterations | path | us | us to read A once |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (tokens, heads), dtype in product(SHAPES, (torch.float16, torch.float32)):
        attention = torch.softmax(torch.randn(1, heads, tokens, tokens, device="cuda"), -1).to(dtype)
        least = attention.numel() * attention.element_size() / bandwidth
        for iterations, path in product((1, 5, 30), PATHS[1:]):
            size = attention.element_size()
            plan = cpu_kernels().page_rank_plan(path, tokens, size, iterations, gpu.shared_limit)
            if plan.path:
                launches, _ = page_rank_launches(attention, None, plan, iterations=iterations)
                took = microseconds(partial(gpu.run, launches))
                lines.append(
                    f"| {tokens} | {heads} | fp{8 * size} | {iterations} | {path} | {took:.1f} | {least:.1f} |"
                )
    return "\n".join(lines)


def copy_bandwidth() -> float:
    """Bytes per microsecond, read and written."""
    import torch

    source = torch.empty(2**27, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / microseconds(partial(target.copy_, source))


def microseconds(work: Callable[[], object], repeats: int = 20) -> float:
    """Median time of work on the GPU, as part of a CUDA graph: what launching from Python costs is left out."""
    import torch

    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            work()
    times: list[float] = []
    for _ in range(20):
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
    arguments = parser.parse_args()
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
    import torch

    print(f"\n{time_table()}" if torch.cuda.is_available() else "\nNo CUDA GPU here: nothing is timed.")


if __name__ == "__main__":
    main()
