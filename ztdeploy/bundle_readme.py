"""The README that lies in every bundle, for whoever finds the folder on a device."""

from __future__ import annotations

from ztdeploy.bundle import Manifest


def bundle_readme(manifest: Manifest) -> str:
    """How to run the bundle, what is in it, and what is not."""
    rows = [
        f"| {v.name} | {'-' if v.keep_ratio is None else f'{v.keep_ratio:g}'} | {v.schedule.method if v.plan.layers else '-'} "
        f"| {v.plan.tokens_per_block[0]} -> {v.plan.tokens_per_block[-1]} | {v.gmacs:.3f} | {', '.join(v.engines) or 'none'} |"
        for v in manifest.variants
    ]
    ratio = next((v.keep_ratio for v in manifest.variants if v.name == manifest.default_variant), None)
    choice = f", keep_ratio={ratio:g}" if ratio is not None else ""
    random = "\n**The weights are random: this bundle measures latency, its predictions mean nothing.**\n"
    missing = "".join(f"- {line}\n" for line in manifest.missing)
    return f"""# {manifest.model.name}, deployed with ztdeploy {manifest.tools.get("ztdeploy", "")}
{random if manifest.weights.source == "random" else ""}
Run it on the target (no PyTorch needed):

    pip install ztdeploy
    ztdeploy verify .
    ztdeploy run . photo.jpg

or from Python:

    import ztdeploy
    runner = ztdeploy.load("."{choice})
    prediction, = runner("photo.jpg")

| variant | keep ratio | method | tokens | GMACs | engines |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

- `manifest.json`: where everything comes from, parity figures, and the sha256 of every file
- `graphs/`: plain ONNX graphs, engines beside them, and the one weights file that all of them read
- `golden/`: known images, the pixels after resize and crop, and the outputs that must come out

Input `image`: {manifest.preprocess.image_size} x {manifest.preprocess.image_size} pixels, RGB, uint8 `[batch, height, width, channel]` where the
profile says so, else fp32 `[batch, channel, height, width]`, normalised. Resize the shorter side to {manifest.preprocess.resize}
({manifest.preprocess.interpolation}), crop the centre. Outputs: `logits`, and per pruning layer the indices of the tokens that it kept.
{f"{chr(10)}What is missing:{chr(10)}{chr(10)}{missing}" if missing else ""}"""
