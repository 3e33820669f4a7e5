"""Boxes: overlaps by hand and against torchvision, moving, and greedy suppression against torchvision's."""

import pytest
import torch
from torchvision import ops

from cnn_train import boxes as B
from cnn_train.postprocess.nms import NMS

SQUARE = torch.tensor([[0.0, 0, 2, 2]])
OTHERS = torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 2], [4, 4, 5, 5], [0, 0, 1, 2], [1, 1, 1, 1]])


def drawn(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 100
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def test_iou_by_hand():
    assert torch.allclose(B.iou(SQUARE, OTHERS), torch.tensor([[1 / 7, 1, 0, 0.5, 0]]))
    crowd = torch.tensor([True, False, False, True, False])
    assert torch.allclose(B.iou(SQUARE, OTHERS, crowd), torch.tensor([[1 / 4, 1, 0, 0.5, 0]]))
    empty = torch.zeros(1, 4)
    assert B.iou(empty, empty).item() == 0
    assert B.iou(SQUARE[:0], OTHERS).shape == (0, 5)
    assert torch.equal(B.iou(SQUARE[None].expand(3, 1, 4), OTHERS)[2], B.iou(SQUARE, OTHERS))


def test_shape_iou_is_that_of_boxes_on_one_centre():
    sizes = torch.tensor([[2.0, 3.0], [4.0, 1.0]])
    centred = torch.cat([-sizes / 2, sizes / 2], dim=1)
    assert torch.allclose(B.shape_iou(sizes, sizes), B.iou(centred, centred))


def test_overlaps_by_hand():
    one = OTHERS[:1]
    assert B.overlap(SQUARE, one, "iou").item() == pytest.approx(1 / 7)
    assert B.overlap(SQUARE, one, "giou").item() == pytest.approx(1 / 7 - 2 / 9)
    assert B.overlap(SQUARE, one, "diou").item() == pytest.approx(1 / 7 - 2 / 18)
    assert B.overlap(SQUARE, one, "ciou").item() == pytest.approx(1 / 7 - 2 / 18)
    with pytest.raises(ValueError, match="one of iou, giou, diou, ciou"):
        B.overlap(SQUARE, one, "eiou")


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_overlaps_are_torchvisions_and_have_its_gradients(kind):
    theirs = {
        "giou": ops.generalized_box_iou_loss,
        "diou": ops.distance_box_iou_loss,
        "ciou": ops.complete_box_iou_loss,
    }[kind]
    first, second = drawn(500), drawn(500, seed=1)
    ours, reference = first.clone().requires_grad_(), first.clone().requires_grad_()
    values, expected = 1 - B.overlap(ours, second, kind), theirs(reference, second)
    assert torch.allclose(values, expected, rtol=0, atol=1e-6)
    values.sum().backward()
    expected.sum().backward()
    assert torch.allclose(ours.grad, reference.grad, rtol=0, atol=1e-6)


def test_forms_and_moves():
    boxes = drawn(20)
    assert torch.allclose(B.to_corners(B.to_centres(boxes)), boxes)
    assert B.to_centres(torch.tensor([2.0, 4, 6, 10])).tolist() == [4, 7, 4, 6]
    assert B.clip(torch.tensor([[-3.0, 5, 70, 90]]), (80, 60)).tolist() == [[0, 5, 60, 80]]
    assert B.move(torch.tensor([1.0, 2, 3, 4]), (2, 3), (10, 20)).tolist() == [23, 14, 29, 18]
    assert B.flip(torch.tensor([1.0, 2, 3, 4]), 10).tolist() == [7, 2, 9, 4]
    assert torch.equal(B.flip(B.flip(boxes, 64), 64).round(decimals=9), boxes.round(decimals=9))
    assert B.area(torch.tensor([[1.0, 2, 3, 5], [3, 3, 2, 9]])).tolist() == [6, 0]


@pytest.mark.parametrize("threshold", [0.1, 0.45, 0.7])
def test_suppression_is_torchvisions(threshold):
    for seed in range(20):
        boxes = drawn(80, seed, torch.float32)
        scores = torch.rand(80, generator=torch.Generator().manual_seed(seed))
        labels = torch.randint(0, 3, (80,), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(B.nms(boxes, scores, threshold=threshold), ops.nms(boxes, scores, threshold))
        theirs = ops.batched_nms(boxes, scores, labels, threshold)
        assert torch.equal(B.nms(boxes, scores, labels, threshold), theirs)
    assert B.nms(boxes[:0], scores[:0]).shape == (0,)


def test_a_chain_is_resolved_greedily_and_the_first_of_equals_wins():
    chain = torch.tensor([[float(2 * i), 0, 2 * i + 10, 10] for i in range(12)])  # neighbours overlap by 2/3
    assert B.nms(chain, torch.linspace(1, 0, 12), threshold=0.5).tolist() == [0, 2, 4, 6, 8, 10]
    assert B.nms(chain[[0, 0, 0]], torch.ones(3)).tolist() == [0]


def test_anchors_are_the_medians_of_what_is_alike():
    groups = torch.tensor([[10.0, 20.0], [40.0, 30.0], [90.0, 100.0]])
    noise = torch.randn(3, 51, 2, generator=torch.Generator().manual_seed(0))
    sizes = groups[:, None] + noise
    anchors, reached = B.cluster_sizes(sizes.flatten(0, 1), 3)
    assert torch.allclose(anchors, sizes.median(1).values) and reached > 0.9
    assert reached == pytest.approx(B.shape_iou(sizes.flatten(0, 1), anchors).amax(1).mean().item(), abs=1e-6)
    assert torch.equal(B.cluster_sizes(sizes.flatten(0, 1), 3)[0], anchors)
    assert B.cluster_sizes(sizes.flatten(0, 1), 6)[1] > reached > B.cluster_sizes(sizes.flatten(0, 1), 2)[1]
    with pytest.raises(ValueError, match="anchors need as many boxes"):
        B.cluster_sizes(sizes[0, :2], 3)


def test_the_best_candidates_are_those_of_a_stable_order():
    """Many scores are equal, so that the last candidate has others beside it that fall away."""
    torch.manual_seed(0)
    corners = torch.rand(400, 2) * 200
    boxes = torch.cat([corners, corners + 5], 1)
    scores = torch.randint(1, 8, (400, 3)) / 10
    for few in (1, 7, 100, 1000):
        found = NMS(iou=1.0, score=0.2, candidates=few, max_detections=few).image(boxes, scores, (300, 300))
        order = sorted((-float(value), number) for number, value in enumerate(scores.flatten()) if value >= 0.2)[:few]
        expected = [[*boxes[n // 3].tolist(), float(n % 3), -value] for value, n in order]
        assert torch.equal(found, torch.tensor(expected))
