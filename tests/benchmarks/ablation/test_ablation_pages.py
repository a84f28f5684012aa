"""What an ablation writes: well-formed, escaped, and nothing half."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers import ablations
from helpers.errors import refused
from helpers.pages import EVIL, all_written

from benchmarks.ablation.pages import MARKDOWN, PAGE, REPORT, write_ablation
from benchmarks.ablation.report import AblateReport
from benchmarks.ablation.topic_names import Topic
from ztdeploy.core.errors import OutputError

STATES = {
    "full": lambda: ablations.report(),
    "unlabelled": lambda: ablations.report(labelled=False),
    "one table": lambda: ablations.report(("order",)),
    "one image": lambda: ablations.report(images=1),
    "hostile": lambda: ablations.report(name=EVIL),
}


@pytest.fixture(scope="module", params=STATES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[AblateReport, Path]:
    return all_written(write_ablation, STATES[request.param](), tmp_path_factory.mktemp("ablation"), page=PAGE)


def test_the_report_comes_back(written: tuple[AblateReport, Path]) -> None:
    assert AblateReport.model_validate_json((written[1] / REPORT).read_text()) == written[0]


def test_every_figure_is_on_the_page_and_in_the_text(written: tuple[AblateReport, Path]) -> None:
    report, out = written
    page = ElementTree.fromstring((out / PAGE).read_text().replace("<!DOCTYPE html>", ""))
    exact = {one.attrib["data-value"] for one in page.iter() if "data-value" in one.attrib}
    text = (out / MARKDOWN).read_text()
    for table in report.tables:
        assert f"## {table.title}" in text
        for row in table.rows:
            assert repr(row.kl.value) in exact
            assert f"{row.kl.value:.4f} ({row.kl.interval.low:.4f} to" in text
            if row.difference is not None:
                assert repr(row.difference.value) in exact
                assert f"{row.difference.value:+.4f} (" in text
    for name in re.findall(r"\]\((\S+?\.svg)\)", text):
        assert (out / name).is_file()
    assert "<script" not in text
    assert "](http" not in text.replace("\\](http", "")


def test_an_earlier_one_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    write_ablation(ablations.report(), tmp_path / "out")
    topics: tuple[Topic, ...] = ("order",)
    paths = write_ablation(ablations.report(topics), tmp_path / "out")
    assert set(paths) == set((tmp_path / "out").iterdir()), "no plots of the earlier one are left"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "diary.txt").write_text("mine")
    report = ablations.report(topics)
    refused(
        lambda: write_ablation(report, tmp_path / "other"), "holds something else than an ablation", kind=OutputError
    )
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["diary.txt"]
