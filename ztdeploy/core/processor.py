"""What the processor can do: the one place that asks.

The kernel's report decides, because it lists only what the system lets programs use. `ZTDEPLOY_CPU_FLAGS` replaces the
report, such as "avx2 fma" for a processor without 8-bit dot products: for tests, and to build an engine as another
machine would. It changes what this package decides, not which kernels a runtime chooses. OpenVINO's kernels obey
oneDNN's own limit `ONEDNN_MAX_CPU_ISA`, which `onednn_processor` takes into account.
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

REPORT, ONEDNN_LIMIT = "ZTDEPLOY_CPU_FLAGS", "ONEDNN_MAX_CPU_ISA"
#: Instructions that sum products of 8-bit integers in 32 bits, of x86 and of Arm.
DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
#: Instructions that sum products of bf16 in fp32.
BF16_PRODUCTS = ("avx512_bf16", "amx_bf16")
#: Without 8-bit dot products, x86 kernels use `pmaddubsw`, which adds two products in 16 bits and saturates.
_PAIRWISE = frozenset({"ssse3", "avx2"})
_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
_CPUINFO = Path("/proc/cpuinfo")
#: The features of `DOT_PRODUCTS` and `BF16_PRODUCTS` that oneDNN uses under each limit; other limits keep all of them.
_LIMITS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("sse41", "avx", "avx2", "avx512_core"), frozenset()),
    **dict.fromkeys(("avx2_vnni", "avx2_vnni_2"), frozenset({"avx_vnni"})),
    "avx512_core_vnni": frozenset({"avx512_vnni"}),
    "avx512_core_bf16": frozenset({"avx512_vnni", "avx512_bf16"}),
    "avx512_core_fp16": frozenset({"avx512_vnni", "avx512_bf16", "avx_vnni"}),
}


@dataclass(frozen=True)
class Processor:
    """A report of what a processor can do."""

    features: frozenset[str]  #: the kernel's names; empty where it does not say
    machine: str = ""  #: as Python calls the architecture, such as "x86_64"

    @property
    def dot_products(self) -> tuple[str, ...]:
        """Its instructions for sums of products of 8-bit integers."""
        return tuple(name for name in DOT_PRODUCTS if name in self.features)

    @property
    def computes_bf16(self) -> bool:
        """Whether it has instructions for bf16. OpenVINO also claims this where it only emulates them."""
        return not self.features.isdisjoint(BF16_PRODUCTS)

    @property
    def loses_sums(self) -> bool:
        """Whether sums of products with 8-bit weights overflow, as on x86 without 8-bit dot products.

        An x86 processor that does not say what it can do counts as such a one, because 7-bit weights are right on all.
        """
        if not self.features:
            return self.machine.lower() in _X86
        return not self.dot_products and not self.features.isdisjoint(_PAIRWISE)

    def only(self, kept: frozenset[str]) -> Processor:
        """The same processor, of whose 8-bit dot products and bf16 products only these are left."""
        return Processor(self.features - (frozenset((*DOT_PRODUCTS, *BF16_PRODUCTS)) - kept), self.machine)


def processor(cpuinfo: Path = _CPUINFO) -> Processor:
    """This machine's, or what `ZTDEPLOY_CPU_FLAGS` says in its place."""
    found = os.environ.get(REPORT, "").replace(",", " ")
    if not found:
        with suppress(OSError):
            lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
            pairs = (line.partition(":") for line in lines)
            found = " ".join(value for key, _, value in pairs if key.strip() in ("flags", "Features"))
    return Processor(frozenset(found.split()), platform.machine())


def onednn_processor() -> Processor:
    """The processor as kernels of oneDNN, and so OpenVINO's, see it: no more than `ONEDNN_MAX_CPU_ISA` allows."""
    whole = processor()
    kept = _LIMITS.get(os.environ.get(ONEDNN_LIMIT, "").strip().lower())
    return whole if kept is None else whole.only(kept)
