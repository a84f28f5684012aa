"""A cascade on record, without building one."""

from __future__ import annotations

import numpy as np

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.cascade import CascadeSetting, Guarantee
from ztdeploy.core.manifest import CascadeRecord, CascadeStage, PartRecord, Piece
from ztdeploy.target.adaptive.guarantee import quantiles


def setting(threshold: float = 0.1) -> CascadeSetting:
    """Two stages; 10 % of 100 calibration images, whose confidence is spread evenly from 0 to 1, went on."""
    guarantee = Guarantee(
        data="calibration", data_sha256="", images=100, asked=0.95, failures=1, bound=0.95, min_cosine=0.9
    )
    even = quantiles(np.linspace(0, 1, 100))
    return CascadeSetting(thresholds=(threshold,), shares=(1, 0.1), guarantee=guarantee, quantiles=even, gmacs=1.3)


def with_cascade(bundle: Bundle, threshold: float = 0.1) -> Bundle:
    """The bundle with a record of a cascade from its first variant to the baseline, for all its profiles; its pieces
    have the engines of whole variants.
    """
    manifest = bundle.manifest

    def own(part: PartRecord, name: str) -> dict[str, object]:
        return {"name": name, "graphs": part.graphs, "engines": part.engines}

    chain = (next(one for one in manifest.variants if one.plan.layers), manifest.dense)
    record = CascadeRecord(
        block=1,
        signal="margin",
        prefix=Piece.model_validate(own(manifest.dense, "_prefix")),
        stages=tuple(
            CascadeStage.model_validate({**own(one, f"_tail.{one.name}"), "variant": one.name}) for one in chain
        ),
        settings=dict.fromkeys(manifest.profiles, setting(threshold)),
    )
    return Bundle(bundle.root, manifest.model_copy(update={"cascade": record}))
