"""Reading the profile that ONNX Runtime writes of a session: what each node took in each call.

The profile is a file of trace events, times in whole microseconds. Of a call there is one event per node, whose name
ends in `_kernel_time`, in the order in which they ran, and behind them one `model_run`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ztdeploy.core.errors import EnvironmentLacksError
from ztdeploy.target.backends.base import NodeRun, ProfiledCall

_KERNEL = "_kernel_time"
_CALL = "model_run"


def read_profile(path: Path) -> tuple[ProfiledCall, ...]:
    """The calls in a profile that ONNX Runtime wrote.

    Raises:
        EnvironmentLacksError: the file is not what is expected.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
        return tuple(_calls(events))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise EnvironmentLacksError(
            f"a profile of ONNX Runtime {ort.__version__} that cannot be read ({type(error).__name__}: {error})"[:300],
            "the trace events of its nodes",
            "install another version of onnxruntime, or leave the details out",
        ) from error


def _calls(events: list[dict[str, Any]]) -> Iterator[ProfiledCall]:
    nodes: list[NodeRun] = []
    for event in events:
        kind, name = event["cat"], event["name"]
        if kind == "Node" and name.endswith(_KERNEL):
            nodes.append(_node(name.removesuffix(_KERNEL), event))
        elif kind == "Session" and name == _CALL:
            yield ProfiledCall(_ms(event), tuple(nodes))
            nodes = []


def _node(name: str, event: dict[str, Any]) -> NodeRun:
    given = event["args"]
    return NodeRun(
        name=name,
        operator=str(given["op_name"]),
        ms=_ms(event),
        inputs=_shapes(given.get("input_type_shape", [])),
        outputs=_shapes(given.get("output_type_shape", [])),
    )


def _shapes(listed: list[dict[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
    """From `[{"float": [1, 65, 96]}, ...]`: one type and shape per value."""
    return tuple(tuple(map(int, shape)) for entry in listed for shape in entry.values())


def _ms(event: dict[str, Any]) -> float:
    microseconds = float(event["dur"])
    if not (math.isfinite(microseconds) and microseconds >= 0):
        raise ValueError(f"a duration of {microseconds} microseconds")
    return microseconds / 1000
