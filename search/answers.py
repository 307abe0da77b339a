"""What variants answered on some images, aligned and described, and what a plan makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repo.alignment import Alignment
from model_repo.detections import Detections
from model_repo.escalation import FrameView, view_features
from model_repo.frontier import Plan
from model_repo.fusion import Fusion, fuse
from model_repo.plans import escalate
from model_repo.scoring import MatchTable, Ranking, Truth, match, mix, subset
from search.align import aligned_table


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A variant's aligned answers on some images: detections, matches, and the features [n, f] of each."""

    detections: tuple[Detections, ...]
    table: MatchTable
    features: NDArray[np.float32]

    def part(self, images: NDArray[np.int64]) -> Answered:
        """Return the answers on some of the images, in that order."""
        return Answered(
            tuple(self.detections[i] for i in images), subset(self.table, images), self.features[images]
        )


def answered(
    detections: Sequence[Detections],
    views: Sequence[FrameView],
    table: MatchTable,
    alignment: Alignment,
) -> Answered:
    """Align answers and describe each with its frame, as the router will."""
    aligned = tuple(alignment.apply(answer) for answer in detections)
    rows = np.array([view_features(answer, view) for answer, view in zip(aligned, views, strict=True)])
    return Answered(aligned, aligned_table(table, alignment), rows.astype(np.float32))


class AnswerSet:
    """All variants' answers on some images with their labels; fused answers are matched once a sequence."""

    def __init__(self, sides: dict[str, Answered], truths: Sequence[Truth], classes: int) -> None:
        self.sides, self.truths, self.classes = sides, truths, classes
        self._fused: dict[tuple[str, ...], tuple[tuple[Detections, ...], MatchTable]] = {}

    def part(self, images: NDArray[np.int64]) -> AnswerSet:
        """Return the answers on some of the images."""
        sides = {name: side.part(images) for name, side in self.sides.items()}
        return AnswerSet(sides, [self.truths[i] for i in images], self.classes)

    def in_hand(self, variants: Sequence[str], fusion: Fusion) -> list[MatchTable]:
        """Return the matches of the answers in hand after each of the variants was asked, one by one."""
        if fusion == "replace":
            return [self.sides[name].table for name in variants]
        return [self._after(tuple(variants[: k + 1]))[1] for k in range(len(variants))]

    def ranking(self, variants: Sequence[str], fusion: Fusion) -> Ranking:
        """Return the ranking of the answers in hand after each of the variants, to score many plans with."""
        return Ranking(self.in_hand(variants, fusion))

    def forget(self, variants: Sequence[str]) -> None:
        """Let go of the fused answers after these variants: at thousands of frames they fill the memory."""
        self._fused.pop(tuple(variants), None)

    def _after(self, variants: tuple[str, ...]) -> tuple[tuple[Detections, ...], MatchTable]:
        """Return the answers in hand after variants that are fused one by one, and their matches."""
        last = self.sides[variants[-1]]
        if len(variants) == 1:
            return last.detections, last.table
        if variants not in self._fused:
            before, _ = self._after(variants[:-1])
            both = zip(before, last.detections, strict=True)
            fused = tuple(fuse(first, second, "wbf") for first, second in both)
            self._fused[variants] = fused, match(self.truths, fused, self.classes)
        return self._fused[variants]

    def ends(self, plan: Plan) -> NDArray[np.int64]:
        """Return at which stage each image ends, [n], by the plan's own rules, as the router decides."""
        ends = np.zeros(len(self.truths), dtype=np.int64)
        going = np.ones(len(self.truths), dtype=np.bool_)
        for k, stage in enumerate(plan.stages[:-1]):
            assert (
                stage.rule is not None
            )  # a plan's stages before the last have rules: its validation says so
            gains = stage.rule.gain.compiled().predict(self.sides[stage.variant].features)
            going &= escalate(gains, stage.rule.threshold)
            ends[going] = k + 1
        return ends

    def of_plan(self, plan: Plan) -> MatchTable:
        """Return the matches of what a plan answers."""
        return mix(self.in_hand([stage.variant for stage in plan.stages], plan.fusion), self.ends(plan))
