"""`build --precision auto`: ship the fastest of a profile and its candidates whose answers change little.

A trial bundle holds the engines of all of them. They are judged on the calibration images against the baseline of the
requested profile, and timed on this machine. The winner is then built by itself from the same traces; the bundle keeps
only the table of results of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ztdeploy.core.bundle import Bundle, read_bundle, write_manifest
from ztdeploy.core.errors import EnvironmentLacksError, InputError, ParityError
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.manifest import CandidateRecord, ChoiceRecord, GateRecord
from ztdeploy.core.profile import HardwareProfile, read_profile
from ztdeploy.core.progress import Progress, parts, silent
from ztdeploy.host.precision_choice import Contender, by_risk, choose, misses, timing
from ztdeploy.jobs.build import build
from ztdeploy.jobs.gate import apply_gate, none_left
from ztdeploy.jobs.request import BuildRequest, Gate
from ztdeploy.target.backends import why_not_build, why_not_run
from ztdeploy.target.evaluate.eval_report import EvalReport, EvalRequest
from ztdeploy.target.evaluate.evaluate import evaluate_bundle
from ztdeploy.target.evaluate.judgement import judge, judged_rows
from ztdeploy.target.measure.machine import processor_name
from ztdeploy.target.measure.turns import Configuration, measure_latency

ROUNDS, ITERATIONS = 10, 10


@dataclass(frozen=True)
class Slate:
    """A requested profile, and the candidates that may be shipped instead of it."""

    asked: HardwareProfile
    profiles: tuple[HardwareProfile, ...]  #: the requested one, then the candidates in order of rising risk
    lacking: Mapping[str, str]  #: by name, why a candidate cannot be tried on this machine


def build_fastest(request: BuildRequest, progress: Progress = silent) -> Bundle:
    """Build as `build` does, but replace each profile that has candidates with the best of them.

    Raises:
        AccuracyError: no pruned variant passes in fp32.
        EnvironmentLacksError: a profile with candidates cannot run here, so there is nothing to compare them with.
        InputError: there are no calibration images, no profile has candidates, or a cascade is asked for as well.
        ZtdeployError: whatever `build` raises.
    """
    gate = request.gate
    if gate is None:
        raise InputError(
            "--precision auto without --calib", "images to judge candidates on", "give --calib DIR as well"
        )
    if request.cascade is not None:
        raise InputError(
            "--precision auto with --cascade, whose stages would be judged on other thresholds than they run with",
            "one of them",
            "build with --precision auto first, then with --cascade for the profile that it chose",
        )
    asked = request.read_profiles()
    slates = [slate_of(profile) for profile in asked if profile.candidates]
    if not slates:
        raise InputError(
            f"--precision auto with {', '.join(profile.name for profile in asked)}, which has no candidates",
            "a profile with the key 'candidates', such as cpu",
            "leave --precision out, or choose another profile",
        )
    request.check()
    request = replace(request, keep_ratios=_keep_ratios(request, asked))
    with scratch_folder() as scratch:
        request = replace(request, cache=request.cache or scratch / "traces")
        stages = parts(progress, {"try": 3, **{slate.asked.name: 2 for slate in slates}, "build": 2})
        trial = _trial(request, slates, scratch / "trial", stages["try"])
        choices, shipped = list[tuple[ChoiceRecord, GateRecord]](), {profile.name: profile for profile in asked}
        for slate in slates:
            record, judgement = _choose(slate, trial, gate, stages[slate.asked.name])
            choices.append((record, judgement))
            shipped[slate.asked.name] = next(one for one in slate.profiles if one.name == record.shipped)
        final = replace(request, profiles=tuple(shipped.values()))
        return build(final, stages["build"], partial(_settle, choices=choices))


def slate_of(asked: HardwareProfile) -> Slate:
    """A profile with its candidates.

    Raises:
        EnvironmentLacksError: its own engines cannot be built or run here.
        ProfileError: no such candidate.
    """
    reason = why_not_build(asked) or why_not_run(asked)
    if reason is not None:
        raise EnvironmentLacksError(
            f"--precision auto with profile '{asked.name}', whose engines cannot run here ({reason})",
            "a machine that runs them",
            "leave --precision out, or build on the device",
        )
    others = {one.name: one for one in map(read_profile, asked.candidates) if one.name != asked.name}
    order = by_risk([(one.name, one.precision) for one in others.values()])
    profiles = (asked, *(others[name] for name in order))
    lacking = {one.name: reason for one in profiles[1:] if (reason := _why_not_tried(one, asked)) is not None}
    return Slate(asked, profiles, lacking)


def _why_not_tried(profile: HardwareProfile, asked: HardwareProfile) -> str | None:
    if (profile.batch, profile.image_input) != (asked.batch, asked.image_input):
        return f"it takes other batches or inputs than '{asked.name}'"
    return why_not_build(profile) or why_not_run(profile)


def _keep_ratios(request: BuildRequest, asked: Sequence[HardwareProfile]) -> tuple[float, ...]:
    """The keep ratios of the request or of the requested profiles; those of the candidates are ignored."""
    if request.keep_ratios or request.schedules:
        return request.keep_ratios
    if request.profiles_decide and (named := next((one for one in asked if one.schedules), None)):
        raise InputError(
            f"--precision auto with profile '{named.name}', which has schedules of its own",
            "schedules or keep ratios on the command line",
            "give --schedule or --keep-ratio",
        )
    return tuple(dict.fromkeys(ratio for profile in asked for ratio in profile.keep_ratios))


def _trial(request: BuildRequest, slates: Sequence[Slate], out: Path, progress: Progress) -> Bundle:
    """Build a bundle with the engines of all candidates that can be built here."""
    asked = [slate.asked for slate in slates]
    able = [one for slate in slates for one in slate.profiles if one.name not in slate.lacking]
    bundle = build(replace(request, profiles=(*asked, *able), out=out, force=True), progress, lambda *_: None)
    for failed in bundle.manifest.failed:
        if failed.profile in (profile.name for profile in asked):
            raise failed.error
    return bundle


def _choose(slate: Slate, trial: Bundle, gate: Gate, progress: Progress) -> tuple[ChoiceRecord, GateRecord]:
    """Judge all candidates, time them, and choose one.

    Returns:
        The results of all candidates, and the judgement on the winner.
    """
    stages = parts(progress, {"judge": 3, "measure": 1})
    reports, reasons = _evaluated(slate, trial, gate, stages["judge"])
    asked = slate.asked.name
    in_fp32 = judge(reports[asked], gate.limits)
    variant, batch = _timed(trial, in_fp32), trial.manifest.dense.graphs[asked].batch or slate.asked.batch.sizes[0]
    configurations = [Configuration(trial.root, variant, name, batch=batch) for name in reports]
    measured = measure_latency(configurations, rounds=ROUNDS, iterations=ITERATIONS, progress=stages["measure"])
    rows = {name: tuple(judged_rows(report, gate.limits)) for name, report in reports.items()}
    contenders = [
        Contender(
            profile=name,
            precision=trial.manifest.profiles[name].precision,
            misses=() if name == asked else misses(rows[name], in_fp32.rows, gate.limits),
            rounds_ms=tuple(turn.samples_ms for turn in one.turns),
        )
        for name, one in zip(reports, measured, strict=True)
    ]
    why = {**reasons, **dict(zip(reports, choose(contenders), strict=True))}
    timings = {one.profile: timing(one, contenders[0]) for one in contenders}
    candidates = tuple(
        CandidateRecord(
            profile=one.name,
            backend=one.backend,
            precision=one.precision,
            reason=why[one.name],
            rows=rows.get(one.name, ()),
            timing=timings.get(one.name),
        )
        for one in slate.profiles
    )
    shipped = next(name for name in reports if why[name] is None)
    record = ChoiceRecord(
        asked=asked,
        shipped=shipped,
        processor=processor_name(),
        threads=usable_threads(slate.asked.threads),
        variant=variant,
        batch=batch,
        rounds=ROUNDS,
        data=in_fp32.data,
        data_sha256=in_fp32.data_sha256,
        images=in_fp32.images,
        limits=gate.limits,
        candidates=candidates,
    )
    return record, judge(reports[shipped], gate.limits)


def _evaluated(
    slate: Slate, trial: Bundle, gate: Gate, progress: Progress
) -> tuple[dict[str, EvalReport], dict[str, str]]:
    """Evaluate the engines of all candidates against the baseline of the requested profile.

    Returns:
        Reports by profile; and why other profiles have none: there is no engine, or its outputs are not finite.
    """
    reports = dict[str, EvalReport]()
    reasons = {**slate.lacking, **{one.profile: one.given for one in trial.manifest.failed}}
    with scratch_folder() as answers:
        for name, part in parts(progress, {one.name: 1 for one in slate.profiles if one.name not in reasons}).items():
            part(f"judging {name}", 0, 1)
            request = EvalRequest(bundle=trial.root, data=gate.data, profile=name, dense_profile=slate.asked.name)
            try:
                reports[name] = evaluate_bundle(request, cache=answers, progress=part)
            except ParityError as error:
                if name == slate.asked.name:
                    raise
                reasons[name] = error.given
    return reports, reasons


def _timed(trial: Bundle, in_fp32: GateRecord) -> str:
    """The name of the variant that the bundle will run by default; the baseline where there is no pruned one."""
    passing = [row.variant for row in in_fp32.rows if not row.failed]
    if in_fp32.rows and not passing:
        raise none_left([in_fp32])
    default, dense = trial.manifest.default_variant, trial.manifest.dense.name
    return default if default in (*passing, dense) else passing[0]


def _settle(
    folder: Path, gate: Gate, progress: Progress, *, choices: Sequence[tuple[ChoiceRecord, GateRecord]]
) -> None:
    """Record the results, judge the profiles that have no candidates, and remove variants that fail."""
    records = tuple(record for record, _ in choices)
    write_manifest(folder, read_bundle(folder).manifest.model_copy(update={"choices": records}))
    apply_gate(folder, gate, progress, known={record.shipped: judgement for record, judgement in choices})
