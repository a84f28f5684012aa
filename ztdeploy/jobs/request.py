"""What a user asks of a build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ztdeploy.core.manifest import GateLimits
from ztdeploy.core.methods import DEFAULT_METHOD
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.profile import HardwareProfile, read_profile
from ztdeploy.core.progress import Progress
from ztdeploy.core.schedule import PruningSchedule


@dataclass(frozen=True)
class Gate:
    """Calibration images, and what pruning may cost on them."""

    data: Path
    limits: GateLimits


#: What is done in the end with the folder of a bundle, before anybody else sees it.
Judge = Callable[[Path, Gate, Progress], None]


@dataclass(frozen=True)
class BuildRequest:
    """What a user asks for."""

    model: ModelSource
    profiles: tuple[str | HardwareProfile, ...]  #: names of shipped ones, paths of TOML files, or profiles themselves
    out: Path
    keep_ratios: tuple[float, ...] = ()  #: empty: those of the profiles, unless schedules are given
    schedules: tuple[PruningSchedule, ...] = ()
    methods: tuple[str, ...] = (DEFAULT_METHOD,)  #: each at every keep ratio
    preset: str = "default"
    batch: int | None = None  #: fixes the batch of every graph
    force: bool = False
    gate: Gate | None = None  #: ships only variants that cost little on calibration images
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
