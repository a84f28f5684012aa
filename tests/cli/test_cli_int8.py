"""OpenVINO's int8 engines where its kernels have no 8-bit dot products: built in a form that is exact there."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.processes import run_ztdeploy
from helpers.processors import needs_x86

from ztdeploy.core.processor import ONEDNN_LIMIT

pytestmark = [pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed"), needs_x86]
#: OpenVINO's kernels then are those that add pairs of products in 16 bits.
LIMITED = f"import os; os.environ[{ONEDNN_LIMIT!r}] = 'AVX2'\n"
#: Profiles, and how many bits their weights have then: what is for another processor keeps 8, and is computed in fp32.
FORMS = {
    'activations = "uint8"': 7,
    'activations = "int8"': 7,
    'activations = "uint8"\nweight_bits = 7': 7,
    'activations = "row"': 8,
    'machine = "riscv64"\n[int8]\nactivations = "uint8"': 8,
}


@pytest.mark.parametrize(("options", "bits"), FORMS.items())
@pytest.mark.short('uint8"-7', "row")
def test_no_sum_is_lost(tmp_path: Path, options: str, bits: int) -> None:
    section = "" if "[int8]" in options else "[int8]\n"
    (tmp_path / "mine.toml").write_text(
        f'title = "T"\nbackend = "openvino"\nprecision = "int8"\n{section}{options}\n', encoding="utf-8"
    )
    build = ("build", "-m", "vit_digits", "-p", "mine.toml", "-k", "0.7", "-o", "out")
    done = run_ztdeploy(*build, cwd=tmp_path, first=LIMITED)
    assert done.code == 0, done
    inspected = run_ztdeploy("inspect", "out", "--json", cwd=tmp_path).json()
    assert inspected["profiles"]["mine"]["int8"]["weight_bits"] == bits
    adapted = bits == 7 and "weight_bits" not in options
    assert [one["profile"] for one in inspected["adapted"]] == (["mine"] if adapted else [])
    assert ("has weights of 7 bits instead of 8" in done.err) is adapted
    errors = [engine["parity"]["layer_error"] for one in inspected["variants"] for engine in one["engines"].values()]
    assert len(errors) == 2
    assert max(errors) < 5e-6, "in fp32; lost sums are off by percents"
