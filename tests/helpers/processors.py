"""Processors of either kind: what this one has, what another would report, and how to run the other's kernels.

`ZTDEPLOY_CPU_FLAGS` fakes the report, so that decisions are those of the other processor. Kernels stay this one's: for
OpenVINO `ONEDNN_MAX_CPU_ISA` limits them, for ONNX Runtime only emulation does (how: docs/explanation/precision.md).
"""

from __future__ import annotations

import pytest

from ztdeploy.core.processor import ONEDNN_LIMIT, REPORT, onednn_processor, processor

#: Reports, each for `REPORT`: x86 as of 2013, as of 2019, and a Raspberry Pi 5.
WITHOUT_DOT_PRODUCTS, WITH_DOT_PRODUCTS, ARM = "fpu ssse3 avx2 fma", "avx2 avx512f avx512_vnni", "fp asimd asimddp"
WITHOUT_BF16 = WITH_DOT_PRODUCTS

needs_bf16 = pytest.mark.skipif(not onednn_processor().computes_bf16, reason="this processor does not compute in bf16")
needs_dot_products = pytest.mark.skipif(processor().loses_sums, reason="this processor has no 8-bit dot products")
needs_x86 = pytest.mark.skipif("avx2" not in processor().features, reason="only x86 kernels lose sums of products")


def pretending(report: str, limit: str | None = None) -> str:
    """What a command runs first to be told that it is on another processor, with OpenVINO's kernels limited."""
    lines = [f"import os; os.environ[{REPORT!r}] = {report!r}"]
    return "\n".join([*lines, *([f"os.environ[{ONEDNN_LIMIT!r}] = {limit!r}"] if limit else []), ""])
