"""Which profile a build without one takes."""

from __future__ import annotations

import pytest
from helpers.bench import faked
from helpers.machines import plant

from ztdeploy.core.processor import REPORT
from ztdeploy.core.profile import profile_names, read_profile
from ztdeploy.target import machine_profile
from ztdeploy.target.machine_profile import BOARDS, EVERYWHERE, profile_for_this_machine


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """The profile of a board, on which some profiles cannot be built."""

    def chosen(board: str | None, flags: str = "avx2", lacking: tuple[str, ...] = ()) -> tuple[str, str]:
        monkeypatch.setenv(REPORT, flags)
        monkeypatch.setattr(machine_profile, "why_not_run", lambda _: None)
        monkeypatch.setattr(
            machine_profile, "why_not_build", lambda one: "no TensorRT" if one.name in lacking else None
        )
        files = {"proc/none": ""} | ({"proc/device-tree/model": f"{board}\0"} if board else {})
        with faked(plant(tmp_path, files)):
            return profile_for_this_machine()

    return chosen


@pytest.mark.parametrize(
    ("board", "name"),
    [
        (None, "cpu"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "jetson-orin"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "jetson-orin"),
        ("NVIDIA Jetson Orin Nano Developer Kit", "jetson-orin-nano"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "jetson-thor"),
        ("NVIDIA Jetson Xavier NX Developer Kit", "cpu"),
        ("Raspberry Pi 5 Model B Rev 1.0", "raspberry-pi5"),
        ("Raspberry Pi Compute Module 5 Rev 1.0", "raspberry-pi5"),
        ("Raspberry Pi 4 Model B Rev 1.5", "cpu"),
    ],
)
def test_a_board_takes_its_own_profile(chosen, board, name):
    found, reason = chosen(board)
    assert found == name
    if name != "cpu":
        assert board in reason


def test_a_board_without_its_runtime_takes_what_runs(chosen):
    found, reason = chosen("NVIDIA Jetson AGX Orin Developer Kit", lacking=("jetson-orin",))
    assert found == "cpu"
    assert "jetson-orin" in reason
    assert "no TensorRT" in reason


def test_without_onnx_runtime_it_is_openvino(chosen):
    assert chosen(None, lacking=("cpu",))[0] == "cpu-openvino"


@pytest.mark.parametrize("board", [None, "Raspberry Pi 5 Model B Rev 1.0"])
def test_int8_is_named_where_it_would_be_faster_and_never_chosen(chosen, board):
    for flags in ("avx512_vnni", "asimddp"):
        found, reason = chosen(board, flags)
        assert read_profile(found).precision != "int8"
        assert f"'{found}-int8'" in reason
        assert flags in reason
    assert "int8" not in chosen(board, "avx2")[1]


def test_the_tables_name_shipped_profiles():
    assert {*BOARDS.values(), *EVERYWHERE} <= set(profile_names())
