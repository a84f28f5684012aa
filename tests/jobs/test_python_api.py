"""Python's form of the verbs: the same requests as the command line makes, the same errors in Python's words."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers.errors import refused

import ztdeploy
from ztdeploy.cli.app import app
from ztdeploy.core.errors import InputError, ModelError, OutputError, ProfileError, ScheduleError
from ztdeploy.core.profile import read_profile
from ztdeploy.core.schedule import LayerSpec, PruningSchedule

VERBS = {"build": ztdeploy.build, "eval": ztdeploy.evaluate, "bench": ztdeploy.bench, "tune": ztdeploy.tune}
#: What runs a verb's request, as (module, name).
RUNNERS = {
    "build": ["ztdeploy.jobs.build.build", "ztdeploy.jobs.auto_precision.build_fastest"],
    "eval": ["ztdeploy.target.evaluate.evaluate.evaluate_bundle"],
    "bench": ["ztdeploy.target.measure.bench.run_bench"],
    "tune": ["ztdeploy.jobs.tune.tune_into"],
}
#: Calls in Python, and the command lines that mean the same.
ALIKE: list[tuple[str, Callable[[], object], str]] = [
    ("build", lambda: ztdeploy.build("deit_s"), "-m deit_s"),
    ("build", lambda: ztdeploy.build("deit_s", keep_ratio=0.7), "-m deit_s -k 0.7"),
    (
        "build",
        lambda: ztdeploy.build(
            "vit_b", keep_ratio=(0.9, 0.7), profile=["cpu", "jetson-orin"], method=("tome", "evit"), batch=4, force=True
        ),
        "-m vit_b -k 0.9,0.7 -p cpu,jetson-orin --method tome --method evit --batch 4 --force",
    ),
    (
        "build",
        lambda: ztdeploy.build("deit_s", calib="photos", max_drop=1, precision="auto", out="there", preset="paper"),
        "-m deit_s --calib photos --max-drop 1 --precision auto --out there --preset paper",
    ),
    (
        "build",
        lambda: ztdeploy.build(
            Path("mine"), image_size=(96, 384), mean=(0.5,) * 3, std=[0.2] * 3, interpolation="bilinear", crop_pct=0.9
        ),
        "-m local-dir:mine --image-size 96x384 --mean 0.5,0.5,0.5 --std 0.2,0.2,0.2 --interpolation bilinear"
        " --crop-pct 0.9",
    ),
    (
        "build",
        lambda: ztdeploy.build(
            "deit_s", checkpoint="w.pth", class_names="n.txt", activation="sigmoid", crop_mode="squash", bit_depth=12
        ),
        "-m deit_s --checkpoint w.pth --class-names n.txt --activation sigmoid --crop-mode squash --bit-depth 12",
    ),
    (
        "build",
        lambda: ztdeploy.build("clip_b", weights="random", output="embedding", schedule="deit_s-reduction-35"),
        "-m clip_b --weights random --output embedding --schedule deit_s-reduction-35",
    ),
    ("eval", lambda: ztdeploy.evaluate("here", "photos", record=True), "here -d photos"),
    (
        "eval",
        lambda: ztdeploy.evaluate(
            Path("here"), Path("photos"), keep_ratio=(0.7, 0.5), variant="dense", profile="cpu", against="gpu", limit=9,
            seed=2, batch=4, threads=2, strict=True, recall_at=(1, 5), min_agreement=0.9,
            max_error=0.1, min_iou=0.8, threshold=0.4,
        ),
        "here -d photos -k 0.7 -k 0.5 --variant dense -p cpu --against gpu --limit 9 --seed 2 --batch 4 --threads 2"
        " --strict --recall-at 1,5 --min-agreement 0.9 --max-error 0.1 --min-iou 0.8 --threshold 0.4 --no-record",
    ),
    ("bench", lambda: ztdeploy.bench("here"), "here"),
    (
        "bench",
        lambda: ztdeploy.bench(
            "here", keep_ratio=0.7, variant=("dense",), profile="cpu", batch=(1, 8), threads=2, warmup=0, duration=3,
            rounds=4, reference=False,
        ),
        "here -k 0.7 --variant dense -p cpu --batch 1,8 --threads 2 --warmup 0 --duration 3 --rounds 4 --no-reference",
    ),
    ("bench", lambda: ztdeploy.bench("here", keep_ratio="all", iterations=7), "here -k all --iterations 7"),
    ("tune", lambda: ztdeploy.tune("deit_s", "photos"), "-m deit_s -d photos"),
    (
        "tune",
        lambda: ztdeploy.tune(
            Path("mine"), "photos", budget="speedup=1.5", profile="cpu", method=("zero-tprune", "novelty-merge"),
            out="there", trials=20, sampler="random", workers=2, study="one", max_drop=0.5, limit=64, seed=3,
            weights="random", image_size=64, cache="cached",
        ),
        "-m local-dir:mine -d photos -b speedup=1.5 -p cpu --method zero-tprune --method novelty-merge --out there"
        " --trials 20 --sampler random --workers 2 --study one --max-drop 0.5 --limit 64 --seed 3 --weights random"
        " --image-size 64 --cache cached",
    ),
    (
        "tune",
        lambda: ztdeploy.tune("deit_s", "photos", budget="gmacs=3", search="counts"),
        "-m deit_s -d photos -b gmacs=3 --search counts",
    ),
]  # fmt: skip


class _CaughtError(Exception):
    """Carries what a verb would have run."""


@pytest.fixture
def caught(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], Any]:
    """What a call of a verb would run: the job's name, its request, and where else it writes or reads."""

    def catch(verb: str, call: Callable[[], object]) -> Any:
        for runner in RUNNERS[verb]:

            def instead(request: object, *others: object, _runner: str = runner, **options: Any) -> None:
                paths = [other for other in others if isinstance(other, Path)]
                raise _CaughtError(_runner, request, paths, options.get("cache"), options.get("fresh"))

            monkeypatch.setattr(runner, instead)
        monkeypatch.setattr("ztdeploy.target.evaluate.record.check_recordable", lambda _bundle: None)
        with pytest.raises(_CaughtError) as found:
            call()
        return found.value.args

    return catch


@pytest.mark.parametrize(("verb", "call", "typed"), ALIKE, ids=[f"{verb} {typed}" for verb, _, typed in ALIKE])
def test_python_and_the_command_line_ask_for_the_same(
    verb: str, call: Callable[[], object], typed: str, caught: Any
) -> None:
    command: Any = typer.main.get_command(app)
    line = [verb, *typed.split()]
    assert caught(verb, call) == caught(verb, lambda: command(line, standalone_mode=False))


@pytest.mark.parametrize("verb", VERBS)
def test_python_has_what_the_command_line_has(verb: str) -> None:
    """By the same name, and with the same default where both have one."""
    command: Any = typer.main.get_command(app)
    options = {
        max(one.opts, key=len).strip("-").replace("-", "_"): one.default for one in command.commands[verb].params
    }
    parameters = inspect.signature(VERBS[verb]).parameters
    of_terminals = {"json", "page", "maps", "out", "verbose", "quiet", "help", "no_cache", "on"}
    assert options.keys() - parameters.keys() <= of_terminals
    assert parameters.keys() - options.keys() <= {"progress", "backbone", "example"}  # modules are Python
    differing = {
        name
        for name in options.keys() & parameters.keys()
        if (parameters[name].default or None) != (options[name] or None)
    }
    assert {name for name in differing if parameters[name].default is not inspect.Parameter.empty} <= {"record"}


def test_a_folder_is_told_from_a_name(caught: Any, here: Path) -> None:
    for folder in ("mine", "below/mine"):
        (here / folder).mkdir(parents=True)
        (here / folder / "config.json").touch()
        _, request, *_ = caught("build", lambda folder=folder: ztdeploy.build(folder))
        assert (request.model.name, request.out) == (f"local-dir:{folder}", Path("mine-cpu"))


def test_what_is_no_text_goes_as_it_is(caught: Any) -> None:
    schedule, profile = PruningSchedule(name="mine", layer=(LayerSpec(block=2, drop=6),)), read_profile("cpu")
    build = lambda: ztdeploy.build("deit_s", schedule=schedule, profile=profile, class_names=["a", "b"])  # noqa: E731
    _, request, *_ = caught("build", build)
    assert (request.schedules, request.profiles, request.model.class_names) == ((schedule,), (profile,), ("a", "b"))
    assert request.out == Path("deit_s-cpu")


@pytest.mark.parametrize(
    ("call", "kind", "fragments"),
    [
        (lambda: ztdeploy.build(3), InputError, ["model = 3", "torch.nn.Module"]),
        (lambda: ztdeploy.build("taken/file"), InputError, ["which is a file", "checkpoint='taken/file'"]),
        (lambda: ztdeploy.build("deit_s", keep_ratio="a"), InputError, ["keep_ratio = 'a'", "a number"]),
        (lambda: ztdeploy.build("deit_s", keep_ratio=2), ScheduleError, ["keep ratio 2", "instance keep_ratio"]),
        (lambda: ztdeploy.build("deit_s", weights="none"), InputError, ["weights = 'none'", "pretrained"]),
        (lambda: ztdeploy.build("deit_s", output="logit"), InputError, ["output = 'logit'", "'embedding'"]),
        (lambda: ztdeploy.build("deit_s", image_size="big"), InputError, ["image_size = 'big'"]),
        (lambda: ztdeploy.build("deit_s", profile="cpuu"), ProfileError, ["did you mean 'cpu'?"]),
        (lambda: ztdeploy.build("deit_s", max_drop=1), InputError, ["max_drop 1 without calib", "give calib=DIR"]),
        (lambda: ztdeploy.build("deit_s", calib="photos", max_drop=-1), InputError, ["max_drop = -1"]),
        (lambda: ztdeploy.build("deit_s", out="taken"), OutputError, ["'taken' exists", "add force=True"]),
        (lambda: ztdeploy.build("folder"), ModelError, ["'folder'"]),
        (lambda: ztdeploy.bench("here", warmup=-1), InputError, ["warmup = -1"]),
        (lambda: ztdeploy.bench("here", batch=0), InputError, ["batch = 0"]),
        (lambda: ztdeploy.evaluate("here", "photos", recall_at=[0]), InputError, ["recall_at = 0"]),
        (lambda: ztdeploy.tune("deit_s", "photos", budget="fast"), InputError, ["budget 'fast'"]),
    ],
)  # fmt: skip
def test_errors_speak_of_arguments(
    call: Callable[[], object], kind: type[ztdeploy.ZtdeployError], fragments: list[str], here: Path
) -> None:
    (here / "taken").mkdir()
    (here / "taken" / "file").touch()
    assert not re.search(r"(?<!\w)--\w", refused(call, *fragments, kind=kind))


def test_commands_in_errors_stay_commands(here: Path) -> None:
    with pytest.raises(ztdeploy.ZtdeployError, match="'ztdeploy build'"):
        ztdeploy.bench("nowhere")


def test_results_show_what_they_are(digits_bundle: Path, digit_images: list[Path], tmp_path: Path) -> None:
    bundle = ztdeploy.load(digits_bundle).bundle
    assert repr(bundle).startswith(f"<Bundle {digits_bundle.name}: vit_digits")
    assert {"keep-0.70", "keep-0.50", "dense"} <= {line.split()[0] for line in str(bundle).splitlines()}
    report = ztdeploy.evaluate(bundle, digit_images[0].parent, limit=20, cache=tmp_path)
    for shown in (bundle, report):
        assert len(repr(shown).splitlines()) == 1
        assert "<td>keep-0.70</td>" in shown._repr_html_()
    assert "20 images of 'images'" in repr(report)
    assert report.verdict is not None
    assert report.verdict.sentence in repr(report)
    assert "keep_ratio=0.7" in repr(bundle.variant(0.7))
    with ztdeploy.load(bundle, keep_ratio=0.5, threads=1) as runner:
        assert repr(runner) == f"BundleRunner('{digits_bundle.name}', variant='keep-0.50', profile='cpu', threads=1)"
        (prediction,) = runner(digit_images[0], top=1)
    assert repr(prediction) == f"Prediction('{digit_images[0]}', {prediction.labels[0].words()})"
    assert (prediction.label, prediction.probability) == (digit_images[0].stem[-1], prediction.labels[0].probability)
    refused(lambda: prediction.embedding, "logits", "output='embedding'", kind=InputError)


def test_the_package_names_everything_and_imports_nothing() -> None:
    code = "import sys, ztdeploy; d = dir(ztdeploy); assert set(ztdeploy.__all__) <= set(d), d\n"
    code += "import pydoc; text = pydoc.render_doc(ztdeploy)\n"
    code += "assert all(f'{name}(' in pydoc.plain(text) for name in ('build', 'load', 'tune', 'prune'))\n"
    code += "print(*(name for name in ('torch', 'timm', 'onnx', 'optuna', 'onnxruntime') if name in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


@pytest.mark.parametrize("name", [name for name in ztdeploy.__all__ if inspect.isfunction(getattr(ztdeploy, name))])
def test_every_argument_is_documented(name: str) -> None:
    function = getattr(ztdeploy, name)
    documented, told = inspect.signature(function).parameters, inspect.getdoc(function) or ""
    told = told[told.index("Args:") :]
    assert [one for one in documented if not re.search(rf"\b{one}\b.*: ", told)] == []
