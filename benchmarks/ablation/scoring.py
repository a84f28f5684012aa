"""From what rows answered to the figures of the tables. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.ablation.answers import Part
from benchmarks.ablation.findings import convergence_findings, table_findings
from benchmarks.ablation.ranking import ITERATIONS
from benchmarks.ablation.report import BlockRanking, Convergence, RankingPoint, RowScore, Table
from benchmarks.ablation.topics import Row, TopicRows
from ztdeploy.core.cost import plan_gmacs
from ztdeploy.core.plan import plan
from ztdeploy.core.schedule import Architecture
from ztdeploy.target.evaluate.eval_report import Mean
from ztdeploy.target.evaluate.scoring import change, hits, share
from ztdeploy.target.evaluate.statistics import mean_interval

#: From this overlap on, a ranking counts as settled.
SETTLED = 0.99


@dataclass(frozen=True)
class Scorer:
    """One table after the other."""

    architecture: Architecture
    places: Mapping[object, int]  #: of a row's key among the answers
    answers: Part
    accepted: Sequence[frozenset[int]] | None  #: what counts as right for each image; None where they are not labelled
    seed: int  #: of the bootstrap

    def table(self, topic: TopicRows) -> Table:
        reference = next(row for row in topic.rows if row.label == topic.reference)
        above = self._rows_above(topic)
        rows = tuple(self._row(row, reference, above[row.label]) for row in topic.rows)
        table = Table(
            topic=topic.topic,
            title=topic.title,
            question=topic.question,
            reference=topic.reference,
            rows=rows,
            findings=(),
        )
        return table.model_copy(update={"findings": table_findings(table)})

    def mean(self, values: NDArray[np.float64]) -> Mean:
        return Mean(value=float(values.mean()), interval=mean_interval(values, seed=self.seed))

    def _kl(self, row: Row) -> NDArray[np.float64]:
        kl: NDArray[np.float64] = self.answers.kl[self.places[row.key]]
        return kl

    def _rows_above(self, topic: TopicRows) -> dict[str, list[Row]]:
        """What each row adds something to: for the first that ranks, all random draws; nothing for these."""
        if not topic.cumulative:
            return {row.label: [] for row in topic.rows}
        above: dict[str, list[Row]] = {}
        draws = [row for row in topic.rows if row.draw is not None]
        last = draws
        for row in topic.rows:
            above[row.label] = [] if row.draw is not None else last
            last = draws if row.draw is not None else [row]
        return above

    def _row(self, row: Row, reference: Row, above: Sequence[Row]) -> RowScore:
        kl, best = self._kl(row), self.answers.best[self.places[row.key]]
        top1 = changed = None
        if self.accepted is not None:
            right, dense = hits(best[:, None], self.accepted), hits(self.answers.dense[:, None], self.accepted)
            top1, changed = share(right), change(right, dense)
        before = np.mean([self._kl(one) for one in above], axis=0) if above else None
        return RowScore(
            label=row.label,
            schedule=row.schedule,
            draw=row.draw,
            gmacs=plan_gmacs(self.architecture, plan(row.schedule, self.architecture)),
            kl=self.mean(kl),
            agreement=share(best == self.answers.dense),
            top1=top1,
            change=changed,
            difference=None if row is reference else self.mean(kl - self._kl(reference)),
            step=None if before is None else self.mean(kl - before),
        )

    def convergence(self, kept: int) -> Convergence:
        blocks = tuple(self._block(block) for block in range(self.architecture.depth))
        found = Convergence(
            most=ITERATIONS[-1],
            kept=kept,
            patches=self.architecture.patch_tokens,
            settled_overlap=SETTLED,
            blocks=blocks,
            findings=(),
        )
        return found.model_copy(update={"findings": convergence_findings(found)})

    def _block(self, block: int) -> BlockRanking:
        overlap, correlation = self.answers.overlap[block], self.answers.correlation[block]
        points = tuple(
            RankingPoint(iterations=count, overlap=self.mean(overlap[turn]), correlation=self.mean(correlation[turn]))
            for turn, count in enumerate(ITERATIONS)
        )
        unsettled = [turn for turn, point in enumerate(points) if point.overlap.value < SETTLED]
        return BlockRanking(block=block + 1, points=points, settled=ITERATIONS[max(unsettled, default=-1) + 1])
