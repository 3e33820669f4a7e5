"""Pictures of samples: captions stay in their tile, and have the letters of names."""

import numpy as np
import torch
from PIL import Image, ImageDraw

from cnn_train.tasks import captions
from cnn_train.tasks.pictures import classification_panel, multilabel_panel, palette, segmentation_panel

NAMES = ["American_Staffordshire_terrier_and_more", "façade", "cat"]
WIDTH, GAP = 96, 4


def test_a_caption_is_cut_to_its_tile():
    assert captions.cut("cat", 96) == "cat"
    short = captions.cut(NAMES[0], 96)
    assert short.endswith("…") and NAMES[0].startswith(short[:-1]) and captions.width_of(short) <= 96
    assert captions.width_of(NAMES[0][: len(short)] + "…") > 96
    images = torch.zeros(3, 3, 32, 32)
    for panel in (
        classification_panel(images, torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]), NAMES),
        multilabel_panel(images, torch.ones(3, 3, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool), NAMES),
    ):
        for column in range(3):
            gap = panel[:, column * (WIDTH + GAP) + WIDTH : (column + 1) * (WIDTH + GAP)]
            assert (gap == 255).all(), "a caption runs into the gap between two tiles"
            caption = panel[98:, column * (WIDTH + GAP) : column * (WIDTH + GAP) + WIDTH]
            assert (caption < 128).any()


def drawn(text: str) -> np.ndarray:
    picture = Image.new("L", (60, 16))
    captions.write(ImageDraw.Draw(picture), (0, 0), text, 60, (255,))
    return np.asarray(picture)


def test_letters_that_the_font_has_are_drawn_and_others_named():
    assert captions.pieces("façade") == [("façade", captions.font())]
    assert (drawn("ç") != drawn("c")).any() and (drawn("ç") != drawn("\uffff")).any()
    number = captions.pieces("花")
    flower = captions.font_with("花")
    assert number == ([("[82B1]", captions.font())] if flower is None else [("花", flower)])


def test_a_segmentation_panel_has_a_legend_of_what_it_shows():
    labels = torch.zeros(1, 32, 32, dtype=torch.int64)
    labels[:, :8] = 255
    predictions = torch.zeros_like(labels)
    predictions[:, -8:] = 2
    panel = segmentation_panel(torch.zeros(1, 3, 32, 32), labels, predictions, NAMES)
    below = panel[captions.LINE + WIDTH + GAP :].reshape(-1, 3)
    colours = palette(3)
    for colour, shown in ((colours[0], True), (colours[2], True), (colours[1], False), ((224, 224, 224), True)):
        assert ((below == colour).all(1).sum() >= 81) == shown, colour
