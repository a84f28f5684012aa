"""What the processor can do, as the kernel lists it."""

from __future__ import annotations

from pathlib import Path

#: Instruction sets with products of bf16.
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Names of instruction sets, such as "avx2" or "asimd"; none where the system lists none."""
    flags = set[str]()
    try:
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    except OSError:
        pass
    return frozenset(flags)


def computes_bf16() -> bool:
    """Whether products of bf16 are computed as such; OpenVINO by itself says so wherever it can emulate them."""
    return bool(cpu_flags() & BF16_FLAGS)
