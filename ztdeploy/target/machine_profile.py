"""The profile that a build without `--profile` takes: the best that this machine runs and that changes no answers."""

from __future__ import annotations

from typing import NamedTuple

from ztdeploy.core.kernel_files import at, text
from ztdeploy.core.processor import processor
from ztdeploy.core.profile import read_profile
from ztdeploy.target.backends import why_not_build, why_not_run

#: What a board's device tree calls it, and its profile; the first that fits counts.
BOARDS = {
    "Orin Nano": "jetson-orin-nano",
    "Orin": "jetson-orin",  # AGX Orin and Orin NX
    "Thor": "jetson-thor",
    "Raspberry Pi 5": "raspberry-pi5",  # and the 500
    "Raspberry Pi Compute Module 5": "raspberry-pi5",
}
#: What any machine takes, in order: the second where the first one's runtime is not installed.
EVERYWHERE = ("cpu", "cpu-openvino")


class MachineProfile(NamedTuple):
    """A shipped profile, and why it is the one for this machine."""

    name: str
    reason: str  #: a clause without a full stop


def profile_for_this_machine() -> MachineProfile:
    """The shipped profile whose engines this machine builds and runs best without a change of precision to int8.

    A board takes its own profile, if the runtime is there; otherwise, and on all other machines, it is `cpu`. Int8
    changes answers: it is never chosen unasked, and the reason names it where the processor is made for it.
    """
    board = board_name()
    own = next((name for part, name in BOARDS.items() if board and part in board), None)
    lacking = None if own is None else _lacks(own)
    if own is not None and lacking is None:
        return MachineProfile(own, f"this machine is a {board}{_int8_note(own)}")
    name = next((one for one in EVERYWHERE if _lacks(one) is None), EVERYWHERE[0])
    reason = "it runs on every 64-bit processor" if own is None else f"'{own}' is left out, since here is {lacking}"
    return MachineProfile(name, reason + _int8_note(name))


def board_name() -> str | None:
    """Such as "Raspberry Pi 5 Model B Rev 1.0"; None where there is no device tree, as on a PC."""
    return text(at("proc/device-tree/model"))


def _lacks(name: str) -> str | None:
    """What keeps this machine from building or running a shipped profile's engines."""
    profile = read_profile(name)
    return why_not_build(profile) or why_not_run(profile)


def _int8_note(name: str) -> str:
    """What int8 would gain on a processor with instructions for it."""
    found = processor().dot_products
    twin = {"cpu": "cpu-int8", "cpu-openvino": "cpu-openvino-int8", "raspberry-pi5": "raspberry-pi5-int8"}.get(name)
    if not found or twin is None:
        return ""
    return f"; '{twin}' would be faster with {found[0]}, but int8 changes answers and is for you to choose"
