"""Detection networks: priors, coding, counts of parameters, and the same numbers as torchvision from random weights."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import detection as theirs
from torchvision.models.detection.image_list import ImageList

from cnn_train.layers import LayerFactory
from cnn_train.layers.norm import GroupNorm
from cnn_train.models.classification.darknet import darknet19, darknet53
from cnn_train.models.detection.fcos import fcos, fcos_resnet50_fpn
from cnn_train.models.detection.priors import Cells, Distances, Offsets, Outputs, Priors
from cnn_train.models.detection.pyramid import FeaturePyramid
from cnn_train.models.detection.retinanet import retinanet, retinanet_resnet50_fpn
from cnn_train.models.detection.ssd import ssd, ssd300, ssd300_vgg16, ssd512
from cnn_train.models.detection.yolov2 import SpaceToDepth, yolov2
from cnn_train.models.detection.yolov3 import anchors_by_scale, yolov3
from cnn_train.postprocess.nms import NMS
from tests.parity import check_stages, close, count, meta, random_weights

GN = LayerFactory(norm_layer=GroupNorm)
NARROW = {"encoder": "resnet18", "encoder_widths": (4, 8, 8, 8), "encoder_options": {"stem": "small"}}
DARK = {"encoder": "darknet19", "encoder_options": {"width": 4}}
ANCHORS = ((8, 12), (14, 20), (20, 30), (28, 44))
SMALL: dict[str, Callable[..., nn.Module]] = {
    "fcos": partial(fcos, strides=(4, 8, 16), channels=8, depth=1, **NARROW),
    "retinanet": partial(
        retinanet, strides=(4, 8), channels=8, depth=1, anchor_sizes=(16, 32), anchor_octaves=2, **NARROW
    ),
    "ssd": partial(ssd, strides=(4, 8, 16), scales=(0.1, 0.2, 0.4, 0.6), ratios=((2,), (2, 3), (2,)), **NARROW),
    "yolov2": partial(yolov2, scales=(8, 4), channels=8, passthrough_channels=2, anchors=ANCHORS, **DARK),
    "yolov3": partial(yolov3, scales=(8, 4), anchors=ANCHORS, **DARK),
}


@pytest.mark.parametrize(
    ("build", "classes", "parameters"),
    [
        (darknet19, 1000, 20_842_376),
        (darknet53, 1000, 41_609_928),
        (yolov2, 20, 50_655_389),
        (yolov2, 80, 50_962_889),
        (yolov3, 20, 61_626_049),
        (yolov3, 80, 61_949_149),
        (ssd300, 20, 26_285_486),
        (ssd300, 80, 34_305_206),
        (ssd512, 20, 27_188_676),
        (ssd512, 80, 36_038_196),
        (ssd300_vgg16, 90, 35_641_826),
        (retinanet_resnet50_fpn, 91, 34_068_119),
        (fcos_resnet50_fpn, 91, 32_322_720),
    ],
)
def test_parameters_are_the_papers(build, classes, parameters):
    assert count(meta(build, classes)) == parameters


def test_parameters_of_parts():
    with torch.device("meta"):
        assert count(yolov2(20, passthrough=False)) == 50_655_389 - 64 * 514 - 9 * 256 * 1024
        assert count(darknet53()) - count(nn.Linear(1024, 1000)) == 40_584_928
        network = yolov3(81)
        assert count(network) == 61_949_149 + 5_385
    assert count(yolov2(20, layers=GN, **DARK, channels=8, scales=(8, 4), anchors=ANCHORS[:1]).predict) == 9 * 25


def test_darknets_are_encoders():
    with torch.device("meta"):
        assert darknet19(7, width=4)(torch.empty(2, 3, 64, 96)).shape == (2, 7)
        assert darknet53(7, width=4)(torch.empty(2, 3, 64, 96)).shape == (2, 7)
    check_stages(darknet53)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(97, 61), (64, 64)])
def test_outputs_fit_the_priors_in_training_and_evaluation(name, size):
    torch.manual_seed(0)
    network = SMALL[name](5, layers=GN)
    images = torch.randn(2, 3, *size)
    trained = network.train()(images)
    priors = network.priors(size)
    assert trained.codes.shape == (2, len(priors), 4)
    assert trained.classes.shape == (2, len(priors), 6 if name == "ssd" else 5)
    assert (trained.quality is None) == (name in ("retinanet", "ssd"))
    evaluated = network.eval()(images)
    for one, other in zip(trained, evaluated, strict=True):
        assert one is other is None or torch.equal(one, other)  # group norm: nothing depends on the mode
    boxes, scores = network.decode(evaluated, priors)
    assert boxes.shape == (2, len(priors), 4) and scores.shape == (2, len(priors), 5)
    assert (boxes[..., 2:] >= boxes[..., :2]).all() and scores.min() >= 0 and scores.max() <= 1
    assert (scores.sum(-1) <= 1 + 1e-5).all() or name not in ("ssd", "yolov2")
    assert network.priors(size) is priors  # made once
    detections = NMS(score=0.0, max_detections=7)(boxes, scores, size)
    assert detections.shape == (2, 7, 6) and detections[..., 4].max() <= 4


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_used_and_hooks_do_not_see_the_copy(name):
    network = SMALL[name](5, layers=GN)
    calls = []
    for module in network.modules():
        module.register_forward_hook(lambda module, inputs, output: calls.append(module))
    network.priors((96, 64))
    assert not calls
    outputs = network(torch.randn(1, 3, 64, 64))
    sum(part.square().sum() for part in outputs if part is not None).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert len(list(network.state_dict())) == len(list(network.parameters()))


def test_priors_of_a_grid():
    network = SMALL["yolov3"](5, layers=GN)
    priors = network.priors((16, 24))
    # Two anchors in each of 2 x 3 cells of 8 pixels, then in each of 4 x 6 cells of 4.
    assert len(priors) == 2 * 6 + 2 * 24
    assert priors.boxes[:4].tolist() == [[4, 4, 20, 30], [4, 4, 28, 44], [12, 4, 20, 30], [12, 4, 28, 44]]
    assert priors.boxes[12:14].tolist() == [[2, 2, 8, 12], [2, 2, 14, 20]]
    assert priors.strides.tolist() == [8] * 12 + [4] * 48 and priors.levels.tolist() == [0] * 12 + [1] * 48
    assert priors.size == (16, 24)
    assert anchors_by_scale([(9, 9), (1, 1), (4, 4), (2, 3)], 2) == [[(4, 4), (9, 9)], [(1, 1), (2, 3)]]


@pytest.mark.parametrize("coding", [Offsets(), Offsets((0.1, 0.2)), Cells(), Distances()])
def test_codings_are_inverse_to_each_other(coding):
    torch.manual_seed(0)
    priors = Priors(
        torch.tensor([[20.0, 28, 16, 8], [36, 12, 8, 24]]), torch.tensor([8.0, 8.0]), torch.zeros(2), (64, 64), coding
    )
    centre = priors.boxes[:, :2] + torch.rand(5, 2, 2) * 6 - 3
    half = torch.rand(5, 2, 2) * 10 + 4
    boxes = torch.cat([centre - half, centre + half], dim=-1)
    codes = priors.encode(boxes)
    raw = torch.cat([codes[..., :2].logit(), codes[..., 2:]], dim=-1) if isinstance(coding, Cells) else codes
    assert torch.allclose(coding.squash(raw), codes, atol=1e-5)
    assert torch.allclose(priors.decode(raw), boxes, atol=1e-4)


def test_codes_by_hand():
    boxes, stride, level = torch.tensor([[20.0, 28, 16, 8]]), torch.tensor([8.0]), torch.zeros(1)
    wanted = torch.tensor([[14.0, 26, 30, 34]])  # centre 22, 30; 16 x 8
    expected = {
        Offsets(): [2 / 16, 2 / 8, 0, 0],
        Offsets((0.1, 0.2)): [20 / 16, 20 / 8, 0, 0],
        Cells(): [6 / 8, 6 / 8, 0, 0],
        Distances(): [6 / 16, 2 / 8, 10 / 16, 6 / 8],
    }
    for coding, codes in expected.items():
        priors = Priors(boxes, stride, level, (64, 64), coding)
        assert torch.allclose(priors.encode(wanted), torch.tensor([codes]))


def test_space_to_depth_is_torchs():
    x = torch.randn(2, 3, 8, 6)
    ours = SpaceToDepth(2)(x)
    reference = nn.functional.pixel_unshuffle(x, 2).view(2, 3, 4, 4, 3).transpose(1, 2).reshape(2, 12, 4, 3)
    assert torch.equal(ours, reference)
    odd = SpaceToDepth(2)(torch.ones(1, 1, 5, 3))
    assert odd.shape == (1, 4, 3, 2) and odd.sum() == 15


def test_pyramid_is_torchvisions():
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    maps = [torch.randn(1, c, h, w) for c, h, w in ((4, 13, 9), (6, 7, 5), (8, 4, 3))]
    for extra_from, first in (("pyramid", 5), ("encoder", 8)):
        reference = FeaturePyramidNetwork([4, 6, 8], 5, extra_blocks=LastLevelP6P7(first, 5))
        ours = FeaturePyramid([4, 6, 8], 5, extra_from=extra_from, layers=LayerFactory())
        ours.load_state_dict(reference.state_dict(), strict=True)
        expected = reference({str(i): m for i, m in enumerate(maps)}).values()
        for one, other in zip(ours(maps), expected, strict=True):
            assert torch.allclose(one, other, atol=1e-6)


def random_pair(name: str, size: int) -> tuple[nn.Module, nn.Module]:
    """Our network and torchvision's with the same random weights, whose scores are spread around the threshold."""
    torch.manual_seed(0)
    build = {"fcos": fcos_resnet50_fpn, "retinanet": retinanet_resnet50_fpn, "ssd": ssd300_vgg16}[name]
    reference = {"fcos": "fcos_resnet50_fpn", "retinanet": "retinanet_resnet50_fpn", "ssd": "ssd300_vgg16"}[name]
    columns = 9
    options = {} if name == "ssd" else {"min_size": size, "max_size": size}
    ours = meta(build, columns - 1 if name == "ssd" else columns)
    its = meta(getattr(theirs, reference), weights=None, weights_backbone=None, num_classes=columns, **options)
    state = random_weights(its.state_dict())
    for key, value in state.items():
        if "head" in key and value.dim() == 4 and ("bbox" in key or "regression" in key):
            value.mul_(0.05)
        if name == "fcos" and key.endswith("bbox_reg.bias"):
            value.fill_(2.0)  # boxes with an extent
    for network in (ours, its):
        network.load_state_dict(state, strict=True, assign=True)
        network.eval()
    its.transform.image_mean, its.transform.image_std = [0.0] * 3, [1.0] * 3
    return ours, its


SIZES = {"fcos": 160, "retinanet": 160, "ssd": 300}


@pytest.fixture(scope="module", params=SIZES)
def pair(request) -> tuple[str, nn.Module, nn.Module, torch.Tensor, Outputs, dict[str, torch.Tensor]]:
    name = request.param
    size = SIZES[name]
    ours, its = random_pair(name, size)
    images = torch.rand(1, 3, size, size)
    said: dict[str, torch.Tensor] = {}
    handle = its.head.register_forward_hook(lambda module, inputs, output: said.update(output))
    with torch.no_grad():
        outputs = ours(images)
        scores = ours.decode(outputs, ours.priors((size, size)))[1]
        its.score_thresh = float(scores.flatten().topk(400).values[-1])  # so that few pass
        detections = its(list(images))
    handle.remove()
    return name, ours, its, images, outputs, said, detections


def test_raw_outputs_are_torchvisions(pair):
    _, _, _, _, outputs, said, _ = pair
    close(outputs.codes, said["bbox_regression"])
    close(outputs.classes, said["cls_logits"])
    if outputs.quality is not None:
        close(outputs.quality, said["bbox_ctrness"].squeeze(-1))


def test_priors_are_torchvisions(pair):
    _, ours, its, images, *_ = pair
    maps = [torch.empty(1, 1, *size) for size in ours.grid.map_sizes(images.shape[-2:])]
    expected = its.anchor_generator(ImageList(images, [tuple(images.shape[-2:])]), maps)[0]
    assert torch.allclose(ours.priors(images.shape[-2:]).corners, expected, atol=1e-4)


def test_detections_are_torchvisions(pair):
    name, ours, its, images, outputs, _, detections = pair
    size = images.shape[-2:]
    priors = ours.priors(size)
    settings = NMS(iou=its.nms_thresh, score=its.score_thresh, max_detections=50)
    boxes, scores = ours.decode(outputs, priors)
    found = settings(boxes, scores, size)
    for mine, other in zip(found, detections, strict=True):
        shift = 1 if name == "ssd" else 0  # torchvision's background is class 0
        labels, value = mine[:, 4].long() + shift, mine[:, 5]
        number = min(len(other["scores"]), 50)
        assert number > 5
        assert torch.allclose(value[:number], other["scores"][:number], atol=1e-5)
        assert torch.equal(labels[:number], other["labels"][:number])
        assert torch.allclose(mine[:number, :4], other["boxes"][:number], atol=2e-3)


def test_bad_settings_are_told():
    with pytest.raises(ValueError, match="maps of strides"):
        fcos(5, strides=(6, 12), channels=8, **NARROW)
    with pytest.raises(ValueError, match="twice the one before"):
        fcos(5, strides=(8, 32), channels=8, **NARROW)
    with pytest.raises(ValueError, match="anchor_sizes must be one for each"):
        retinanet(5, strides=(4, 8), **NARROW)
    with pytest.raises(ValueError, match="scales must be one more"):
        ssd(5, strides=(4, 8), **NARROW)
    with pytest.raises(ValueError, match="as many for each of the 2 scales, got 3"):
        yolov3(5, scales=(8, 4), anchors=ANCHORS[:3], **DARK)
    with pytest.raises(ValueError, match="'direct' or 'offset'"):
        yolov2(5, scales=(8, 4), anchors=ANCHORS, location="free", **DARK)
    with pytest.raises(ValueError, match="between 0 and 1"):
        NMS(iou=1.5)
