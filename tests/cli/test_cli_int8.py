"""OpenVINO's int8 engines on a processor without 8-bit dot products: refused, or with seven bits in order."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.processes import run_ztdeploy

from ztdeploy.backends.processor import cpu_features

pytestmark = [
    pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed"),
    pytest.mark.skipif("avx2" not in cpu_features(), reason="only x86 processors can be told to do without"),
]
#: OpenVINO's kernels then are those that add pairs of products in 16 bits.
WITHOUT_DOT_PRODUCTS = "import os; os.environ['ONEDNN_MAX_CPU_ISA'] = 'AVX2'"


@pytest.mark.parametrize("bits", [8, 7])
def test_kernels_that_lose_sums_are_found_out(tmp_path: Path, bits: int) -> None:
    (tmp_path / "mine.toml").write_text(
        f'title = "T"\nbackend = "openvino"\nprecision = "int8"\n[int8]\nactivations = "uint8"\nweight_bits = {bits}\n'
    )
    build = ("build", "-m", "vit_digits", "-p", "mine.toml", "-k", "0.7", "-o", "out")
    done = run_ztdeploy(*build, cwd=tmp_path, first=WITHOUT_DOT_PRODUCTS)
    if bits == 8:
        assert done.code == 5
        assert "keep-0.70 (mine): integer products on this CPU are not exact" in done.error
        assert "weight_bits = 7" in done.error
        assert not (tmp_path / "out").exists()
        return
    assert done.code == 0
    inspected = run_ztdeploy("inspect", "out", "--json", cwd=tmp_path).json()
    errors = [engine["parity"]["layer_error"] for one in inspected["variants"] for engine in one["engines"].values()]
    assert len(errors) == 2
    assert max(errors) < 1e-6
