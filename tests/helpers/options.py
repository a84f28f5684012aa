"""Which options and values the tests of methods run through, read off `MethodOptions` itself."""

from __future__ import annotations

from typing import Any

from ztdeploy.core.methods import COHERENCE_OPTIONS, METHODS
from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions, known_values

#: Options that make a measurement short. They stand behind others, and the last one counts.
QUICK = {
    "bench": ["--rounds", "6", "--duration", "0.1", "--warmup", "0"],
    "sweep": ["--rounds", "2", "--duration", "0.1", "--warmup", "0", "--no-details"],
}
LEAST = 0.4  #: a least similarity that some pairs have and others lack


def values_of(name: str) -> tuple[Any, ...]:
    if known_values(name):
        return known_values(name)
    default = getattr(DEFAULT_OPTIONS, name)
    numbers = (None, LEAST) if default is None else (default, default / 2 + 0.4)
    return numbers[::-1] if name in COHERENCE_OPTIONS else numbers  # others than the default meet `coherent = true`


def diagonal(method: str) -> list[MethodOptions]:
    """Every value of every option of a method at least once, in as few combinations as that takes."""
    values = {name: values_of(name) for name in sorted(METHODS[method].options)}
    most = max(len(one) for one in values.values())
    return [
        MethodOptions(**{name: one[(number + 1) % len(one)] for name, one in values.items()}) for number in range(most)
    ]


def case_name(case: Any) -> str:
    return case if isinstance(case, str) else str(case).replace(" = ", "=").replace(", ", "-") or "defaults"
