"""Int8 engines on processors without 8-bit dot products: how they stay exact, and notes for users.

Kernels for such x86 processors add pairs of products in 16 bits. With weights of 7 bits every pair fits, and kernels
are as fast. An engine with 8-bit weights that was built on another processor runs there in slower, exact kernels: see
`exact_kernels` in each backend.
"""

from __future__ import annotations

import platform

from ztdeploy.core.processor import Processor
from ztdeploy.core.profile import HardwareProfile, Int8Options
from ztdeploy.target.backends import backend_of


def exact_here(profile: HardwareProfile) -> HardwareProfile:
    """The profile as it is built on this machine: with 7-bit weights where this processor would lose sums of 8-bit
    ones.

    A profile for another kind of processor (`machine`) is not changed, nor are activations by row, which OpenVINO
    computes in fp32 on such processors.
    """
    options = profile.int8 or Int8Options()
    if is_elsewhere(profile) or not _narrows(profile, options):
        return profile
    return profile.model_copy(update={"int8": options.model_copy(update={"weight_bits": 7})})


def is_elsewhere(profile: HardwareProfile) -> bool:
    """Whether the profile is for another kind of processor."""
    return profile.machine not in ("", platform.machine())


def _narrows(profile: HardwareProfile, options: Int8Options) -> bool:
    whole = profile.precision == "int8" and options.weight_bits == 8 and options.activations != "row"
    return whole and backend_of(profile).processor().loses_sums


def what_int8_lacks(here: Processor) -> str | None:
    """What this processor lacks for fast int8 engines; None where nothing is lacking or known."""
    if not here.features or here.dot_products:
        return None
    return "no 8-bit dot products (VNNI, or asimddp on Arm), so that int8 gains less over fp32"


def int8_note(profile: HardwareProfile) -> str | None:
    """A note for users of a profile's engines on this machine, if there is any."""
    options = profile.int8 or Int8Options()
    lacking = what_int8_lacks(backend_of(profile).processor()) if profile.precision == "int8" else None
    if lacking is None:
        return None
    if _narrows(profile, options):
        lacking += "; its weights of 8 bits take slower kernels here, which lose no sum"
        lacking += "" if is_elsewhere(profile) else ": built on this machine they would have 7"
    return f"profile '{profile.name}': the processor here has {lacking}"
