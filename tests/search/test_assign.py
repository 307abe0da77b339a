"""Task-aligned assignment."""

from __future__ import annotations

import torch
from torch import Tensor

from search.assign import Targets, assign, pairwise_iou
from search.supernet.decode import anchors_for

ANCHORS = anchors_for((64, 64))


def targets(boxes: list[list[float]], labels: list[int], images: list[int] | None = None) -> Targets:
    return Targets(
        image=torch.tensor(images or [0] * len(labels), dtype=torch.int64),
        boxes_xyxy=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
    )


def around_points(count: int = 1, reach: float = 8.0) -> Tensor:
    points = ANCHORS.points_xy
    return torch.cat([points - reach, points + reach], dim=1).expand(count, -1, 4)


def uniform_scores(count: int = 1, classes: int = 2) -> Tensor:
    return torch.full((count, len(ANCHORS.strides), classes), 0.5)


def test_positives_lie_inside_their_box() -> None:
    """Every positive anchor lies inside its object's box, in its object's image, at most top-k of them."""
    wanted = targets([[8, 8, 40, 40], [30, 20, 60, 60]], [0, 1], [0, 1])
    found = assign(uniform_scores(2), around_points(2), ANCHORS, wanted, top_k=3)
    points = ANCHORS.points_xy[found.anchor]
    boxes = wanted.boxes_xyxy[found.target]
    assert bool(((points > boxes[:, :2]) & (points < boxes[:, 2:])).all())
    assert torch.equal(found.image, wanted.image[found.target])
    assert torch.bincount(found.target).tolist() == [3, 3]


def test_an_anchor_learns_one_object() -> None:
    """Where boxes overlap, each anchor goes to the object that its prediction overlaps most."""
    wanted = targets([[0, 0, 40, 40], [4, 4, 44, 44], [0, 0, 64, 64]], [0, 0, 1])
    found = assign(uniform_scores(), around_points(reach=20.0), ANCHORS, wanted, top_k=30)
    assert len(set(found.anchor.tolist())) == len(found.anchor)
    predicted = around_points(reach=20.0)[0, found.anchor]
    overlaps = torch.stack(
        [pairwise_iou(predicted, wanted.boxes_xyxy[i].expand_as(predicted)) for i in range(3)], dim=1
    )
    chosen = overlaps.gather(1, found.target[:, None])[:, 0]
    assert bool((chosen > 0).all())


def test_tiny_objects_have_a_candidate() -> None:
    """An object smaller than the finest stride still gets an anchor."""
    found = assign(uniform_scores(), around_points(), ANCHORS, targets([[9, 9, 11, 11]], [0]))
    assert len(found.anchor) >= 1


def test_quality_is_the_best_overlap() -> None:
    """An object's best anchor learns the object's best overlap, and no quality exceeds it."""
    wanted = targets([[8, 8, 40, 40]], [1])
    boxes = around_points(reach=14.0)
    found = assign(uniform_scores(), boxes, ANCHORS, wanted)
    overlaps = pairwise_iou(boxes[0, found.anchor], wanted.boxes_xyxy.expand(len(found.anchor), 4))
    assert torch.isclose(found.quality.max(), overlaps.max())
    assert 0.0 < float(found.quality.min()) <= float(found.quality.max()) <= 1.0


def test_the_right_class_is_preferred() -> None:
    """Of equally good boxes the one whose score for the object's class is higher is taken first."""
    scores = uniform_scores()
    inside = 9  # stride 8, point (12, 12)
    scores[0, inside, 1] = 0.99
    boxes = torch.tensor([8.0, 8.0, 40.0, 40.0]).expand(1, len(ANCHORS.strides), 4)
    found = assign(scores, boxes, ANCHORS, targets([[8, 8, 40, 40]], [1]), top_k=1)
    assert found.anchor.tolist() == [inside]


def test_no_objects_no_positives() -> None:
    """A batch without objects has no positives."""
    found = assign(uniform_scores(), around_points(), ANCHORS, targets([], []))
    assert len(found.anchor) == len(found.quality) == 0
