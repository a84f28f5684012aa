"""What a search writes: well-formed, escaped, nothing half; and schedules that can be read again."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import tunings
from helpers.errors import refused
from helpers.pages import EVIL, all_written

from ztdeploy.core.errors import InputError, OutputError
from ztdeploy.core.options import MethodOptions
from ztdeploy.core.profile import profile_folder, profile_names, read_profile
from ztdeploy.core.schedule import LayerSpec, PruningSchedule, read_schedule
from ztdeploy.jobs.tune.folder import PAGE, PATCH, REPORT, check_folder, toml, tune_folder, write_tuning
from ztdeploy.report.tune.records import Ratio, TuneReport
from ztdeploy.report.tune.words import conclusion
from ztdeploy.target.evaluate.eval_report import Share
from ztdeploy.target.measure.statistics import Interval

STATES = {
    "full": lambda: tunings.report(),
    "front": lambda: tunings.report(front=True),
    "unlabelled": lambda: tunings.report(labelled=False),
    "one trial": lambda: tunings.report(trials=1),
    "measured": lambda: tunings.report(measured=True),
    "hostile": lambda: tunings.report(name=EVIL),
}


@pytest.fixture(scope="module", params=STATES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TuneReport, Path]:
    return all_written(write_tuning, STATES[request.param](), tmp_path_factory.mktemp("tuning"), page=PAGE)


def test_report_and_schedules_come_back(written: tuple[TuneReport, Path]) -> None:
    report, out = written
    assert TuneReport.model_validate_json((out / REPORT).read_text()) == report
    for one in report.compared:
        assert read_schedule(out / "schedules" / f"{one.name}.toml") == one.tuned.schedule
    searched = tuple(one.tuned.schedule for one in report.compared if one.searched)
    for name in profile_names():
        patched = out.with_name(f"{name}.toml")
        patched.write_text((profile_folder() / f"{name}.toml").read_text() + (out / PATCH).read_text())
        assert read_profile(str(patched)) == read_profile(name).model_copy(update={"schedules": searched})
    page = (out / PAGE).read_text()
    for one in report.compared:
        assert repr(one.tuned.kl.value) in page
    assert ("Predicted and measured" in page) == bool(report.measured)
    assert ("was not searched for" in page) == (report.request.budget is not None)


def test_any_schedule_comes_back_from_its_file(tmp_path: Path) -> None:
    schedule = PruningSchedule(
        name="all-of-it",
        method="zero-tprune-merge",
        options=MethodOptions(partner="keys", coherent=False, least_similarity=0.25),
        layers=(
            LayerSpec(block=2, drop=7, similarity_share=0.75, iterations=3),
            LayerSpec(block=4, keep_ratio=0.5, similarity_drop=2),
        ),
    )
    (tmp_path / "x.toml").write_text(toml(schedule))
    assert read_schedule(tmp_path / "x.toml") == schedule


def test_an_earlier_report_goes_and_anything_else_stays(tmp_path: Path) -> None:
    out = tmp_path / "found"
    write_tuning(tunings.report(front=True), out)
    write_tuning(tunings.report(), out)
    assert len(list((out / "schedules").iterdir())) == 2
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "today.txt").write_text("mine")
    refused(lambda: check_folder(tmp_path / "diary"), "something else than a search", kind=OutputError)
    refused(lambda: check_folder(tmp_path / "diary" / "today.txt"), "is a file", kind=OutputError)


def test_one_search_at_a_time_and_a_refused_one_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "found"

    def second() -> None:
        with tune_folder(out, own_study=True):
            raise AssertionError

    def refusing() -> None:
        with tune_folder(tmp_path / "new", own_study=True):
            (tmp_path / "new" / "study.db").write_text("begun")
            raise InputError("a", "b", "c")

    with tune_folder(out, own_study=True):
        refused(second, "another search is writing", kind=OutputError)
    refused(refusing, kind=InputError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("low", "high", "decision", "words"),
    [
        (0.7, 0.99, "deploy", "less compute"),
        (0.9, 1.1, "preset", "not shown to be better"),
        (1.05, 1.3, "preset", "worse than the best preset"),
    ],
)
def test_a_search_that_finds_nothing_better_recommends_the_preset(
    low: float, high: float, decision: str, words: str, tmp_path: Path
) -> None:
    report = tunings.report()
    alike = Share(count=99, total=100, interval=Interval(low=0.96, high=1, confidence=0.95))
    scores = {
        name: getattr(report.winner, name).model_copy(update={"agreement": alike, "change": None})
        for name in ("tuned", "preset")
    }
    ratio = Ratio(value=(low + high) / 2, interval=Interval(low=low, high=high, confidence=0.95))
    winner = report.winner.model_copy(update={**scores, "to_preset": ratio})
    report = report.model_copy(update={"compared": (winner, *report.compared[1:])})
    found = conclusion(report)
    assert found.decision == decision
    assert words in found.sentence
    _, schedule, *_ = write_tuning(report, tmp_path / "out")
    assert read_schedule(schedule) == (winner.tuned if decision == "deploy" else winner.preset).schedule
