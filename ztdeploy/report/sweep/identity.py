"""What a sweep measured, on what and when, in a few words. Pure."""

from __future__ import annotations

from ztdeploy.report.kit.figures import counted
from ztdeploy.target.measure.bench_report import BenchReport
from ztdeploy.target.measure.sweep_report import SweepReport


def title(report: SweepReport) -> str:
    """Such as "vit_digits on Raspberry Pi 5"."""
    return f"{model(report)} on {machine(report.runs[0])}" if report.runs else model(report)


def subtitle(report: SweepReport) -> str:
    """Profile, runtime, day, and images."""
    if not report.runs:
        return "Nothing was measured."
    run = report.runs[0]
    answers = f"; answers on {images(report)}" if images(report) else ""
    return f"Profile {run.bundle.profile}, {run.bundle.runtime}, {run.before.at[:10]}{answers}"


def images(report: SweepReport) -> str:
    """What fidelity was found out on, such as "360 images of 'digits' (sha256 1a2b3c4d)"; empty where nothing was."""
    known = [one.fidelity for one in report.variants if one.fidelity]
    return ", ".join(
        dict.fromkeys(
            counted(one.images, "image") + (f" of '{one.data}' (sha256 {one.data_sha256[:8]})" if one.data else "")
            for one in known
        )
    )


def model(report: SweepReport) -> str:
    if report.runs:
        return report.runs[0].bundle.model
    request = report.request
    return request.model.name if request.model else request.bundle.name if request.bundle else "sweep"


def machine(run: BenchReport) -> str:
    """The board's name where it has one, then a GPU's where the engines run there, else the processor's."""
    there = run.machine
    on_gpu = all(one.threads is None for one in run.configurations) and there.gpus
    return there.board or (there.gpus[0].name if on_gpu else there.processor)
