"""The setting of a measurement: engines compare only within one, and every table and page names it alike."""

from __future__ import annotations

from typing import NamedTuple

from ztdeploy.core.preprocess_spec import ImageSize


class Setting(NamedTuple):
    """The size of the images, how many one call takes, and the threads that work on them."""

    image_size: ImageSize | None  #: None: not said, because all sizes are one
    batch: int | None  #: None: not said either
    threads: int | None  #: None: not said, or a runtime that takes no number of threads

    def __str__(self) -> str:
        """Such as "224 px, batch 1, 2 threads"."""
        size = [] if self.image_size is None else [f"{self.image_size} px"]
        batch = [] if self.batch is None else [f"batch {self.batch}"]
        threads = [] if self.threads is None else [f"{self.threads} thread{'' if self.threads == 1 else 's'}"]
        return ", ".join([*size, *batch, *threads])
