"""Which models can be pruned, by name. Needs neither PyTorch nor timm, but names of timm's are found only with it."""

from __future__ import annotations

from importlib.util import find_spec

from ztdeploy.core.records import Record
from ztdeploy.host.models import families
from ztdeploy.host.models.catalogue import CATALOGUE
from ztdeploy.host.models.loading import ModelCheck


class ListedModel(Record):
    family: str
    name: str
    timm_name: str
    about: str


class Models(Record):
    """The list; or what can be done with one model, which was asked for."""

    models: tuple[ListedModel, ...] = ()
    check: ModelCheck | None = None


def listed(search: str) -> tuple[ListedModel, ...]:
    """Short names; where something is searched for, timm's as well."""
    found = [
        ListedModel(family=entry.family, name=name, timm_name=entry.timm_name, about=entry.about)
        for name, entry in CATALOGUE.items()
    ]
    order = list(dict.fromkeys(one.family for one in found))
    if search and find_spec("timm") is not None:
        import timm

        known = {entry.timm_name for entry in CATALOGUE.values()}
        for family in families():
            names = {name for module in family.timm_modules for name in timm.list_models(module=module)} - known
            found += [ListedModel(family=family.family, name=name, timm_name=name, about="") for name in sorted(names)]
            order += [family.family] * (family.family not in order)
    fitting = [
        one for one in found if search.lower() in " ".join((one.family, one.name, one.timm_name, one.about)).lower()
    ]
    return tuple(sorted(fitting, key=lambda one: order.index(one.family)))
