"""When a sweep measures a cascade, and that other thresholds make another sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.cascades import with_cascade

from ztdeploy.core.bundle import read_bundle
from ztdeploy.target.measure.sweep_plan import empty_report, plan_groups
from ztdeploy.target.measure.sweep_report import SweepRequest


def test_it_is_measured_on_images_in_a_group_of_its_own(digits_bundle: Path) -> None:
    bundle, request = with_cascade(read_bundle(digits_bundle)), SweepRequest(bundle=digits_bundle, data=Path("photos"))
    *static, last = plan_groups(request, [bundle], "cpu")
    assert last.configurations == (bundle.manifest.dense.name, "cascade")
    assert (last.request.cascade, last.request.data) == (True, Path("photos"))
    assert not any(group.request.cascade for group in static)
    assert empty_report(request, [bundle], "cpu", [*static, last]).variants[-1].name == "cascade"


@pytest.mark.parametrize("change", [{"data": None}, {"keep_ratios": (0.5,)}, {"methods": ("zero-tprune",)}])
def test_not_without_images_nor_where_variants_are_chosen(change: dict[str, object], digits_bundle: Path) -> None:
    bundle = with_cascade(read_bundle(digits_bundle))
    request = SweepRequest.model_validate({"bundle": digits_bundle, "data": Path("photos"), **change})
    groups = plan_groups(request, [bundle], "cpu")
    assert not any(group.request.cascade for group in groups)
    assert "cascade" not in [one.name for one in empty_report(request, [bundle], "cpu", groups).variants]


def test_other_thresholds_are_another_sweep(digits_bundle: Path) -> None:
    bundle, request = read_bundle(digits_bundle), SweepRequest(bundle=digits_bundle, data=Path("photos"))
    found = [empty_report(request, [with_cascade(bundle, one)], "cpu", []).bundles[0].digest for one in (0.1, 0.2)]
    assert len(set(found)) == 2
