"""A package for ROS 2 with a node that classifies images by the bundle's own runner.

The texts of its files are templates in `ros2_package/`, where `PACKAGE` stands for the package's name. The bundle is
not copied: the package names its folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.errors import InputError
from ztdeploy.core.files import make_folder, write
from ztdeploy.core.folders import files_of
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.core.text import printable
from ztdeploy.jobs.export.parts import ExportedModel, Served, Tensor
from ztdeploy.jobs.export.target import Target
from ztdeploy.target.backends.base import Backend

HEAD = "Written by ztdeploy export. Not run: no ROS 2 was at hand."
TEMPLATES, SUFFIX = Path(__file__).parent / "ros2_package", ".template"
_DESCRIPTION = "package.xml"
_TOP = 5


class Ros2Package(Target):
    """A node for the default variant, or the one asked for."""

    title, suits = "ROS 2", "any profile"
    remedy = "build with --profile cpu as well"
    one_variant = True

    def takes(self, backend: Backend, profile: HardwareProfile) -> bool:
        return True

    def check(self, bundle: Bundle, chosen: Sequence[VariantRecord], profile: str) -> None:
        manifest = bundle.manifest
        if manifest.model.gives != "logits":
            raise InputError(
                f"a model that gives {manifest.model.gives} for ROS 2",
                "a classifier: vision_msgs has no message for anything else",
                "call ztdeploy.load in a node of your own",
            )
        if manifest.preprocess.channels not in (1, 3):
            raise InputError(
                f"a model of {manifest.preprocess.channels} channels for ROS 2",
                "3 (RGB) or 1 (grey)",
                "call ztdeploy.load in a node of your own",
            )
        try:
            os.fspath(bundle.root.absolute()).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the path '{printable(str(bundle.root))}' for ROS 2, whose parameters are UTF-8",
                "a path that is",
                "rename the folder",
            ) from error

    def strange(self, held: Sequence[Path]) -> str | None:
        described = next((path for path in held if path.name == _DESCRIPTION and not path.is_symlink()), None)
        package = _package_in(described)
        if described is None or package is None:
            return f"has no {_DESCRIPTION} that ztdeploy wrote"
        found = {name for path in held for name in ([path.name] if path.is_file() else _below(path))}
        strange = sorted(found - set(_names(package)))
        return f"holds '{printable(strange[0])}', which ztdeploy did not write" if strange else None

    def last(self, bundle: Bundle, first: VariantRecord) -> str:
        return _DESCRIPTION

    def write(
        self, folder: Path, bundle: Bundle, variant: VariantRecord, profile: str, served: Served
    ) -> tuple[ExportedModel, list[str]]:
        package, values = package_name(bundle), {"head": HEAD, "top": str(_TOP), "profile": json.dumps(profile)}
        values |= {"package": package, "variant": json.dumps(variant.name)}
        values["bundle"] = json.dumps(os.fspath(bundle.root.absolute()))
        for name, template in _names(package).items():
            make_folder((folder / name).parent)
            write(folder / name, Template(template.read_text(encoding="utf-8")).substitute(values))
        channels = bundle.manifest.preprocess.channels
        model = ExportedModel(
            name=package,
            variant=variant.name,
            input=Tensor(name="sensor_msgs/Image", dtype="uint8", shape=("height", "width", channels)),
            output=Tensor(name="vision_msgs/Classification", dtype="float64", shape=(_TOP,)),
        )
        unbuilt = f"the bundle has no engine for '{profile}' yet: on the robot, run: ztdeploy finalize {bundle.root}"
        return model, [] if profile in variant.engines else [unbuilt]


def package_name(bundle: Bundle) -> str:
    """The bundle's name as ROS allows it for a package: lower case, digits and single underscores, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "_", bundle.name.lower()).strip("_")
    return name if re.match("[a-z]", name) and len(name) > 1 else f"bundle_{name}".rstrip("_")


def _names(package: str) -> dict[str, Path]:
    """The files of a package, relative to it, and their templates."""
    found = sorted(TEMPLATES.rglob(f"*{SUFFIX}"))
    names = [one.relative_to(TEMPLATES).as_posix().removesuffix(SUFFIX).replace("PACKAGE", package) for one in found]
    return dict(zip(names, found, strict=True))


def _package_in(described: Path | None) -> str | None:
    """The name of the package that a description of ours is of."""
    if described is None:
        return None
    text = described.read_text(encoding="utf-8", errors="replace")[:4096]
    found = re.search(r"<name>([a-z0-9_]{1,255})</name>", text)
    return found[1] if found and HEAD in text else None


def _below(folder: Path) -> Iterator[str]:
    return (f"{folder.name}/{name}" for name in files_of(folder)) if not folder.is_symlink() else iter([folder.name])
