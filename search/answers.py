"""What variants answered on some images, aligned and described, and what a plan makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repo.alignment import Alignment
from model_repo.detections import Detections
from model_repo.escalation import features
from model_repo.frontier import Plan
from model_repo.fusion import Fusion, fuse
from model_repo.plans import escalate
from model_repo.scoring import MatchTable, Truth, match, mix, subset
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
    images: Sequence[NDArray[np.uint8]],
    table: MatchTable,
    alignment: Alignment,
) -> Answered:
    """Align answers and describe each with its frame, as the router will."""
    aligned = tuple(alignment.apply(answer) for answer in detections)
    rows = np.array([features(answer, image) for answer, image in zip(aligned, images, strict=True)])
    return Answered(aligned, aligned_table(table, alignment), rows.astype(np.float32))


class AnswerSet:
    """All variants' answers on some images with their labels; fused answers are matched once a sequence."""

    def __init__(self, sides: dict[str, Answered], truths: Sequence[Truth], classes: int) -> None:
        self.sides, self.truths, self.classes = sides, truths, classes
        self._in_hand: dict[tuple[tuple[str, ...], Fusion], list[MatchTable]] = {}

    def part(self, images: NDArray[np.int64]) -> AnswerSet:
        """Return the answers on some of the images."""
        sides = {name: side.part(images) for name, side in self.sides.items()}
        return AnswerSet(sides, [self.truths[i] for i in images], self.classes)

    def in_hand(self, variants: Sequence[str], fusion: Fusion) -> list[MatchTable]:
        """Return the matches of the answers in hand after each of the variants was asked, one by one."""
        key = tuple(variants), fusion
        if key not in self._in_hand:
            self._in_hand[key] = self._matched(key[0], fusion)
        return self._in_hand[key]

    def _matched(self, variants: tuple[str, ...], fusion: Fusion) -> list[MatchTable]:
        if len(variants) == 1:
            return [self.sides[variants[0]].table]
        before, last = self.in_hand(variants[:-1], fusion), self.sides[variants[-1]]
        if fusion == "replace":
            return [*before, last.table]
        fused = self.sides[variants[0]].detections
        for name in variants[1:]:
            both = zip(fused, self.sides[name].detections, strict=True)
            fused = tuple(fuse(first, second, fusion) for first, second in both)
        return [*before, match(self.truths, fused, self.classes)]

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
