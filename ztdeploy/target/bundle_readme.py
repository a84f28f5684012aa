"""The README that lies in every bundle, for whoever finds the folder on a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ztdeploy.core.bundle import file_records
from ztdeploy.core.errors import EnvironmentLacksError, ProfileError
from ztdeploy.core.files import write
from ztdeploy.core.manifest import Manifest, MissingPart, VariantRecord
from ztdeploy.core.preprocess_spec import NOUNS
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.core.text import markdown_text
from ztdeploy.target.backends import backend_of, why_not_run
from ztdeploy.version import __version__

README = "README.md"


def with_readme(manifest: Manifest, folder: Path) -> Manifest:
    """Find out what the bundle lacks and write that, with all else that people should know, to a README.

    Args:
        folder: where to write it.

    Returns:
        The manifest with what is missing, and with the README among its files.
    """
    manifest = manifest.model_copy(update={"missing": missing_parts(manifest)})
    write(folder / README, bundle_readme(manifest))
    return manifest.model_copy(update={"files": {**manifest.files, **file_records(folder, [README])}})


def missing_parts(manifest: Manifest) -> tuple[MissingPart, ...]:
    """What a bundle lacks, or has in another form than it could have, by its own records alone."""
    missing = []
    unproved = {manifest.cascade.prefix.name} if manifest.cascade else set()  # a prefix is proved with its tails
    known = {one.profile: one.reason for one in manifest.missing if one.kind == "run"}
    for name, profile in manifest.profiles.items():
        engines = [part.engines.get(name) for part in manifest.parts if part.name not in unproved]
        if None in engines:
            missing.append(MissingPart(kind="engines", profile=name))
        elif any(engine is not None and engine.parity is None for engine in engines):
            reason = known.get(name) or why_not_run(profile) or "no machine has tried"
            missing.append(MissingPart(kind="run", profile=name, reason=reason))
        images = manifest.dense.graphs[name].calibration
        if images is not None and manifest.calibration is None:  # no images of the user's own were given
            missing.append(MissingPart(kind="ranges", profile=name, reason=images))
        missing += [
            MissingPart(kind="plugins", profile=name, variant=variant.name, reason=", ".join(foreign))
            for variant in manifest.variants
            if (foreign := variant.graphs[name].plain_for)
        ]
    return tuple(missing)


def bundle_readme(manifest: Manifest) -> str:
    """How to run the bundle, what is in it, and what is not."""
    default = next(variant for variant in manifest.variants if variant.name == manifest.default_variant)
    ratios, ratio = [variant.keep_ratio for variant in manifest.variants], default.keep_ratio
    choice = f'variant="{default.name}"' if ratio is None or ratios.count(ratio) > 1 else f"keep_ratio={ratio:g}"
    spec = manifest.preprocess
    channels = {1: "grey", 3: "RGB"}.get(spec.channels, f"{spec.channels} channels")
    resize = "Resize both sides to" if spec.crop_mode == "squash" else "Resize the shorter side to"
    if spec.crop_mode == "center" and spec.resize.height != spec.resize.width:
        resize = "Keep the aspect ratio and resize to just cover"
    rows = "\n".join(_row(variant) for variant in manifest.variants)
    given = manifest.model.gives
    what = "" if given == "logits" else f" (that is its name; what it holds are {NOUNS[given]})"
    wheel = f"ztdeploy-{manifest.tools.get('ztdeploy', __version__)}-py3-none-any.whl"
    install, more = _installing(wheel, {name: _extra(profile) for name, profile in manifest.profiles.items()})
    photo = manifest.golden.images[0]
    random = "**The weights are random: this bundle measures latency, its predictions mean nothing.**\n\n"
    missing = "".join(f"- {markdown_text(line)}\n" for line in manifest.lines_of_missing)
    cascade = "".join(f"- {markdown_text(line)}\n" for line in manifest.lines_of_cascade)
    return f"""# {markdown_text(manifest.model.name)}, deployed with ztdeploy {manifest.tools.get("ztdeploy", "")}

{random if manifest.weights.source == "random" else ""}It runs without PyTorch.
`pip wheel --no-deps .` in the checkout that built it writes the wheel that runs it. In this folder, with that wheel:

    {install}
    ztdeploy verify .
    ztdeploy run . {photo}

or from Python:

    import ztdeploy
    runner = ztdeploy.load(".", {choice})
    (prediction,) = runner("{photo}")

{more}| variant | keep ratio | method | tokens | GMACs | engines |
| --- | --- | --- | --- | --- | --- |
{rows}

- `manifest.json`: where everything comes from, parity figures, and the sha256 of every file
- `graphs/`: plain ONNX graphs, engines beside them, and the one weights file that all of them read
- `golden/`: known images, the pixels after resize and crop, and the outputs that must come out

Input `image`: {spec.image_size.in_full} pixels (height x width), {channels}; uint8 `[batch, height, width, channel]`
where the profile says so, else fp32 `[batch, channel, height, width]`, normalised. {resize} {spec.resize} pixels
({spec.interpolation}), crop the centre. Outputs: `logits`{what}, and per pruning layer the indices of the tokens kept.
{f"{chr(10)}`ztdeploy run . {photo} --cascade` runs the cascade:{chr(10)}{chr(10)}{cascade}" if cascade else ""}\
{f"{chr(10)}What is missing:{chr(10)}{chr(10)}{missing}" if missing else ""}"""


def _installing(wheel: str, extras: Mapping[str, str]) -> tuple[str, str]:
    """The command that installs a wheel with the runtime of a bundle's first profile, and what other profiles need.

    Args:
        extras: of each profile, ours that installs its runtime; "" where no extra is needed.
    """
    with_extra = {extra: f"'{wheel}[{extra}]'" if extra else wheel for extra in extras.values()}
    first = next(iter(with_extra), "")
    others = [f"- `{name}`: `pip install {with_extra[extra]}`\n" for name, extra in extras.items() if extra != first]
    heading = "Engines of other profiles run with another runtime. Where the machine does not bring it:\n\n"
    return f"pip install {with_extra.get(first, wheel)}", f"{heading}{''.join(others)}\n" if others else ""


def _extra(profile: HardwareProfile) -> str:
    try:
        return backend_of(profile).extra
    except (EnvironmentLacksError, ProfileError):  # another package's backend, which is not here
        return ""


def _row(variant: VariantRecord) -> str:
    tokens = variant.plan.tokens_per_block
    cells = (
        markdown_text(variant.name),
        "-" if variant.keep_ratio is None else f"{variant.keep_ratio:g}",
        variant.schedule.method if variant.plan.layers else "-",
        f"{tokens[0]} -> {tokens[-1]}",
        f"{variant.gmacs:.3f}",
        markdown_text(", ".join(variant.engines)) or "none",
    )
    return f"| {' | '.join(cells)} |"
