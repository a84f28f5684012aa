"""What a processor reports, what oneDNN's limit leaves of it, and what follows for int8 and bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.processes import CHECKOUT
from helpers.processors import ARM, WITH_DOT_PRODUCTS, WITHOUT_DOT_PRODUCTS

from ztdeploy.core.processor import (
    BF16_PRODUCTS,
    DOT_PRODUCTS,
    ONEDNN_LIMIT,
    REPORT,
    Processor,
    onednn_processor,
    processor,
)


@pytest.fixture(autouse=True)
def _nothing_faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REPORT, raising=False)
    monkeypatch.delenv(ONEDNN_LIMIT, raising=False)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (b"processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\nflags\t\t: fpu avx2\n", {"fpu", "avx2", "avx512_bf16"}),
        (b"processor\t: 0\nFeatures\t: fp asimd\n", {"fp", "asimd"}),
        (b"vmx flags\t: ept\nmodel name\t: flags: none\n", set()),
        (b"model name\t: \xff\xfe\nflags : avx2\n", {"avx2"}),
        (b"", set()),
        (None, set()),
    ],
)
def test_the_kernels_report(tmp_path: Path, text: bytes | None, flags: set[str]) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_bytes(text)
    assert processor(tmp_path / "cpuinfo").features == flags


@pytest.mark.parametrize(
    ("board", "products"),
    [("raspberry-pi4", ()), ("raspberry-pi5", ("asimddp",)), ("jetson-thor", ("asimddp", "i8mm"))],
)
def test_reports_of_boards(board: str, products: tuple[str, ...]) -> None:
    here = processor(CHECKOUT / "tests" / "arm64" / "boards" / board / "proc" / "cpuinfo")
    assert (here.dot_products, here.loses_sums) == (products, False)


@pytest.mark.parametrize("report", ["avx2,fma", " avx2  fma ", "avx2\tfma"])
def test_a_report_can_be_faked(monkeypatch: pytest.MonkeyPatch, report: str) -> None:
    monkeypatch.setenv(REPORT, report)
    assert processor().features == {"avx2", "fma"}
    assert processor().machine, "which is never faked"
    monkeypatch.setenv(REPORT, "")
    assert processor() == processor(Path("/proc/cpuinfo"))


@pytest.mark.parametrize(
    ("report", "machine", "loses"),
    [
        (WITHOUT_DOT_PRODUCTS, "x86_64", True),
        ("ssse3", "x86_64", True),
        ("avx2 avx512f avx512bw", "x86_64", True),
        (WITH_DOT_PRODUCTS, "x86_64", False),
        ("avx2 avx_vnni", "x86_64", False),
        ("sse2", "x86_64", False),
        ("", "x86_64", True),
        ("", "AMD64", True),
        ("", "aarch64", False),
        ("fp asimd", "aarch64", False),
        (ARM, "aarch64", False),
    ],
)
def test_which_processors_lose_sums(report: str, machine: str, loses: bool) -> None:
    assert Processor(frozenset(report.split()), machine).loses_sums is loses


@pytest.mark.parametrize("flag", [*BF16_PRODUCTS, "avx512f", *DOT_PRODUCTS])
def test_which_flags_mean_what(flag: str) -> None:
    here = Processor(frozenset({"fpu", flag}))
    assert here.computes_bf16 is (flag in BF16_PRODUCTS)
    assert here.dot_products == ((flag,) if flag in DOT_PRODUCTS else ())


@pytest.mark.parametrize(
    ("limit", "dot_products", "bf16"),
    [
        ("", DOT_PRODUCTS[:3], True),
        ("ALL", DOT_PRODUCTS[:3], True),
        ("a limit of tomorrow", DOT_PRODUCTS[:3], True),
        ("AVX512_CORE_AMX", DOT_PRODUCTS[:3], True),
        ("AVX512_CORE_FP16", DOT_PRODUCTS[:2], True),
        ("AVX512_CORE_BF16", DOT_PRODUCTS[:1], True),
        ("avx512_core_vnni", DOT_PRODUCTS[:1], False),
        ("AVX2_VNNI", DOT_PRODUCTS[1:2], False),
        ("AVX512_CORE", (), False),
        ("AVX2", (), False),
        (" avx2 ", (), False),
        ("SSE41", (), False),
    ],
)
def test_what_onednns_limit_leaves(
    monkeypatch: pytest.MonkeyPatch, limit: str, dot_products: tuple[str, ...], bf16: bool
) -> None:
    monkeypatch.setenv(REPORT, "avx2 avx512f avx512_vnni avx_vnni amx_int8 avx512_bf16 amx_bf16")
    monkeypatch.setenv(ONEDNN_LIMIT, limit)
    here = onednn_processor()
    assert (here.dot_products, here.computes_bf16, here.loses_sums) == (dot_products, bf16, not dot_products)
    assert processor().dot_products == DOT_PRODUCTS[:3], "others do not obey it"
