"""Augmentations: pure functions of (seed, epoch, index), right on label maps, and each what its name says."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cnn_train.data.augment import (
    ColorJitter,
    Compose,
    CutMix,
    Erase,
    Flip,
    Lighting,
    MixUp,
    PadCrop,
    RandAugment,
    RandomResizedCrop,
    ScaleCrop,
    Shift,
    TrivialAugment,
    flip_crop,
    random_resized_crop,
    scale_crop_flip,
    split_stages,
)
from cnn_train.data.augment.draws import beta as beta_quantiles
from cnn_train.data.augment.draws import draws
from cnn_train.data.augment.moves import nearest, resized
from cnn_train.data.data import Data, DataSet
from cnn_train.data.random import generator
from cnn_train.data.source import InMemory
from cnn_train.data.targets import TargetSpec
from cnn_train.errors import DataError

IGNORE = 255
LABELS = TargetSpec("labels", 10)
MAPS = TargetSpec("maps", 10, IGNORE)
OF_MAPS = [
    Flip(), PadCrop(4), PadCrop(3, "reflect"), flip_crop(), Shift(), Erase(), Lighting(), ColorJitter(),
    random_resized_crop(), scale_crop_flip(),
]  # fmt: skip
OF_LABELS = [*OF_MAPS, RandAugment(), TrivialAugment()]


def name(augment) -> str:
    return "-".join(type(part).__name__ for part in getattr(augment, "augments", [augment]))


def images_of(n: int, size: tuple[int, int] = (20, 24), channels: int = 3) -> torch.Tensor:
    coarse = torch.rand(n, channels, 5, 6, generator=generator(4))
    return (F.interpolate(coarse, size, mode="bilinear") * 255).to(torch.uint8)


def maps_of(n: int, size: tuple[int, int] = (20, 24)) -> torch.Tensor:
    return torch.randint(0, 10, (n, *size), generator=generator(5))


@pytest.mark.parametrize("augment", OF_LABELS, ids=name)
def test_pure_function_of_seed_epoch_and_index(augment):
    images, labels, indices = images_of(8), torch.arange(8), torch.arange(100, 108)
    whole, targets = augment(images, labels, indices, 3, 1, LABELS)
    assert whole.dtype == torch.uint8 and whole.shape == images.shape and torch.equal(targets, labels)
    order = torch.tensor([6, 2, 5])
    torch.manual_seed(99)
    state = torch.get_rng_state()
    some, _ = augment(images[order], labels[order], indices[order], 3, 1, LABELS)
    assert torch.equal(some, whole[order])
    assert torch.equal(state, torch.get_rng_state())
    for epoch, seed in ((4, 1), (3, 2)):
        other, _ = augment(images, labels, indices, epoch, seed, LABELS)
        assert not torch.equal(other, whole)


@pytest.mark.parametrize("augment", OF_MAPS, ids=name)
def test_a_label_map_moves_with_its_image(augment):
    # The image shows the map: wherever a label is left, the image must show that label.
    maps = torch.zeros(16, 24, 24, dtype=torch.int64)
    maps[:, 6:18, 4:12] = 1
    images = (maps * 200 + 20).to(torch.uint8).unsqueeze(1).repeat(1, 3, 1, 1)
    changed, targets = augment(images, maps, torch.arange(16), 0, 0, MAPS)
    assert targets.dtype == torch.int64 and set(targets.unique().tolist()) <= {0, 1, IGNORE}
    if isinstance(augment, Lighting | ColorJitter):
        assert torch.equal(targets, maps)
        return
    shown = (changed.float().mean(1) - 20) / 200
    inside = targets != IGNORE
    wrong = ((shown - targets).abs() > 0.5) & inside
    assert inside.float().mean() > 0.3
    assert wrong.float().mean() < 0.02  # pixels at an edge may fall either way


def test_padding_and_erasing_are_ignored_in_maps():
    maps = maps_of(64)
    ones = torch.full((64, 3, 20, 24), 9, dtype=torch.uint8)
    for augment in (PadCrop(4), Shift(30, 0.3), ScaleCrop((0.5, 0.5)), Erase(1.0, fill="zero")):
        images, targets = augment(ones, maps, torch.arange(64), 0, 0, MAPS)
        outside = (images == 0).all(1)
        assert outside.any() and (targets[outside] == IGNORE).all()
        assert (targets[(images == 9).all(1)] != IGNORE).float().mean() > 0.98


@pytest.mark.parametrize("ignore", [255, -100])
def test_shift_by_nothing_is_the_identity(ignore):
    images, maps = images_of(4), maps_of(4)
    same, targets = Shift(0, 0, 0, 0)(images, maps, torch.arange(4), 0, 0, TargetSpec("maps", 10, ignore))
    assert torch.equal(same, images) and torch.equal(targets, maps)


def test_shift_turns_like_torchvision():  # but clockwise
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import rotate

    images = images_of(6, (21, 30))
    augment = Shift(40, 0, 0, 0)
    got, _ = augment(images, torch.zeros(6), torch.arange(6), 0, 0, LABELS)
    angles = (draws(augment, 0, 0, torch.arange(6), 5)[:, 0] * 2 - 1) * 40
    for image, angle, turned in zip(images, angles.tolist(), got, strict=True):
        wanted = rotate(image, -angle, InterpolationMode.BILINEAR)
        assert (turned.int() - wanted.int()).abs().float().mean() < 0.6


def test_flip_mirrors_half_of_the_samples():
    images, maps = images_of(400), maps_of(400)
    flipped, targets = Flip()(images, maps, torch.arange(400), 0, 0, MAPS)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert (mirrored | kept).all() and 160 < mirrored.sum() < 240
    assert torch.equal(targets[mirrored], maps.flip(-1)[mirrored]) and torch.equal(targets[kept], maps[kept])


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_crops_come_from_everywhere(mode):
    images = images_of(600, (9, 11))
    padded = F.pad(images, (2,) * 4, mode="constant" if mode == "zeros" else "reflect")
    cropped, _ = PadCrop(2, mode)(images, torch.zeros(600), torch.arange(600), 0, 0, LABELS)
    counts = torch.zeros(5, 5)
    for image, source in zip(cropped, padded, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(image, source[:, y : y + 9, x : x + 11])]
        assert places
        counts[places[0]] += 1
    assert counts.min() > 8 and counts.max() < 48  # 24 each on average


def test_reflection_wider_than_the_image_is_refused():
    with pytest.raises(DataError, match="padding=4"):
        PadCrop(4, "reflect")(images_of(1, (4, 4)), torch.zeros(1), torch.arange(1), 0, 0, LABELS)


def test_erased_boxes_have_the_areas_and_shapes_of_the_paper():
    ones = torch.full((500, 1, 64, 64), 7, dtype=torch.uint8)
    augment = Erase(0.5, (0.02, 0.4), (0.3, 1 / 0.3), "zero")
    erased = augment(ones, torch.zeros(500), torch.arange(500), 0, 0, LABELS)[0][:, 0] == 0
    hit = erased.flatten(1).any(1)
    assert 0.42 < hit.float().mean() < 0.58
    area = erased[hit].float().mean((1, 2))
    height, width = erased[hit].any(2).sum(1), erased[hit].any(1).sum(1)
    assert torch.equal((height * width).float() / 64**2, area)  # a full rectangle
    assert area.min() > 0.015 and area.max() < 0.42 and abs(area.mean().item() - 0.2) < 0.03
    ratio = height / width
    assert ratio.min() > 0.25 and ratio.max() < 4 and abs(ratio.log().mean().item()) < 0.15


def test_lighting_follows_the_principal_components():
    grey = torch.full((4000, 3, 1, 1), 128, dtype=torch.uint8)
    lit, _ = Lighting(0.5)(grey, torch.zeros(4000), torch.arange(4000), 0, 0, LABELS)
    offset = (lit.double() - 128).flatten(1) / 255
    vectors = torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], dtype=torch.float64
    )
    along = offset @ vectors
    wanted = 0.5 * torch.tensor([0.2175, 0.0188, 0.0045], dtype=torch.float64)
    torch.testing.assert_close(along.std(0), wanted, rtol=0.08, atol=5e-4)
    with pytest.raises(DataError, match="RGB"):
        Lighting()(grey[:, :1], torch.zeros(4000), torch.arange(4000), 0, 0, LABELS)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_beta_quantiles(alpha):
    from scipy.stats import beta

    numbers = torch.linspace(0.001, 0.999, 201)
    torch.testing.assert_close(
        beta_quantiles(numbers, alpha).double(),
        torch.from_numpy(beta.ppf(numbers.double().numpy(), alpha, alpha)),
        rtol=0,
        atol=3e-4,
    )


def test_mixup_blends_images_and_labels_alike():
    images, labels = images_of(32), torch.arange(32) % 10
    mixed, targets = MixUp(1.0)(images, labels, torch.arange(32), 0, 0, LABELS)
    assert targets.shape == (32, 10) and targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(32))
    share = targets[torch.arange(32), labels]
    assert (share[1:] < 1).all() and share.std() > 0.2
    weight = share.view(-1, 1, 1, 1)
    wanted = images * weight + images.roll(1, 0) * (1 - weight)
    assert (mixed - wanted).abs().max() <= 0.51


def test_cutmix_pastes_the_area_that_the_labels_say():
    images = (torch.arange(32, dtype=torch.uint8) * 8).view(-1, 1, 1, 1).repeat(1, 3, 20, 24)
    labels = torch.arange(32) % 10
    mixed, targets = CutMix()(images, labels, torch.arange(32), 0, 0, LABELS)
    own = (mixed == images).all(1).float().mean((1, 2))
    torch.testing.assert_close(targets[torch.arange(32), labels], own)
    torch.testing.assert_close(targets[torch.arange(32), labels.roll(1)], 1 - own)
    assert 0.3 < own.mean() < 0.85


def test_soft_targets_pass_through_a_second_mix():
    both = Compose([MixUp(1.0), CutMix()])
    _, targets = both(images_of(8), torch.arange(8), torch.arange(8), 0, 0, LABELS)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))


def test_what_needs_labels_is_refused_for_maps():
    split = InMemory(images_of(4), maps_of(4).to(torch.uint8))
    splits, names = dict.fromkeys(("train", "val", "test"), split), [str(i) for i in range(10)]
    data_set = DataSet("toy", "maps", splits, names, 3, (20, 24))
    for augment in (MixUp(), CutMix(), RandAugment(), TrivialAugment(), Compose([Flip(), MixUp()])):
        with pytest.raises(DataError, match="label maps"):
            Data(data_set, augment=augment)


def test_crops_bring_any_image_to_size():
    image, label_map = images_of(1, (50, 37))[0], maps_of(1, (50, 37))[0]
    for augment in (RandomResizedCrop(), ScaleCrop(), ScaleCrop((0.1, 0.2)), ScaleCrop((3.0, 5.0))):
        for index in range(5):
            got, labels = augment.one(image, label_map, (33, 48), index, 0, 0, MAPS)
            assert got.shape == (3, 33, 48) and got.dtype == torch.uint8 and labels.shape == (33, 48)
            assert set(labels.unique().tolist()) <= {*range(10), IGNORE}


def test_scale_crop_scales_by_the_factor():
    square = torch.zeros(1, 60, 60, dtype=torch.uint8)
    square[:, 20:40, 20:40] = 250
    for factor in (0.5, 1.5):
        got, _ = ScaleCrop((factor, factor)).one(square, torch.tensor(0), (120, 120), 0, 0, 0, LABELS)
        assert abs(math.sqrt((got > 125).sum().item()) - 20 * factor) < 1.5


def test_a_sample_is_the_same_in_a_worker_and_in_a_batch():
    images = images_of(4)
    for augment in (ColorJitter(), RandAugment(), RandomResizedCrop()):
        batch, _ = augment(images, torch.zeros(4), torch.arange(4), 2, 7, LABELS)
        for index in range(4):
            alone, _ = augment.one(images[index], torch.tensor(0), (20, 24), index, 2, 7, LABELS)
            assert torch.equal(alone, batch[index])


def test_stages_split_at_the_first_batch_augmentation():
    crop, flip, jitter = RandomResizedCrop(), Flip(), ColorJitter()
    first, rest = split_stages(Compose([crop, jitter, flip, RandAugment()]))
    assert first == [crop, jitter] and isinstance(rest, Compose) and rest.augments[0] is flip
    assert split_stages(None) == ([], None) and split_stages(crop) == ([crop], None)
    assert split_stages(flip)[0] == []


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "conf/augment").glob("*.yaml")), ids=lambda p: p.stem
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_choice_of_the_config_builds_and_runs(path, channels):
    from cnn_train.config.build import build
    from cnn_train.config.compose import compose

    augment = build(compose([f"augment={path.stem}"]).augment)
    if augment is None or (channels == 1 and path.stem in ("lighting", "imagenet")):
        return
    spec, targets = (LABELS, torch.arange(3)) if "labels" in augment.supports else (MAPS, maps_of(3))
    images, _ = augment(images_of(3, channels=channels), targets, torch.arange(3), 0, 0, spec)
    assert images.shape == (3, channels, 20, 24) and images.dtype == torch.uint8


@pytest.mark.parametrize("size", [(10, 12), (20, 24), (33, 7), (64, 64)])
def test_resizing_is_torchvisions_to_the_bit(size):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    images, maps = images_of(3), maps_of(3)
    assert torch.equal(resized(images, size), functional.resize(images, list(size), antialias=True))
    assert torch.equal(resized(images[0], size), functional.resize(images[0], list(size), antialias=True))
    expected = functional.resize(maps, list(size), InterpolationMode.NEAREST_EXACT)
    assert torch.equal(nearest(maps, size), expected)


def test_parts_of_random_area_are_drawn_as_torchvision_draws_them():
    from torchvision.transforms.v2 import RandomResizedCrop as Reference

    crop, image = RandomResizedCrop((0.08, 1.0)), torch.zeros(3, 50, 90, dtype=torch.uint8)
    for area, ratio in (((0.08, 1.0), (3 / 4, 4 / 3)), ((0.9, 1.0), (1 / 9, 1 / 8))):
        crop, reference = RandomResizedCrop(area, ratio), Reference((10, 10), scale=area, ratio=ratio)
        for seed in range(40):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                expected = reference.make_params([image])
                torch.manual_seed(seed)
                assert crop._part(50, 90) == tuple(expected[key] for key in ("top", "left", "height", "width"))
