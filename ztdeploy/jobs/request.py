"""What a user asks of a build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ztdeploy.core.bundle import check_output
from ztdeploy.core.cascade import CascadeGoal
from ztdeploy.core.data import first_error
from ztdeploy.core.errors import InputError
from ztdeploy.core.keep_ratio import check_keep_ratio
from ztdeploy.core.manifest import GateLimits
from ztdeploy.core.methods import DEFAULT_METHOD, method_named
from ztdeploy.core.model_source import ModelSource, folder_word
from ztdeploy.core.profile import HardwareProfile, read_profile
from ztdeploy.core.progress import Progress
from ztdeploy.core.schedule import PruningSchedule

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Gate:
    """Calibration images, and what pruning may cost on them."""

    data: Path
    limits: GateLimits


def gate_of(calib: Path | None, **limits: float | None) -> Gate | None:
    """The gate of calibration images and of the fields of `GateLimits`, if there are any images.

    Raises:
        InputError: a limit out of range, or one without images to judge on.
    """
    for name, value in limits.items():
        if calib is None and value is not None:
            given = f"--{name.replace('_', '-')} {value:g} without --calib"
            raise InputError(given, "images to judge on", "give --calib DIR as well")
    try:
        return None if calib is None else Gate(calib, GateLimits.model_validate(limits))
    except ValidationError as error:
        name, wrong = first_error(error)
        raise InputError(f"{name} = {limits.get(name)}", wrong, f"give another value for {name}") from error


def cascade_goal(
    agreement: float | None = None, max_rerun: float | None = None, min_cosine: float | None = None
) -> CascadeGoal | None:
    """What is asked of a cascade; None: there is none.

    Raises:
        InputError: a share that is not between 0 and 1, two goals, or a cosine without a goal.
    """
    if agreement is not None and max_rerun is not None:
        given = f"--cascade {agreement:g} with --cascade-max-rerun {max_rerun:g}"
        raise InputError(given, "one of them: each decides how many images go on", "leave one out")
    values = {"agreement": agreement, "max_rerun": max_rerun, "min_cosine": min_cosine}
    given_ones = {name: value for name, value in values.items() if value is not None}
    if not given_ones:
        return None
    if list(given_ones) == ["min_cosine"]:
        raise InputError(f"--cascade-min-cosine {min_cosine:g} without a cascade", "--cascade as well", "give both")
    try:
        return CascadeGoal.model_validate(given_ones)
    except ValidationError as error:
        name, wrong = first_error(error)
        raise InputError(f"{name} = {values.get(name)}", wrong, "give a share between 0 and 1") from error


def default_folder(model: str, profiles: Sequence[str | HardwareProfile]) -> Path:
    """The default folder of a bundle: MODEL-PROFILE in the current folder."""
    names = (profile.name if isinstance(profile, HardwareProfile) else Path(profile).stem for profile in profiles)
    return Path("-".join((folder_word(model), *names)))


#: What is done in the end with the folder of a bundle, before anybody else sees it.
Judge = Callable[[Path, Gate, Progress], None]


@dataclass(frozen=True)
class BuildRequest:
    """What a user asks for."""

    model: ModelSource
    #: A module to build instead; `model` then gives its name and options.
    module: nn.Module | None = field(default=None, kw_only=True)
    backbone: str | None = field(default=None, kw_only=True)  #: where in that module the model is, see `own_module`
    profiles: tuple[str | HardwareProfile, ...]  #: names of shipped ones, paths of TOML files, or profiles themselves
    out: Path
    keep_ratios: tuple[float, ...] = ()  #: empty: those of the profiles, unless schedules are given
    schedules: tuple[PruningSchedule, ...] = ()
    methods: tuple[str, ...] = (DEFAULT_METHOD,)  #: each at every keep ratio
    preset: str = "default"
    batch: int | None = None  #: fixes the batch of every graph
    force: bool = False
    gate: Gate | None = None  #: ships only variants that cost little on calibration images
    cascade: CascadeGoal | None = None  #: makes a cascade of the variants, whose thresholds are chosen on such images
    cache: Path | None = None  #: folder of traces to take from and add to; None: everything is traced

    @property
    def profiles_decide(self) -> bool:
        """Whether the profiles decide what is built: their own schedules, where they have any."""
        unasked = not self.keep_ratios and not self.schedules
        return unasked and self.methods == (DEFAULT_METHOD,) and self.preset == "default"

    def read_profiles(self) -> list[HardwareProfile]:
        """Each profile once.

        Raises:
            ProfileError: there is no such profile, or it is not well-formed.
        """
        read = [one if isinstance(one, HardwareProfile) else read_profile(one) for one in self.profiles]
        return list({profile.name: profile for profile in read}.values())

    def check(self) -> None:
        """Refuse what can be told before PyTorch is imported, which takes seconds.

        Raises:
            InputError: a value out of range, an unknown method, files that are not there, or an output folder that
                cannot be written.
        """
        from ztdeploy.host.models.sources import check_source
        from ztdeploy.target.evaluate.data import check_exists

        for keep_ratio in self.keep_ratios:
            check_keep_ratio(keep_ratio)
        for method in self.methods:
            method_named(method)
        if self.module is None:
            check_source(self.model)
        if self.gate is not None:
            check_exists(self.gate.data)
        self._check_goal()
        check_output(self.out, force=self.force)

    def _check_goal(self) -> None:
        """
        Raises:
            InputError: a cascade without calibration images, or together with limits that may take away its stages.
        """
        if self.cascade is None:
            return
        if self.gate is None:
            raise InputError("--cascade without --calib", "images to choose thresholds on", "give --calib DIR as well")
        if limits := " and ".join(self.gate.limits.options):
            raise InputError(
                f"--cascade with {limits}, which may remove its stages",
                "one of them: the cascade bounds agreement itself",
                f"leave out --cascade, or {limits}",
            )
