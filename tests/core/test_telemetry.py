"""Nothing leaves the device: what a child process with a fresh home writes, and which sockets it opens."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import ztdeploy
from ztdeploy.core import telemetry

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
RUN = "import sys, ztdeploy\nwith ztdeploy.load(sys.argv[1]) as runner: runner(sys.argv[2])"
OPENVINO = "import ztdeploy\nfrom ztdeploy.target.backends.openvino import load_openvino\nload_openvino()"


def watched(code: str, *arguments: Path, home: Path, **extra: str) -> tuple[list[str], list[str]]:
    """The files that Python left in a fresh home, and the sockets that it opened to anywhere but this machine."""
    home.mkdir()
    shell = {
        name: value for name, value in os.environ.items() if "TELEMETRY" not in name and not name.startswith("XDG")
    }
    trace = home.parent / "calls"
    strace = (
        ["strace", "-f", "-qq", "-e", "trace=connect,sendto,socket", "-o", str(trace)] if shutil.which("strace") else []
    )
    command = [*strace, sys.executable, "-B", "-c", code, *map(str, arguments)]
    environment = {**shell, "HOME": str(home), "PYTHONPATH": str(CHECKOUT), **extra}
    subprocess.run(command, env=environment, check=True, timeout=100)
    calls = trace.read_text() if strace else ""
    return sorted(str(path.relative_to(home)) for path in home.rglob("*")), re.findall(r"socket\(AF_INET.*", calls)


def test_an_image_is_classified_and_nothing_is_sent_or_left(digits_bundle, digit_images, tmp_path):
    assert watched(RUN, digits_bundle, digit_images[0], home=tmp_path / "home") == ([], [])


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_is_imported_and_nothing_is_sent_or_left(tmp_path):
    assert watched(OPENVINO, home=tmp_path / "home") == ([], [])


def test_whoever_has_switched_it_on_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "")
    telemetry.switch_off()
    assert (os.environ["ORT_DISABLE_TELEMETRY"], os.environ["HF_HUB_DISABLE_TELEMETRY"]) == ("0", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "intel").mkdir()
    for consent in (None, "0", "1"):
        monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
        if consent is not None:
            (tmp_path / "intel" / "openvino_telemetry").write_text(consent)
        with telemetry.without_openvino_telemetry():
            hidden = "openvino_telemetry" in sys.modules
        assert hidden == (consent != "1")
        assert "openvino_telemetry" not in sys.modules


@pytest.mark.parametrize(("value", "stopped"), [("1", True), ("0", False), ("false", False), ("true", True)])
def test_events_of_an_earlier_import_are_stopped(monkeypatch, value, stopped):
    called = []
    module = type("onnxruntime", (), {"disable_telemetry_events": staticmethod(lambda: called.append(1))})
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value)
    telemetry.stop_events(module)
    assert bool(called) == stopped
