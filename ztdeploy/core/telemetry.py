"""Nothing leaves the device: the telemetry of libraries is switched off before they are imported.

- ONNX Runtime's packages open a queue of events for a host of Microsoft's when they are imported, and keep it with the
  id of the device in the user's cache. `ORT_DISABLE_TELEMETRY` is their own switch.
- OpenVINO's import sends an event through the package `openvino_telemetry`, which writes a client id and a count of
  uses into the user's home. Its only switch is a file there; without the package OpenVINO uses a stub of its own.
- `huggingface_hub` adds facts about the machine to its requests. `HF_HUB_DISABLE_TELEMETRY` is its own switch.

Telemetry that the user has switched on stays on: by a variable that says 0, or by Intel's `opt_in_out --opt_in`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_ONNXRUNTIME = "ORT_DISABLE_TELEMETRY"
_SWITCHES = (_ONNXRUNTIME, "HF_HUB_DISABLE_TELEMETRY")
_OPENVINO = "openvino_telemetry"
#: Intel's record of consent in the user's home; it holds "1" where consent was given.
_CONSENT = Path("intel") / "openvino_telemetry"


def switch_off() -> None:
    """Set the switches that libraries read when they are imported; child processes inherit them."""
    for name in _SWITCHES:
        if not os.environ.get(name):
            os.environ[name] = "1"


def stop_events(onnxruntime: ModuleType) -> None:
    """Stop the events of an ONNX Runtime that was imported before the switches were set."""
    if os.environ.get(_ONNXRUNTIME) not in ("0", "false"):
        onnxruntime.disable_telemetry_events()


@contextmanager
def without_openvino_telemetry() -> Iterator[None]:
    """A context to import OpenVINO in, where it does not find the package that sends events."""
    if _OPENVINO in sys.modules or _consented():
        yield
        return
    sys.modules[_OPENVINO] = None  # type: ignore[assignment]  # makes the import fail, by Python's definition
    try:
        yield
    finally:
        del sys.modules[_OPENVINO]


def _consented() -> bool:
    try:
        return (Path.home() / _CONSENT).read_text(encoding="utf-8").strip() == "1"
    except (OSError, RuntimeError, ValueError):  # no such file, no home, no text
        return False
