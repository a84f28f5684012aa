"""What calibration images are asked to decide, and what they say before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ztdeploy.core.errors import EnvironmentLacksError, InputError, ZtdeployError, failing
from ztdeploy.core.manifest import CalibrationRecord, GateLimits, Manifest, RangeRecord
from ztdeploy.core.plan import Variant
from ztdeploy.core.preprocess_spec import NOUNS
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.host.calibration import CalibrationImages, chosen_images, look_at
from ztdeploy.host.models.loading import LoadedModel
from ztdeploy.host.overflow import check_range, probe
from ztdeploy.jobs.request import Gate
from ztdeploy.target.backends import first_that_runs
from ztdeploy.target.evaluate.data import EvalData, label_classes, read_data

#: What limits are on, by what a model gives, and their options.
_KINDS = {"logits": "answers", "maps": "maps"}
_WHAT = {"answers": "answers", "vectors": "their cosine", "maps": "their error or overlap"}
_LIMITS = {
    "answers": ("--max-drop", "--min-agreement", "--max-kl"),
    "vectors": ("--min-cosine",),
    "maps": ("--max-error", "--min-iou"),
}


@dataclass(frozen=True)
class Evidence:
    """What calibration images say before anything is built."""

    record: CalibrationRecord
    ranges: dict[str, RangeRecord]  #: by variant
    images: CalibrationImages  #: for the ranges of int8 activations

    def added_to(self, manifest: Manifest) -> Manifest:
        variants = tuple(
            variant.model_copy(update={"fp16_range": self.ranges.get(variant.name)}) for variant in manifest.variants
        )
        return manifest.model_copy(update={"calibration": self.record, "variants": variants})


def check_gate(gate: Gate, profiles: Sequence[HardwareProfile], model: LoadedModel) -> EvalData:
    """Read the calibration images, and fail before anything is traced where no engine could be judged in the end.

    Raises:
        EnvironmentLacksError: no profile's engines can run on this machine, and there is nothing else to find out.
        ImageError: there are no calibration images, or their labels do not fit the model.
        InputError: a limit on top-1 but no labels, or a limit that says nothing about what the model gives.
    """
    _check_limits(gate.limits, model)
    classes = label_classes(model.output, model.adapter.architecture.num_classes)
    data = read_data(gate.data, model.class_names, classes, model.preprocess.channels)
    if gate.limits.max_drop is not None and not data.labelled:
        raise InputError(
            f"--max-drop with '{gate.data}', which has no labels",
            "a labels.json, or a folder per class",
            "label the images, or use --min-agreement or --max-kl",
        )
    found, reasons = first_that_runs(profiles)
    probed = gate.limits == GateLimits() and any(profile.precision == "fp16" for profile in profiles)
    if found is None and not probed:
        raise EnvironmentLacksError(
            f"--calib, but no engine can run here ({reasons})",
            "a profile whose engines run on this machine",
            "build with --profile cpu as well, or build on the device",
        )
    return data


def _check_limits(limits: GateLimits, model: LoadedModel) -> None:
    kind, values = _KINDS.get(model.output, "vectors"), model.activation == "none"
    for option, value in limits.options.items():
        if option not in _LIMITS[kind]:
            raise InputError(
                f"{option} {value:g} with a model that gives {NOUNS[model.output]}",
                f"a limit on {_WHAT[kind]}: {', '.join(_LIMITS[kind])}",
                f"leave {option} out",
            )
    if kind == "answers" and values and limits.options:
        raise InputError(
            "a limit with --activation none, whose values are no answers", "no limit", "leave limits on --calib out"
        )
    if kind == "maps" and values and limits.min_iou is not None:
        raise InputError(
            f"--min-iou {limits.min_iou:g} with --activation none, whose maps are values",
            "a limit on their error: --max-error",
            "use --max-error",
        )
    if kind == "answers" and model.adapter.architecture.num_classes == 1 and limits.max_drop is not None:
        raise InputError(
            f"--max-drop {limits.max_drop:g} for a model with one output, which has no top-1",
            "a limit on agreement or KL",
            "use --min-agreement or --max-kl",
        )


def look_at_images(
    data: EvalData, model: LoadedModel, variants: Sequence[Variant], profiles: Sequence[HardwareProfile]
) -> tuple[Evidence, dict[str, ZtdeployError]]:
    """Decode the images, and probe whether fp16 holds what the variants compute on them.

    Returns:
        What was found, and by profile why some profiles cannot be built: values that fp16 cannot hold.

    Raises:
        ImageError: nothing can be judged on these images.
        ModelError: no other profiles are left.
    """
    seen, ranges = look_at(data, model.preprocess), dict[str, RangeRecord]()
    if any(profile.precision == "fp16" for profile in profiles):
        ranges = probe(model, [variant.schedule for variant in variants], seen.pixels, data.name)
    unfit = failing(profiles, lambda profile: check_range(ranges, [profile]))
    return Evidence(seen.record, ranges, chosen_images(seen.paths, data.name)), unfit
