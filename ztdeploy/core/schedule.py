"""What a schedule says: where pruning layers stand and how much each keeps. `core/plan.py` makes token counts of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ztdeploy.core.arguments import shown
from ztdeploy.core.data import errors_of, read_settings
from ztdeploy.core.errors import ScheduleError, did_you_mean
from ztdeploy.core.kept_counts import with_layers
from ztdeploy.core.methods import DEFAULT_METHOD
from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions, known_range, known_values
from ztdeploy.core.records import FiniteRecord

MOST_BLOCKS, MOST_TOKENS = 1000, 10**6  #: of any model; a file that asks for more is mistaken


class Architecture(FiniteRecord):
    """The sizes of a plain vision transformer that schedules, plans and costs depend on."""

    depth: int = Field(ge=1, le=2**10)  #: number of blocks
    embed_dim: int = Field(ge=1, le=2**16)
    num_heads: int = Field(ge=1, le=2**12)
    mlp_dim: int = Field(ge=0, le=2**20)
    patch_tokens: int = Field(ge=1, le=2**24)
    prefix_tokens: int = Field(ge=0, le=2**16)
    class_token: bool
    patch_dim: int = Field(ge=0, le=2**24)  #: multiply-adds per patch and output channel of the patch embedding
    num_classes: int = Field(ge=0, le=2**24)
    #: Rows and columns of patches. None in bundles of older versions, whose grids are square.
    grid: tuple[int, int] | None = None
    #: How many of the first tokens the head reads. None: all of them, or the bundle is of an older version.
    read_tokens: int | None = Field(default=None, ge=1, le=2**16)
    #: Multiply-adds of an image outside of the blocks and the patch embedding, where a whole module takes the images.
    around_macs: int = Field(default=0, ge=0, le=2**50)
    reads_grid: bool = False  #: what reads the tokens needs one for each position, as features and maps do

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """The grid of patches, which are counted row by row."""
        side = math.isqrt(self.patch_tokens)
        return self.grid or (side, self.patch_tokens // max(1, side))

    @property
    def tokens(self) -> int:
        return self.prefix_tokens + self.patch_tokens


class LayerSpec(FiniteRecord):
    """One pruning layer as a person writes it; `block` counts from 1."""

    block: int = Field(ge=1, le=MOST_BLOCKS)
    keep_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    drop: int | None = Field(default=None, ge=0, le=MOST_TOKENS)  #: number of tokens to drop, instead of a keep ratio
    similarity_share: Annotated[float, Field(ge=0, le=1)] = 0.5  #: of the dropped tokens, by the S-stage
    similarity_drop: int | None = Field(default=None, ge=0, le=MOST_TOKENS)  #: explicit `r`; overrides the share
    iterations: int | None = Field(default=None, ge=1, le=1000)  #: None: by position

    @model_validator(mode="after")
    def _either_ratio_or_count(self) -> LayerSpec:
        if (self.keep_ratio is None) == (self.drop is None):
            raise ValueError("either keep_ratio or drop is needed, and not both")
        return self


class PruningSchedule(FiniteRecord):
    """Where pruning layers stand. A schedule without layers is the baseline."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    method: str = DEFAULT_METHOD
    keep_ratio: Annotated[float, Field(gt=0, le=1)] | None = None  #: the ratio that it was made from, if any
    options: MethodOptions = DEFAULT_OPTIONS
    depth: int | None = Field(default=None, ge=1, le=MOST_BLOCKS)  #: blocks of the models that it is for; None: any
    tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)  #: their tokens, prefix tokens included; None: any
    layers: tuple[LayerSpec, ...] = Field(default=(), alias="layer")

    model_config = ConfigDict(populate_by_name=True)


def read_schedule(path: Path) -> PruningSchedule:
    """Read a schedule from a TOML or JSON file. Its name defaults to the file's stem.

    Raises:
        ScheduleError: the file is unreadable, not TOML or JSON, or has an unknown key or a value out of range.
    """
    data = read_settings(path, what="schedule file", error=ScheduleError, expected="a TOML or JSON file")
    return parse_schedule(data, path)


def parse_schedule(data: Any, path: Path) -> PruningSchedule:
    """A schedule from what a file holds; `path` names it.

    Raises:
        ScheduleError: as `read_schedule`.
    """
    if data == {}:
        raise ScheduleError(f"schedule file '{path}' is empty", "[[layer]] tables", "give the file that was meant")
    if isinstance(data, dict):
        data = with_layers({"name": path.stem.lower().replace(" ", "-"), **data}, path)
    try:
        schedule = PruningSchedule.model_validate(data)
    except ValidationError as error:
        raise _schedule_error(path, errors_of(error)[0]) from error
    if schedule.keep_ratio not in (None, 1) and not schedule.layers:
        raise ScheduleError(
            f"schedule file '{path}' has a keep_ratio and no [[layer]]",
            "where its layers stand",
            "add [[layer]] tables, or leave the file out and give --keep-ratio",
        )
    return schedule


def _schedule_error(path: Path, first: ErrorDetails) -> ScheduleError:
    where = ".".join(map(str, first["loc"])) or "the file"
    if first["loc"][:1] != ("options",) or len(first["loc"]) == 1:
        return ScheduleError(
            f"schedule file '{path}': {where}: {first['msg']} (got {shown(first['input'])})",
            "[[layer]] tables with block, keep_ratio or drop, perhaps similarity_share, similarity_drop, iterations;"
            " perhaps [options]",
            f"correct {where}",
        )
    name, found = str(first["loc"][1]), first["input"]
    if name not in MethodOptions.model_fields:
        hint = did_you_mean(name, MethodOptions.model_fields)
        return ScheduleError(f"schedule file '{path}': unknown option '{name}'", "a known option", hint)
    value = found if isinstance(found, str) else shown(found)
    known = [str(value).lower() for value in known_values(name)]
    return ScheduleError(
        f"schedule file '{path}': option {name} = {value}",
        f"one of {', '.join(known)}" if known else "a number from {:g} to {:g}".format(*known_range(name)),
        did_you_mean(value, known) if known else f"correct {where}",
    )
