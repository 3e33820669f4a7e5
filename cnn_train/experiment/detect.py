"""Objects that a trained network finds in images of any size, and the files that they are written to."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor, nn

from cnn_train.atomic import write_text
from cnn_train.boxes import clip
from cnn_train.data.data import scale_and_shift
from cnn_train.data.images import Reader, bring_to_size, visible
from cnn_train.errors import DataError
from cnn_train.postprocess.nms import NMS
from cnn_train.tasks.box_losses import wide
from cnn_train.tasks.pictures import draw_boxes, palette, save_picture, to_rgb
from cnn_train.text import csv_text

FORMATS = ("csv", "coco", "voc", "yolo")


class Found(NamedTuple):
    """An image's file name, its (height, width), and its detections (n, 6): x1, y1, x2, y2, class, score."""

    image: str
    size: tuple[int, int]
    rows: Tensor


@dataclass(frozen=True)
class Finder:
    """A trained network with what an image goes through before and after it.

    `preprocessing` is the checkpoint's. A detection of class k is kept if its score is at least `thresholds[k]`.
    """

    network: nn.Module
    preprocessing: Mapping[str, Any]
    postprocess: NMS
    thresholds: Sequence[float]
    class_names: Sequence[str]

    def read(self, path: Path) -> Tensor:
        """An image's file as (C, H, W) uint8."""
        return Reader.of(self.preprocessing)(path)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Detections (n, 6), the best first, in the pixels of an image (C, H, W) uint8; on the CPU."""
        how, own = self.preprocessing, (image.size(1), image.size(2))
        device = next(iter(self.network.parameters()), torch.empty(0)).device
        height, width = how["image_size"]
        move = bring_to_size(own, (height, width), how["resize"])
        scale, shift = scale_and_shift(how["mean"], how["std"])
        images = (move.images(image) * scale + shift)[None].to(device)
        size = images.size(-2), images.size(-1)
        boxes, scores = boxes_and_scores(self.network, images)
        found = self.postprocess(boxes, scores, size)[0].cpu()
        found = found[found[:, 4] >= 0]
        found = found[found[:, 5] >= torch.tensor(self.thresholds)[found[:, 4].long()]]
        (right, _, x), (_, down, y) = move.matrix(own).tolist()
        corners = (found[:, :4] - torch.tensor([x, y, x, y])) / torch.tensor([right, down, right, down])
        corners = clip(corners, own)
        found = torch.cat([corners, found[:, 4:]], 1)
        return found[(corners[:, 2:] > corners[:, :2]).all(1)]


def thresholds_of(state: Mapping[str, Any]) -> list[float]:
    """Each class's score of best F1 in the validation of a checkpoint; 0.3 where there is none."""
    table = state.get("per_class", {}).get("val", {})
    return list(table.get("threshold") or [0.3] * len(state["class_names"]))


def boxes_and_scores(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Corners (N, P, 4) in pixels and probabilities (N, P, K) of all priors, of normalized images (N, C, H, W).

    An exported file gives them as one tensor, side by side.
    """
    outputs = network(images)
    if isinstance(outputs, Tensor):
        return outputs[..., :4], outputs[..., 4:]
    return network.decode(wide(outputs), network.priors((images.size(-2), images.size(-1)), images.device))


def detect(
    finder: Finder, images: Iterable[tuple[Path, Path]], results: Path, form: str = "csv", strict: bool = False
) -> list[Found]:
    """Find objects in image files, and write detections.csv, overlays/ and, in another `form`, that too.

    An image comes with what it is called in the results. One that cannot be read gets a row with an error, and
    DataError is raised after all others are done; with `strict` at once.
    """
    class_names = finder.class_names
    colours = [tuple(colour) for colour in palette(len(class_names) + 1)[1:].tolist()]
    every: list[Found] = []
    failed: dict[str, str] = {}
    for path, name in images:
        try:
            image = finder.read(path)
        except DataError as error:
            if strict:
                raise
            failed[path.name] = str(error)
            continue
        rows = finder(image)
        every.append(Found(path.name, (image.size(1), image.size(2)), rows))
        said = [(row, f"{class_names[int(row[4])]} {float(row[5]):.2f}", colours[int(row[4])]) for row in rows]
        picture = draw_boxes(to_rgb(visible(image)[None].float() / 255, side=1)[0], said)
        save_picture(picture, results / "overlays" / (name.as_posix() + ".png"))
    write_csv(every, class_names, results, failed)
    if form != "csv":
        {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}[form](every, class_names, results)
    if failed:
        more = f" (and {len(failed) - 1} more like it)" if len(failed) > 1 else ""
        raise DataError(
            f"{next(iter(failed.values()))}{more}; {len(every)} of {len(every) + len(failed)} images are predicted in "
            f"{results}"
        )
    return every


def write_csv(
    every: Sequence[Found], class_names: Sequence[str], results: Path, failed: Mapping[str, str] | None = None
) -> None:
    """detections.csv: a row for each detection, in pixels; an image without one has a row without a class.

    With `failed` images there is a last column, their errors.
    """
    table: list[list[object]] = [["image", "class", "score", "x1", "y1", "x2", "y2"]]
    for image, _, rows in every:
        table += [[image, class_names[int(row[4])], *map(number, (row[5], *row[:4]))] for row in rows]
        if not len(rows):
            table.append([image, "", "", "", "", "", ""])
    if failed:
        table = [[*row, "" if i else "error"] for i, row in enumerate(table)]
        table += [[image, "", "", "", "", "", "", error] for image, error in failed.items()]
    save(results / "detections.csv", csv_text(table))


def save(path: Path, text: str) -> None:
    """Write a file whose folder is made where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def number(value: Tensor) -> str:
    """Digits enough to read the same float32 again."""
    return f"{float(value):.9g}"


def write_coco(every: Sequence[Found], class_names: Sequence[str], results: Path) -> None:
    """detections.json: images, categories and annotations with a score, as COCO's files of objects have them."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, (image, (height, width), rows) in enumerate(every, start=1):
        images.append({"id": index, "file_name": image, "width": width, "height": height})
        for x1, y1, x2, y2, label, score in rows.tolist():
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append({
                "id": len(annotations) + 1, "image_id": index, "category_id": int(label) + 1, "bbox": box,
                "area": box[2] * box[3], "iscrowd": 0, "score": score,
            })  # fmt: skip
    categories = [{"id": index, "name": name} for index, name in enumerate(class_names, start=1)]
    whole = {"images": images, "categories": categories, "annotations": annotations}
    save(results / "detections.json", json.dumps(whole) + "\n")


def write_voc(every: Sequence[Found], class_names: Sequence[str], results: Path) -> None:
    """Annotations/<image>.xml as PASCAL VOC has them: the first pixel is 1, and the last one belongs to a box."""
    for image, (height, width), rows in every:
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = image
        size = ElementTree.SubElement(root, "size")
        for name, value in (("width", width), ("height", height), ("depth", 3)):
            ElementTree.SubElement(size, name).text = str(value)
        for x1, y1, x2, y2, label, score in rows.tolist():
            entry = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(entry, "name").text = class_names[int(label)]
            ElementTree.SubElement(entry, "difficult").text = "0"
            ElementTree.SubElement(entry, "score").text = repr(score)
            box = ElementTree.SubElement(entry, "bndbox")
            for name, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
                ElementTree.SubElement(box, name).text = repr(value)
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode")
        save(results / "Annotations" / (Path(image).stem + ".xml"), text + "\n")


def write_yolo(every: Sequence[Found], class_names: Sequence[str], results: Path) -> None:
    """labels/<image>.txt: class, centre x and y, width and height as parts of the image; the names in data.yaml."""
    for image, (height, width), rows in every:
        lines = []
        for x1, y1, x2, y2, label, _ in rows.tolist():
            values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join([str(int(label)), *map(repr, values)]) + "\n")
        save(results / "labels" / (Path(image).stem + ".txt"), "".join(lines))
    names = "".join(f"  {index}: {json.dumps(name)}\n" for index, name in enumerate(class_names))
    save(results / "data.yaml", "names:\n" + names)
