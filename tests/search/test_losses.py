"""Losses of the largest subnet and of those that learn from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from search.assign import Targets
from search.losses import distillation_loss, generalized_iou, label_loss
from search.supernet.decode import anchors_for
from search.supernet.head import RawOutputs

ANCHORS = anchors_for((64, 64))
TARGETS = Targets(
    image=torch.tensor([0, 1, 1]),
    boxes_xyxy=torch.tensor([[4.0, 4, 30, 34], [10, 12, 50, 40], [30, 30, 62, 62]]),
    labels=torch.tensor([0, 1, 0]),
)


def outputs(seed: int, requires_grad: bool = False) -> RawOutputs:
    generator = torch.Generator().manual_seed(seed)
    sizes = [8, 4, 2]
    return RawOutputs(
        [torch.randn(2, 2, s, s, generator=generator).requires_grad_(requires_grad) for s in sizes],
        [torch.randn(2, 4, s, s, generator=generator).requires_grad_(requires_grad) for s in sizes],
    )


boxes = st.tuples(*[st.floats(0, 60, width=32)] * 2, *[st.floats(1, 30, width=32)] * 2).map(
    lambda v: torch.tensor([[v[0], v[1], v[0] + v[2], v[1] + v[3]]])
)


@given(boxes, boxes)
def test_generalized_iou(a: torch.Tensor, b: torch.Tensor) -> None:
    """Generalized IoU is symmetric, lies in (-1, 1], and is 1 for equal boxes."""
    value = float(generalized_iou(a, b))
    assert -1.0 <= value <= 1.0 + 1e-5
    assert value == pytest.approx(float(generalized_iou(b, a)), abs=1e-5)
    assert float(generalized_iou(a, a)) == pytest.approx(1.0, abs=1e-5)


def test_a_student_like_its_teacher_has_the_teachers_box_loss() -> None:
    """With no teacher share, a subnet with the teacher's outputs has exactly the teacher's loss."""
    loss, teacher = label_loss(outputs(1), ANCHORS, TARGETS)
    same = distillation_loss(outputs(1), ANCHORS, TARGETS, teacher, share=0.0)
    assert torch.isclose(loss.classes, same.classes)
    assert torch.isclose(loss.boxes, same.boxes)


def test_boxes_are_taught_in_proportion_to_the_share() -> None:
    """Half a share of teacher gives the mean of the box losses of none and all."""
    _, teacher = label_loss(outputs(1), ANCHORS, TARGETS)
    none, half, full = (
        float(distillation_loss(outputs(2), ANCHORS, TARGETS, teacher, share=share).boxes)
        for share in (0.0, 0.5, 1.0)
    )
    assert half == pytest.approx((none + full) / 2, rel=1e-4)
    assert none != full


def test_background_weighs_little_unless_it_is_far_off() -> None:
    """Anchors far from every object add next to nothing at a low score, and much at a high one."""
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses: list[float] = []
    for logit in (-4.0, 2.0):
        raw = outputs(1)
        for level in raw.logits:
            level.fill_(logit)
        losses.append(float(label_loss(raw, ANCHORS, nothing)[0].classes) / (2 * 84 * 2))
    assert losses[0] < 1e-3  # plain cross entropy: 1.8e-2
    assert losses[1] > 0.5


def test_nothing_flows_back_into_the_teacher() -> None:
    """Distillation has gradients for the student and none for the teacher."""
    largest, student = outputs(1, requires_grad=True), outputs(2, requires_grad=True)
    _, teacher = label_loss(largest, ANCHORS, TARGETS)
    total = distillation_loss(student, ANCHORS, TARGETS, teacher, share=0.5).total
    total.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    assert all(tensor.grad is None for tensor in largest.logits)
    assert all(tensor.grad is not None for tensor in student.logits)


def test_descent_finds_the_objects() -> None:
    """Following the loss on free outputs ends with the objects found."""
    raw = outputs(3, requires_grad=True)
    optimizer = torch.optim.Adam([*raw.logits, *raw.distances], lr=0.1)
    losses: list[float] = []
    for _ in range(120):
        loss, teacher = label_loss(raw, ANCHORS, TARGETS)
        optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        optimizer.step()
        losses.append(float(loss.boxes.detach()))
    assert losses[-1] < 0.1 < losses[0]
    assert float(teacher.assignment.quality.max()) > 0.9


def test_frames_without_objects_have_a_loss() -> None:
    """A batch without objects still teaches that there is nothing, and has no box loss."""
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    loss, _ = label_loss(outputs(1), ANCHORS, nothing)
    assert float(loss.classes) > 0
    assert float(loss.boxes) == 0


def test_shares_outside_the_unit_interval_are_refused() -> None:
    """A share below 0 or above 1 is an error."""
    _, teacher = label_loss(outputs(1), ANCHORS, TARGETS)
    with pytest.raises(ValueError, match="share"):
        distillation_loss(outputs(1), ANCHORS, TARGETS, teacher, share=1.5)
