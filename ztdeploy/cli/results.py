"""What each verb finds, as the `result` of its `--json`: a record of the part that does the work, or one of these.

`RESULTS` names them for the JSON schemas in `schemas/`, which `python -m scripts.schemas` writes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pydantic import BaseModel, create_model
from pydantic.json_schema import GenerateJsonSchema

from ztdeploy.cli.output import SCHEMA
from ztdeploy.core.manifest import Manifest
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.core.records import Record
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.core.verdict import Verdict
from ztdeploy.jobs.remote.fleet import BoardState
from ztdeploy.jobs.remote.registry import Board
from ztdeploy.target.evaluate.eval_report import MapFigures
from ztdeploy.target.evaluate.maps import MapFacts

RESULTS = {
    "build": "ztdeploy.cli.results:BuildResult",
    "run": "ztdeploy.cli.results:RunResult",
    "verify": "ztdeploy.target.verify:VerifyReport",
    "finalize": "ztdeploy.target.finalize:FinalizeReport",
    "export": "ztdeploy.jobs.export.parts:ExportReport",
    "sign": "ztdeploy.core.signature:SignedBy",
    "install": "ztdeploy.target.install:InstallReport",
    "inspect": "ztdeploy.core.manifest:Manifest",
    "bench": "ztdeploy.target.measure.bench_report:BenchReport",
    "eval": "ztdeploy.target.evaluate.eval_report:EvalReport",
    "show": "ztdeploy.cli.results:ShowResult",
    "sweep": "ztdeploy.target.measure.sweep_report:SweepReport",
    "tune": "ztdeploy.report.tune.records:TuneReport",
    "report": "ztdeploy.cli.results:ReportResult",
    "compare": "ztdeploy.report.compare.comparison:ReportComparison",
    "profiles list": "ztdeploy.cli.results:ProfilesResult",
    "profiles schedules": "ztdeploy.cli.results:SchedulesResult",
    "profiles show": "ztdeploy.core.profile:HardwareProfile",
    "profiles check": "ztdeploy.cli.results:CheckedProfile",
    "remote add": "ztdeploy.cli.results:BoardsResult",
    "remote list": "ztdeploy.cli.results:BoardsResult",
    "remote remove": "ztdeploy.cli.results:BoardsResult",
    "remote check": "ztdeploy.cli.results:CheckedBoards",
    "remote install": "ztdeploy.cli.results:CheckedBoards",
    "models": "ztdeploy.host.models.listing:Models",
    "doctor": "ztdeploy.jobs.doctor:Findings",
    "quickstart": "ztdeploy.jobs.quickstart:Quickstart",
}

#: Verbs with `--on`, which print an object with the results of boards by their names.
ON_BOARDS = ("run", "verify", "finalize", "bench", "eval", "sweep")
#: What `build` says of the manifest that it has written.
OF_MANIFEST = ("variants", "failed", "adapted", "missing", "weights", "text_head", "gates", "choices", "calibration")
_FIELDS: Any = {name: (Manifest.model_fields[name].annotation, Manifest.model_fields[name]) for name in OF_MANIFEST}
BuildResult = create_model("BuildResult", __base__=Record, bundle=(str, ...), verdict=(Verdict, ...), **_FIELDS)


class LabelResult(Record):
    """One output of a classifier."""

    index: int
    name: str
    probability: float | None  #: None where outputs are values
    value: float  #: what the head gave


class ImageResult(Record):
    """What an engine says about one image."""

    image: str
    labels: tuple[LabelResult, ...]  #: best first; none of a model that gives vectors
    shape: tuple[int, ...]  #: of what the engine gave: `[classes]`, `[D]`, `[positions, D]` or `[C, h, w]`
    norm: float | None  #: L2 norm of a vector, of features the mean over positions; None of a classifier and of a map
    map: MapFacts | None = None  #: what is in a map
    files: tuple[str, ...] = ()  #: that `--maps` wrote
    kept_patches: tuple[int, ...]  #: how many are left behind each pruning layer
    stage: str | None = None  #: variant of the stage that answered; None where one engine runs


class CascadeCounts(Record):
    """Which stages answered."""

    answered: dict[str, int]  #: images, by variant of the stage
    expected_to_go_on: float  #: share of images like the calibration images that go on from the first stage
    warning: str | None  #: these images are unlike the calibration images; None: nothing says so


class RunResult(Record):
    bundle: str
    profile: str
    variant: str | None = None  #: None: a cascade of several
    images: tuple[ImageResult, ...]
    cascade: CascadeCounts | None = None


class ShownLayer(Record):
    """What one pruning layer did with an image. Patches count from 0, row by row; None: not known."""

    block: int
    tokens_in: int
    tokens_out: int
    kept_patches: tuple[int, ...]
    merged_patches: tuple[tuple[int, ...], ...]
    dropped_by_similarity: tuple[int, ...] | None = None
    dropped_by_importance: tuple[int, ...] | None = None
    pairs: tuple[tuple[int, int | None, float], ...] | None = None  #: patch, the one that it is like, cosine
    importance: tuple[float | None, ...] | None = None  #: by patch


class ShownVariant(Record):
    variant: str
    method: str
    labels: tuple[LabelResult, ...]
    cosine: float | None  #: to the baseline's vector, or whole map; None of a classifier
    map: MapFigures | None = None  #: how near its map is to the baseline's
    doubt: str | None  #: why some reasons are missing
    confidence: float | None = None  #: None where no cascade runs, and of its last stage
    threshold: float | None = None  #: the image goes on where the confidence is below it
    layers: tuple[ShownLayer, ...]


class ShownImage(Record):
    image: str
    sheet: str  #: the PNG
    dense: tuple[LabelResult, ...]
    variants: tuple[ShownVariant, ...]  #: of a cascade: of the stages that ran
    answered_by: str | None = None  #: variant of the stage that answered; None where no cascade runs


class ShowResult(Record):
    page: str
    images: tuple[ShownImage, ...]


class ReportResult(Record):
    verdicts: tuple[str, ...]  #: a setting each
    written: tuple[str, ...]  #: files


class ProfilesResult(Record):
    profiles: tuple[HardwareProfile, ...]


class SchedulesResult(Record):
    schedules: tuple[PruningSchedule, ...]


class BoardsResult(Record):
    boards: dict[str, Board]


class CheckedBoards(Record):
    boards: dict[str, BoardState]


class CheckedProfile(Record):
    profile: str
    valid: bool
    engines_can_be_built: bool


class _WithoutTitles(GenerateJsonSchema):
    """Titles of fields would repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def result_type(verb: str) -> type[BaseModel]:
    module, _, name = RESULTS[verb].partition(":")
    found: type[BaseModel] = getattr(import_module(module), name)
    return found


def schema_of(verb: str) -> dict[str, Any]:
    """The JSON schema of all that a verb prints with `--json`: its result, or an error."""
    result = result_type(verb).model_json_schema(mode="serialization", schema_generator=_WithoutTitles)
    definitions = result.pop("$defs", {})
    error = {
        "type": "object",
        "properties": {"message": {"type": "string"}, "exit_code": {"type": "integer"}},
        "required": ["message", "exit_code"],
        "additionalProperties": False,
    }
    either = {name: {"$ref": f"#/properties/{name}"} for name in ("result", "error")}
    board = {"type": "object", "properties": either, "additionalProperties": False}
    on_boards = {"boards": {"type": "object", "additionalProperties": board}} if verb in ON_BOARDS else {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"ztdeploy {verb} --json",
        "type": "object",
        "properties": {
            "ztdeploy": {"type": "string", "description": "The version that printed it."},
            "schema": {"const": SCHEMA},
            "verb": {"const": verb},
            "result": result,
            "error": error,
            **on_boards,
        },
        "required": ["ztdeploy", "schema", "verb"],
        "oneOf": [{"required": [one]} for one in ("result", "error", *on_boards)],
        "additionalProperties": False,
        "$defs": definitions,
    }
