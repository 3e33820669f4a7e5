"""The networks of conf/model in Markdown tables, from the code: paper, parameters, multiply-adds, receptive field.

    python benchmarks/zoo_table.py [--write] [model ...]

Networks are built and followed on the meta device, which computes nothing. `--write` puts the tables between the
markers of docs/zoo.md; without it, and for chosen models, they are printed.
"""

import argparse
import importlib
import inspect
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from cnn_train.analysis import trace
from cnn_train.analysis.graph import Graph
from cnn_train.choices import Choices
from cnn_train.config import build, build_layers, compose

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
BEGIN, END = "<!-- tables: benchmarks/zoo_table.py --write -->", "<!-- end of tables -->"
LIBRARIES = {"timm", "torchvision"}

# Classes and image size of the data that each kind of network was published on; others 1000 classes at 224 pixels.
SMALL = {"lenet5": 32, "lstm": 28}
NATIVE = {"inception_v3", "inception_v4", "inception_resnet_v2", "xception", "xception41", "xception65", "xception71"}
VOC_CLASSES, VOC_SIZE = 21, 513

# Top-1 errors in percent as their authors published them, and where: one 224-pixel crop of ImageNet's validation images
# (Xception: 299 pixels), or CIFAR-10's test images with mirrored and shifted training images.
SOURCES = {
    "A": "README of deep-residual-networks (with `model.stride_in_1x1=true`); VGG-16 as MatConvNet has it, given there",
    "B": "README of wide-residual-networks, median of five runs on CIFAR-10",
    "C": "README of DenseNet",
    "D": "README of ResNeXt",
    "E": "README of SENet (with `model.variant=release`)",
    "F": "documentation of Keras, the author's release",
    "T": "torchvision's first weights (`IMAGENET1K_V1`), where the authors have not published this network's",
}
PUBLISHED = {
    "vgg16": ("28.5", "A"),
    "resnet50": ("24.7", "A"),
    "resnet101": ("23.6", "A"),
    "resnet152": ("23.0", "A"),
    "preact_resnet164": ("5.46", "B"),
    "wide_resnet50_2": ("21.9", "B"),
    "wrn_28_10": ("4.00", "B"),
    "densenet121": ("25.0", "C"),
    "densenet161": ("22.2", "C"),
    "densenet169": ("23.6", "C"),
    "densenet201": ("22.5", "C"),
    "densenet_bc_100_12": ("4.51", "C"),
    "densenet_bc_190_40": ("3.46", "C"),
    "resnext50_32x4d": ("22.2", "D"),
    "seresnet50": ("22.37", "E"),
    "seresnext50_32x4d": ("20.97", "E"),
    "senet154": ("18.68", "E"),
    "xception": ("21.0", "F"),
}
# Networks of torchvision that the authors' figures do not cover.
TORCHVISION = {
    "alexnet", "vgg11", "vgg13", "vgg19", "googlenet", "inception_v3", "resnet18", "resnet34", "resnext101_32x8d",
    "wide_resnet101_2", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One network at the classes and the image size that it was published for."""

    model: str
    title: str
    paper: str
    year: int
    segments: bool
    size: int
    parameters: int
    multiply_adds: int
    receptive_field: int | None
    error: str


def models() -> list[str]:
    return [name for name in Choices.find().options("model") if name not in LIBRARIES]


def describe(model: str) -> Row:
    """Build and follow one network."""
    cfg = compose([f"model={model}"])
    module_name, _, name = cfg.model._target_.rpartition(".")
    module = importlib.import_module(module_name)
    segments = ".segmentation." in module_name
    title = Choices.find().describe("model", model)
    paper, year = reference(inspect.getdoc(module) or "", title)
    default = inspect.signature(getattr(module, name)).parameters
    channels = default["in_channels"].default if "in_channels" in default else 3
    num_classes = VOC_CLASSES if segments else default["num_classes"].default
    with torch.device("meta"):
        network = build(cfg.model, num_classes=num_classes, in_channels=channels, layers=build_layers(cfg))
    usual = 299 if model in NATIVE else 32 if num_classes == 10 else 224
    size = VOC_SIZE if segments else SMALL.get(model, usual)
    graph = trace(network, (channels, size, size))
    return Row(
        model=model,
        title=re.split(r" \(|;", title)[0],
        paper=paper,
        year=year,
        segments=segments,
        size=size,
        parameters=graph.parameters,
        multiply_adds=graph.multiply_adds,
        receptive_field=last_field(graph),
        error=error(model),
    )


def reference(docstring: str, description: str) -> tuple[str, int]:
    """The authors, linked to their paper, and its year: as the YAML's description names them, else the docstring."""
    named = re.search(r"\(([^()]+?) ((?:19|20)\d\d)\b", description)
    if named is None:
        named = re.search(r':\s+([^"]+?),\s+".*?\b((?:19|20)\d\d)\b', docstring, re.DOTALL)
    assert named is not None, f"no authors and year in {description!r}, nor in {docstring[:80]!r}"
    authors, year = " ".join(named[1].split()), named[2]
    # The address that stands right behind the year, which may be that of two venues.
    url = re.search(rf"\b{year}\b.{{0,30}}?(https?://[^\s,()]+[^\s,().])", docstring, re.DOTALL)
    return (f"[{authors}]({url[1]})" if url else authors), int(year)


def last_field(graph: Graph) -> int | None:
    """Side in pixels of what a unit of the last map sees, global operations left out; None without sliding windows.

    The last map is the scores' for segmentation, and for classification what global pooling or a dense layer reads.
    """
    if not any(row.kernel_size for row in graph.rows):
        return None
    maps = [
        row
        for row in graph.rows
        if row.node is not None
        and row.output_shape is not None
        and len(row.output_shape) == 3
        and not any(sight.collapsed for sight in graph.nodes[row.node].sights)
    ]
    return maps[-1].local_receptive_field[0] if maps and maps[-1].local_receptive_field else None


def error(model: str) -> str:
    """Published top-1 error in percent with the letter of its source; "-" where none was found."""
    if model in PUBLISHED:
        value, source = PUBLISHED[model]
        return f"{value} {source}"
    if model in TORCHVISION:
        from torchvision.models import get_model_weights

        accuracy = get_model_weights(model)["IMAGENET1K_V1"].meta["_metrics"]["ImageNet-1K"]["acc@1"]
        return f"{100 - accuracy:.1f} T"
    return "-"


def line(row: Row) -> str:
    """One row of a table."""
    field = "-" if row.receptive_field is None else f"{row.receptive_field:,}"
    cells = [f"`{row.model}`", row.title, f"{row.paper} {row.year}", f"{row.size}", f"{row.parameters:,}"]
    cells += [amount(row.multiply_adds), field]
    cells += [] if row.segments else [row.error]
    return f"| {' | '.join(cells)} |"


def amount(number: int) -> str:
    """Three digits with M (1e6) or G (1e9)."""
    unit, letter = (1e9, "G") if number >= 1e9 else (1e6, "M")
    value = number / unit
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f} {letter}"


def tables(rows: list[Row]) -> str:
    """Both tables, by year, and the sources of the errors."""
    parts = []
    for segments, heading in ((False, "Classification"), (True, "Segmentation")):
        chosen = sorted((r for r in rows if r.segments == segments), key=lambda r: (r.year, r.paper, r.parameters))
        if not chosen:
            continue
        names = ["`model=`", "network", "paper", "pixels", "parameters", "multiply-adds", "receptive field"]
        names += [] if segments else ["top-1 error, %"]
        rules = ["---"] * 3 + ["---:"] * (len(names) - 3)
        parts.append(f"## {heading}\n\n| {' | '.join(names)} |\n| {' | '.join(rules)} |")
        parts[-1] += "".join(f"\n{line(row)}" for row in chosen)
        used = {row.error.split()[-1] for row in chosen if not segments}
        if used & SOURCES.keys():
            found = [f"{letter}: {text}." for letter, text in SOURCES.items() if letter in used]
            parts.append("Errors are as published, not measured here. " + " ".join(found))
    return "\n\n".join(parts) + "\n"


def write(text: str) -> None:
    """Put the tables between the markers of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The networks in Markdown tables, from the code.")
    parser.add_argument("models", nargs="*", help="names of conf/model; none: all")
    parser.add_argument("--write", action="store_true", help="put the tables of all models into docs/zoo.md")
    arguments = parser.parse_args()
    if arguments.write and arguments.models:
        parser.error("--write is for all models; leave the names out")
    result = tables([describe(model) for model in arguments.models or models()])
    if arguments.write:
        write(result)
    else:
        print(result, end="")
