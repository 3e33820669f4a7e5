"""Morphology against loops over pixels: openings, closings, regions, holes, and what must stay untouched."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from cnn_train.postprocess import DenseCRF, Morphology

IGNORE = 255


def label_map(seed: int, height: int = 23, width: int = 31, classes: int = 3, ignored: bool = False) -> torch.Tensor:
    """(1, H, W): blobs with specks."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(size=(classes, height, width)), (0, 2.0, 2.0)).argmax(0)
    speckle = random.random((height, width)) < 0.06
    label = np.where(speckle, random.integers(0, classes, (height, width)), smooth)
    if ignored:
        label[random.random((height, width)) < 0.05] = IGNORE
    return torch.from_numpy(label)[None]


def clean(morphology: Morphology, rows: list[str]) -> list[str]:
    """Label maps drawn as text, a digit a pixel, `x` for ignored."""
    label = torch.tensor([[IGNORE if c == "x" else int(c) for c in row] for row in rows])[None]
    result = morphology.labels(label)[0].tolist()
    return ["".join("x" if c == IGNORE else str(c) for c in row) for row in result]


def inside_disc(radius: int) -> list[tuple[int, int]]:
    span = range(-radius, radius + 1)
    return [(y, x) for y in span for x in span if y * y + x * x <= radius * radius]


def opened_loop(region: np.ndarray, radius: int) -> np.ndarray:
    """The union of the discs that lie in the region, or in it as far as they lie in the image."""
    height, width = region.shape
    result = np.zeros_like(region)
    for y in range(height):
        for x in range(width):
            disc = [(y + dy, x + dx) for dy, dx in inside_disc(radius)]
            disc = [(a, b) for a, b in disc if 0 <= a < height and 0 <= b < width]
            if all(region[p] for p in disc):
                for p in disc:
                    result[p] = True
    return result


def regions_loop(region: np.ndarray) -> list[set[tuple[int, int]]]:
    """4-connected regions by flood fill."""
    left = {(int(y), int(x)) for y, x in zip(*region.nonzero(), strict=True)}
    found = []
    while left:
        stack, part = [left.pop()], set()
        while stack:
            y, x = stack.pop()
            part.add((y, x))
            for p in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if p in left:
                    left.remove(p)
                    stack.append(p)
        found.append(part)
    return found


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_opening_takes_what_no_disc_fits(radius: int, seed: int) -> None:
    before = label_map(seed)[0].numpy()
    after = Morphology(opening=radius).labels(torch.from_numpy(before)[None])[0].numpy()
    kept = np.zeros(before.shape, bool)
    for c in range(3):
        kept |= opened_loop(before == c, radius)
    assert 0 < kept.sum() < kept.size
    assert (after[kept] == before[kept]).all()
    # the first ring of what was taken has the majority of the kept neighbours, the lowest label of equals
    height, width = before.shape
    for y, x in zip(*(~kept).nonzero(), strict=True):
        votes = [0, 0, 0]
        for a in range(max(0, y - 1), min(height, y + 2)):
            for b in range(max(0, x - 1), min(width, x + 2)):
                votes[before[a, b]] += bool(kept[a, b])
        if sum(votes):
            assert after[y, x] == votes.index(max(votes))


@pytest.mark.parametrize("radius", [1, 2])
def test_closing_is_the_opening_of_the_rest(radius: int) -> None:
    before = label_map(2)[0].numpy()
    after = Morphology(closing=radius, classes=[1]).labels(torch.from_numpy(before)[None])[0].numpy()
    gained = ~opened_loop(before != 1, radius) & (before != 1)
    assert gained.any()
    assert (after == np.where(gained, 1, before)).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_regions_take_the_label_around_them(seed: int) -> None:
    before = label_map(seed)[0].numpy()
    after = Morphology(min_region=6).labels(torch.from_numpy(before)[None])[0].numpy()
    parts = [(c, part) for c in range(3) for part in regions_loop(before == c)]
    small = {p for _, part in parts if len(part) < 6 for p in part}
    assert small
    height, width = before.shape
    for c, part in parts:
        if len(part) >= 6:
            assert all(after[p] == c for p in part)
            continue
        border = {p for y, x in part for p in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))} - small
        votes = [0, 0, 0]
        for y, x in border:
            if 0 <= y < height and 0 <= x < width:
                votes[before[y, x]] += 1
        if sum(votes):
            assert all(after[p] == votes.index(max(votes)) for p in part)
    assert all(len(part) >= 6 for c in range(3) for part in regions_loop(after == c))


@pytest.mark.parametrize("size", [1, 5, 10**6])
def test_holes_are_filled_up_to_a_size(size: int) -> None:
    before = label_map(3, classes=2)[0].numpy()
    before[5:12, 5:12] = 1
    before[7:9, 7:9] = 0  # a hole of 4
    after = Morphology(fill_holes=size, classes=[1]).labels(torch.from_numpy(before)[None])[0].numpy()
    height, width = before.shape
    expected = before.copy()
    for part in regions_loop(before != 1):
        if len(part) <= size and not any(y in (0, height - 1) or x in (0, width - 1) for y, x in part):
            for p in part:
                expected[p] = 1
    assert (after == expected).all()
    assert (after != before).any()
    if size == 10**6:
        assert (after == ndimage.binary_fill_holes(before == 1)).all()


def test_drawn_cases() -> None:
    assert clean(Morphology(min_region=2), ["0000", "0100", "0000"]) == ["0000"] * 3
    assert clean(Morphology(min_region=2, classes=[0]), ["0000", "0100", "0000"]) == ["0000", "0100", "0000"]
    # two small regions, one inside the other: the inner one waits for the outer one
    assert clean(Morphology(min_region=9), ["000000", "001110", "001210", "001110", "000000"]) == ["000000"] * 5
    # nothing but small regions: nothing to ask
    assert clean(Morphology(min_region=99), ["01", "10"]) == ["01", "10"]
    assert clean(Morphology(fill_holes=1), ["1110", "1210", "1110"]) == ["1110", "1110", "1110"]
    assert clean(Morphology(fill_holes=1), ["1100", "1201", "1110"]) == ["1100", "1201", "1110"]
    assert clean(Morphology(closing=1, classes=[1]), ["001101100"] * 3) == ["001111100"] * 3
    # a disc of the rest reaches into this gap, from above
    assert clean(Morphology(closing=1, classes=[1]), ["0000000", "0110110"])[1] == "0110110"
    # a region on the border is not worn off there
    assert clean(Morphology(opening=1), ["1110", "1110", "1110"])[1][:2] == "11"
    assert clean(Morphology(opening=1), ["0000", "0000", "0111", "0000", "0000"]) == ["0000"] * 5


@pytest.mark.parametrize("seed", [4, 5])
def test_the_ignore_label_is_not_touched_and_gives_nothing(seed: int) -> None:
    before = label_map(seed, ignored=True)
    for step in ("opening", "closing", "min_region", "fill_holes"):
        after = Morphology(**{step: 3}, ignore_index=IGNORE).labels(before)
        assert ((after == IGNORE) == (before == IGNORE)).all()
        assert (after != before).any()
    assert clean(Morphology(fill_holes=9, ignore_index=IGNORE), ["1111", "1x21", "1111"]) == ["1111", "1x11", "1111"]
    assert clean(Morphology(min_region=2, ignore_index=IGNORE), ["xxx", "x1x", "xxx"]) == ["xxx", "x1x", "xxx"]


def test_off_is_off_and_each_map_is_its_own() -> None:
    maps = torch.cat([label_map(0), label_map(1)])
    assert torch.equal(Morphology().labels(maps), maps)
    both = Morphology(opening=1, closing=1, min_region=8, fill_holes=8)
    assert torch.equal(both.labels(maps), torch.cat([both.labels(maps[:1]), both.labels(maps[1:])]))
    assert both.labels(maps.int()).dtype == torch.int32
    assert both.labels(maps[:0]).shape == (0, 23, 31)


def test_probabilities_change_only_where_the_label_does() -> None:
    labels = label_map(0)
    scores = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    probabilities = (2 * scores).softmax(1)
    morphology = Morphology(min_region=8)
    result = morphology(torch.zeros(1, 3, 23, 31), probabilities)
    after = morphology.labels(labels)
    assert torch.equal(result.argmax(1), after)
    same = (after == labels)[:, None].expand_as(result)
    assert torch.equal(result[same], probabilities[same])
    torch.testing.assert_close(result.sum(1), torch.ones(1, 23, 31))


def test_it_chains_with_the_crf() -> None:
    labels = label_map(1)
    images = 80.0 * labels[:, None].expand(-1, 3, -1, -1)
    result = (2.0 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2)).softmax(1)
    for postprocess in (DenseCRF(), Morphology(min_region=8)):
        result = postprocess(images, result)
    assert all(len(part) >= 8 for c in range(3) for part in regions_loop(result.argmax(1)[0].numpy() == c))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="opening must not be negative, got -1"):
        Morphology(opening=-1)
    with pytest.raises(ValueError, match=r"take probabilities.argmax\(1\)"):
        Morphology().labels(torch.zeros(1, 3, 4, 4))
