"""Detection: anchors, overlap, matching, box targets and suppression, step by step.

Boxes are (x1, y1, x2, y2) in pixels; overlaps are computed twice, by their corners and by counting pixels.
"""

import numpy as np

from cnn_train.explain.check import agree, limits, number, require
from cnn_train.explain.draw import boxes
from cnn_train.explain.page import Page

REN = "[Ren et al. 2015](https://arxiv.org/abs/1506.01497)"
SIZE, OBJECTS = 64, np.array([[12.0, 4, 34, 46], [30, 38, 62, 54]])


def explain(stride: int = 8, positive: float = 0.5, negative: float = 0.4, overlap: float = 0.5) -> Page:
    """Anchors every `stride` pixels, matched at IoU `positive` and `negative`; boxes suppressed above `overlap`."""
    limits(stride=(stride, 8, 32), positive=(positive, 0.1, 0.95), negative=(negative, 0, positive))
    limits(overlap=(overlap, 0, 1))
    require(SIZE % stride == 0, f"stride must divide the image's {SIZE} pixels, got {stride}")
    page = Page("Detection", "Many boxes are proposed, each is told what it stands for, and doubles are dropped.")

    page.head("Overlap")
    page.formula("IoU(A, B) = |A ∩ B|/|A ∪ B|,   |A ∪ B| = |A| + |B| − |A ∩ B|", "Everingham et al. 2010, equation 3")
    a, b = OBJECTS[0], np.array([16.0, 0, 40, 40])
    corners = max(0, min(a[2], b[2]) - max(a[0], b[0])), max(0, min(a[3], b[3]) - max(a[1], b[1]))
    inside = corners[0] * corners[1]
    share = agree(iou(a[None], b[None])[0, 0], counted(a[None], b[None])[0, 0], within=1e-6)
    page.say(f"""{number(a)} and {number(b)} share {number(corners[0])}×{number(corners[1])} =
        {agree(inside, (painted(a) * painted(b)).sum())} pixels, so their IoU is {share:.4f}. The ticks come from
        painting both boxes and counting.""")

    page.head("Anchors and matching")
    page.formula("object: IoU ≥ t_1, or none overlaps it more;   background: IoU < t_0", f"{REN}, section 3.1.2")
    centres = np.arange(stride // 2, SIZE, stride)
    shapes = [(16, 16), (24, 24), (16, 32), (32, 16), (24, 48)]
    middles = [(x, y) for y in centres for x in centres]
    anchors = np.array([[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y in middles for w, h in shapes])
    overlaps = agree(iou(anchors, OBJECTS), counted(anchors, OBJECTS), within=1e-6).value
    best, owner = overlaps.max(1), overlaps.argmax(1)
    mine = best >= positive
    mine[overlaps.argmax(0)] = True  # no object goes without
    empty = (best < negative) & ~mine
    total = agree(len(anchors), len(shapes) * (SIZE // stride) ** 2)
    page.say(f"""Boxes of {len(shapes)} shapes every {stride} pixels are {total} anchors. {mine.sum()} stand for one of
        the two objects and {empty.sum()} for background. The other {(~mine & ~empty).sum()}, from {negative:g} up to
        {positive:g}, are left out of the loss.""")
    chosen, middle = np.flatnonzero(mine), len(shapes) * (len(middles) // 2 + len(centres) // 2)
    page.picture("Objects, and the anchors that stand for them.",
                 boxes({"objects": OBJECTS, "anchors": anchors[chosen]}, "matched anchors", SIZE),
                 boxes({"anchors at one place": anchors[middle : middle + len(shapes)]}, "shapes", SIZE))  # fmt: skip

    page.head("What such an anchor is to say")
    page.formula("t_x = (x − x_a)/w_a,   t_w = ln(w/w_a),   likewise t_y, t_h", f"{REN}, equation 2; x is a centre")
    anchor, box = anchors[chosen], OBJECTS[owner[chosen]]
    size = anchor[:, 2:] - anchor[:, :2]
    shift = (box[:, :2] + box[:, 2:] - anchor[:, :2] - anchor[:, 2:]) / 2 / size
    stretch = np.log((box[:, 2:] - box[:, :2]) / size)
    centre, half = (anchor[:, :2] + anchor[:, 2:]) / 2 + shift * size, np.exp(stretch) * size / 2
    decoded = agree(np.hstack([centre - half, centre + half]), box)
    told, found = np.hstack([shift, stretch]), best[chosen]
    rows = [[number(anchor[i]), f"{found[i]:.3f}", number(told[i], ".2f")] for i in range(min(8, len(box)))]
    page.table(["anchor", "IoU", "$t_x$, $t_y$, $t_w$, $t_h$"], rows, f"put back, they give the objects {decoded:✓}")

    suppression(page, overlap)
    page.see(layers="torch.nn.SmoothL1Loss cnn_train.boxes.nms", networks="ssd retinanet fcos yolov2 yolov3",
             claims="docs/detection.md#what-they-learn", topics="receptive_field convolution")  # fmt: skip
    return page


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes (n, 4) and (m, 4), by their corners."""
    a, b = first[:, None], second[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inside = sides.clip(0).prod(-1)
    return inside / ((a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inside)


def painted(box: np.ndarray) -> np.ndarray:
    """A canvas, wider than the image, with the pixels of a box of whole pixels."""
    canvas = np.zeros((2 * SIZE, 2 * SIZE), dtype=np.float32)
    x1, y1, x2, y2 = (box + SIZE // 2).astype(int)
    canvas[y1:y2, x1:x2] = 1
    return canvas


def counted(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU (n, m) by counting pixels."""
    a, b = (np.array([painted(box).ravel() for box in group]) for group in (first, second))
    inside = a @ b.T
    return inside / (a.sum(1)[:, None] + b.sum(1) - inside)


def suppress(found: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """Greedy non-maximum suppression: places of the boxes that stay, best first."""
    left, kept = list(np.argsort(-scores)), []
    while left:
        kept.append(int(left.pop(0)))
        left = [place for place in left if iou(found[[kept[-1]]], found[[place]])[0, 0] <= overlap]
    return kept


def suppression(page: Page, overlap: float) -> None:
    page.head("Suppression")
    page.say("""A trained network finds an object with several anchors. Greedy suppression takes the box of the highest
        score, drops all that overlap it more than a threshold, takes the best of the rest, and so on.""")
    near = np.array([[0, 0, 0, 0], [2, 2, 2, -2], [-2, -4, -2, -10]])
    found = np.vstack([OBJECTS[0] + near, OBJECTS[1] + near[:2], [[20, 30, 46, 50]]])
    scores = np.array([0.9, 0.8, 0.75, 0.7, 0.6, 0.3])
    kept, matrix = suppress(found, scores, overlap), counted(found, found)
    stays: list[bool] = []  # the same as a recurrence: a box stays if no better one that stays overlaps it
    for place in range(len(found)):
        stays.append(not any(stays[better] and matrix[place, better] > overlap for better in range(place)))
    rows = []
    for place, box in enumerate(found):
        largest = matrix[place, :place].max(initial=0)
        rows.append([number(box), scores[place], f"{largest:.2f}", "stays" if place in kept else "dropped"])
    page.table(["box", "score", "largest IoU with a better one", ""], rows, f"threshold {overlap:g}")
    page.picture(f"Of {len(found)} boxes these stay: {agree(kept, np.flatnonzero(stays))}, counted from 0.",
                 boxes({"stay": found[kept], "dropped": np.delete(found, kept, 0)}, "suppression", SIZE))  # fmt: skip
