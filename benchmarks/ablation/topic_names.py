"""The names of the tables, without anything else: what a command line is checked against."""

from __future__ import annotations

from typing import Literal, get_args

Topic = Literal["contribution", "partition", "feature", "metric", "iterations", "order", "share", "start", "merge"]
TOPICS: tuple[Topic, ...] = get_args(Topic)
