"""What a model may cost on its target, as a person writes it: `gmacs=3.0`, `latency_ms=30`, `speedup=1.5`, ..."""

from __future__ import annotations

import math
from typing import Literal, get_args

from ztdeploy.core.errors import InputError, did_you_mean
from ztdeploy.core.records import Record

#: `gmacs`: per image, as `plan_gmacs` counts; `reduction`: the share of dense's multiply-adds that is saved;
#: `latency_ms`: per call on this machine; `speedup`: dense's latency over it.
Kind = Literal["gmacs", "reduction", "latency_ms", "speedup"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: What a search without a budget covers, as shares of dense's cost: the whole front.
FRONT = (0.5, 0.85)


class Budget(Record):
    """One limit."""

    kind: Kind
    value: float

    @property
    def in_time(self) -> bool:
        """Whether it is kept by being fast, rather than by computing little."""
        return self.kind in ("latency_ms", "speedup")

    def limit(self, dense: float) -> float:
        """The highest cost, in the unit of `dense`, which is what the dense model costs: GMACs or milliseconds."""
        if self.kind == "reduction":
            return dense * (1 - self.value)
        return dense / self.value if self.kind == "speedup" else self.value

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"


def parse_budget(text: str) -> Budget:
    """
    Raises:
        InputError: not `name=number`, an unknown name, or a number that no budget can have.
    """
    name, sign, number = (part.strip() for part in text.partition("="))
    if not sign:
        raise InputError(f"--budget '{text}'", "a name and a number, such as reduction=0.35", "correct --budget")
    if name not in KINDS:
        raise InputError(f"--budget '{text}'", f"one of {', '.join(KINDS)}", did_you_mean(name, KINDS))
    try:
        value = float(number)
    except ValueError as error:
        raise InputError(f"--budget '{text}'", f"a number behind {name}=", "correct --budget") from error
    ranges = {"reduction": (0.0, 1.0), "speedup": (1.0, math.inf)}
    low, high = ranges.get(name, (0.0, math.inf))
    if not low < value < high:
        between = f"a number above {low:g}" if math.isinf(high) else f"a number between {low:g} and {high:g}"
        raise InputError(f"--budget '{text}'", between, "correct --budget")
    return Budget(kind=name, value=value)
