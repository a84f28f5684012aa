"""The setting of a measurement. Engines are compared only within one; all tables and pages name it alike."""

from __future__ import annotations

from typing import NamedTuple

from ztdeploy.core.preprocess_spec import ImageSize


class Setting(NamedTuple):
    """Image size, images per call, and threads."""

    image_size: ImageSize | None  #: None: not shown, because all sizes are the same
    batch: int | None  #: None: not shown
    threads: int | None  #: None: not shown, or the runtime takes no number of threads

    def __str__(self) -> str:
        """Such as "224 px, batch 1, 2 threads"."""
        size = [] if self.image_size is None else [f"{self.image_size} px"]
        batch = [] if self.batch is None else [f"batch {self.batch}"]
        threads = [] if self.threads is None else [f"{self.threads} thread{'' if self.threads == 1 else 's'}"]
        return ", ".join([*size, *batch, *threads])
