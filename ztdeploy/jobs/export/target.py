"""What a kind of export says of itself, and what it does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.errors import InputError
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.names import IMAGE
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.jobs.export.parts import ExportedModel, Served
from ztdeploy.target.backends import get_backend
from ztdeploy.target.backends.base import Backend


class Target(ABC):
    """A program that runs models. `export_bundle` calls these in the order in which they stand here."""

    title: ClassVar[str]  #: what errors call it
    suits: ClassVar[str]  #: the profiles that it takes, in words
    remedy: ClassVar[str]  #: how to come by one
    input_name: ClassVar[str] = IMAGE
    one_variant: ClassVar[bool] = False  #: write one variant where none is asked for; otherwise all
    chooses_input: ClassVar[bool] = False  #: whether people may choose the layout and the type of the input

    @abstractmethod
    def takes(self, backend: Backend, profile: HardwareProfile) -> bool:
        """Whether it can run a profile's graphs or engines."""

    def profile(self, bundle: Bundle, wanted: str | None) -> str:
        """The profile asked for, or the first that suits.

        Raises:
            InputError: it does not suit, or none does.
        """
        profiles = bundle.manifest.profiles
        fitting = [name for name, one in profiles.items() if self.takes(get_backend(one.backend), one)]
        name = bundle.profile_name(wanted) if wanted is not None or not fitting else fitting[0]
        if name not in fitting:
            raise InputError(
                f"profile '{name}' of {bundle.root} for {self.title}",
                f"one of: {', '.join(fitting)}" if fitting else self.suits,
                "choose it with --profile" if fitting else self.remedy,
            )
        return name

    def served(self, bundle: Bundle, asked: Served) -> Served:
        """The model's input and output as they are to be.

        Raises:
            InputError: a layout or a type was asked for where there is no choice.
        """
        if not self.chooses_input and (asked.layout is not None or asked.form != "normalised"):
            raise InputError(
                f"{'--layout' if asked.layout is not None else '--pixels'} for {self.title}",
                "neither --pixels nor --layout: it takes what the bundle does",
                "leave it out",
            )
        return replace(asked, input_name=asked.input_name or self.input_name)

    def check(self, bundle: Bundle, chosen: Sequence[VariantRecord], profile: str) -> None:  # noqa: B027
        """Refuse what it cannot be given, before anything is written.

        Raises:
            InputError: so is the model, a name, or a variant without an engine.
        """

    @abstractmethod
    def strange(self, held: Sequence[Path]) -> str | None:
        """What an older export would not hold among the entries of a folder, or lack; None: it is one."""

    @abstractmethod
    def last(self, bundle: Bundle, first: VariantRecord) -> str:
        """The file that marks a folder as complete, relative to it."""

    @abstractmethod
    def write(
        self, folder: Path, bundle: Bundle, variant: VariantRecord, profile: str, served: Served
    ) -> tuple[ExportedModel, list[str]]:
        """Write a variant's files, and return what is in them and what is to be said of it."""

    def finish(self, folder: Path, bundle: Bundle, models: Sequence[ExportedModel], profile: str) -> list[str]:
        """Write what all variants share, and return what is to be said of it."""
        return []
