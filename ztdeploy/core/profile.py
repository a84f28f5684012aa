"""Hardware profiles: what a device can run, as data. Adding one is adding a TOML file."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from ztdeploy.core.arguments import shown
from ztdeploy.core.data import errors_of, read_settings
from ztdeploy.core.errors import ProfileError, ScheduleError, did_you_mean
from ztdeploy.core.options import MethodOptions
from ztdeploy.core.preprocess_spec import ImageInput
from ztdeploy.core.records import FiniteRecord, Record
from ztdeploy.core.schedule import MOST_BLOCKS, MOST_TOKENS, LayerSpec, PruningSchedule

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Calibration = Literal["min-max", "percentile", "entropy"]
MOST_IMAGES = 65_536  #: in one batch


class BatchSizes(Record):
    """The batches of an engine. A dynamic axis takes any batch; `sizes` are the batches that are tuned and measured."""

    dynamic: bool = True
    sizes: tuple[Annotated[int, Field(ge=1, le=MOST_IMAGES)], ...] = Field(default=(1,), min_length=1)

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(sizes)))


class TensorRtOptions(Record):
    """Options of TensorRT and TensorRT-RTX alone."""

    workspace_mib: int = Field(default=1024, ge=16, le=2**20)
    compute_capabilities: tuple[str, ...] = ()  #: such as "8.7"; empty means the device that builds


class Int8Options(Record):
    """Options of precision int8 alone; docs/explanation/precision.md says what each costs."""

    #: Blocks before this one stay fp32. If it stands behind the first pruning layer, that layer chooses as in fp32.
    from_block: int = Field(default=0, ge=0, le=MOST_BLOCKS)
    #: With 7, no sum of two products exceeds the 16 bits that processors without VNNI have; there, 8 becomes 7.
    weight_bits: Literal[7, 8] = 8
    #: "dynamic": the range is measured at run time, over a whole call; "row": at run time, for each token by itself.
    #: Otherwise the range comes from calibration images: "uint8" with a zero point, "int8" without one.
    activations: Literal["dynamic", "row", "uint8", "int8"] = "dynamic"
    ranges: Calibration = "min-max"  #: how ranges come from calibration images
    #: Type of the blocks that are not int8, and of the other blocks' attention where no pruning layer reads it.
    rest: Literal["fp32", "bf16"] = "fp32"

    @property
    def static(self) -> bool:
        """Whether ranges come from calibration images."""
        return self.activations in ("uint8", "int8")

    @property
    def label(self) -> str:
        """The changed options, for file names: `from-4-w7`."""
        parts = {"from_block": f"from-{self.from_block}", "weight_bits": f"w{self.weight_bits}"}
        parts |= {name: getattr(self, name) for name in ("activations", "ranges", "rest")}
        return "-".join(part for name, part in parts.items() if getattr(self, name) != getattr(Int8Options(), name))


class HardwareProfile(FiniteRecord):
    """One target: its runtime, and the graph that suits it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    title: str
    backend: str  #: a name of the table of `ztdeploy.target.backends`
    opset: int = Field(default=20, ge=18, le=23)
    precision: Precision = "fp32"
    #: The kind of processor that engines are for, such as "aarch64", if it may differ from the builder's; "": any.
    machine: str = Field(default="", pattern=r"^[A-Za-z0-9_]{0,32}$")
    image_input: ImageInput = "uint8"  #: "uint8" puts the normalisation inside the graph
    batch: BatchSizes = BatchSizes()
    #: Built when none is asked for.
    keep_ratios: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(0.8,), min_length=1)
    #: Built instead of the keep ratios, if neither keep ratios nor methods are asked for; written as in schedule files.
    schedules: tuple[PruningSchedule, ...] = ()
    threads: int = Field(default=0, ge=0, le=1024)  #: 0: as many as the process may use
    notes: str = ""
    #: ONNX Runtime: blocks with at least this many tokens compute attention in one fused operator; None: no block.
    fused_attention_from: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    tensorrt: TensorRtOptions | None = None
    int8: Int8Options | None = None  #: None: the defaults
    #: Faster profiles that `build --precision auto` may ship instead, named as for `--profile`.
    candidates: tuple[str, ...] = ()

    @field_validator("int8")
    @classmethod
    def _has_integers(cls, options: Int8Options | None, info: ValidationInfo) -> Int8Options | None:
        if options is not None and info.data.get("precision") != "int8":
            raise ValueError("only precision int8 has such options")
        return options

    @field_validator("candidates")
    @classmethod
    def _is_the_reference(cls, candidates: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if candidates and info.data.get("precision") != "fp32":
            raise ValueError("only a profile of precision fp32 has candidates, which are held against it")
        return candidates


def profile_folder() -> Path:
    """Where the shipped profiles lie: inside the wheel, or at the top of a checkout."""
    return data_folder("profiles")


def data_folder(name: str) -> Path:
    """A folder of data that lies at the top of a checkout and inside the wheel."""
    package = Path(str(resources.files("ztdeploy")))
    installed = package / "data" / name
    return installed if installed.is_dir() else package.parent / name


def profile_names() -> list[str]:
    return sorted(path.stem for path in profile_folder().glob("*.toml"))


def schedule_names() -> list[str]:
    """Schedules that are shipped beside the profiles; their files say where they come from."""
    return sorted(path.stem for path in (profile_folder() / "schedules").glob("*.toml"))


def schedule_path(given: Path) -> Path:
    """The file of a shipped schedule by its name, or any other path as it is.

    Raises:
        ScheduleError: a name, without a suffix, that neither a file nor a shipped schedule has.
    """
    # Path.exists raises what the system says about a name that is too long, or a folder that may not be entered.
    if os.path.exists(given) or given.suffix in (".toml", ".json"):  # noqa: PTH110
        return given
    if str(given) not in schedule_names():
        raise ScheduleError(
            f"schedule '{given}'", "a shipped schedule or a .toml file", did_you_mean(str(given), schedule_names())
        )
    return profile_folder() / "schedules" / f"{given}.toml"


def read_profile(name: str) -> HardwareProfile:
    """Read a shipped profile by name, or any profile by the path of its TOML file.

    Raises:
        ProfileError: no such profile, an unknown key (the nearest known one is named), or a value out of range.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if name not in profile_names():
            raise ProfileError(
                f"profile '{name}'", "a shipped profile or a .toml file", did_you_mean(name, profile_names())
            )
        path = profile_folder() / f"{name}.toml"
    return parse_profile(read_settings(path, what="profile", error=ProfileError, expected="a TOML file"), path)


def parse_profile(data: dict[str, Any], path: Path) -> HardwareProfile:
    """A profile from what a file holds; `path` names it.

    Raises:
        ProfileError: as `read_profile`.
    """
    try:
        return HardwareProfile.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        found = errors_of(error)  # a misspelt key that is required counts as missing, too: its own spelling comes first
        first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(str(first["loc"][-1]), _keys_at(first["loc"][:-1]))
            raise ProfileError(f"profile '{path}' has the unknown key '{where}'", "a known key", hint) from error
        got = "" if first["type"] == "missing" else f" (got {shown(first['input'])})"
        problem = f"profile '{path}': {where}: {first['msg']}{got}"
        raise ProfileError(problem, "a value of the right type and range", f"correct '{where}'") from error


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    tables: dict[str, type[BaseModel]] = {"batch": BatchSizes, "tensorrt": TensorRtOptions, "int8": Int8Options}
    tables |= {"schedules": PruningSchedule, "options": MethodOptions, "layer": LayerSpec}
    named = [part for part in location if isinstance(part, str)]
    table = tables.get(named[-1], HardwareProfile) if named else HardwareProfile
    return [field.alias or name for name, field in table.model_fields.items()]
