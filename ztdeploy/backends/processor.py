"""What the processor has for products of 8-bit integers and of bf16."""

from __future__ import annotations

import platform
from pathlib import Path

from ztdeploy.profile import HardwareProfile, Int8Options

#: Instructions that sum products of 8-bit integers in 32 bits.
DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
#: Those that sum products of bf16 in fp32.
BF16_PRODUCTS = frozenset({"avx512_bf16", "amx_bf16"})
_CPUINFO = Path("/proc/cpuinfo")


def cpu_features(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """The kernel's names of what the processor can do; empty where it does not say."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    pairs = [line.partition(":") for line in lines]
    return frozenset(word for key, _, value in pairs if key.strip() in ("flags", "Features") for word in value.split())


def computes_bf16() -> bool:
    """Whether products of bf16 are computed as such; OpenVINO by itself says so wherever it can emulate them."""
    return bool(cpu_features() & BF16_PRODUCTS)


def what_int8_lacks(features: frozenset[str], options: Int8Options | None = None) -> str | None:
    """What an int8 engine costs on a processor with such features; None where it has what it takes, or does not say."""
    if not features or features.intersection(DOT_PRODUCTS):
        return None
    lacking = "no 8-bit dot products (VNNI): int8 engines gain little over fp32"
    if "avx2" in features and (options or Int8Options()).weight_bits == 8:
        lacking += ", and sums of products may overflow 16 bits unless the profile says weight_bits = 7 under [int8]"
    return lacking


def int8_warning(profile: HardwareProfile, features: frozenset[str] | None = None) -> str | None:
    """What to tell whoever builds for a profile on this machine, if anything."""
    if profile.precision != "int8":
        return None
    lacking = what_int8_lacks(cpu_features() if features is None else features, profile.int8)
    return lacking and f"profile '{profile.name}': the {platform.machine()} processor here has {lacking}"
