"""Shipping only variants whose engines cost little on calibration images: the last step of a build."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ztdeploy.core.bundle import Bundle, read_bundle, write_manifest
from ztdeploy.core.errors import AccuracyError, EnvironmentLacksError, InputError, step_of
from ztdeploy.core.files import remove
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.manifest import GateLimits, GateRecord, Manifest, VariantRecord
from ztdeploy.core.preprocess_spec import NOUNS, Activation, Output
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.core.progress import Progress
from ztdeploy.jobs.assembly import documented
from ztdeploy.target.backends import first_that_runs, why_not_run
from ztdeploy.target.evaluate.data import EvalData, label_classes, read_data
from ztdeploy.target.evaluate.eval_report import EvalRequest
from ztdeploy.target.evaluate.evaluate import evaluate_bundle
from ztdeploy.target.evaluate.judgement import judge
from ztdeploy.target.evaluate.record import recorded


@dataclass(frozen=True)
class Gate:
    """Images, and what pruning may cost on them."""

    data: Path
    limits: GateLimits


#: What is done with a finished bundle that nobody else sees yet.
Judge = Callable[[Path, Gate, Progress], None]


def check_gate(
    gate: Gate,
    profiles: Sequence[HardwareProfile],
    class_names: Sequence[str] | None,
    classes: int,
    output: Output = "logits",
    activation: Activation = "softmax",
    *,
    channels: int = 3,
) -> EvalData:
    """Fail before anything is traced where no engine could be judged in the end.

    Raises:
        EnvironmentLacksError: no profile's engines can run on this machine, and there is nothing else to find out.
        ImageError: no calibration images, or labels that do not fit the model.
        InputError: a limit on top-1, but no labels; or one that says nothing of what the model gives.
    """
    _check_limits(gate.limits, output)
    _check_meaning(gate.limits, classes, output, activation)
    data = read_data(gate.data, class_names, label_classes(output, classes), channels)
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


def _check_limits(limits: GateLimits, output: Output) -> None:
    """
    Raises:
        InputError: a limit that could not decide anything.
    """
    of_answers = {"--max-drop": limits.max_drop, "--min-agreement": limits.min_agreement, "--max-kl": limits.max_kl}
    of_vectors = {"--min-cosine": limits.min_cosine}
    foreign, own = (of_vectors, of_answers) if output == "logits" else (of_answers, of_vectors)
    for option, value in foreign.items():
        if value is not None:
            raise InputError(
                f"{option} {value:g} with a model that gives {NOUNS[output]}",
                f"a limit on {'answers' if output == 'logits' else 'their cosine'}: {', '.join(own)}",
                f"leave {option} out",
            )


def _check_meaning(limits: GateLimits, outputs: int, output: Output, activation: Activation) -> None:
    """
    Raises:
        InputError: a limit on answers where there are none.
    """
    if output == "logits" and activation == "none" and limits != GateLimits():
        raise InputError(
            "a limit with --activation none, whose values are no answers", "no limit", "leave limits on --calib out"
        )
    if output == "logits" and outputs == 1 and limits.max_drop is not None:
        raise InputError(
            f"--max-drop {limits.max_drop:g} for a model with one output, which has no top-1",
            "a limit on agreement or KL",
            "use --min-agreement or --max-kl",
        )


def apply_gate(
    folder: Path, gate: Gate, progress: Progress, known: Mapping[str, GateRecord] = MappingProxyType({})
) -> None:
    """Evaluate all engines of a bundle that run here; variants that cost too much go, with their files.

    Engines are held against the dense one of their profile; int8 ones against dense in fp32 where the bundle has it.

    Args:
        folder: a finished bundle that nobody else sees yet.
        known: by profile: what is judged already.

    Raises:
        AccuracyError: no pruned variant is left.
        ImageError: no calibration image can be read.
        StepError: an engine gives something else than numbers, or no variant passes for one profile alone.
    """
    bundle = read_bundle(folder)
    manifest, gates = bundle.manifest, list(known.values())
    with scratch_folder() as answers:
        for name in (name for name in _judged(bundle) if name not in known):
            reference = _fp32_profile(manifest, name)
            request = EvalRequest(bundle=folder, data=gate.data, profile=name, dense_profile=reference)
            with step_of(name):
                report = evaluate_bundle(request, cache=answers, progress=progress)
            manifest = recorded(Bundle(folder, manifest), report)
            gates.append(judge(report, gate.limits))
    failed = {row.variant for one in gates for row in one.rows if row.failed}
    pruned = [variant.name for variant in manifest.variants if variant.plan.layers]
    if pruned and failed.issuperset(pruned):
        _check_some_pass(gates, pruned)
        raise none_left(gates)
    manifest = manifest.model_copy(update={"gates": tuple(gates)})
    if failed:
        manifest = _without(folder, manifest, failed)
    write_manifest(folder, manifest)


def _check_some_pass(gates: Sequence[GateRecord], pruned: Sequence[str]) -> None:
    """
    Raises:
        StepError: no variant passes for some profile, while one does for another.
    """
    none = [one for one in gates if {row.variant for row in one.rows if row.failed}.issuperset(pruned)]
    if len(none) < len(gates):
        for one in none:
            with step_of(one.profile):
                raise none_left([one])


def _judged(bundle: Bundle) -> list[str]:
    """Profiles with engines that this machine runs."""
    manifest = bundle.manifest
    return [
        name
        for name, profile in manifest.profiles.items()
        if name in manifest.dense.engines and why_not_run(profile) is None
    ]


def _fp32_profile(manifest: Manifest, name: str) -> str | None:
    """The profile whose dense engine an int8 engine is held against: one in fp32 for the same runtime, if there is one.

    Against dense in int8, what int8 costs by itself would count for nothing.
    """
    own = manifest.profiles[name]
    if own.precision != "int8":
        return None
    fit = (
        other
        for other, profile in manifest.profiles.items()
        if (profile.precision, profile.backend) == ("fp32", own.backend) and other in manifest.dense.engines
    )
    return next(fit, None)


def none_left(gates: Sequence[GateRecord]) -> AccuracyError:
    """That no pruned variant is within limits, and what might be."""
    first = gates[0]
    lines = [f"{row.variant}: {', '.join(row.failed)}" for one in gates for row in one.rows if row.failed]
    advice = "; ".join(dict.fromkeys(line for one in gates for line in one.advice))
    return AccuracyError(
        f"no pruned variant passes on {first.images} images of '{first.data}' ({'; '.join(lines)})",
        _in_words(first.limits),
        f"prune less: {advice}" if advice else "prune less, or allow more",
    )


def _in_words(limits: GateLimits) -> str:
    parts = []
    if limits.max_drop is not None:
        parts.append(f"top-1 at most {limits.max_drop:g} points below dense")
    if limits.min_agreement is not None:
        parts.append(f"agreement of at least {limits.min_agreement:g}")
    if limits.max_kl is not None:
        parts.append(f"a mean KL of at most {limits.max_kl:g}")
    if limits.min_cosine is not None:
        parts.append(f"a mean cosine of at least {limits.min_cosine:g}")
    return ", ".join(parts)


def _without(folder: Path, manifest: Manifest, names: set[str]) -> Manifest:
    """The manifest without some variants, whose files are removed, and what people read written anew."""
    kept = [variant for variant in manifest.variants if variant.name not in names]
    used = {file for variant in kept for file in _files(manifest, variant)}
    unused = {file for variant in manifest.variants for file in _files(manifest, variant)} - used
    for file in unused:
        remove(folder / file)
    outputs = {name: file for name, file in manifest.golden.outputs.items() if name not in names}
    changes = {
        "variants": tuple(kept),
        "golden": manifest.golden.model_copy(update={"outputs": outputs}),
        "default_variant": manifest.default_variant if manifest.default_variant not in names else kept[0].name,
        "files": {name: record for name, record in manifest.files.items() if name not in unused},
    }
    return documented(folder, manifest.model_copy(update=changes))


def _files(manifest: Manifest, variant: VariantRecord) -> set[str]:
    """What a variant needs for itself."""
    files = [graph.files for graph in variant.graphs.values()] + [engine.files for engine in variant.engines.values()]
    return {manifest.golden.outputs[variant.name], *(file for some in files for file in some)}


def _held_against(gate: GateRecord) -> str:
    return gate.profile if gate.dense_profile is None else f"{gate.profile}, against dense of {gate.dense_profile}"


def gate_lines(manifest: Manifest) -> list[str]:
    """What was left out, and why, for people."""
    return [
        line
        for gate in manifest.gates
        for line in (
            *(
                f"'{row.variant}' is not in the bundle: on {gate.images} images of '{gate.data}' "
                f"({_held_against(gate)}), {', '.join(row.failed)}"
                for row in gate.rows
                if row.failed
            ),
            *gate.advice,
        )
    ]
