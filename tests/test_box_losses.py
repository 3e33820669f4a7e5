"""Losses of detection networks: matching by hand, torchvision's numbers, and gradients of a batch in parts."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import detection as theirs
from torchvision.models.detection.image_list import ImageList

from cnn_train.layers import LayerFactory
from cnn_train.models.detection.fcos import fcos_resnet50_fpn
from cnn_train.models.detection.priors import Cells, Distances, Offsets, Outputs, Priors
from cnn_train.models.detection.retinanet import retinanet_resnet50_fpn
from cnn_train.models.detection.ssd import ssd300_vgg16
from cnn_train.tasks.box_losses import FCOS, BoxLoss, MultiBox, RetinaNet, focal, match_by_iou
from cnn_train.tasks.yolo_losses import YOLOv2, YOLOv3
from tests.parity import meta
from tests.test_models_detection import GN, SMALL

NONE = [0.0, 0, 0, 0, -1, 0]


def priors_of(boxes: list[list[float]], coding: Any, strides: list[float] | None = None, levels: Any = None) -> Priors:
    count = len(boxes)
    return Priors(
        torch.tensor(boxes),
        torch.tensor(strides or [8.0] * count),
        torch.tensor(levels or [0] * count),
        (64, 64),
        coding,
    )


def drawn_targets(images: int, rows: int, classes: int, size: float, seed: int = 0) -> Tensor:
    """Objects of a fifth to a half of the image; the last row of each image is none, the last image has none."""
    random = torch.Generator().manual_seed(seed)
    side = (0.2 + 0.3 * torch.rand(images, rows, 2, generator=random)) * size
    corner = torch.rand(images, rows, 2, generator=random) * (size - side)
    labels = torch.randint(0, classes, (images, rows, 1), generator=random).float()
    targets = torch.cat([corner, corner + side, labels, torch.zeros(images, rows, 1)], dim=-1)
    targets[:, -1] = targets[-1] = torch.tensor(NONE)
    return targets


LOSSES: dict[str, BoxLoss] = {
    "fcos": FCOS(),
    "retinanet": RetinaNet(),
    "ssd": MultiBox(),
    "yolov2": YOLOv2(),
    "yolov3": YOLOv3(),
}


def test_focal_by_hand_and_as_torchvisions():
    from torchvision.ops import sigmoid_focal_loss

    scores, wanted = torch.randn(50), (torch.rand(50) < 0.5).float()
    for alpha, gamma in ((0.25, 2.0), (-1, 1.0), (0.5, 0.0)):
        assert torch.allclose(focal(scores, wanted, alpha, gamma), sigmoid_focal_loss(scores, wanted, alpha, gamma))
    half = focal(torch.zeros(1), torch.ones(1), 0.25, 2.0).item()
    assert half == pytest.approx(0.25 * 0.25 * 0.693147, abs=1e-6)


def test_fcos_points_by_hand():
    # Points every 8 pixels; an object of 24 pixels around 28, and a smaller one within.
    points = [[float(x), 28.0, 8, 8] for x in range(4, 64, 8)]
    priors = priors_of(points, Distances())
    targets = torch.tensor([[[16.0, 16, 40, 40, 1, 0], NONE], [[16.0, 16, 40, 40, 1, 0], [24.0, 24, 32, 32, 2, 0]]])
    objects = FCOS().assign(targets, priors).objects
    assert objects[0].tolist() == [-1, -1, 0, 0, 0, -1, -1, -1]  # 20, 28 and 36 are less than 12 away from 28
    assert objects[1].tolist() == [-1, -1, 0, 1, 0, -1, -1, -1]  # the smaller object has the middle
    assert FCOS(radius=0.9).assign(targets, priors).objects[0].tolist() == [-1, -1, -1, 0, -1, -1, -1, -1]
    # Level by the farthest side: 20 of the point at 20; 12 of that at 28.
    both = priors_of([*points, [28.0, 28, 16, 16]], Distances(), [8.0] * 8 + [16.0], [0] * 8 + [1])
    found = FCOS(reach=2).assign(targets, both).objects[0]
    assert found.tolist() == [-1, -1, -1, 0, -1, -1, -1, -1, -1]  # below 16: the first level; above: none there
    ignored = targets.clone()
    ignored[0, 0, 5] = 1
    assigned = FCOS().assign(ignored, priors)
    assert (assigned.objects[0] == -1).all() and assigned.ignored[0].tolist() == [False] * 2 + [True] * 3 + [False] * 3


def test_matching_by_iou_by_hand():
    # Anchors of 10 x 10 on one line; an object that overlaps one by 9/11, one by 6/14, and one that none fits.
    priors = priors_of([[5.0, 5, 10, 10], [25.0, 5, 10, 10], [45.0, 5, 10, 10], [46.0, 5, 10, 10]], Offsets())
    rows = [[1.0, 0, 11, 10, 0, 0], [24.0, 0, 34, 10, 1, 0], NONE]
    targets = torch.tensor([rows])
    assigned = match_by_iou(targets, priors, 0.5, 0.2, "ties")
    assert assigned.objects[0].tolist() == [0, 1, -1, -1]  # the second is rescued
    two = torch.tensor([[[1.0, 0, 11, 10, 0, 0], [44.0, 0, 47, 10, 1, 0]]])
    tie = match_by_iou(two, priors, 0.5, 0.5, "best")
    assert tie.objects[0].tolist() == [0, -1, 1, -1] and not tie.ignored[0, 3]
    near = torch.tensor([[[4.0, 0, 14, 10, 0, 0], [0.0, 0, 10, 10, 1, 0]]])
    assert match_by_iou(near, priors, 0.5, 0.4, "ties").objects[0, 0] == 1  # what it fits best
    assert match_by_iou(near, priors, 0.5, 0.4, "best").objects[0, 0] == 1  # the last of two that have it as best
    between = torch.tensor([[[20.0, 0, 50, 10, 0, 0]]])
    assigned = match_by_iou(between, priors, 0.5, 0.2, "ties")  # two fit by a third, one by 9/31
    assert assigned.objects[0].tolist() == [-1, 0, 0, -1] and assigned.ignored[0].tolist() == [False] * 3 + [True]
    region = torch.tensor([[[20.0, 0, 28, 10, 0, 1.0]]])
    assigned = match_by_iou(region, priors, 0.5, 0.4, "ties")
    assert assigned.objects[0].tolist() == [-1] * 4 and assigned.ignored[0].tolist() == [False, True, False, False]


def test_yolo_cells_by_hand():
    # Two anchors in each of four cells of 32 pixels.
    anchors = [(10.0, 10.0), (40.0, 20.0)]
    boxes = [[x, y, w, h] for y in (16.0, 48.0) for x in (16.0, 48.0) for w, h in anchors]
    priors = priors_of(boxes, Cells(), [32.0] * 8)
    rows = [[34.0, 2, 46, 14, 0, 0], [1.0, 33, 63, 63, 1, 0], NONE]
    assert YOLOv3().assign(torch.tensor([rows]), priors).objects[0].tolist() == [-1, -1, 0, -1, -1, -1, -1, 1]
    rows[1] = [33.0, 1, 48, 15, 1, 0]  # the same cell and anchor: the last wins
    assert YOLOv3().assign(torch.tensor([rows]), priors).objects[0].tolist() == [-1, -1, 1, -1, -1, -1, -1, -1]
    rows[1] = [30.0, 2, 60, 22, 1, 0]  # another anchor of the same cell: 30 x 20
    found = YOLOv3(match=0.1).assign(torch.tensor([rows]), priors).objects[0]
    assert found.tolist() == [-1, -1, 0, 1, -1, -1, -1, -1]  # further anchors do not take another object's best
    edge = torch.tensor([[[58.0, 58, 70, 70, 0, 0]]])
    assert YOLOv3().assign(edge, priors).objects[0].tolist() == [-1, -1, -1, -1, -1, -1, 0, -1]


def test_yolov3_sums_by_hand():
    priors = priors_of([[16.0, 16, 8, 8], [48.0, 16, 8, 8]], Cells(), [32.0] * 2)
    targets = torch.tensor([[[8.0, 12, 16, 20, 1, 0]]])  # centre 12, 16 in the first cell; a 64th of the image
    codes, classes, quality = torch.zeros(1, 2, 4), torch.zeros(1, 2, 3), torch.zeros(1, 2)
    parts = YOLOv3()(Outputs(codes, classes, quality), targets, priors)
    log2 = 0.693147
    assert parts["objects"].item() == pytest.approx(log2, abs=1e-5)
    assert parts["background"].item() == pytest.approx(log2, abs=1e-5)
    assert parts["classes"].item() == pytest.approx(3 * log2, abs=1e-5)
    assert parts["boxes"].item() == pytest.approx(2 * log2 * (2 - 1 / 64), abs=1e-5)  # sizes are right
    codes[0, 0, 2] = 0.5
    more = YOLOv3()(Outputs(codes, classes, quality), targets, priors)["boxes"] - parts["boxes"]
    assert more.item() == pytest.approx(0.125 * (2 - 1 / 64), abs=1e-5)
    # The second prediction lies on the object by chance: it is no negative.
    codes = torch.zeros(1, 2, 4)
    shifted = priors_of([[16.0, 16, 8, 8], [16.0, 16, 8.5, 8]], Cells(), [32.0] * 2)
    here = torch.tensor([[[12.0, 12, 20, 20, 1, 0]]])
    assert YOLOv3()(Outputs(codes, classes, quality), here, shifted)["background"].item() == 0
    assert YOLOv3(ignore=0.99)(Outputs(codes, classes, quality), here, shifted)["background"].item() > 0


def test_yolov2_sums_by_hand():
    priors = priors_of([[16.0, 16, 8, 8], [48.0, 16, 8, 8]], Cells(), [32.0] * 2)
    targets = torch.tensor([[[12.0, 12, 20, 20, 1, 0]]])
    parts = YOLOv2()(Outputs(torch.zeros(1, 2, 4), torch.zeros(1, 2, 3), torch.zeros(1, 2)), targets, priors)
    assert parts["objects"].item() == pytest.approx(5 * 0.25 / 2, abs=1e-5)  # the box is right: the target is 1
    assert parts["background"].item() == pytest.approx(0.25 / 2, abs=1e-5)
    assert parts["classes"].item() == pytest.approx(1.098612, abs=1e-5)
    assert parts["boxes"].item() == pytest.approx(0, abs=1e-6)


def test_multibox_takes_the_hardest_negatives():
    priors = priors_of([[8.0 * i + 4, 4, 8, 8] for i in range(8)], Offsets())
    targets = torch.tensor([[[0.0, 0, 8, 8, 0, 0]]])
    scores = torch.zeros(1, 8, 3)
    scores[0, 1:, 0] = torch.arange(7.0)  # the surer of the background, the easier
    outputs = Outputs(torch.zeros(1, 8, 4), scores)
    terms = torch.nn.functional.cross_entropy(scores[0], torch.tensor([1, 0, 0, 0, 0, 0, 0, 0]), reduction="none")
    assert MultiBox()(outputs, targets, priors)["classes"].item() == pytest.approx(terms[:4].sum().item(), abs=1e-5)
    one = MultiBox(negatives=1)(outputs, targets, priors)["classes"]
    assert one.item() == pytest.approx(terms[:2].sum().item(), abs=1e-5)
    region = torch.tensor([[[0.0, 0, 8, 8, 0, 0], [8.0, 0, 16, 8, 0, 1]]])
    skipped = MultiBox(negatives=1)(outputs, region, priors)["classes"]
    assert skipped.item() == pytest.approx((terms[0] + terms[2]).item(), abs=1e-5)


PAIRS = {
    "fcos": (fcos_resnet50_fpn, theirs.fcos_resnet50_fpn, FCOS(), 160),
    "retinanet": (retinanet_resnet50_fpn, theirs.retinanet_resnet50_fpn, RetinaNet(box="l1"), 160),
    "ssd": (ssd300_vgg16, theirs.ssd300_vgg16, MultiBox(), 300),
}
NAMES = {"classes": "classification", "boxes": "bbox_regression", "centerness": "bbox_ctrness"}


@pytest.mark.parametrize("name", PAIRS)
def test_parts_are_torchvisions(name):
    build, reference, loss, size = PAIRS[name]
    columns = 7
    ours: Any = meta(build, columns - 1 if name == "ssd" else columns)
    with torch.device("meta"):
        its: Any = reference(weights=None, weights_backbone=None, num_classes=columns)
    targets = drawn_targets(3, 5, columns - 1, size)
    torch.manual_seed(1)
    priors = ours.priors((size, size))
    outputs = Outputs(
        torch.rand(3, len(priors), 4) * 3 if name == "fcos" else torch.randn(3, len(priors), 4) * 0.3,
        torch.randn(3, len(priors), columns) - 2,
        torch.randn(3, len(priors)) if name == "fcos" else None,
    )
    shift = 1 if name == "ssd" else 0
    rows = [image[image[:, 4] >= 0] for image in targets]
    dicts = [{"boxes": row[:, :4], "labels": row[:, 4].long() + shift} for row in rows]
    said = {"cls_logits": outputs.classes, "bbox_regression": outputs.codes}
    sizes = ours.grid.map_sizes((size, size))
    maps = [torch.empty(3, 1, *s) for s in sizes]
    anchors = its.anchor_generator(ImageList(torch.empty(3, 3, size, size), [(size, size)] * 3), maps)
    if name == "fcos":
        said["bbox_ctrness"] = outputs.quality[..., None]
        expected = its.compute_loss(dicts, said, anchors, [h * w for h, w in sizes])
    elif name == "retinanet":
        expected = its.compute_loss(dicts, said, anchors)
    else:
        from torchvision.ops import box_iou

        none = torch.full((len(priors),), -1)
        matched = [its.proposal_matcher(box_iou(d["boxes"], anchors[0])) if len(d["boxes"]) else none for d in dicts]
        expected = its.compute_loss(dicts, said, anchors, matched)
    parts = loss(outputs, targets, priors)
    assert set(parts) == {ours_name for ours_name, other in NAMES.items() if other in expected}
    for part, value in parts.items():
        assert value.item() > 0.01
        assert value.item() == pytest.approx(expected[NAMES[part]].item(), rel=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_parts_of_a_batch_add_up_to_its_gradient(name):
    torch.manual_seed(0)
    network: Any = SMALL[name](5, layers=GN)
    loss = LOSSES[name]
    images, targets = torch.randn(4, 3, 64, 64), drawn_targets(4, 4, 5, 64.0)
    priors = network.priors((64, 64))

    def gradients(splits: list[Tensor]) -> list[Tensor]:
        total = sum(loss.normalizer(targets[index], priors) for index in splits)
        network.zero_grad()
        for index in splits:
            sum(loss(network(images[index]), targets[index], priors, total).values()).backward()
        return [p.grad.clone() for p in network.parameters()]

    whole = gradients([torch.arange(4)])
    network.zero_grad()
    sum(loss(network(images), targets, priors).values()).backward()
    for one, other in zip(whole, network.parameters(), strict=True):
        assert torch.allclose(one, other.grad, atol=1e-6)
    parts = gradients([torch.tensor([0]), torch.tensor([1, 2]), torch.tensor([3])])  # the last has no object
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert max(g.abs().max() for g in whole) > 1e-3


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("what", ["nothing", "no rows", "only ignored", "one pixel"])
def test_loss_and_gradient_are_finite(name, what):
    torch.manual_seed(0)
    network: Any = SMALL[name](5, layers=LayerFactory())
    targets = torch.tensor([[NONE]] * 2)
    if what == "no rows":
        targets = targets[:, :0]
    elif what == "only ignored":
        targets[:, 0] = torch.tensor([10.0, 10, 40, 40, 2, 1])
    elif what == "one pixel":
        targets[:, 0] = torch.tensor([10.0, 10, 11, 11, 2, 0])
    parts = LOSSES[name](network(torch.randn(2, 3, 97, 61)), targets, network.priors((97, 61)))
    total = sum(parts.values())
    total.backward()
    assert total.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    if name in ("fcos", "retinanet", "yolov2", "yolov3"):
        assert sum(p.grad.abs().sum() for p in network.parameters()) > 0  # the background is learned


@cache
def small_priors(name: str) -> Priors:
    network: Any = meta(SMALL[name], 5, layers=GN)
    return network.priors((64, 64))


@pytest.mark.parametrize("box", ["squared", "l1", "smooth_l1", "iou", "giou", "diou", "ciou"])
@pytest.mark.parametrize("name", SMALL)
def test_every_box_term_vanishes_on_the_right_box_and_only_there(name, box):
    priors = small_priors(name)
    targets = torch.tensor([[[12.0, 14, 36, 40, 2, 0]]])
    loss = type(LOSSES[name])(box=box)
    objects = loss.assign(targets, priors).objects[0]
    assert (objects >= 0).any()
    codes = priors.encode(targets[0, 0, :4].expand(len(priors), 4))
    if isinstance(priors.coding, Cells):
        codes = torch.cat([codes[:, :2].clamp(1e-6, 1 - 1e-6).logit(), codes[:, 2:]], dim=1)
    classes = torch.zeros(1, len(priors), 6 if name == "ssd" else 5)
    quality = None if name in ("ssd", "retinanet") else torch.zeros(1, len(priors))
    right = loss(Outputs(codes[None], classes, quality), targets, priors)["boxes"].item()
    wrong = loss(Outputs(codes[None] + 0.3, classes, quality), targets, priors)["boxes"].item()
    floor = 0.0
    if name == "yolov3" and box == "squared":  # a cross-entropy of targets between 0 and 1
        floor = right
    assert right == pytest.approx(floor, abs=1e-3) and wrong > right + 1e-3


def test_bad_settings_are_told():
    with pytest.raises(ValueError, match="softmax or focal"):
        MultiBox(classes="bce")
    with pytest.raises(ValueError, match="must be softmax"):
        YOLOv2(classes="bce")
    with pytest.raises(ValueError, match="bce or focal"):
        YOLOv3(classes="softmax")
    with pytest.raises(ValueError, match="at most loss"):
        RetinaNet(positive=0.3)
