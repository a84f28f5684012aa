"""The kernels compile for every architecture, with nvcc and with NVRTC, and PTX is no newer than asked for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ptx
from helpers.errors import refused
from helpers.ptx import compile_ptx, isa_of, kernel_names, nvrtc_versions

from ztdeploy.core.errors import EnvironmentLacksError, InputError

ROOT = Path(__file__).parents[3]
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_110", "sm_120")
#: A board, and a desktop GPU; the others are part of the long tail.
COMMON = ("sm_87", "sm_89")
KERNELS = {
    *(f"zt_page_rank_heads_{kind}_{path}" for kind in ("f32", "f16") for path in ("shared", "l2")),
    *(f"{name}_{kind}" for name in ("zt_weighted_page_rank", "zt_weighted_page_rank_all") for kind in ("f32", "f16")),
    *(f"zt_similarity_prune_{kind}" for kind in ("f32", "f16")),
    "zt_join_heads",
}
INSTALLED = nvrtc_versions()

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
needs_nvrtc = pytest.mark.skipif(not INSTALLED, reason="no NVRTC wheel or library is installed")
needs_old_nvrtc = pytest.mark.skipif(
    all(nvrtc.version > (12, 6) for nvrtc in INSTALLED), reason="no NVRTC of CUDA 12.6 or older is installed"
)


def supporting(sm: str) -> bool:
    return any(ptx._knows(nvrtc, sm) for nvrtc in INSTALLED)


@needs_nvrtc
@pytest.mark.parametrize(
    "sm", [sm if sm in COMMON else pytest.param(sm, marks=pytest.mark.long) for sm in ARCHITECTURES]
)
def test_nvrtc_compiles_every_kernel(sm):
    if not supporting(sm):
        pytest.skip(f"no installed NVRTC knows {sm}")
    made = compile_ptx(sm)
    assert set(kernel_names(made.text)) == KERNELS
    assert made.sm == sm
    assert f".target {sm}" in made.text
    shared = [line for line in made.text.splitlines() if line.lstrip().startswith((".shared", ".extern .shared"))]
    assert all("extern" in line for line in shared), "static shared memory, which no launch plan counts"


@needs_nvrtc
@needs_old_nvrtc
def test_ptx_for_jetpack_6_is_no_newer_than_its_driver():
    made = compile_ptx("sm_87", max_isa=(8, 5))
    assert made.isa == isa_of(made.text) <= (8, 5)
    assert set(kernel_names(made.text)) == KERNELS


@needs_nvrtc
def test_the_newest_library_that_is_allowed_is_chosen():
    assert compile_ptx("sm_87").compiler == INSTALLED[0]
    assert [nvrtc.version for nvrtc in INSTALLED] == sorted((nvrtc.version for nvrtc in INSTALLED), reverse=True)


@needs_nvrtc
def test_limits_of_the_head_filter_are_compiled_in():
    """0.25 and 0.5 in hexadecimal; the limits of the single-launch kernels are no arguments."""
    text = compile_ptx("sm_87", variance_min=0.25, variance_max=0.5).text.lower()
    assert "0f3e800000" in text
    assert "0f3f000000" in text
    unlimited = compile_ptx("sm_87", variance_min=float("-inf"), variance_max=float("inf")).text.lower()
    assert "0f7f7fffff" in unlimited


@needs_nvrtc
def test_ptx_that_no_library_can_emit_is_refused():
    refused(
        lambda: compile_ptx("sm_87", max_isa=(3, 0)), "emits PTX", "PTX ISA 3.0 or older", kind=EnvironmentLacksError
    )


@needs_nvrtc
def test_an_architecture_that_no_library_knows_is_refused():
    refused(lambda: compile_ptx("sm_13"), "does not know sm_13", kind=EnvironmentLacksError)


@pytest.mark.parametrize("sm", ["87", "8.7", "sm_", "sm_8.7", "compute_87", "sm_87 -o x", ""])
def test_what_is_no_architecture_is_refused(sm):
    refused(lambda: compile_ptx(sm), f"'{sm}'", "'sm_87'", kind=InputError)


def test_limits_must_be_numbers():
    refused(lambda: compile_ptx("sm_87", variance_min=float("nan")), "not a number", kind=InputError)


def test_without_nvrtc_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ptx, "_library_paths", lambda: iter(()))
    assert nvrtc_versions() == ()
    refused(lambda: compile_ptx("sm_87"), "pip install nvidia-cuda-nvrtc", kind=EnvironmentLacksError)


def test_files_that_are_no_libraries_are_passed_over(monkeypatch, tmp_path):
    broken = tmp_path / "lib" / "libnvrtc.so.12"
    broken.parent.mkdir()
    broken.write_text("not a library")
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_fp16.h").touch()
    monkeypatch.setattr(ptx, "_library_paths", lambda: iter([broken, tmp_path / "lib" / "absent.so"]))
    assert nvrtc_versions() == ()


@needs_nvrtc
def test_kernels_that_do_not_compile_are_reported_with_the_compilers_words(monkeypatch, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "kernels.cu").write_text("this is not CUDA", encoding="utf-8")
    monkeypatch.setattr(ptx, "data_folder", lambda name: tmp_path)
    refused(lambda: compile_ptx("sm_87"), "refuses the kernels for sm_87", "error", kind=EnvironmentLacksError)


def test_text_that_is_no_ptx_is_refused():
    refused(lambda: isa_of("nothing"), ".version line", kind=InputError)


def resources(architectures: list[str]) -> list[dict[str, int | str]]:
    command = [sys.executable, "-m", "benchmarks.kernels", "--json", "--sm", *architectures]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_resources(architectures: list[str]) -> None:
    rows = resources(architectures)
    assert {(row["kernel"], row["sm"]) for row in rows} == {(name, sm) for name in KERNELS for sm in architectures}
    for row in rows:
        assert row["spills"] == 0, row
        assert row["static_shared"] <= 48 * 1024, row
        # 1024 threads share 65536 registers.
        assert row["registers"] <= (128 if "prune" in row["kernel"] else 64), row


@needs_nvcc
def test_nvcc_spills_nothing_on_orin():
    check_resources(["87"])


@needs_nvcc
@pytest.mark.long
def test_nvcc_spills_nothing_on_any_architecture():
    check_resources([sm.removeprefix("sm_") for sm in ARCHITECTURES])
