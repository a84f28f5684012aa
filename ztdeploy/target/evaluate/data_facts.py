"""What an evaluation's images were, for its report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ztdeploy.core.errors import ImageError
from ztdeploy.target.evaluate.data import EvalData
from ztdeploy.target.evaluate.eval_report import DataFacts, Unreadable


def data_facts(data: EvalData, chosen: EvalData, content: Sequence[bytes], problem: Sequence[str]) -> DataFacts:
    """
    Args:
        data: all images that are there.
        chosen: those that were to be evaluated.
        content: sha256 of each chosen file.
        problem: why it could not be read; empty where it could.

    Raises:
        ImageError: none of them could be read.
    """
    digest, accepted = hashlib.sha256(), []
    for image, one, wrong in zip(chosen.images, content, problem, strict=True):
        if not wrong:
            accepted.append(image.accepted)
            line = f"{chosen.name_of(image)}\0{one.hex()}\0{sorted(image.accepted)}\n"
            digest.update(line.encode(errors="surrogateescape"))
    unreadable = [
        Unreadable(image=chosen.name_of(image), reason=wrong)
        for image, wrong in zip(chosen.images, problem, strict=True)
        if wrong
    ]
    if not accepted:
        raise ImageError(
            f"none of {len(unreadable)} images of '{data.path}' can be read ({unreadable[0].reason})",
            "images",
            "check the folder",
        )
    return DataFacts(
        name=data.name,
        path=str(data.path),
        rule=data.rule,
        labelled=data.labelled,
        digest=digest.hexdigest(),
        found=len(data.images),
        images=len(accepted),
        classes=len(set(accepted)) if data.labelled else None,
        ignored=data.ignored,
        unreadable=tuple(unreadable),
    )
