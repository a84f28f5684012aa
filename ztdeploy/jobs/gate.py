"""The last step of a build with `--calib`: remove variants whose answers change too much on the calibration images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ztdeploy.core.bundle import Bundle, read_bundle, write_manifest
from ztdeploy.core.errors import AccuracyError, step_of
from ztdeploy.core.files import remove
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.manifest import GateRecord, Manifest, VariantRecord
from ztdeploy.core.progress import Progress, parts
from ztdeploy.jobs.request import Gate
from ztdeploy.target.backends import why_not_run
from ztdeploy.target.evaluate.eval_report import EvalRequest
from ztdeploy.target.evaluate.evaluate import evaluate_bundle
from ztdeploy.target.evaluate.judgement import judge
from ztdeploy.target.evaluate.record import recorded

#: Each limit in words, by the field of `GateLimits`.
_IN_WORDS = {
    "max_drop": "top-1 at most {:g} points below the baseline",
    "min_agreement": "agreement of at least {:g}",
    "max_kl": "a mean KL of at most {:g}",
    "min_cosine": "a mean cosine of at least {:g}",
    "max_error": "a mean error of at most {:g}",
    "min_iou": "a mean IoU of at least {:g}",
}


def apply_gate(
    folder: Path, gate: Gate, progress: Progress, known: Mapping[str, GateRecord] = MappingProxyType({})
) -> None:
    """Evaluate all engines of a bundle that run here, and remove variants beyond the limits, with their files.

    An engine is compared with the baseline's engine of its profile. An int8 engine is compared with the baseline of an
    fp32 profile for the same runtime, if the bundle has one; otherwise the cost of int8 itself would not be counted.

    Args:
        folder: a finished bundle that nobody else can see yet.
        known: judgements that exist already, by profile.

    Raises:
        AccuracyError: no pruned variant is left.
        ImageError: no calibration image can be read.
        StepError: an engine's outputs are not finite, or a single profile has no variant that passes.
    """
    manifest, gates = read_bundle(folder).manifest, list(known.values())
    there = [name for name in manifest.profiles if name not in known and name in manifest.dense.engines]
    judged = parts(progress, {name: 1 for name in there if why_not_run(manifest.profiles[name]) is None})
    with scratch_folder() as answers:
        for name, part in judged.items():
            reference = _fp32_profile(manifest, name)
            request = EvalRequest(bundle=folder, data=gate.data, profile=name, dense_profile=reference)
            with step_of(name):
                report = evaluate_bundle(request, cache=answers, progress=part)
            manifest = recorded(Bundle(folder, manifest), report)
            gates.append(judge(report, gate.limits))
    _check_some_pass(gates, {variant.name for variant in manifest.variants if variant.plan.layers})
    manifest = manifest.model_copy(update={"gates": tuple(gates)})
    failed = set[str]().union(*map(_failed, gates))
    write_manifest(folder, _without(folder, manifest, failed) if failed else manifest)


def _failed(gate: GateRecord) -> set[str]:
    return {row.variant for row in gate.rows if row.failed}


def _check_some_pass(gates: Sequence[GateRecord], pruned: set[str]) -> None:
    """Raise an error where every pruned variant fails; it names one profile if that profile alone fails all."""
    if not pruned or not pruned.issubset(set[str]().union(*map(_failed, gates))):
        return
    hopeless = [gate for gate in gates if pruned.issubset(_failed(gate))]
    for gate in hopeless if len(hopeless) < len(gates) else ():
        with step_of(gate.profile):
            raise none_left([gate])
    raise none_left(gates)


def _fp32_profile(manifest: Manifest, name: str) -> str | None:
    """The fp32 profile whose baseline an int8 profile is compared with; None: its own baseline."""
    own = manifest.profiles[name]
    wanted = ("fp32", own.backend)
    for other, profile in manifest.profiles.items():
        if (
            own.precision == "int8"
            and (profile.precision, profile.backend) == wanted
            and other in manifest.dense.engines
        ):
            return other
    return None


def none_left(gates: Sequence[GateRecord]) -> AccuracyError:
    """The error that no pruned variant is within the limits; it names keep ratios that might be."""
    first = gates[0]
    lines = [f"{row.variant}: {', '.join(row.failed)}" for one in gates for row in one.rows if row.failed]
    advice = "; ".join(dict.fromkeys(line for one in gates for line in one.advice))
    return AccuracyError(
        f"no pruned variant passes on {first.images} images of '{first.data}' ({'; '.join(lines)})",
        ", ".join(_IN_WORDS[name].format(value) for name, value in first.limits if value is not None),
        f"prune less: {advice}" if advice else "prune less, or allow more",
    )


def _without(folder: Path, manifest: Manifest, names: set[str]) -> Manifest:
    """Remove variants and their files; returns the new manifest, with the bundle's README written again."""
    from ztdeploy.jobs.manifest import documented  # imports PyTorch, which a refusal does not need

    kept = [variant for variant in manifest.variants if variant.name not in names]
    used = {file for variant in kept for file in _files(manifest, variant)}
    unused = {file for variant in manifest.variants for file in _files(manifest, variant)} - used
    for file in unused:
        remove(folder / file)
    outputs = {name: file for name, file in manifest.golden.outputs.items() if name not in names}
    changes = {
        "variants": tuple(kept),
        "golden": manifest.golden.model_copy(update={"outputs": outputs}),
        "default_variant": kept[0].name if manifest.default_variant in names else manifest.default_variant,
        "files": {name: record for name, record in manifest.files.items() if name not in unused},
    }
    return documented(folder, manifest.model_copy(update=changes))


def _files(manifest: Manifest, variant: VariantRecord) -> set[str]:
    """All files of a variant, some of which other variants may share."""
    files = [graph.files for graph in variant.graphs.values()] + [engine.files for engine in variant.engines.values()]
    return {manifest.golden.outputs[variant.name], *(file for some in files for file in some)}
