"""What a report concludes: the record that all kinds of them carry. `ztdeploy.target.verdict` has the rule."""

from __future__ import annotations

from typing import Literal

from ztdeploy.core.records import Record

#: "open": something is missing to decide, which the sentence names; "preset": of a search, which found nothing better.
Decision = Literal["deploy", "baseline", "open", "preset"]


class Verdict(Record):
    """A conclusion."""

    decision: Decision
    sentence: str
    variant: str | None = None  #: what to deploy, or what the sentence is about where that is open
    setting: str = ""  #: of a report with several: image size, batch and threads
